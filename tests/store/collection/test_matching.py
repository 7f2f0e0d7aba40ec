"""Masks of filters over parts of a snapshot, against the slow evaluator."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedserve.errors import InvalidInput
from embedserve.store.local.collection.matching import Matcher
from embedserve.store.local.records.records import Records
from embedserve.store.local.records.row import Row
from embedserve.store.local.records.view import View
from embedserve.types import And, Eq, Exists, Filter, In, Item, Metadata, Not, Or, Range
from tests.store.filter_cases import ALL_KEYS, CONDITIONS, KEYS, METADATA
from tests.store.store_cases import holds, unit


def put(records: Records, documents: Sequence[Metadata]) -> list[int]:
    """Add items with the ids 0, 1, 2, …; their row numbers."""
    rows = [
        (Row.of(Item(id=str(n), vector=unit(1, 0, 0, 0), metadata=metadata), 4), None)
        for n, metadata in enumerate(documents)
    ]
    with records.writing() as writing:
        return writing.upsert(rows).rids.tolist()


def kept_bytes(matcher: Matcher) -> int:
    """Bytes of all cached masks, which the matcher must know."""
    masks = matcher._masks._masks.values()
    total = sum(mask.bits.nbytes + 400 for mask in masks)
    assert matcher._masks._bytes == total
    return total


def delete(records: Records, *ids: str) -> None:
    with records.writing() as writing:
        writing.delete(ids)


def parts_of(rids: Sequence[int], ends: Sequence[int]) -> list[NDArray[np.int64]]:
    return np.split(np.array(rids, np.int64), sorted(end % (len(rids) + 1) for end in ends))


@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(METADATA, min_size=1, max_size=24),
    nodes=st.lists(CONDITIONS, min_size=1, max_size=4),
    declared=st.sets(KEYS).map(tuple) | st.just(ALL_KEYS),
    ends=st.lists(st.integers(0, 30), max_size=3),
    gone=st.sets(st.integers(0, 23)),
    many=st.sampled_from([0, 1, 4]),
)
@example([{"a": True}, {"a": 1}, {"a": 1.0}], [Eq("a", True), Eq("a", 1), Eq("a", 1.0)], ("a",), [], set(), 4)
@example([{"a": ["x", "y"]}] * 9, [In("a", ("x", "y")), Not(In("a", ("x", "y")))], ("a",), [2], {0, 3}, 4)
@example([{"a": n, "b[0]": n} for n in range(9)], [And((Range("a", gt=2.0), Eq("b[0]", 5)))], ("a",), [4], {5}, 0)
def test_masks_hold_for_the_live_rows_of_every_part_with_and_without_the_cache(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[Metadata],
    nodes: list[Filter],
    declared: tuple[str, ...],
    ends: list[int],
    gone: set[int],
    many: int,
) -> None:
    path = tmp_path_factory.mktemp("matching") / "items.sqlite"
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(Records(path, 4, create=True, filter_keys=declared)) as records,
    ):
        patch.setattr("embedserve.store.local.collection.matching._MANY", many)
        patch.setattr("embedserve.store.local.collection.matching._MANY_ONCE", many)
        rids = put(records, documents)
        parts = parts_of(rids, ends)
        matcher = Matcher(declared)
        for removed in (set(), gone):
            delete(records, *(str(n) for n in removed))
            for node in nodes:
                expected = {rid: holds(node, document) for rid, document in zip(rids, documents, strict=True)}
                live = [rid for n, rid in enumerate(rids) if n not in removed]
                with records.reading() as view:
                    for names in ([None] * len(parts), range(len(parts)), range(len(parts))):
                        found: dict[int, bool] = {}
                        for part, name in zip(parts, names, strict=True):
                            mask = matcher.matching(view, node, part, name)
                            assert mask.dtype == np.bool_
                            assert mask.shape == part.shape
                            found |= dict(zip(part.tolist(), mask.tolist(), strict=True))
                        assert {rid: found[rid] for rid in live} == {rid: expected[rid] for rid in live}


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    opened = Records(tmp_path / "items.sqlite", 4, create=True, filter_keys=("a", "n"))
    yield opened
    opened.close()


class Statements:
    """Counts the statements of a view."""

    def __init__(self, view: View) -> None:
        self.seen: list[str] = []
        view._connection.set_trace_callback(self._add)

    def _add(self, statement: str) -> None:
        if "FROM state" not in statement:
            self.seen.append(statement)

    def taken(self) -> list[str]:
        seen, self.seen[:] = list(self.seen), []
        return seen


def test_a_reader_of_an_earlier_state_finds_rows_that_were_removed_later(records: Records) -> None:
    """A search in an old snapshot must find an item that was replaced meanwhile: its new row is not in the snapshot."""
    rids = np.array(put(records, [{"a": "x", "other": 1}] * 3), np.int64)
    matcher = Matcher(("a", "n"))
    nodes: tuple[Filter, ...] = (Eq("a", "x"), Eq("other", 1), And((Exists("a"), Eq("other", 1))))
    for name, node in enumerate(nodes):
        with ExitStack() as views:
            earlier = views.enter_context(records.reading())
            assert earlier.count() == 3 - name
            delete(records, str(name))
            later = views.enter_context(records.reading())
            assert later.count() == 2 - name
            assert matcher.matching(later, node, rids, name).tolist() == [False] * (name + 1) + [True] * (2 - name)
            assert matcher.matching(earlier, node, rids, name).tolist() == [False] * name + [True] * (3 - name)
            # The mask of the earlier reader is right for both; the caller knows which rows are gone.
            statements = Statements(later)
            assert matcher.matching(later, node, rids, name)[name + 1 :].all()
            assert statements.taken() == []
            assert kept_bytes(matcher) > 0


def test_a_part_that_never_changes_is_matched_once_and_one_that_may_change_every_time(records: Records) -> None:
    rids = np.array(put(records, [{"a": "x", "other": n} for n in range(20)]), np.int64)
    matcher = Matcher(("a", "n"))
    node = And((Eq("a", "x"), Range("other", lt=5.0)))
    with records.reading() as view:
        statements = Statements(view)
        for _ in range(3):
            assert matcher.matching(view, node, rids, "part").sum() == 5
        once = len(statements.taken())
        assert once == 2
        for _ in range(3):
            assert matcher.matching(view, node, rids, None).sum() == 5
        assert len(statements.taken()) == 3 * once


def test_a_forgotten_part_is_matched_again_and_others_are_not(records: Records) -> None:
    rids = np.array(put(records, [{"a": "x"}] * 20), np.int64)
    matcher = Matcher(("a", "n"))
    with records.reading() as view:
        for part in ("one", "two"):
            matcher.matching(view, Eq("a", "x"), rids, part)
        matcher.forget("one")
        statements = Statements(view)
        matcher.matching(view, Eq("a", "x"), rids, "two")
        assert statements.taken() == []
        matcher.matching(view, Eq("a", "x"), rids, "one")
        assert len(statements.taken()) == 1
    matcher.forget("one")
    matcher.forget("two")
    assert kept_bytes(matcher) == 0


def test_conditions_after_one_that_decides_the_result_are_not_evaluated(records: Records) -> None:
    rids = np.array(put(records, [{"a": "x", "n": n, "other": n} for n in range(20)]), np.int64)
    matcher = Matcher(("a", "n"))
    with records.reading() as view:
        statements = Statements(view)
        none = And((Eq("other", 1), Eq("a", "y"), Eq("n", 1)))
        assert not matcher.matching(view, none, rids, None).any()
        assert len(statements.taken()) == 1
        for first in (Eq("a", "x"), Not(Eq("a", "y"))):
            every = Or((Eq("other", 1), first, Eq("n", 1)))
            assert matcher.matching(view, every, rids, None).all()
            assert len(statements.taken()) == 1


def test_if_few_rows_may_still_match_only_those_are_read(records: Records) -> None:
    rids = np.array(put(records, [{"n": n, "other": n % 2} for n in range(3000)]), np.int64)
    matcher = Matcher(("a", "n"))
    node = And((Eq("other", 1), In("n", (6, 7, 8, 9))))
    with records.reading() as view:
        statements = Statements(view)
        assert np.flatnonzero(matcher.matching(view, node, rids, None)).tolist() == [7, 9]
        facets, items = statements.taken()
        assert "FROM facet" in facets
        assert "[7,8,9,10]" in items.replace(" ", "")


def test_a_small_part_does_not_read_all_values_of_a_range(records: Records) -> None:
    rids = np.array(put(records, [{"n": n, "a": "x"} for n in range(3000)]), np.int64)
    matcher = Matcher(("a", "n"))
    with records.reading() as view:
        statements = Statements(view)
        assert matcher.matching(view, Range("n", gte=2995.0), rids[-10:], None).tolist() == [False] * 5 + [True] * 5
        assert [("FROM item" in one) for one in statements.taken()] == [False, False]
        assert matcher.matching(view, Range("n", gte=5.0), rids[:10], None).tolist() == [False] * 5 + [True] * 5
        assert [("FROM item" in one) for one in statements.taken()] == [False, True]


def test_all_values_of_a_range_are_read_once_for_the_parts_that_never_change(records: Records) -> None:
    rids = put(records, [{"n": n % 100, "a": "x"} for n in range(2000)])
    parts = parts_of(rids, [400, 1100, 1900])
    with records.reading() as view:
        statements = Statements(view)
        for node in (Range("n", gte=50.0), Exists("a")):
            matcher = Matcher(("a", "n"))
            masks = [matcher.matching(view, node, part, name) for name, part in enumerate(parts)]
            assert np.concatenate(masks).tolist() == [holds(node, {"n": n % 100, "a": "x"}) for n in range(2000)]
            taken = statements.taken()
            assert len(taken) == 2
            assert not any("FROM item" in one for one in taken)


def test_row_numbers_far_apart_are_found(records: Records) -> None:
    rids = np.array(put(records, [{"a": n % 3} for n in range(3000)]), np.int64)
    with records.reading() as view:
        for some in (rids[::2], rids[::100], rids[[0, -1]], rids[[5]]):
            for node in (Eq("a", 1), Not(Eq("a", 1)), In("a", (0, 2))):
                expected = [holds(node, {"a": (rid - 1) % 3}) for rid in some.tolist()]
                assert Matcher(("a",)).matching(view, node, some, None).tolist() == expected


def test_a_part_without_rows_has_an_empty_mask(records: Records) -> None:
    with records.reading() as view:
        mask = Matcher(("a", "n")).matching(view, Eq("a", 1), np.empty(0, np.int64), "part")
    assert (mask.dtype, mask.shape) == (np.bool_, (0,))


def test_a_key_that_is_not_allowed_is_refused(records: Records) -> None:
    rids = np.array(put(records, [{}]), np.int64)
    with records.reading() as view, pytest.raises(InvalidInput, match="is not allowed"):
        Matcher(("a", "n")).matching(view, Exists('a"b'), rids, None)


@pytest.mark.parametrize("max_bytes", [0, 500, 4000, 40_000])
def test_cached_masks_stay_within_the_bound_and_the_last_used_stay(records: Records, max_bytes: int) -> None:
    rids = np.array(put(records, [{"n": n} for n in range(2000)]), np.int64)
    matcher = Matcher(("a", "n"), max_bytes)
    with records.reading() as view:
        matcher.matching(view, Eq("n", 0), rids, "part")
        statements = Statements(view)
        for n in range(1, 101):
            assert np.flatnonzero(matcher.matching(view, Eq("n", n), rids, "part")).tolist() == [n]
            assert np.flatnonzero(matcher.matching(view, Eq("n", 0), rids, "part")).tolist() == [0]
            assert kept_bytes(matcher) <= max_bytes
        # With room for two masks the one in constant use stays.
        assert len(statements.taken()) == (200 if max_bytes < 2 * (2000 // 8 + 400) else 100)


def test_threads_that_share_a_matcher_get_their_own_answers_while_items_are_removed(records: Records) -> None:
    documents: list[Metadata] = [{"a": n % 7, "n": n, "other": n % 5} for n in range(2000)]
    rids = put(records, documents)
    parts = parts_of(rids, [400, 1100, 1900])
    nodes: list[Filter] = [
        node
        for value in range(7)
        for node in (
            Eq("a", value),
            Not(Eq("a", value)),
            And((Eq("a", value), Eq("other", 3))),
            Or((Range("n", lt=float(value * 100)), Eq("other", value))),
        )
    ]
    expected = [np.array([holds(node, document) for document in documents]) for node in nodes]
    matcher = Matcher(("a", "n"), max_bytes=8000)
    done = threading.Event()

    def remove() -> int:
        count = 0
        while not done.is_set() and count < 1000:
            delete(records, str(count))
            matcher.forget(count % 4)
            count += 1
        return count

    def search(thread: int) -> int:
        random = np.random.default_rng(thread)
        compared = 0
        for number in random.integers(0, len(nodes), 60):
            with records.reading() as view:
                live = np.isin(np.array(rids), view.all_rids())
                found = [matcher.matching(view, nodes[number], part, name) for name, part in enumerate(parts)]
            assert np.array_equal(np.concatenate(found)[live], expected[number][live])
            compared += int(live.sum())
        return compared

    with ThreadPoolExecutor(7) as pool:
        removing = pool.submit(remove)
        try:
            compared = list(pool.map(search, range(6)))
        finally:
            done.set()
        assert removing.result() > 0
    assert min(compared) >= 60 * 1000
    assert kept_bytes(matcher) <= 8000
