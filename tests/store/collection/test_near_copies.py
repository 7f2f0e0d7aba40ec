"""Where items are copies or near-copies of each other, searches near an item, half-way between two, and unlike all find
what the collection promises, from the first build on and after a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedserve.index.copies import Copies
from embedserve.index.ranking import Ranking
from embedserve.index.search_params import EXACT, SearchParams
from embedserve.index.segment import Segment
from embedserve.index.snapshot import Snapshot
from embedserve.store.local.collection.recall import RecallMonitor
from embedserve.store.local.records.files import read_document, write_document
from embedserve.store.local.store import LocalStore
from embedserve.types import Eq, Item, SearchOptions
from tests.sizes import small_seals
from tests.store.near_copies import NearCopies, recall
from tests.store.store_cases import collection_of, new_collection

D = 64
TARGET = 0.95


@pytest.fixture(autouse=True)
def _structures_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    small_seals(monkeypatch, few_bytes=1000, some_bytes=1000, many_bytes=1000)
    monkeypatch.setattr("embedserve.index.segment._FEW", 50)
    monkeypatch.setattr("embedserve.index.spec._EXACT_BYTES", 0)
    monkeypatch.setattr("embedserve.index.spec._FEW", 0)


def filled(store: LocalStore, vectors: NDArray[np.float32], index: str) -> None:
    new_collection(store, "photos", vectors.shape[1], index=index, filter_keys=["third", "group"])
    rows = enumerate(vectors)
    items = [Item(id=f"{n}", vector=v, metadata={"third": n % 3, "group": n % 7}) for n, v in rows]
    store.upsert("photos", items)
    store.maintain()


@pytest.mark.parametrize(
    ("index", "noise"),
    [("auto", 0.001), ("auto", 0.5), ("hnsw:m=16", 0.0), ("hnsw:m=16", 0.1), ("ivf", 0.0), ("ivf", 0.1)],
)
def test_all_kinds_of_query_reach_the_target_after_the_build_and_after_a_restart(
    data: Path, index: str, noise: float
) -> None:
    near = NearCopies.drawn(60, 40, D, noise)
    queries = near.queries(150)
    with LocalStore.open(data, background=False) as store:
        filled(store, near.vectors, index)
        built = {kind: recall(store, "photos", near.vectors, asked) for kind, asked in queries.items()}
        assert min(built.values()) >= TARGET, (store.get_collection("photos").index, built)
    with LocalStore.open(data, background=False) as store:
        again = {kind: recall(store, "photos", near.vectors, asked) for kind, asked in queries.items()}
        assert again == built
        assert store.check_collection("photos", lambda progress: None).problems == ()


# --- Exact copies --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["hnsw:m=8", "ivf:nlist=4"])
def copied(data: Path, request: pytest.FixtureRequest) -> Iterator[tuple[LocalStore, NDArray[np.float32]]]:
    """A store with 400 directions, some alone and some with up to 60 copies, and its vectors."""
    random = np.random.default_rng(3)
    directions = random.standard_normal((400, D))
    counts = np.where(random.random(400) < 0.5, 1, random.integers(2, 61, 400))
    rows = np.repeat(directions, counts, axis=0)
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    vectors = vectors[random.permutation(len(vectors))]
    with LocalStore.open(data, background=False) as store:
        filled(store, vectors, request.param)
        (segment,) = collection_of(store).snapshot.segments
        assert segment.structure is not None
        assert len(segment.copies) == len(vectors) - 400
        yield store, vectors


def same_as_exact(store: LocalStore, queries: NDArray[np.float32], **options: object) -> float:
    """Share of the queries whose hits are those of an exact search, ids and order included."""
    nothing: list[str | None] = [None] * len(queries)
    answers = [
        store.search("photos", queries, SearchOptions(exact=exact, **options), nothing)  # type: ignore[arg-type]
        for exact in (False, True)
    ]
    wanted = [len(hits) for hits in answers[1]]
    assert [len(hits) for hits in answers[0]] == wanted
    pairs = zip(*answers, strict=True)
    return float(np.mean([[hit.id for hit in got] == [hit.id for hit in right] for got, right in pairs]))


@pytest.mark.parametrize("k", [1, 10, 100, 500])
def test_copies_are_found_with_the_row_that_they_equal_in_the_order_of_their_ids(
    copied: tuple[LocalStore, NDArray[np.float32]], k: int
) -> None:
    store, vectors = copied
    # 500 is more than there are different vectors.
    assert same_as_exact(store, vectors[:40], k=k, include_metadata=False) >= 0.9


def test_copies_are_found_among_deleted_rows_matches_and_groups(
    copied: tuple[LocalStore, NDArray[np.float32]],
) -> None:
    store, vectors = copied
    assert same_as_exact(store, vectors[:40], k=10, filter=Eq("third", 1)) >= 0.9
    assert same_as_exact(store, vectors[:20], k=5, group_by="group") >= 0.9
    # Of every vector the first row goes, from which its copies hang.
    (segment,) = collection_of(store).snapshot.segments
    heads = [segment.ids[place].decode() for place in segment.copies.heads.tolist()]
    store.delete_items("photos", heads)
    assert same_as_exact(store, vectors[:40], k=10, include_metadata=False) >= 0.9
    for hits in store.search("photos", vectors[:40], SearchOptions(k=30), [None] * 40):
        assert not {hit.id for hit in hits} & set(heads)
    assert store.check_collection("photos", lambda progress: None).problems == ()


def test_equal_rows_are_those_with_equal_numbers() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0.6, 0.8], [0, 1], [1, -0.0], [0.6, 0.8000001]], np.float32)
    copies = Copies.of(vectors)
    assert copies.pairs().tolist() == [[0, 2], [0, 5], [1, 4]]
    assert copies.distinct(7).tolist() == [0, 1, 3, 6]
    positions, scores = copies.expanded(
        np.array([[3, 0, -1], [1, 6, 3]]), np.array([[0.9, 0.5, -np.inf], [0.8, 0.8, 0.1]], np.float32), None, 2
    )
    assert [sorted(row) for row in positions.tolist()] == [[-1, 0, 2, 3, 5][1:], [1, 3, 4, 6]]
    assert np.isclose(scores[0].sum(), 0.9 + 3 * 0.5)
    # With k=2 what comes after the second row is left out, but nothing that ties with it.
    positions, _ = copies.expanded(np.array([[1, 6, 3]]), np.array([[0.8, 0.8, 0.1]], np.float32), 2, 2)
    assert sorted(positions[0].tolist()) == [1, 4, 6]


def test_a_segment_whose_copies_are_not_equal_is_rebuilt(data: Path) -> None:
    near = NearCopies.drawn(50, 10, D, 0.0)
    with LocalStore.open(data, background=False) as store:
        filled(store, near.vectors, "hnsw:m=8")
        directory = collection_of(store).files.directory
    (manifest,) = directory.glob("*/manifest.json")
    assert json.loads(json.loads(manifest.read_text())["document"])["format"] == 2
    (manifest.parent / "copies.i64").write_bytes(np.array([[0, 1]] * 450, "<i8").tobytes())
    with LocalStore.open(data, background=False) as store:
        assert store.get_collection("photos").segments == 0
        store.maintain()
        assert recall(store, "photos", near.vectors, near.vectors[:50]) == 1.0


# --- Segments of older releases --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "again"), [(3.0, "tuned"), (0.001, "built")])
def test_a_segment_that_an_older_release_tuned_is_tuned_again_or_built_anew(
    data: Path, monkeypatch: pytest.MonkeyPatch, noise: float, again: str
) -> None:
    near = NearCopies.drawn(60, 40, D, noise)
    with LocalStore.open(data, background=False) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Segment, "reaches", lambda segment, target: True)
            filled(store, near.vectors, "hnsw:m=8")
        (path,) = collection_of(store).files.directory.glob("*/manifest.json")
    manifest = read_document(path)
    for name in ("tuning", "shortfalls"):
        del manifest[name]
    write_document(path, {**manifest, "points": [[16, 0.999]]})
    if again == "built":
        monkeypatch.setattr("embedserve.index.structures.Hnsw.param_values", (16, 24))
    with LocalStore.open(data, background=False) as store:
        (before,) = collection_of(store).snapshot.segments
        assert [point.param for point in before.points] == [16]
        store.maintain()
        (after,) = collection_of(store).snapshot.segments
        assert (after.uid == before.uid) == (again == "tuned")
        assert [point.param for point in after.points] != [16]
        for asked in near.queries(100).values():
            assert recall(store, "photos", near.vectors, asked) >= TARGET or again == "tuned"
    with LocalStore.open(data, background=False) as store:
        (opened,) = collection_of(store).snapshot.segments
        assert (opened.uid, opened.points) == (after.uid, after.points)


# --- What was measured survives a restart ---------------------------------------------------------------------------


def measured(store: LocalStore) -> RecallMonitor:
    return collection_of(store).recall


def ask(store: LocalStore, queries: NDArray[np.float32]) -> None:
    for query in queries:
        store.search("photos", query[None], SearchOptions(k=10, include_metadata=False), [None])


@pytest.fixture
def corrected(data: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float32]:
    """A closed store whose real queries needed a higher multiplier; its vectors."""
    vectors = NearCopies.drawn(3000, 1, D, 0.0).vectors
    with monkeypatch.context() as patch:
        patch.setattr("embedserve.index.tuning._TO_SPARE", -8.0)  # tuned to far less than the target
        with LocalStore.open(data, background=False) as store:
            filled(store, vectors, "hnsw:m=8")
            patch.setattr("embedserve.index.tuning._TO_SPARE", -8.0)
            ask(store, NearCopies.drawn(60, 1, D, 0.0, seed=5).vectors)
            collection_of(store).measure_recall()
            assert measured(store).multiplier > 1.4
    return vectors


def test_the_multiplier_and_the_measured_recall_are_kept(data: Path, corrected: NDArray[np.float32]) -> None:
    with LocalStore.open(data, background=False) as store:
        assert measured(store).multiplier > 1.4
        kept = store.get_collection("photos").recall
        assert kept is not None
        assert kept.real


def test_a_multiplier_of_other_segments_or_of_a_damaged_file_is_ignored(
    data: Path, corrected: NDArray[np.float32]
) -> None:
    (file,) = data.rglob("RECALL.json")
    whole = file.read_bytes()
    for damaged in (b"", whole[:40], whole.replace(b"multiplier", b"multiplied"), b"[]"):
        file.write_bytes(damaged)
        with LocalStore.open(data, background=False) as store:
            assert measured(store).multiplier == 1.0
    file.write_bytes(whole)
    (other,) = (path for path in file.parent.iterdir() if path.is_dir())
    (other / "rids.i64").write_bytes(b"")
    with LocalStore.open(data, background=False) as store:
        store.maintain()  # the segment is built anew
        assert measured(store).multiplier == 1.0


def test_searches_are_exact_where_real_queries_do_not_reach_the_target(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = NearCopies.drawn(3000, 1, D, 0.0).vectors
    queries = NearCopies.drawn(40, 1, D, 0.0, seed=5).vectors
    with LocalStore.open(data, background=False) as store:
        filled(store, vectors, "hnsw:m=8")
        nearest = Snapshot.nearest_of_some

        def poor(*given: Any, params: SearchParams = EXACT, **rest: Any) -> Iterator[list[Ranking]]:
            """A structure that does not find the nearest rows, whatever the search parameters."""
            for found in nearest(*given, params=params, **rest):
                yield found if params.exact else [replace(ranking, scores=-ranking.scores) for ranking in found]

        monkeypatch.setattr(Snapshot, "nearest_of_some", poor)
        assert recall(store, "photos", vectors, queries) < 0.1
        ask(store, queries)
        collection_of(store).measure_recall()
        assert recall(store, "photos", vectors, queries) == 1.0
        info = store.get_collection("photos")
        assert info.index == "exact (flat inner product); hnsw:m=8 was given up: at most recall 0.000"
        assert info.recall is not None
        assert info.recall.value == 1.0
    with LocalStore.open(data, background=False) as store:
        assert recall(store, "photos", vectors, queries) == 1.0
        # The structure is as good as ever, which the next measurement finds.
        monkeypatch.setattr(Snapshot, "nearest_of_some", nearest)
        ask(store, queries)
        collection_of(store).measure_recall()
        assert store.get_collection("photos").index.startswith("hnsw:m=8, ef")


def test_every_query_of_a_call_is_remembered_with_the_same_chance() -> None:
    monitor = RecallMonitor(TARGET)
    call = np.eye(4, dtype=np.float32)
    for _ in range(400):
        monitor.sample(call)
    # With 256 remembered, one of four in a fixed place would be all of them.
    kept = np.sum(monitor._queries, axis=0)
    assert kept.sum() == 256
    assert kept.min() > 30
