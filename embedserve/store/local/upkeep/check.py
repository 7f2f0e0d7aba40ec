"""A check of a collection: everything that is stored redundantly is compared, while the collection is used.

The items with their checksums, the index with the items, the files of segments with their hashes, and every item with
what a search for its own vector finds. The check reads a few rows at a time and rests as long as it works, so that
calls hardly notice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedserve.errors import DiskFull, StoreError
from embedserve.index import tuning
from embedserve.index.ranking import exact_scores, score_error
from embedserve.index.search_params import SearchParams
from embedserve.index.segment import Segment
from embedserve.store.local.records.facets import Facets
from embedserve.store.local.records.interruption import interruptible
from embedserve.store.local.records.verify import (
    FIRST_FACET,
    FacetRow,
    VerifiedRows,
    missing_facets,
    surplus_facets,
    verify_rows,
)
from embedserve.store.local.upkeep import sealing
from embedserve.types import CheckProgress, CheckReport, Recall
from embedserve.wanted import Asking, Wanted

if TYPE_CHECKING:
    from embedserve.index.rows import Rows
    from embedserve.index.snapshot import Snapshot
    from embedserve.store.local.collection.collection import Collection
    from embedserve.store.local.records.view import View

MAX_PROBLEMS = 100
"""Maximum number of problems in a report; the rest is counted."""

_ROWS = 1024
_QUERIES = 64
_COMPARED = 4e11
"""Maximum number of vector elements that the searches compare, some 20 s of one core; beyond it only some of the items
are searched for. Every row without a structure is compared with every query, which would take hours for a million."""
_LONGEST_REST_S = 0.1


class Check:
    """One check of one collection.

    Args:
        collection: not closed before ``run`` returns.
        on_progress: called now and then; an exception from it ends the check.
    """

    def __init__(self, collection: Collection, on_progress: Callable[[CheckProgress], None]) -> None:
        self._collection = collection
        self._dimension = collection.entry.dimension
        self._facets = Facets(collection.entry.filter_keys)
        self._on_progress = on_progress
        self._problems: list[str] = []
        self._to_rebuild: set[str] = set()
        self._worked_since = time.perf_counter()
        self._last = CheckProgress("items", 0, 0)
        self._wanted = Asking(self._look)

    def run(self) -> CheckReport:
        """Do the whole check in the calling thread.

        Raises:
            StoreError: the collection is being closed or removed.
        """
        items = self._check_items()
        segments = self._check_segments()
        searched = self._check_search()
        recall = self._measure_recall()
        problems = self._problems[:MAX_PROBLEMS]
        if len(self._problems) > MAX_PROBLEMS:
            problems.append(f"… and {len(self._problems) - MAX_PROBLEMS} more")
        return CheckReport(items=items, segments=segments, searched=searched, recall=recall, problems=tuple(problems))

    # --- Items ----------------------------------------------------------------------

    def _check_items(self) -> int:
        """Compare every row with its checksum and with the index; the number of rows."""
        read = after = total = last = 0
        with self._reporting(), self._reading() as view:
            total, last = view.count(), int(view.all_rids().max(initial=0))
        self._progress("items", 0, total)
        for table in ("item", "media", "facet"):
            with self._reporting(), self._reading() as view:
                found = view.connection.execute(f"PRAGMA integrity_check ({table})").fetchall()
                self._problems += [f"{self._collection.path}: {what}" for (what,) in found if what != "ok"]
            self._rest()
        # Rows that are written from now on are not checked.
        while after < last:
            batch = None
            with self._reporting(), self._reading() as view:
                batch = verify_rows(view.connection, self._dimension, after, _ROWS, self._look)
                if batch is not None:
                    missing = missing_facets(view.connection, self._facets, batch, self._look)[1]
                    self._problems += batch.problems + missing
            if batch is None:
                break
            self._compare_with_index(batch)
            read, after = read + batch.read, batch.last_rid
            self._progress("items", min(read, total), total)
        self._check_other_tables()
        self._compare_row_numbers()
        return read

    def _check_other_tables(self) -> None:
        """Find facets and images that belong to no item or to another one."""
        facet: FacetRow | None = FIRST_FACET
        while facet is not None:
            at, facet = facet, None
            with self._reporting(), self._reading() as view:
                facet, problems = surplus_facets(view.connection, self._facets, at, _ROWS, self._look)
                self._problems += problems
            self._rest()
        with self._reporting(), self._reading() as view:
            if view.connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
                self._problems.append(f"{self._collection.path}: an image belongs to no item")

    def _compare_with_index(self, batch: VerifiedRows) -> None:
        """Rows never change, so each of these must be the same wherever the index has it."""
        for part in self._collection.snapshot.parts:
            positions = part.positions_of(batch.rids)
            if not len(positions):
                continue
            places = np.searchsorted(batch.rids, part.rids[positions])
            # Bit by bit: 0.0 equals −0.0, and NaN equals nothing.
            wrong = (part.vectors[positions].view(np.uint32) != batch.vectors[places].view(np.uint32)).any(axis=1)
            for position, place, differs in zip(positions.tolist(), places.tolist(), wrong.tolist(), strict=True):
                if differs or part.ids[position] != batch.rows[place].id:
                    self._problems.append(f"item {batch.rows[place].text_id!r}: the index holds another vector or id")
                    self._mark_for_rebuild(part)

    def _compare_row_numbers(self) -> None:
        """Check that the index holds exactly the items that exist."""
        with self._reporting(), self._collection.in_step() as (view, snapshot):
            stored = view.all_rids()
            parts = [part for part in snapshot.parts if len(part)]
            searched = [part.rids[part.live_positions()] for part in parts]
            missing = np.setdiff1d(stored, np.concatenate([*searched, np.empty(0, np.int64)]), assume_unique=True)
            names = view.ids(missing.tolist())
            self._problems += [
                f"item {names[rid].decode(errors='replace')!r}: it is missing from the index, so no search finds it"
                for rid in missing.tolist()
            ]
            starts = np.array([part.rids[0] for part in parts], np.int64)
            for place in np.unique(np.searchsorted(starts, missing, side="right") - 1).tolist():
                if place >= 0:
                    self._mark_for_rebuild(parts[place])
            for part, live in zip(parts, searched, strict=True):
                for rid in np.setdiff1d(live, stored, assume_unique=True):
                    id = part.ids[int(np.searchsorted(part.rids, rid))].decode(errors="replace")
                    self._problems.append(f"the index holds item {id!r}, which does not exist")
                    self._mark_for_rebuild(part)

    def _mark_for_rebuild(self, part: Rows) -> None:
        """Have a segment rebuilt; deltas are rebuilt at every start."""
        if isinstance(part, Segment):
            self._to_rebuild.add(part.uid)

    # --- Segments -------------------------------------------------------------------

    def _check_segments(self) -> int:
        """Compare the files of every segment with their hashes and rebuild damaged ones; the number of segments."""
        segments = self._collection.snapshot.segments
        self._progress("segments", 0, len(segments))
        for number, segment in enumerate(segments, 1):
            wrong = self._collection.files.problems(segment.uid, self._look)
            # A segment that was merged meanwhile has no files any more, and is not used.
            if segment.uid in {current.uid for current in self._collection.snapshot.segments}:
                self._problems += wrong
                if wrong or segment.uid in self._to_rebuild:
                    self._rebuild(segment.uid)
            self._progress("segments", number, len(segments))
        return len(segments)

    def _rebuild(self, uid: str) -> None:
        try:
            sealing.rebuild(self._collection, uid)
        except (StoreError, DiskFull) as error:
            self._problems.append(f"segment {uid} could not be rebuilt from the items: {error.message}")
        else:
            self._problems.append(f"segment {uid} is rebuilt from the items")

    # --- Search ---------------------------------------------------------------------

    def _check_search(self) -> int:
        """Search for items by their own vectors; the number of searches."""
        snapshot = self._collection.snapshot
        exact_rows = sum(len(part) for part in snapshot.parts if _is_exact(part))
        most = max(int(_COMPARED / (self._dimension * max(exact_rows, 1))), 1)
        step = max(-(-snapshot.items // most), 1)
        params = self._collection.default_params
        chosen = [(part, part.live_positions()[::step]) for part in snapshot.parts]
        total = sum(len(positions) for _, positions in chosen)
        searched = missed = 0
        self._progress("search", 0, total)
        for part, positions in chosen:
            for start in range(0, len(positions), _QUERIES):
                some = positions[start : start + _QUERIES]
                absent = _absent(snapshot, part, some, params, self._wanted)
                # The target recall allows an item to be missed, but not with the ef or nprobe that found it, or a row
                # as near, when the segment was built.
                absent = _absent(snapshot, part, absent, _own_vector_params(part, params), self._wanted)
                missed += len(absent)
                searched += len(some)
                for position in absent.tolist():
                    id = part.ids[position].decode(errors="replace")
                    self._problems.append(f"item {id!r}: a search for its own vector does not find it")
                self._progress("search", searched, total)
        target = self._collection.entry.target_recall
        if missed > (1 - min(target, tuning.ENOUGH)) * searched:
            self._problems.append(
                f"{missed} of {searched} items are not found by their own vectors with the usual search parameters, "
                f"which should find {target:.0%}"
            )
        return searched

    # --- Recall ---------------------------------------------------------------------

    def _measure_recall(self) -> Recall | None:
        self._progress("recall", 0, 1)
        recall = self._collection.measure_recall(self._is_stopped)
        self._progress("recall", 1, 1)
        return recall

    # --- All stages -----------------------------------------------------------------

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._last = CheckProgress(stage, done, total)
        self._look()
        self._rest()

    def _look(self) -> None:
        """Ask whether the check is still wanted: once for every row, and every few milliseconds.

        Raises:
            StoreError: the collection is being closed.
            Exception: that of ``on_progress``.
        """
        if self._collection.close_guard.closed:
            raise _Closed(f"collection {self._collection.entry.name!r} was closed while it was checked")
        self._on_progress(self._last)

    def _is_stopped(self) -> bool:
        self._look()
        return False

    @contextmanager
    def _reading(self) -> Iterator[View]:
        """The records as they are now; statements end once the check is not wanted any more."""
        with self._collection.reading() as view, interruptible(view.connection, self._look):
            yield view

    def _rest(self) -> None:
        """Leave the interpreter and the cores to others for as long as the last work took."""
        time.sleep(min(time.perf_counter() - self._worked_since, _LONGEST_REST_S))
        self._worked_since = time.perf_counter()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Report what cannot be read as a problem; the check continues with the rest."""
        try:
            yield
        except _Closed:
            raise
        except StoreError as error:
            self._problems.append(error.message)


