"""One collection: its records and the index over them, which show the same writes to every reader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from embedserve.index import spec
from embedserve.index.current import CurrentSnapshot
from embedserve.index.delta import FrozenDelta
from embedserve.index.search_params import SearchParams
from embedserve.index.segment import Segment
from embedserve.index.snapshot import Snapshot
from embedserve.observer import Observer
from embedserve.store.local.collection import hits, recall_file, recovery
from embedserve.store.local.collection.build_state import BuildState
from embedserve.store.local.collection.close_guard import CloseGuard
from embedserve.store.local.collection.matching import Matcher
from embedserve.store.local.collection.page_token import last_id, page_token
from embedserve.store.local.collection.recall import RecallMonitor
from embedserve.store.local.collection.segment_files import SegmentFiles
from embedserve.store.local.records.catalog import Entry
from embedserve.store.local.records.group_commit import GroupCommit
from embedserve.store.local.records.records import FILE, Change, Records, WriteTransaction
from embedserve.store.local.records.row import Row
from embedserve.store.local.records.view import View
from embedserve.types import Filter, Hit, Include, Item, Page, Recall, SearchOptions

_TRIES = 20
"""How often a reader looks for records and index in step before it makes writers wait."""
_WAIT_S = 0.05


@dataclass(frozen=True, slots=True)
class _Write:
    """A write of one caller, and what the index needs to know about it."""

    apply: Callable[[WriteTransaction], Change]
    ids: list[bytes]
    vectors: NDArray[np.float32]


class Collection:
    """The items in one directory, and the index over them. Safe to use from several threads.

    Callers enter ``close_guard`` before they use it. For the order of its locks see ``embedserve.store.local``.

    Args:
        entry: what the catalog says about it.
        directory: of its files.
        create: create the file of its items.
        memory_bytes: budget for its index.
        observer: told when a segment cannot be used.

    Raises:
        InvalidInput: the index in ``entry`` is unknown.
        StoreError: the file cannot be used, or a row is damaged.
    """

    def __init__(
        self,
        entry: Entry,
        directory: Path,
        *,
        create: bool = False,
        memory_bytes: int = 4 << 30,
        observer: Observer | None = None,
    ) -> None:
        self.entry = entry
        self.directory = directory
        self.spec = spec.parse(entry.index)
        self.memory_bytes = memory_bytes
        self.close_guard = CloseGuard()
        self.recall = RecallMonitor(entry.target_recall)
        self.files = SegmentFiles(directory, entry.dimension, entry.fingerprint, observer)
        self.build_state = BuildState()
        self.written_at_s = time.monotonic()
        """When the last write was committed, or the collection was opened; monotonic."""
        self._matcher = Matcher(entry.filter_keys)
        self._group_commit: GroupCommit[_Write, Change] = GroupCommit(self._commit)
        self._closing = False
        self._records = Records(directory / FILE, entry.dimension, create=create, filter_keys=entry.filter_keys)
        try:
            with self._records.reading() as view:
                self._index = CurrentSnapshot(recovery.load(view, self.files, self.path, entry.dimension))
        except BaseException:
            self._records.close()
            raise
        recall_file.load(self.files.directory, self._index.current, self.recall)

    @property
    def path(self) -> Path:
        """Path of the database of its items, for messages."""
        return self.directory / FILE

    # --- Items ----------------------------------------------------------------------

    def upsert(self, items: Sequence[Item]) -> None:
        """Write items in one transaction; if an id occurs twice, the later item counts."""
        latest = {item.id: item for item in items}
        if not latest:
            return
        rows = [(Row.of(item, self.entry.dimension), item.media) for item in latest.values()]
        vectors = np.stack([row.vector for row, _ in rows])
        self._group_commit.commit(_Write(lambda writing: writing.upsert(rows), [row.id for row, _ in rows], vectors))

    def delete(self, ids: Sequence[str]) -> int:
        """Remove items in one transaction; how many of them existed."""
        none = np.empty((0, self.entry.dimension), np.float32)
        write = _Write(lambda writing: writing.delete(list(dict.fromkeys(ids))), [], none)
        return len(self._group_commit.commit(write).removed)

    def items(self, ids: Sequence[str], include: Include) -> list[Item | None]:
        """The items with these ids, in order; None where there is none."""
        with self._records.reading() as view:
            return view.items(ids, include)

    def page(self, size: int, token: str, filter: Filter | None, include: Include) -> Page:
        """A page of items in the order of their ids."""
        after = last_id(token)
        with self._records.reading() as view:
            items = view.page(after, size + 1, filter, include)
        more = len(items) > size
        items = items[:size]
        return Page(items=tuple(items), next_page_token=page_token(items[-1].id) if more else "")

    # --- Search ---------------------------------------------------------------------

    def search(
        self, queries: NDArray[np.float32], options: SearchOptions, exclude_ids: Sequence[str | None]
    ) -> list[list[Hit]]:
        """Hits for each of the queries [Q, D]."""
        params = self._params(options)
        if hits.need_records(options, exclude_ids):
            with self.in_step() as (view, snapshot):
                among = None if options.filter is None else self._matching(view, snapshot, options.filter)
                found = hits.search(view, snapshot, queries, options, exclude_ids, params, among)
        else:
            snapshot = self._index.current
            found = hits.search_index(snapshot, queries, options, params)
        if not options.exact and options.filter is None and snapshot.is_approximate:
            self.recall.sample(queries)
        return found

    @property
    def default_params(self) -> SearchParams:
        """Those of a search that sets none."""
        return self._params(SearchOptions())

    def measure_recall(self, stopped: Callable[[], bool] = lambda: False) -> Recall | None:
        """Compare approximate with exact search now; None if every search is exact.

        Raises:
            structures.Stopped: ``stopped`` returned true, or the collection is being closed.
        """
        measured = self.recall.measure(self._index.current, lambda: stopped() or self._closing)
        self.keep_recall()
        return measured

    def keep_recall(self) -> None:
        """Write what was measured to disk, with the segments that it is about."""
        recall_file.keep(self.files.directory, self._index.current, self.recall)

    def _matching(self, view: View, snapshot: Snapshot, filter: Filter) -> list[NDArray[np.bool_]]:
        """For each part the live rows that match a filter: bool [N]."""
        masks = []
        for part in snapshot.parts:
            key = part.uid if isinstance(part, Segment | FrozenDelta) else None
            masks.append(self._matcher.matching(view, filter, part.rids, key) & part.live_mask())
        return masks

    def _params(self, options: SearchOptions) -> SearchParams:
        return SearchParams(
            exact=options.exact or (self.recall.exact and not (options.ef or options.nprobe)),
            ef=options.ef,
            nprobe=options.nprobe,
            target_recall=options.target_recall or self.entry.target_recall,
            multiplier=self.recall.multiplier,
        )

    # --- Records and index in step --------------------------------------------------

    def reading(self) -> AbstractContextManager[View]:
        """The records as they are now, whatever is written meanwhile."""
        return self._records.reading()

    @contextmanager
    def in_step(self) -> Iterator[tuple[View, Snapshot]]:
        """Records and index after the same write.

        A commit and the publication of its snapshot are two events. A reader that falls between them waits for the
        second; one that is overtaken by a write tries again.
        """
        for _ in range(_TRIES):
            with self._records.reading() as view:
                seq = view.seq()
                snapshot = self._index.wait_for(seq, _WAIT_S)
                if snapshot.seq == seq:
                    yield view, snapshot
                    return
        with self.writes_paused() as (view, snapshot):
            yield view, snapshot

    def _commit(self, writes: Sequence[_Write]) -> list[Change]:
        with self._records.writing() as writing:
            # Made before the commit: if there is no memory for the snapshot, nothing is written either.
            changes: list[Change] = []
            snapshot = None
            for write in writes:
                change = write.apply(writing)
                if snapshot is None:
                    snapshot = self._snapshot_at(change.seq - 1)
                snapshot = snapshot.changed(
                    change.seq, removed=change.removed, rids=change.rids, ids=write.ids, vectors=write.vectors
                )
                changes.append(change)
        if snapshot is not None:
            self._index.publish(snapshot)
        self.written_at_s = time.monotonic()
        return changes

    def _snapshot_at(self, seq: int) -> Snapshot:
        """The snapshot after the write ``seq``, which is the last one. Needs ``write_lock``."""
        if self._index.current.seq != seq:
            # A thread was interrupted between its commit and its publication.
            with self._records.reading() as view:
                self._index.publish(recovery.catch_up(view, self._index.current, self.path))
        return self._index.current

    # --- For upkeep -----------------------------------------------------------------

    @property
    def write_lock(self) -> RLock:
        """Held during every commit; a holder makes writers wait, and must not write."""
        return self._group_commit.lock

    @property
    def snapshot(self) -> Snapshot:
        """The index as it is now."""
        return self._index.current

    def publish(self, snapshot: Snapshot) -> None:
        """Show a snapshot with the same items to searches from now on. Needs ``write_lock``."""
        self._index.publish(snapshot)

    @contextmanager
    def writes_paused(self) -> Iterator[tuple[View, Snapshot]]:
        """Records and index after the last write, with ``write_lock`` held."""
        with self.write_lock, self._records.reading() as view:
            yield view, self._snapshot_at(view.seq())

    def forget_matches(self, uid: str) -> None:
        """Drop what is cached about a segment that is gone."""
        self._matcher.forget(uid)

    @property
    def is_closing(self) -> bool:
        """True as soon as ``close`` is called; failures are expected then."""
        return self._closing

    def close(self) -> None:
        """Admit no more callers, wait for those inside and until the current build has stopped, and close all files."""
        self._closing = True
        self.close_guard.close()
        with self.build_state.lock:
            self._records.close()
            # Segments stay mapped as long as something refers to them.
            self._index.publish(Snapshot.of(self._index.current.seq, self.entry.dimension, []))
