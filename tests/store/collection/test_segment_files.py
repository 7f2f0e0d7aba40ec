"""Segments on disk: equal to those in memory, written atomically, and not used if damaged."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedserve.errors import DiskFull, StoreError
from embedserve.index.ids import PackedIds
from embedserve.index.rows import Rows
from embedserve.index.search_params import SearchParams
from embedserve.index.segment import ALL_REACHABLE, Segment
from embedserve.index.snapshot import Snapshot
from embedserve.index.spec import parse
from embedserve.store.local.collection.segment_files import SegmentFiles
from embedserve.store.local.records.files import read_document, write_document
from tests.logged import logged
from tests.store.store_cases import random_units

D = 12
KINDS = ["exact", "hnsw:m=8", "ivf:nlist=10"]


def never() -> bool:
    return False


def rows(first: int, count: int) -> Rows:
    rids = np.arange(first, first + count, dtype=np.int64)
    ids = PackedIds.of(f"bild-{rid}-ü".encode() for rid in rids)
    return Rows(random_units(count, D, first), rids, ids, None, count)


def segment(uid: str, kind: str = "exact", first: int = 1, count: int = 600) -> Segment:
    return Segment.build(uid, parse(kind), [rows(first, count)], D, never)


@pytest.fixture
def files(tmp_path: Path) -> SegmentFiles:
    return SegmentFiles(tmp_path, D, "f" * 64)


def used(files: SegmentFiles, *segments: Segment, seq: int = 7) -> list[Segment]:
    written = [files.write(each, seq) for each in segments]
    files.use(written, seq)
    return written


def answers(of: Segment, params: SearchParams) -> list[tuple[list[int], list[float]]]:
    rankings = Snapshot.of(1, D, [of]).nearest(random_units(20, D, 99), 10, params=params)
    return [(ranking.rids.tolist(), ranking.scores.tolist()) for ranking in rankings]


def mapped_files() -> set[str]:
    return {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_segment_is_the_one_that_was_built(files: SegmentFiles, kind: str) -> None:
    built = segment("a" * 32, kind)
    (written,) = used(files, built)
    (loaded,), seq = files.load()
    assert seq == 7
    for other in (written, loaded):
        assert np.array_equal(other.vectors, built.vectors)
        assert np.array_equal(other.rids, built.rids)
        assert list(other.ids) == list(built.ids)
        assert (other.uid, other.spec, other.points) == (built.uid, built.spec, built.points)
        assert (other.live, other.deleted, len(other)) == (600, 0, 600)
        assert not other.vectors.flags.writeable
        for params in (SearchParams(ef=12, nprobe=2), SearchParams(target_recall=0.9), SearchParams(exact=True)):
            assert answers(other, params) == answers(built, params)
    assert files.problems("a" * 32) == []


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_mapped_and_held_no_longer_than_their_segment(files: SegmentFiles, kind: str) -> None:
    built = segment("a" * 32, kind)
    gc.collect()
    before, handles = mapped_files(), len(list(Path("/proc/self/fd").iterdir()))
    (written,) = used(files, built)
    of_vectors = {"exact": {"vectors.f32"}, "hnsw": {"index.faiss"}, "ivf": {"vectors.f32", "index.faiss"}}
    names = {Path(path).name for path in mapped_files() - before}
    assert names == {"rids.i64", "ids.utf8", "ids.ends.i64"} | of_vectors[kind.partition(":")[0]]
    vectors = written.vectors
    right = vectors.copy()
    del written
    gc.collect()
    # A reader of the vectors keeps their memory mapped, even after the files are removed.
    files.remove_others(set())
    assert np.array_equal(vectors, right)
    del vectors
    gc.collect()
    assert mapped_files() <= before
    assert len(list(Path("/proc/self/fd").iterdir())) <= handles


def test_segments_are_loaded_in_order_and_others_are_removed(files: SegmentFiles) -> None:
    first, second, third = (segment(uid * 32, first=start, count=5) for uid, start in (("c", 1), ("a", 10), ("b", 20)))
    used(files, first, second, third)
    files.use([third, first], 9)
    assert sorted(path.name for path in files.directory.iterdir()) == ["CURRENT.json", "b" * 32, "c" * 32]
    loaded, seq = files.load()
    assert ([each.uid[0] for each in loaded], seq) == (["b", "c"], 9)
    files.use([], 10)
    assert files.load() == ([], 10)


def test_without_segments_nothing_is_loaded(files: SegmentFiles) -> None:
    assert files.load() == ([], 0)
    files.directory.mkdir()
    assert files.load() == ([], 0)


def test_a_start_removes_directories_that_are_not_listed(files: SegmentFiles) -> None:
    used(files, segment("a" * 32, count=3))
    files.write(segment("b" * 32, count=3), 8)
    (files.directory / ("c" * 32 + ".tmp")).mkdir()
    (files.directory / ("c" * 32 + ".tmp") / "vectors.f32").write_bytes(b"half")
    assert [each.uid[0] for each in files.load()[0]] == ["a"]
    assert sorted(path.name for path in files.directory.iterdir()) == ["CURRENT.json", "a" * 32]


# --- Damage ---------------------------------------------------------------------------


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def rewritten(**changes: Any) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        write_document(path, {**read_document(path), **changes})

    return rewrite


def without_field(path: Path) -> None:
    document = read_document(path)
    del document["rows"]
    write_document(path, document)


DAMAGE = [
    *[(name, how) for name in ("rids.i64", "ids.utf8", "ids.ends.i64", "index.faiss") for how in (flipped, cut)],
    *[("manifest.json", how) for how in (flipped, cut, Path.unlink, without_field)],
    ("vectors.f32", Path.unlink),
    *[
        ("manifest.json", rewritten(**{key: value}))
        for key, value in {
            "format": 2,
            "uid": "b" * 32,
            "dimension": 13,
            "fingerprint": "e" * 64,
            "rows": 599,
            "index": "pq",
            "files": {},
            "points": [1],
        }.items()
    ],
]


@pytest.mark.parametrize(("name", "harm"), DAMAGE)
def test_a_damaged_segment_is_left_out_and_logged_and_the_others_are_used(
    files: SegmentFiles, caplog: pytest.LogCaptureFixture, name: str, harm: Callable[[Path], None]
) -> None:
    used(files, segment("a" * 32, "ivf:nlist=10"), segment("d" * 32, "hnsw:m=8", first=1000))
    harm(files.directory / ("a" * 32) / name)
    with caplog.at_level(logging.WARNING):
        loaded, seq = files.load()
    assert ([each.uid[0] for each in loaded], seq) == (["d"], 7)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is rebuilt from the items" in caplog.text
    assert not (files.directory / ("a" * 32)).exists()


@pytest.mark.parametrize("name", ["rids.i64", "ids.utf8", "ids.ends.i64", "index.faiss", "vectors.f32"])
def test_problems_name_the_file(files: SegmentFiles, name: str) -> None:
    used(files, segment("a" * 32, "ivf:nlist=10"))
    path = files.directory / ("a" * 32) / name
    flipped(path)
    (problem,) = files.problems("a" * 32)
    assert str(path) in problem
    assert "hash" in problem
    cut(path)
    assert "bytes, not" in files.problems("a" * 32)[0]
    path.unlink()
    assert files.problems("a" * 32) == [f"{path} is missing"]
    assert len(files.problems("b" * 32)) == 1


@pytest.mark.parametrize("harm", [flipped, cut, rewritten(format=2), rewritten(seq="x"), rewritten(segments=None)])
def test_without_a_readable_list_no_segment_is_used(
    files: SegmentFiles, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    used(files, segment("a" * 32, count=5))
    harm(files.directory / "CURRENT.json")
    with caplog.at_level(logging.WARNING):
        assert files.load() == ([], 0)
    assert "an index is rebuilt from the items" in caplog.text


def test_a_listed_segment_that_is_missing_is_left_out(files: SegmentFiles, caplog: pytest.LogCaptureFixture) -> None:
    used(files, segment("a" * 32, count=5), segment("b" * 32, count=5, first=10))
    shutil.rmtree(files.directory / ("a" * 32))
    assert [each.uid[0] for each in files.load()[0]] == ["b"]
    assert "a" * 32 in logged(caplog)


def test_a_document_with_a_wrong_hash_or_no_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_document(path, {"a": [1, "ü"]})
    assert read_document(path) == {"a": [1, "ü"]}
    outer = json.loads(path.read_text())
    for text in ("", "[]", "{}", "3", json.dumps(outer | {"sha256": "0" * 64}), json.dumps(outer | {"document": 3})):
        path.write_text(text)
        with pytest.raises(ValueError, match="does not match its hash"):
            read_document(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="does not match its hash"):
        read_document(path)


# --- Failures in between --------------------------------------------------------------


class Power:
    """Fails at the n-th call of the file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
        self.calls = 0
        self._at, self._error = at, error
        for owner, name in (
            (os, "fsync"),
            (Path, "mkdir"),
            (Path, "rename"),
            (Path, "replace"),
            (Path, "open"),
            (Path, "write_text"),
        ):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **keywords: Any) -> Any:
            self.calls += 1
            if self.calls == self._at:
                raise self._error
            return call(*args, **keywords)

        return counted


