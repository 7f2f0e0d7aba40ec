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

from embedserve.answer_size import AnswerSize
from embedserve.changes import MetadataChange
from embedserve.index import spec
from embedserve.index.current import CurrentSnapshot
from embedserve.index.delta import FrozenDelta
from embedserve.index.rows import Rows
from embedserve.index.search_params import SearchParams
from embedserve.index.segment import Segment
from embedserve.index.snapshot import Snapshot
from embedserve.observer import Observer
from embedserve.store.local.collection import hits, recall_file, recovery
from embedserve.store.local.collection.build_state import BuildState
from embedserve.store.local.collection.close_guard import CloseGuard
from embedserve.store.local.collection.groups import Groups, PartGroups
from embedserve.store.local.collection.matching import Matcher
from embedserve.store.local.collection.page_token import last_id, page_token
from embedserve.store.local.collection.recall import RecallMonitor
from embedserve.store.local.collection.segment_files import SegmentFiles
from embedserve.store.local.records.catalog import Entry
from embedserve.store.local.records.group_commit import GroupCommit
from embedserve.store.local.records.interruption import interruptible
from embedserve.store.local.records.open_files import OpenFiles
from embedserve.store.local.records.records import FILE, Change, Records, WriteTransaction
from embedserve.store.local.records.row import Row
from embedserve.store.local.records.view import View
from embedserve.types import Filter, Hit, Include, Item, Page, Recall, SearchOptions
from embedserve.wanted import ALWAYS, Wanted