class _Closed(StoreError):
    """The collection is being closed."""


def _is_exact(part: Rows) -> bool:
    return not isinstance(part, Segment) or part.structure is None


def _own_vector_params(part: Rows, usual: SearchParams) -> SearchParams:
    if not isinstance(part, Segment) or part.structure is None:
        return usual
    param = tuning.own_vector_param(part.points)
    return SearchParams(ef=param, nprobe=param)


def _absent(
    snapshot: Snapshot, part: Rows, positions: NDArray[np.int64], params: SearchParams, wanted: Wanted
) -> NDArray[np.int64]:
    """Those of some rows of a part for which a search for their own vectors finds neither them nor a row as near."""
    if not len(positions):
        return positions
    vectors = part.vectors[positions]
    rankings = snapshot.nearest(vectors, 1, params=params, wanted=wanted)
    own_scores = exact_scores(vectors, np.arange(len(vectors)), vectors, np.arange(len(vectors)))
    error = score_error(vectors.shape[1])
    absent = [
        rid not in ranking.rids and not (len(ranking.scores) and ranking.scores[0] >= own - error)
        for rid, own, ranking in zip(part.rids[positions], own_scores, rankings, strict=True)
    ]
    found: NDArray[np.int64] = positions[np.array(absent)]
    return found
