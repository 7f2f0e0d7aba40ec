"""The index after a start: segments that match the records, and everything else from the records."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedserve.index.current import CurrentSnapshot
from embedserve.index.ids import PackedIds
from embedserve.index.rows import Rows
from embedserve.index.segment import Segment
from embedserve.index.spec import parse
from embedserve.observer import Observer
from embedserve.store.local.collection.segment_files import SegmentFiles
from embedserve.store.local.store import LocalStore
from embedserve.store.local.upkeep import sealing
from embedserve.types import EXTERNAL, Item, Keep, SearchOptions
from tests.logged import logged
from tests.sizes import small_seals
from tests.store.store_cases import collection_of, random_units

D = 8


def never() -> bool:
    return False


def opened(data: Path) -> LocalStore:
    return LocalStore.open(data, background=False)


def items(first: int, count: int) -> list[Item]:
    return [Item(id=f"{first + n:04}", vector=vector) for n, vector in enumerate(random_units(count, D, first))]


def answers(store: LocalStore) -> list[list[tuple[str, float]]]:
    options = SearchOptions(k=50, include_metadata=False)
    found = store.search("photos", random_units(5, D, 99), options, [None] * 5)
    return [[(hit.id, hit.score) for hit in hits] for hits in found]


@pytest.fixture
def right(data: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, float]]]:
    """A closed store with segments of the rows 1 to 100 and 101 to 130, and 5 other rows; and its answers."""
    small_seals(monkeypatch, few_bytes=10 * D * 4)
    with opened(data) as store:
        store.create_collection(
            "photos", fingerprint=EXTERNAL, encoder_name="", dimension=D, keep=Keep.ORIGINALS, index="exact"
        )
        for first, count in ((0, 100), (100, 30), (130, 5)):
            store.upsert("photos", items(first, count))
            store.maintain()
        return answers(store)


def directory_of(data: Path) -> Path:
    (collection,) = (data / "collections").iterdir()
    return collection


def segments_of(store: LocalStore) -> list[tuple[int, int]]:
    return [(int(each.rids[0]), len(each)) for each in collection_of(store).snapshot.segments]


def rewritten(data: Path, change: Callable[[SegmentFiles, list[Segment], int], None]) -> None:
    """Write other segments in place of the existing ones, with valid hashes."""
    files = SegmentFiles(directory_of(data), D, EXTERNAL)
    change(files, *files.load())


def made(uid: str, like: Segment, places: slice, vectors: int | None = None) -> Segment:
    chosen = like.vectors[places] if vectors is None else random_units(len(like.rids[places]), D, vectors)
    ids = PackedIds.of(like.ids[places])
    rows = Rows(np.ascontiguousarray(chosen), like.rids[places].copy(), ids, None, len(ids))
    return Segment.build(uid * 32, parse("exact"), [rows], D, never)


def newer(files: SegmentFiles, segments: list[Segment], seq: int) -> None:
    files.use(segments, seq + 1000)


def lacking(files: SegmentFiles, segments: list[Segment], seq: int) -> None:
    files.use([files.write(made("c", segments[0], slice(0, 99)), seq), segments[1]], seq)


def lacking_inside(files: SegmentFiles, segments: list[Segment], seq: int) -> None:
    files.use([files.write(made("c", segments[0], slice(None, None, 3)), seq), segments[1]], seq)


def other_vectors(files: SegmentFiles, segments: list[Segment], seq: int) -> None:
    files.use([files.write(made("c", segments[0], slice(None), vectors=4), seq), segments[1]], seq)


def swapped(files: SegmentFiles, segments: list[Segment], seq: int) -> None:
    files.use(segments[::-1], seq)


def twice(files: SegmentFiles, segments: list[Segment], seq: int) -> None:
    files.use([*segments, files.write(made("c", segments[1], slice(None)), seq)], seq)


@pytest.mark.parametrize(
    ("change", "left", "words"),
    [
        (newer, [], "newer than the items"),
        (lacking, [(1, 99), (101, 30)], ""),
        (lacking_inside, [(101, 30)], "lacks 66 of 100 rows"),
        (other_vectors, [(101, 30)], "holds other vectors"),
        (swapped, [(101, 30)], "overlaps the segment before it"),
        (twice, [(1, 100), (101, 30)], "overlaps the segment before it"),
    ],
)
def test_segments_that_do_not_match_the_records_are_rebuilt(
    data: Path,
    right: list[list[tuple[str, float]]],
    caplog: pytest.LogCaptureFixture,
    change: Callable[[SegmentFiles, list[Segment], int], None],
    left: list[tuple[int, int]],
    words: str,
) -> None:
    rewritten(data, change)
    with caplog.at_level(logging.WARNING), opened(data) as store:
        assert segments_of(store) == left
        assert answers(store) == right
        assert store.get_collection("photos").items == 135
        named = {path.name for path in (directory_of(data) / "segments").iterdir() if path.is_dir()}
        assert len(named) == len(left)
        store.maintain()
        assert answers(store) == right
        assert not store.get_collection("photos").building
    assert words in logged(caplog)
    assert bool(words) == bool(caplog.records)


def test_the_whole_index_may_be_removed(data: Path, right: list[list[tuple[str, float]]]) -> None:
    shutil.rmtree(directory_of(data) / "segments")
    with opened(data) as store:
        assert (segments_of(store), answers(store)) == ([], right)
        store.maintain()
        assert (segments_of(store), answers(store)) == ([(1, 135)], right)


def test_rows_between_two_segments_come_from_the_records(data: Path, right: list[list[tuple[str, float]]]) -> None:
    def middle(files: SegmentFiles, segments: list[Segment], seq: int) -> None:
        files.use([files.write(made("c", segments[0], slice(20, 60)), seq), segments[1]], seq)

    rewritten(data, middle)
    with opened(data) as store:
        parts = collection_of(store).snapshot.fixed
        assert [(int(part.rids[0]), len(part), isinstance(part, Segment)) for part in parts] == [
            (1, 20, False),
            (21, 40, True),
            (61, 40, False),
            (101, 30, True),
            (131, 5, False),
        ]
        assert answers(store) == right


def test_rows_removed_after_the_segment_was_built_are_deleted_in_it(
    data: Path, right: list[list[tuple[str, float]]]
) -> None:
    with opened(data) as store:
        store.delete_items("photos", ["0000", "0050", "0099", "0110"])
        store.upsert("photos", items(7, 1))
        expected = answers(store)
    with opened(data) as store:
        assert segments_of(store) == [(1, 100), (101, 30)]
        info = store.get_collection("photos")
        assert (info.items, info.deleted, info.unsealed) == (131, 5, 6)
        assert answers(store) == expected != right


def test_a_segment_that_is_not_trusted_is_read_again_from_the_records(
    data: Path, right: list[list[tuple[str, float]]]
) -> None:
    with opened(data) as store:
        collection = collection_of(store)
        store.delete_items("photos", ["0003"])
        expected = answers(store)
        sealing.rebuild(collection, collection.snapshot.segments[0].uid)
        assert segments_of(store) == [(101, 30)]
        assert answers(store) == expected
        sealing.rebuild(collection, "unknown")
        store.maintain()
        assert answers(store) == expected
    with opened(data) as store:
        assert answers(store) == expected
        assert sum(count for _, count in segments_of(store)) >= 99


@pytest.mark.usefixtures("right")
def test_a_write_whose_publication_was_interrupted_is_published_later(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(index: CurrentSnapshot, snapshot: object) -> None:
        raise KeyboardInterrupt

    replaced = Item(id="0003", vector=items(500, 1)[0].vector)
    with opened(data) as store:
        with monkeypatch.context() as patched:
            patched.setattr(CurrentSnapshot, "publish", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.upsert("photos", [replaced, *items(200, 2)])
        store.delete_items("photos", ["0001"])
        with monkeypatch.context() as patched:
            patched.setattr(CurrentSnapshot, "publish", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.delete_items("photos", ["0101", "0134"])
        segments = segments_of(store)
        store.upsert("photos", items(300, 1))
        assert store.get_collection("photos").items == 135 + 2 - 3 + 1
        assert segments_of(store) == segments == [(1, 100), (101, 30)]
        caught_up = answers(store)
        for item in (replaced, *items(200, 2), *items(300, 1)):
            assert item.vector is not None
            (hits,) = store.search("photos", item.vector[None], SearchOptions(k=1), [None])
            assert (hits[0].id, hits[0].score) == (item.id, 1.0)
    with opened(data) as store:
        assert answers(store) == caught_up


class Told(Observer):
    """Records why segments are rebuilt."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def on_index_rebuilt(self, reason: str) -> None:
        self.reasons.append(reason)


def test_the_observer_is_told_why_a_segment_is_rebuilt(data: Path, right: list[list[tuple[str, float]]]) -> None:
    told = Told()
    with LocalStore.open(data, background=False, observer=told):
        assert told.reasons == []
    first, _ = (directory_of(data) / "segments").glob("*/rids.i64")
    first.unlink()
    with LocalStore.open(data, background=False, observer=told) as store:
        assert told.reasons == ["damaged"]
        assert answers(store) == right