@pytest.mark.parametrize("kind", KINDS)
def test_if_any_call_fails_while_a_segment_is_written_none_of_its_files_is_left_and_the_old_ones_stay(
    files: SegmentFiles, kind: str
) -> None:
    old, new = segment("a" * 32, count=5), segment("b" * 32, kind, first=1000)
    used(files, old)
    for at in range(1, 200):
        with pytest.MonkeyPatch.context() as patched:
            power = Power(patched, at, OSError(errno.ENOSPC, "No space left on device"))
            try:
                files.write(new, 8)
            except DiskFull:
                failed = True
            else:
                failed = False
        if not failed:
            assert power.calls < at
            break
        assert sorted(path.name for path in files.directory.iterdir()) == ["CURRENT.json", "a" * 32]
        assert [each.uid[0] for each in files.load()[0]] == ["a"]
    assert at > 15
    assert files.problems("b" * 32) == []


class Cut(BaseException):
    """The process dies here."""


def test_wherever_the_process_dies_while_segments_are_replaced_the_next_start_has_the_old_or_the_new(
    files: SegmentFiles,
) -> None:
    outcomes = []
    for at in range(1, 200):
        shutil.rmtree(files.directory, ignore_errors=True)
        old, new = segment("a" * 32, count=5), segment("b" * 32, first=10, count=20)
        used(files, old, seq=7)
        with pytest.MonkeyPatch.context() as patched:
            power = Power(patched, at, Cut())
            try:
                files.use([files.write(new, 8)], 8)
            except Cut:
                ended = True
            else:
                ended = False
        loaded, seq = files.load()
        outcomes.append(([each.uid[0] for each in loaded], seq))
        assert sorted(path.name[0] for path in files.directory.iterdir() if path.is_dir()) == [loaded[0].uid[0]]
        if not ended:
            assert power.calls < at
            break
    assert outcomes == [(["a"], 7)] * outcomes.count((["a"], 7)) + [(["b"], 8)] * outcomes.count((["b"], 8))
    assert outcomes.count((["a"], 7)) > 15
    assert outcomes.count((["b"], 8)) > 1


