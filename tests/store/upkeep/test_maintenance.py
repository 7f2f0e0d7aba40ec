"""Background work: rows are sealed and merged during searches and writes, and builds stop when they are told to."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve.errors import DiskFull
from embedserve.index import structures
from embedserve.index.structures import Stopped
from embedserve.observer import Observer
from embedserve.store.local.collection.segment_files import SegmentFiles
from embedserve.store.local.store import LocalStore
from embedserve.store.local.upkeep import maintenance, sealing
from embedserve.types import EXTERNAL, Item, Keep, SearchOptions
from tests.logged import logged
from tests.sizes import small_seals
from tests.store.store_cases import all_ids, collection_of, random_units, slow_search
from tests.waiting import wait_until

D = 16
PLAIN = SearchOptions(k=10, include_metadata=False)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows are sealed when nothing is written, and a hundred in any case."""
    row = D * 4
    small_seals(monkeypatch, few_bytes=10 * row, some_bytes=50 * row, many_bytes=100 * row)


@pytest.fixture
def quiet(data: Path, small_steps: None) -> Iterator[LocalStore]:
    """A store without a maintenance thread, with the collection "photos" of graphs."""
    with LocalStore.open(data, background=False) as store:
        new_graphs(store)
        yield store


def new_graphs(store: LocalStore, name: str = "photos", index: str = "hnsw:m=8", target_recall: float = 0.95) -> None:
    store.create_collection(
        name,
        fingerprint=EXTERNAL,
        encoder_name="",
        dimension=D,
        keep=Keep.ORIGINALS,
        index=index,
        target_recall=target_recall,
    )


def items(first: int, count: int) -> list[Item]:
    return [Item(id=f"{first + n:05}", vector=vector) for n, vector in enumerate(random_units(count, D, first))]


def found(store: LocalStore, query: Any, k: int = 10) -> list[tuple[str, float]]:
    (hits,) = store.search("photos", query[None], SearchOptions(k=k, exact=True, include_metadata=False), [None])
    return [(hit.id, hit.score) for hit in hits]