_TRIES = 20
"""How often a reader looks for records and index in step before it makes writers wait."""
_WAIT_S = 0.05
_BATCH = 1000
"""Items that a deletion by filter removes in one transaction, for which other writes wait; a deletion by ids removes as
many."""
_WINDOW = 1 << 16


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
        open_files: limits the files that all collections hold open.
        wanted: asked while its rows are read.

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
        open_files: OpenFiles | None = None,
        wanted: Wanted = ALWAYS,
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
        self._groups = Groups(self._matcher.metadata_log)
        self._group_commit: GroupCommit[_Write, Change] = GroupCommit(self._commit)
        self._closing = False
        self._records = Records(
            directory / FILE, entry.dimension, create=create, filter_keys=entry.filter_keys, open_files=open_files
        )
        try:
            with self._records.reading(wanted) as view:
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

    def matching_batches(self, filter: Filter, check: Callable[[], None]) -> Iterator[list[int]]:
        """The row numbers of the items that match a filter now, in batches that one transaction may remove.

        Args:
            filter: on metadata.
            check: called every few milliseconds while the items are looked for; an exception from it ends the work.
        """
        return _batches(self._masks(filter, check))

    def delete_matching(self, rids: Sequence[int], filter: Filter) -> int:
        """Remove those of the given rows that still match a filter in one transaction; how many they were."""
        none = np.empty((0, self.entry.dimension), np.float32)
        write = _Write(lambda writing: writing.delete_matching(rids, filter), [], none)
        return len(self._group_commit.commit(write).removed)

    def update_metadata(self, changes: Sequence[MetadataChange], max_metadata_bytes: int) -> list[int | None]:
        """Change metadata in one transaction; see ``WriteTransaction.update_metadata``."""
        sizes: list[int | None] = []

        def apply(writing: WriteTransaction) -> Change:
            # Again, if what was in the same transaction failed.
            change, sizes[:] = writing.update_metadata(changes, max_metadata_bytes)
            return change

        self._group_commit.commit(_Write(apply, [], np.empty((0, self.entry.dimension), np.float32)))
        return sizes

    def count(self, filter: Filter | None, check: Callable[[], None]) -> int:
        """How many items there are, or match a filter; ``check`` as in ``matching_batches``."""
        if filter is None:
            return self._index.current.items
        return sum(int(np.count_nonzero(mask)) for _, mask in self._masks(filter, check))

    def make_room(self) -> None:
        """Free the space of the log for the next write; on a full disk, before one is tried again."""
        self._records.reuse_log()

    def items(
        self, ids: Sequence[str], include: Include, size: AnswerSize, wanted: Wanted = ALWAYS
    ) -> list[Item | None]:
        """The items with these ids, in order; None where there is none."""
        with self._records.reading(wanted) as view:
            return view.items(ids, include, size)

    def page(
        self,
        most: int,
        most_bytes: int,
        token: str,
        filter: Filter | None,
        include: Include,
        size: AnswerSize,
        wanted: Wanted = ALWAYS,
    ) -> Page:
        """A page of items in the order of their ids: at most so many, and with more than one at most so many bytes."""
        after = last_id(token)
        with self._records.reading(wanted) as view:
            items, more = view.page(after, most, most_bytes, filter, include, size)
        return Page(items=tuple(items), next_page_token=page_token(items[-1].id) if more else "")

    # --- Search ---------------------------------------------------------------------

    def search(
        self,
        queries: NDArray[np.float32],
        options: SearchOptions,
        exclude_ids: Sequence[str | None],
        sizes: Sequence[AnswerSize],
        wanted: Wanted = ALWAYS,
    ) -> list[list[Hit]]:
        """Hits for each of the queries [Q, D]."""
        params = self._params(options)
        if hits.need_records(options, exclude_ids):
            with self.in_step(wanted) as (view, snapshot):
                among = None if options.filter is None else self._matching(view, snapshot, options.filter)

                def groups_of(number: int) -> PartGroups:
                    part = snapshot.parts[number]
                    return self._groups.of_part(view, options.group_by, part.rids, _part_key(part))

                found = hits.search(
                    view, snapshot, queries, options, exclude_ids, params, among, groups_of, sizes
                )  # fmt: skip
        else:
            snapshot = self._index.current
            found = hits.search_index(snapshot, queries, options, params, wanted, sizes)
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

    def _masks(self, filter: Filter, check: Callable[[], None]) -> list[tuple[Rows, NDArray[np.bool_]]]:
        """The parts of the index as it is now, each with its live rows that match a filter: bool [N]."""
        with self.in_step() as (view, snapshot), interruptible(view.connection, check):
            return list(zip(snapshot.parts, self._matching(view, snapshot, filter), strict=True))

    def _matching(self, view: View, snapshot: Snapshot, filter: Filter) -> list[NDArray[np.bool_]]:
        """For each part the live rows that match a filter: bool [N]."""
        masks = []
        for part in snapshot.parts:
            view.wanted.check()
            masks.append(self._matcher.matching(view, filter, part.rids, _part_key(part)) & part.live_mask())
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
    def in_step(self, wanted: Wanted = ALWAYS) -> Iterator[tuple[View, Snapshot]]:
        """Records and index after the same write.

        A commit and the publication of its snapshot are two events. A reader that falls between them waits for the
        second; one that is overtaken by a write tries again.
        """
        for _ in range(_TRIES):
            with self._records.reading(wanted) as view:
                seq = view.seq()
                snapshot = self._index.wait_for(seq, _WAIT_S)
                if snapshot.seq == seq:
                    yield view, snapshot
                    return
        with self.writes_paused(wanted) as (view, snapshot):
            yield view, snapshot

    def _commit(self, writes: Sequence[_Write]) -> list[Change]:
        with self._records.writing() as writing:
            # Made before the commit: if there is no memory for the snapshot, nothing is written either.
            changes: list[Change] = []
            snapshot = None
            for write in writes:
                change = write.apply(writing)
                if change.updated is not None:  # before a reader can see it
                    self._matcher.metadata_log.add(change.seq, change.updated)
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
    def writes_paused(self, wanted: Wanted = ALWAYS) -> Iterator[tuple[View, Snapshot]]:
        """Records and index after the last write, with ``write_lock`` held."""
        with self.write_lock, self._records.reading(wanted) as view:
            yield view, self._snapshot_at(view.seq())

    def forget_matches(self, uid: str) -> None:
        """Drop what is cached about a segment that is gone."""
        self._matcher.forget(uid)
        self._groups.forget(uid)

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


def _batches(masks: Sequence[tuple[Rows, NDArray[np.bool_]]]) -> Iterator[list[int]]:
    """The row numbers that are set in the masks of some parts, ascending."""
    for part, mask in masks:
        # A window at a time, so that a million matches are not a million numbers.
        for start in range(0, len(part), _WINDOW):
            rids = part.rids[start : start + _WINDOW][mask[start : start + _WINDOW]]
            for first in range(0, len(rids), _BATCH):
                yield rids[first : first + _BATCH].tolist()


def _part_key(part: Rows) -> str | None:
    """What identifies a part forever whose rows never change; None for the delta."""
    return part.uid if isinstance(part, Segment | FrozenDelta) else None
