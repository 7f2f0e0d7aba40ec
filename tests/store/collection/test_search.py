from __future__ import annotations

import numpy as np
import pytest

from embedserve.store.local.store import LocalStore
from embedserve.types import And, Eq, Exists, Filter, Hit, Item, Metadata, MetadataValue, Not, Range, SearchOptions
from tests.store.store_cases import found, new_collection, random_units, slow_search, unit

EAST, NORTH = unit(1, 0, 0, 0), unit(0, 1, 0, 0)


def filled(store: LocalStore, count: int, *, dimension: int = 16, copies: int = 1) -> dict[str, Item]:
    """A collection "many" of ``count`` items, each vector ``copies`` times, written in calls of 500."""
    new_collection(store, "many", dimension)
    vectors = np.repeat(random_units(-(-count // copies), dimension, seed=count), copies, axis=0)[:count]
    # Ids are in another order than rows, so that ties are not right by accident.
    names = [f"{n * 7919 % count:06}" for n in range(count)]
    items = [
        Item(id=names[n], vector=vectors[n], metadata={"n": n, "permille": n % 1000, "half": n % 2 == 0})
        for n in range(count)
    ]
    for start in range(0, count, 500):
        store.upsert("many", items[start : start + 500])
    return {item.id: item for item in items}


def assert_same(store: LocalStore, items: dict[str, Item], options: SearchOptions, exclude: str | None = None) -> None:
    for query in (*random_units(3, 16, seed=99), next(iter(items.values())).vector):
        assert query is not None
        assert found(store, query, options, exclude, "many") == slow_search(items, query, options, exclude)


def test_a_hit_contains_what_was_requested(store: LocalStore) -> None:
    store.upsert("photos", [Item(id="a", vector=EAST, metadata={"n": 1})])
    plain = SearchOptions(include_metadata=False)
    assert store.search("photos", EAST[None], plain, [None]) == [[Hit(id="a", score=1.0)]]
    ((hit,),) = store.search("photos", EAST[None], SearchOptions(include_vectors=True), [None])
    assert hit.metadata == {"n": 1}
    assert np.array_equal(np.asarray(hit.vector), EAST)


def test_scores_are_cosines_by_hand(store: LocalStore) -> None:
    vectors = {"same": EAST, "opposite": unit(-1, 0, 0, 0), "right angle": NORTH, "half": unit(1, 1, 1, 1)}
    store.upsert("photos", [Item(id=id, vector=vector) for id, vector in vectors.items()])
    hits = [("same", 1.0), ("half", 0.5), ("right angle", 0.0), ("opposite", -1.0)]
    assert found(store, EAST, SearchOptions()) == hits
    assert repr(found(store, EAST, SearchOptions())[2][1]) == "0.0"


def test_an_empty_collection_has_no_hits(store: LocalStore) -> None:
    assert store.search("photos", np.stack([EAST, NORTH]), SearchOptions(), [None, None]) == [[], []]
    assert found(store, EAST, SearchOptions(filter=Exists("a"), group_by="a")) == []


def test_several_queries_get_the_hits_of_each(store: LocalStore) -> None:
    items = filled(store, 1500)
    queries = random_units(30, 16, seed=5)
    answers = store.search("many", queries, SearchOptions(k=7), [None] * 30)
    assert [[(hit.id, hit.score) for hit in hits] for hits in answers] == [
        slow_search(items, query, SearchOptions(k=7)) for query in queries
    ]


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("k", [1, 10, 249, 250, 1000, 5000])
def test_ranking_equals_the_slow_model_over_many_segments(store: LocalStore, k: int) -> None:
    items = filled(store, 1000)
    assert_same(store, items, SearchOptions(k=k))


@pytest.mark.parametrize("k", [1, 3, 10, 11, 100])
@pytest.mark.parametrize("copies", [4, 50, 2000])
def test_ties_are_broken_by_id_also_where_the_hits_end(store: LocalStore, k: int, copies: int) -> None:
    items = filled(store, 2000, copies=copies)
    assert_same(store, items, SearchOptions(k=k))


def test_ties_are_broken_by_the_bytes_of_the_id(store: LocalStore) -> None:
    ids = ["😀", "￿", "b", "B", "é", "aa", "a"]
    store.upsert("photos", [Item(id=id, vector=EAST) for id in ids])
    assert [id for id, _ in found(store, EAST, SearchOptions())] == ["B", "a", "aa", "b", "é", "￿", "😀"]


def test_scores_that_round_to_the_same_are_ties(store: LocalStore) -> None:
    # cos = 1 − x²/2: 2e-8 below 1 and exactly 1 both round to 1.000000; 1.8e-5 below does not.
    store.upsert(
        "photos",
        [Item(id="b", vector=EAST), Item(id="a", vector=unit(1, 2e-4, 0, 0)), Item(id="0", vector=unit(1, 6e-3, 0, 0))],
    )
    assert found(store, EAST, SearchOptions()) == [("a", 1.0), ("b", 1.0), ("0", 0.999982)]
    assert found(store, EAST, SearchOptions(k=1)) == [("a", 1.0)]


def test_equal_vectors_score_the_same_in_every_segment(store: LocalStore) -> None:
    new_collection(store, "long", 515)
    vectors = random_units(300, 515)
    for n in range(0, 300, 50):
        store.upsert("long", [Item(id=f"{m:03}", vector=vectors[0 if m % 3 == 0 else m]) for m in range(n, n + 50)])
    hits = found(store, vectors[1], SearchOptions(k=300), name="long")
    assert len({score for id, score in hits if int(id) % 3 == 0}) == 1


def test_the_lowest_score_is_a_hit(store: LocalStore) -> None:
    store.upsert("photos", [Item(id="a", vector=unit(1, 1, 1, 1)), Item(id="b", vector=unit(1, 1, 1, 1.001))])
    assert found(store, EAST, SearchOptions(min_score=0.5)) == [("a", 0.5)]
    assert found(store, EAST, SearchOptions(min_score=0.500001)) == []


def test_an_excluded_item_is_replaced_by_the_next(store: LocalStore) -> None:
    items = filled(store, 300, copies=3)
    for exclude in [*list(items)[:5], "not there"]:
        assert_same(store, items, SearchOptions(k=5), exclude)


def test_each_query_excludes_its_own_item(store: LocalStore) -> None:
    store.upsert("photos", [Item(id="a", vector=EAST), Item(id="b", vector=NORTH)])
    answers = store.search("photos", np.stack([EAST, NORTH, EAST]), SearchOptions(k=1), ["a", "b", None])
    assert [[hit.id for hit in hits] for hits in answers] == [["b"], ["a"], ["a"]]


@pytest.mark.parametrize("extra", [None, "deleted"])
@pytest.mark.parametrize(
    ("condition", "matching"),
    [
        (Exists("n"), 5000),
        (Eq("half", True), 2500),
        (Range("permille", lt=10), 50),
        (Eq("permille", 5), 5),
        (Eq("permille", "5"), 0),
    ],
)
def test_a_filtered_search_returns_k_hits_if_there_are_k(
    store: LocalStore, condition: Filter, matching: int, extra: str | None
) -> None:
    items = filled(store, 5000)
    if extra:
        removed = list(items)[::3]
        store.delete_items("many", removed)
        items = {id: item for id, item in items.items() if id not in set(removed)}
    else:
        assert (
            len(found(store, random_units(1, 16)[0], SearchOptions(k=6000, filter=condition), name="many")) == matching
        )
    for k in (1, 10, 1000):
        assert_same(store, items, SearchOptions(k=k, filter=condition))


def test_a_filter_works_together_with_the_other_options(store: LocalStore) -> None:
    items = filled(store, 1000, copies=5)
    some = next(iter(items))
    condition = And((Not(Eq("half", True)), Range("n", gte=100)))
    options = SearchOptions(k=20, filter=condition, min_score=0.1, group_by="permille")
    assert_same(store, items, options, some)


# --- Groups --------------------------------------------------------------------------------------------------------


def grouped(store: LocalStore, *values: MetadataValue | None, k: int = 10) -> list[str]:
    """Ids of hits grouped by "g" of items named by position, the first the closest; None leaves the key out."""
    items = []
    for n, value in enumerate(values):
        metadata: Metadata = {} if value is None else {"g": value}
        items.append(Item(id=str(n), vector=unit(1, n / 10, 0, 0), metadata=metadata))
    store.upsert("photos", items)
    return [id for id, _ in found(store, EAST, SearchOptions(k=k, group_by="g"))]


def test_a_group_contributes_only_its_closest_item(store: LocalStore) -> None:
    assert grouped(store, "x", "x", "y", "x", "y", "z") == ["0", "2", "5"]


def test_items_without_the_key_stand_alone(store: LocalStore) -> None:
    assert grouped(store, None, "x", None, "x", None) == ["0", "1", "2", "4"]


def test_numbers_group_as_numbers_and_other_types_apart(store: LocalStore) -> None:
    assert grouped(store, 1, True, 1.0, "1", True, False, 0) == ["0", "1", "3", "5", "6"]


def test_lists_group_as_a_whole(store: LocalStore) -> None:
    assert grouped(store, ["a", "b"], "a", ["b", "a"], ["a", "b"], [], []) == ["0", "1", "2", "4"]


def test_k_hits_are_found_behind_a_group_of_thousands(store: LocalStore) -> None:
    new_collection(store, "many", 16)
    near, far = random_units(1, 16)[0], random_units(30, 16, seed=1)
    items = [Item(id=f"n{n}", vector=near, metadata={"g": "big"}) for n in range(3000)]
    items += [Item(id=f"f{n}", vector=vector, metadata={"g": n}) for n, vector in enumerate(far)]
    for start in range(0, len(items), 1000):
        store.upsert("many", items[start : start + 1000])
    options = SearchOptions(k=20, group_by="g")
    assert found(store, near, options, name="many") == slow_search({item.id: item for item in items}, near, options)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("k", [1, 5, 100, 1000])
def test_grouped_ranking_equals_the_slow_model(store: LocalStore, k: int) -> None:
    items = filled(store, 700, copies=3)
    assert_same(store, items, SearchOptions(k=k, group_by="half"))
    assert_same(store, items, SearchOptions(k=k, group_by="n", min_score=0.2))