class Held:
    """Makes builds of a structure wait until ``go``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        self.builds = self.most = 0
        built = structures.build

        def held(spec: Any, vectors: Any, stopped: Callable[[], bool], distinct: Any) -> Any:
            self.builds += 1
            self.most = max(self.most, self.builds)
            self.inside.set()
            try:
                while not self.go.wait(0.01):
                    if stopped():
                        raise Stopped
                return built(spec, vectors, stopped, distinct)
            finally:
                self.builds -= 1

        monkeypatch.setattr("embedserve.index.segment.structures.build", held)


def test_waiting_rows_are_sealed_and_merged_until_nothing_is_due(quiet: LocalStore) -> None:
    expected = {}
    for first in range(0, 600, 40):
        written = items(first, 40)
        expected.update({item.id: item for item in written})
        quiet.upsert("photos", written)
        assert quiet.get_collection("photos").building
        quiet.maintain()
        info = quiet.get_collection("photos")
        assert (info.building, info.unsealed, info.items) == (False, 0, len(expected))
        assert info.segments <= 5
    assert quiet.get_collection("photos").index.startswith("hnsw:m=8, ef ")
    for query in random_units(5, D, 7):
        assert found(quiet, query) == slow_search(expected, query, SearchOptions(k=10))
    # Deleted rows do not stay for long.
    quiet.delete_items("photos", [f"{n:05}" for n in range(400)])
    quiet.maintain()
    info = quiet.get_collection("photos")
    assert (info.items, info.building) == (200, False)
    assert info.deleted <= info.items
    quiet.delete_items("photos", list(expected))
    quiet.maintain()
    assert (quiet.get_collection("photos").segments, quiet.get_collection("photos").deleted) == (0, 0)
    assert [path.name for path in collection_of(quiet).files.directory.iterdir()] == ["CURRENT.json"]


def test_a_restart_uses_the_segments_and_reads_the_rest(data: Path, small_steps: None) -> None:
    query = random_units(1, D, 3)[0]
    with LocalStore.open(data, background=False) as store:
        new_graphs(store)
        store.upsert("photos", items(0, 200))
        store.maintain()
        store.upsert("photos", items(200, 5))
        store.delete_items("photos", ["00003", "00100"])
        before, uids = found(store, query, 300), [each.uid for each in collection_of(store).snapshot.segments]
    with LocalStore.open(data, background=False) as store:
        snapshot = collection_of(store).snapshot
        assert [each.uid for each in snapshot.segments] == uids
        assert (snapshot.unsealed, snapshot.deleted, snapshot.items) == (5, 2, 203)
        assert found(store, query, 300) == before


def test_rows_removed_or_replaced_while_a_segment_is_built_stay_so(
    quiet: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    old = {item.id: item for item in items(0, 60)}
    quiet.upsert("photos", list(old.values()))
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(sealing.seal_next, collection_of(quiet), at_once=True)
        assert held.inside.wait(30)
        assert quiet.get_collection("photos").building
        assert quiet.delete_items("photos", ["00005", "00006"]) == 2
        new = {item.id: item for item in items(50, 20)}
        quiet.upsert("photos", list(new.values()))
        held.go.set()
        sealed = building.result(30)
    assert sealed is not None
    assert (sealed.rows, sealed.kind) == (60, "hnsw")
    left = {**old, **new}
    del left["00005"], left["00006"]
    assert all_ids(quiet) == sorted(left)
    for query in random_units(5, D, 7):
        assert found(quiet, query, 100) == slow_search(left, query, SearchOptions(k=100))
    info = quiet.get_collection("photos")
    assert (info.items, info.deleted, info.unsealed, info.segments) == (68, 12, 20, 1)


def test_only_one_segment_of_a_collection_is_built_at_a_time(
    quiet: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    quiet.upsert("photos", items(0, 60))
    with ThreadPoolExecutor(3) as pool:
        builders = [pool.submit(sealing.seal_next, collection_of(quiet), at_once=True) for _ in range(3)]
        assert held.inside.wait(30)
        time.sleep(0.05)
        held.go.set()
        assert sorted(builder.result(30) is None for builder in builders) == [False, True, True]
    assert held.most == 1


def test_a_full_disk_leaves_everything_unchanged_and_a_later_step_succeeds(
    quiet: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet.upsert("photos", items(0, 60))
    quiet.maintain()
    quiet.upsert("photos", items(60, 60))
    query = random_units(1, D, 3)[0]
    before, names = found(quiet, query, 200), sorted(collection_of(quiet).files.directory.rglob("*"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(SegmentFiles, "_write_files", full)
        with pytest.raises(DiskFull):
            quiet.maintain()
    assert sorted(collection_of(quiet).files.directory.rglob("*")) == names
    assert found(quiet, query, 200) == before
    info = quiet.get_collection("photos")
    assert (info.unsealed, info.building) == (60, True)
    quiet.maintain()
    assert quiet.get_collection("photos").unsealed == 0
    assert found(quiet, query, 200) == before


@pytest.mark.parametrize("how", ["delete", "close"])
def test_a_build_stops_when_its_collection_is_closed(
    data: Path, monkeypatch: pytest.MonkeyPatch, small_steps: None, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    held = Held(monkeypatch)
    monkeypatch.setattr("embedserve.store.local.upkeep.sealing._IDLE_S", 0.0)
    with caplog.at_level(logging.WARNING):
        store = LocalStore.open(data)
        new_graphs(store)
        store.upsert("photos", items(0, 120))
        assert held.inside.wait(30)
        begun = time.monotonic()
        if how == "delete":
            store.delete_collection("photos")
            assert list((data / "collections").iterdir()) == []
        store.close()
        assert time.monotonic() - begun < 10
    assert held.builds == 0
    assert caplog.records == []


def test_nothing_is_built_for_a_closed_collection(quiet: LocalStore) -> None:
    quiet.upsert("photos", items(0, 60))
    collection = collection_of(quiet)
    quiet.delete_collection("photos")
    assert sealing.seal_next(collection, at_once=True) is None


def test_a_closed_store_holds_no_file_open_and_none_mapped(data: Path, small_steps: None) -> None:
    with LocalStore.open(data, background=False) as store:
        new_graphs(store)
        new_graphs(store, "others", "exact")
        for name in ("photos", "others"):
            store.upsert(name, items(0, 60))
        store.maintain()
        assert str(data) in Path("/proc/self/maps").read_text()
    gc.collect()
    # The store itself still exists.
    assert store is not None
    assert str(data) not in Path("/proc/self/maps").read_text()
    assert not [path for path in Path("/proc/self/fd").iterdir() if str(data) in str(path.resolve())]


def test_many_merges_leave_no_file_open_and_none_mapped(quiet: LocalStore) -> None:
    for number in range(60):
        quiet.upsert("photos", items(number * 5 % 100, 12))
        quiet.maintain()
        info = quiet.get_collection("photos")
        directories = [path for path in collection_of(quiet).files.directory.iterdir() if path.is_dir()]
        assert len(directories) == info.segments <= 4
        assert info.deleted <= info.items
    gc.collect()
    # At most four files of each segment.
    assert Path("/proc/self/maps").read_text().count("segments") <= 4 * 4
    assert len([path for path in Path("/proc/self/fd").iterdir() if "segments" in str(path.resolve())]) <= 4 * 4


@pytest.mark.parametrize("copies", [0, 1500])
def test_a_graph_holds_thousands_of_copies_once(
    quiet: LocalStore, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    monkeypatch.setattr("embedserve.index.spec._EXACT_BYTES", 0)
    monkeypatch.setattr("embedserve.index.spec._FEW", 0)
    new_graphs(quiet, "shop", "auto")
    random = np.random.default_rng(5)
    centres = random.standard_normal((40, D))
    rows = centres[random.integers(0, 40, 4000)] + 0.3 * random.standard_normal((4000, D))
    rows[random.permutation(4000)[:copies]] = random.standard_normal(D)
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    quiet.upsert("shop", [Item(id=f"{n}", vector=vector) for n, vector in enumerate(vectors)])
    quiet.maintain()
    (segment,) = collection_of(quiet, "shop").snapshot.segments
    assert (segment.spec.kind, len(segment.copies)) == ("hnsw", max(copies - 1, 0))
    recall = collection_of(quiet, "shop").measure_recall()
    assert recall is not None
    assert recall.value >= 0.93


def test_a_structure_below_the_target_is_given_up_and_that_is_said(
    quiet: LocalStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedserve.index.structures._MOST", 320)
    new_graphs(quiet, "lists", "ivf", target_recall=0.998)
    # Unlike those of images, these vectors are spread evenly, and one bit for each of 16 numbers says little.
    quiet.upsert("lists", items(0, 3000))
    with caplog.at_level(logging.WARNING):
        quiet.maintain()
    (segment,) = collection_of(quiet, "lists").snapshot.segments
    given_up = segment.shortfalls[0]
    assert given_up.spec.startswith("ivf")
    assert given_up.recall < 0.998
    assert segment.reaches(0.998)
    assert f'collection=lists rows=3000 index="{given_up.spec}" max_recall={given_up.recall:.3f}' in logged(caplog)
    assert f"{given_up.spec} was given up: at most recall {given_up.recall:.3f}" in quiet.get_collection("lists").index


class Sealings(Observer):
    """Counts what was sealed."""

    def __init__(self) -> None:
        self.sealed: list[tuple[int, str]] = []

    def on_sealed(self, rows: int, seconds: float, kind: str) -> None:
        self.sealed.append((rows, kind))


def test_the_thread_seals_waiting_rows_and_tells_the_observer(
    data: Path, monkeypatch: pytest.MonkeyPatch, small_steps: None
) -> None:
    monkeypatch.setattr(maintenance, "_LOOK_S", 0.02)
    observer, before = Sealings(), set(threading.enumerate())
    with LocalStore.open(data, observer=observer) as store:
        assert [thread for thread in set(threading.enumerate()) - before if thread.name == "maintenance"]
        new_graphs(store)
        store.upsert("photos", items(0, 150))
        wait_until(lambda: not store.get_collection("photos").building)
        assert observer.sealed == [(150, "hnsw")]
        assert store.get_collection("photos").unsealed == 0
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "maintenance"]


def test_after_a_failed_step_the_thread_pauses_from_its_end_on_and_maintains_the_others(
    data: Path, monkeypatch: pytest.MonkeyPatch, small_steps: None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(maintenance, "_LOOK_S", 0.01)
    monkeypatch.setattr(maintenance, "_AGAIN_S", 0.4)
    failed: list[float] = []
    write = SegmentFiles._write_files

    def full(self: SegmentFiles, segment: Any, path: Path, seq: int) -> None:
        if len(segment) == 150 and len(failed) < 2:
            time.sleep(0.6)  # longer than the pause
            failed.append(time.monotonic())
            raise OSError(28, "No space left on device")
        write(self, segment, path, seq)

    monkeypatch.setattr(SegmentFiles, "_write_files", full)
    with caplog.at_level(logging.WARNING), LocalStore.open(data) as store:
        new_graphs(store)
        new_graphs(store, "others")
        store.upsert("photos", items(0, 150))
        store.upsert("others", items(0, 110))
        wait_until(lambda: not store.get_collection("others").building)
        wait_until(lambda: not store.get_collection("photos").building)
    assert failed[1] - failed[0] > 0.6 + 0.4
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "segments were not built; the index stays as it is  collection=photos" in logged(caplog)


def test_a_bug_in_a_step_is_logged_and_does_not_end_the_thread(
    data: Path, monkeypatch: pytest.MonkeyPatch, small_steps: None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(maintenance, "_LOOK_S", 0.01)
    monkeypatch.setattr(maintenance, "_AGAIN_S", 0.05)
    build = sealing._build
    calls: list[int] = []

    def broken(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError
        return build(*given)

    monkeypatch.setattr(sealing, "_build", broken)
    with caplog.at_level(logging.ERROR), LocalStore.open(data) as store:
        new_graphs(store)
        store.upsert("photos", items(0, 150))
        wait_until(lambda: not store.get_collection("photos").building)
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_recall_is_measured_with_real_queries(data: Path, monkeypatch: pytest.MonkeyPatch, small_steps: None) -> None:
    monkeypatch.setattr(maintenance, "_LOOK_S", 0.01)
    with LocalStore.open(data) as store:
        new_graphs(store)
        store.upsert("photos", items(0, 400))
        wait_until(lambda: store.get_collection("photos").recall is not None)
        made = store.get_collection("photos").recall
        assert made is not None
        assert not made.real
        queries = random_units(30, D, 9)
        for query in queries:
            store.search("photos", query[None], PLAIN, [None])
        # Exact searches are not sampled.
        found(store, queries[0])
        recall = collection_of(store).measure_recall()
        assert recall is not None
        assert (recall.real, recall.queries) == (True, 30)
        assert 0.9 < recall.value <= 1.0
        assert np.isclose(recall.measured_unix_s, time.time(), atol=60)