def test_a_segment_that_cannot_be_read_after_it_was_written_is_refused(
    files: SegmentFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = SegmentFiles._write_files

    def lying(self: SegmentFiles, segment: Segment, path: Path, seq: int) -> None:
        write(self, segment, path, seq)
        cut(path / "rids.i64")

    monkeypatch.setattr(SegmentFiles, "_write_files", lying)
    with pytest.raises(StoreError, match="cannot be read"):
        files.write(segment("a" * 32, count=5), 1)
    assert list(files.directory.iterdir()) == []


def test_a_file_that_faiss_cannot_write_is_an_error_of_the_store(
    files: SegmentFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, kind in (("write error: No space left on device", DiskFull), ("Input/output error", StoreError)):

        def full(index: object, path: str, words: str = words) -> None:
            Path(path).write_bytes(b"half")
            raise RuntimeError(words)

        monkeypatch.setattr("embedserve.index.structures.faiss.write_index", full)
        with pytest.raises(kind):
            files.write(segment("a" * 32, "hnsw:m=8"), 1)
        assert list(files.directory.iterdir()) == []


def test_vectors_that_are_not_contiguous_are_written_in_order(files: SegmentFiles) -> None:
    wide: NDArray[np.float32] = np.zeros((5, 2 * D), np.float32)
    wide[:, ::2] = random_units(5, D)
    part = rows(1, 5)
    strange = Segment(wide[:, ::2], part.rids, part.ids, None, 5, "a" * 32, None, (), ALL_REACHABLE)
    (written,) = used(files, strange)
    assert np.array_equal(written.vectors, random_units(5, D))


def test_a_segment_whose_row_numbers_do_not_ascend_is_refused(files: SegmentFiles) -> None:
    part = rows(1, 5)
    with pytest.raises(StoreError, match="do not ascend"):
        files.write(
            Segment(part.vectors, part.rids[::-1].copy(), part.ids, None, 5, "a" * 32, None, (), ALL_REACHABLE), 1
        )


def test_all_files_and_their_names_are_on_disk_before_a_segment_is_used(
    files: SegmentFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    written = files.write(segment("a" * 32, "ivf:nlist=10"), 1)
    of_files = {"rids.i64", "ids.utf8", "ids.ends.i64", "vectors.f32", "index.faiss", "manifest.json.tmp"}
    assert of_files | {"a" * 32 + ".tmp", "segments"} == set(synced)
    assert synced[-1] == "segments"
    synced.clear()
    files.use([written], 1)
    assert synced == ["CURRENT.json.tmp", "segments"]
