"""One collection: its records and the index over them, which show the same writes to every reader."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedserve.index import compaction, spec
from embedserve.index.compaction import Step, WriteActivity
from embedserve.index.current import CurrentSnapshot
from embedserve.index.rows import Frozen, Rows
from embedserve.index.search_params import SearchParams
from embedserve.index.segment import Segment
from embedserve.index.snapshot import Snapshot
from embedserve.index.spec import IndexSpec
from embedserve.observer import Observer
from embedserve.store.local.collection import hits, recovery
from embedserve.store.local.collection.close_guard import CloseGuard
from embedserve.store.local.collection.matching import Matcher
from embedserve.store.local.collection.page_token import last_id, page_token
from embedserve.store.local.collection.recall import RecallMonitor
from embedserve.store.local.collection.segment_files import SegmentFiles
from embedserve.store.local.records.catalog import Entry
from embedserve.store.local.records.database import reported
from embedserve.store.local.records.group_commit import Commits
from embedserve.store.local.records.records import FILE, Change, Records, Writing
from embedserve.store.local.records.row import Row
from embedserve.store.local.records.view import View
from embedserve.types import CollectionInfo, Filter, Hit, Include, Item, Page, Recall, SearchOptions

_log = logging.getLogger("embedserve.store")

_TRIES = 20
"""How often a reader looks for records and index in step before it makes writers wait."""
_WAIT_S = 0.05
_IDLE_S = 1.0
"""Nothing was written for so long: what waits may be sealed even if it is little."""
_DUE_S = 10.0
"""So long after the last build somewhat more may be."""


@dataclass(frozen=True, slots=True)
class _Write:
    """What a caller wants written, and what the index has to know of it."""

    apply: Callable[[Writing], Change]
    ids: list[bytes]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a step of ``maintain`` made."""

    rows: int
    kind: str
    seconds: float


class Collection:
    """Items of one directory. Safe to use from several threads.

    Args:
        entry: what the catalog knows of it.
        directory: where its files are.
        create: make the file of its items.
        memory_bytes: that its index may take.
        observer: told when a part of the index cannot be used.

    Raises:
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
        self.gate = CloseGuard()
        self.recall = RecallMonitor(entry.target_recall)
        self.files = SegmentFiles(directory, entry.dimension, entry.fingerprint, observer)
        self._directory = directory
        self._matcher = Matcher(entry.filter_keys)
        self._spec = spec.parse(entry.index)
        self._memory_bytes = memory_bytes
        self._commits: Commits[_Write, Change] = Commits(self._commit)
        self._building = threading.Lock()
        self._closing = False
        self._files_named = True
        self._written_at = self._built_at = time.monotonic()
        self._records = Records(directory / FILE, entry.dimension, create=create, filter_keys=entry.filter_keys)
        try:
            with self._records.reading() as view:
                self._index = CurrentSnapshot(recovery.load(view, self.files, self.path, entry.dimension))
        except BaseException:
            self._records.close()
            raise

    # --- Items ----------------------------------------------------------------------

    def upsert(self, items: Sequence[Item]) -> None:
        """Write items in one transaction; if an id comes twice, the later one counts."""
        latest = {item.id: item for item in items}
        if not latest:
            return
        rows = [(Row.of(item, self.entry.dimension), item.media) for item in latest.values()]
        vectors = np.stack([row.vector for row, _ in rows])
        self._commits.do(_Write(lambda writing: writing.upsert(rows), [row.id for row, _ in rows], vectors))

    def delete(self, ids: Sequence[str]) -> int:
        """Remove items in one transaction; how many of them there were."""
        none = np.empty((0, self.entry.dimension), np.float32)
        change = self._commits.do(_Write(lambda writing: writing.delete(list(dict.fromkeys(ids))), [], none))
        return len(change.removed)

    def items(self, ids: Sequence[str], include: Include) -> list[Item | None]:
        """The items with these ids, in order."""
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
        """Hits for each query."""
        effort = self._effort(options)
        if hits.need_records(options, exclude_ids):
            with self.in_step() as (view, snapshot):
                among = None if options.filter is None else self._matching(view, snapshot, options.filter)
                found = hits.search(view, snapshot, queries, options, exclude_ids, effort, among)
        else:
            snapshot = self._index.current
            found = hits.search_index(snapshot, queries, options, effort)
        if not effort.exact and options.filter is None and self._is_approximate(snapshot):
            self.recall.sample(queries)
        return found

    def _matching(self, view: View, snapshot: Snapshot, filter: Filter) -> list[NDArray[np.bool_]]:
        """For each part the live rows that a filter holds for: bool [N]."""
        masks = []
        for part in snapshot.parts:
            for_good = part.uid if isinstance(part, Segment | Frozen) else None
            masks.append(self._matcher.matching(view, filter, part.rids, for_good) & part.live_mask())
        return masks

    def _effort(self, options: SearchOptions) -> SearchParams:
        return SearchParams(
            exact=options.exact,
            ef=options.ef,
            nprobe=options.nprobe,
            target_recall=options.target_recall or self.entry.target_recall,
            multiplier=self.recall.multiplier,
        )

    # --- What it is -----------------------------------------------------------------

    def info(self, aliases: Sequence[str]) -> CollectionInfo:
        """What the collection is and holds."""
        snapshot = self._index.current
        with reported(self._directory):
            # Not rglob: that fails where a directory of a segment is removed meanwhile.
            disk_bytes = sum(_size(Path(path) / name) for path, _, names in os.walk(self._directory) for name in names)
        return CollectionInfo(
            name=self.entry.name,
            fingerprint=self.entry.fingerprint,
            encoder_name=self.entry.encoder_name,
            dimension=self.entry.dimension,
            keep=self.entry.keep,
            created_unix_s=self.entry.created_unix_s,
            items=snapshot.items,
            aliases=tuple(sorted(aliases)),
            index=self._index_words(snapshot),
            disk_bytes=disk_bytes,
            uid=self.entry.uid,
            index_spec=self.entry.index,
            target_recall=self.entry.target_recall,
            filter_keys=self.entry.filter_keys,
            recall=self.recall.last if self._is_approximate(snapshot) else None,
            building=self._building.locked()
            or self._next_step(snapshot, WriteActivity(idle=True, due=True)) is not None,
            segments=len(snapshot.segments),
            unsealed=snapshot.unsealed,
            deleted=snapshot.dead,
        )

    def _index_words(self, snapshot: Snapshot) -> str:
        effort = SearchParams(target_recall=self.entry.target_recall, multiplier=self.recall.multiplier)
        kinds: dict[str, list[int]] = {}
        for segment in snapshot.segments:
            if segment.structure is not None:
                kinds.setdefault(str(segment.spec), []).append(segment.effort(effort))
        if not kinds:
            return "exact (flat inner product)"
        words = []
        for kind, efforts in kinds.items():
            name = "ef" if kind.startswith("hnsw") else "nprobe"
            between = f"{min(efforts)}" if len(set(efforts)) == 1 else f"{min(efforts)} to {max(efforts)}"
            words.append(f"{kind}, {name} {between} for recall {self.entry.target_recall:g}")
        return "; ".join(words)

    @staticmethod
    def _is_approximate(snapshot: Snapshot) -> bool:
        return any(segment.structure is not None for segment in snapshot.segments)

    # --- Maintenance ----------------------------------------------------------------

    def maintain(self, stopped: Callable[[], bool] = lambda: False, *, at_once: bool = False) -> Sealed | None:
        """Seal waiting rows or merge segments, one step, if one is due; what it made, or None.

        Only one thread does this at a time. Searches and writes go on meanwhile; writers wait for a moment at the
        beginning and at the end.

        Args:
            stopped: asked now and then; if it says so, the step is given up.
            at_once: do not wait for a pause in the writes.

        Raises:
            DiskFull, StoreError: the segment cannot be written; everything is as before.
            structures.Stopped: it was given up.
        """
        now = time.monotonic()
        pace = WriteActivity(idle=at_once or now - self._written_at > _IDLE_S, due=now - self._built_at > _DUE_S)
        with self._building:
            if not self._closing and not self._files_named:
                self._use_files()
            if self._closing or self._next_step(self._index.current, pace) is None:
                return None
            with self._commits.lock:
                self._index.publish(self._index.current.with_delta_frozen())
                snapshot = self._index.current
            step = self._next_step(snapshot, pace)
            if step is None:
                return None
            return self._build(snapshot, step, lambda: stopped() or self._closing)

    @property
    def is_closing(self) -> bool:
        """Whether it is being closed, so that what fails now is no surprise."""
        return self._closing

    def measure_recall(self, stopped: Callable[[], bool] = lambda: False) -> Recall | None:
        """Compare approximate with exact search now; None if every search is exact.

        Raises:
            structures.Stopped: ``stopped`` said so, or the collection is closed meanwhile.
        """
        return self.recall.measure(self._index.current, lambda: stopped() or self._closing)

    def rebuild(self, uid: str) -> None:
        """Take a segment out of use that cannot be trusted; its rows are read from the records and sealed anew.

        Raises:
            StoreError: a row is damaged; then the segment stays, for it is all there is.
        """
        with self._building, self._commits.lock, self._records.reading() as view:
            snapshot = self._snapshot(view.seq())
            for number, part in enumerate(snapshot.fixed):
                if isinstance(part, Segment) and part.uid == uid:
                    # Not even its row numbers are trusted: it held what lies between its neighbours.
                    others = snapshot.parts
                    before = [other.rids[-1] for other in others[:number] if len(other)]
                    behind = [other.rids[0] for other in others[number + 1 :] if len(other)]
                    rids = view.all_rids()
                    first = np.searchsorted(rids, before[-1], side="right") if before else 0
                    last = np.searchsorted(rids, behind[0]) if behind else len(rids)
                    new = recovery.unsealed(view, rids[first:last], self._directory / FILE, self.entry.dimension)
                    fixed = (*snapshot.fixed[:number], *new, *snapshot.fixed[number + 1 :])
                    self._index.publish(Snapshot(snapshot.seq, snapshot.dimension, fixed, snapshot.delta))
                    self._matcher.forget(uid)
                    self.files.doubt("checked", "segment %s of %s is made again from the items", uid, self.path)
                    self._use_files()
                    return

    def close(self) -> None:
        """Let nobody in any more, wait for those inside and until what is being built is given up, close all files."""
        self._closing = True
        self.gate.close()
        with self._building:
            self._records.close()
            # Segments are mapped as long as somebody has them.
            self._index.publish(Snapshot.of(self._index.current.seq, self.entry.dimension, []))

    def _next_step(self, snapshot: Snapshot, pace: WriteActivity) -> Step | None:
        return compaction.next_step(snapshot.parts, self.entry.dimension, pace)

    def _build(self, snapshot: Snapshot, step: Step, stopped: Callable[[], bool]) -> Sealed:
        begun = time.monotonic()
        parts = snapshot.fixed[step.first : step.first + step.count]
        segment = self._built(parts, snapshot, stopped)
        with self._commits.lock:
            replaced = self._index.current.replaced(parts, segment)
            if replaced is not None:
                self._index.publish(replaced)
        self._use_files()
        for part in parts:
            if isinstance(part, Segment):
                self._matcher.forget(part.uid)
        self._built_at = time.monotonic()
        self.recall.forget()
        rows = 0 if segment is None else len(segment)
        kind = "none" if segment is None else segment.spec.kind
        _log.info("sealed %d rows of %r as %s in %.1f s", rows, self.entry.name, kind, self._built_at - begun)
        return Sealed(rows, kind, self._built_at - begun)

    def _built(self, parts: Sequence[Rows], snapshot: Snapshot, stopped: Callable[[], bool]) -> Segment | None:
        rows = sum(part.live for part in parts)
        if not rows:
            return None
        uid = uuid.uuid4().hex

        def built_as(wanted: IndexSpec) -> Segment:
            kind = spec.chosen(
                wanted,
                total=snapshot.items,
                rows=rows,
                dimension=self.entry.dimension,
                memory_bytes=self._memory_bytes,
            )
            return Segment.built(uid, kind, parts, self.entry.dimension, stopped)

        segment = built_as(self._spec)
        if self._spec.kind == "auto" and segment.spec.kind == "hnsw" and not segment.reaches(self.entry.target_recall):
            # Thousands of equal rows, such as one picture in the place of all that are missing, are linked to each
            # other only: a search that comes among them does not get out. Lists do not care.
            segment = max(segment, built_as(IndexSpec("ivf")), key=lambda either: either.greatest_recall)
        if not segment.reaches(self.entry.target_recall):
            _log.warning(
                "%d rows of %r as %s: recall %.3f at most, where %g was asked for",
                *(rows, self.entry.name, segment.spec, segment.greatest_recall, self.entry.target_recall),
            )
        return self.files.write(segment, snapshot.seq)

    def _use_files(self) -> None:
        self._files_named = False  # so that the next step tries again if this fails
        snapshot = self._index.current
        self.files.use(snapshot.segments, snapshot.seq)
        self._files_named = True

    # --- Records and index in step --------------------------------------------------

    def _commit(self, writes: Sequence[_Write]) -> list[Change]:
        with self._records.writing() as writing:
            # Made before the commit: if there is no memory for it, nothing is written either.
            changes: list[Change] = []
            snapshot = None
            for write in writes:
                change = write.apply(writing)
                if snapshot is None:
                    snapshot = self._snapshot(change.seq - 1)
                snapshot = snapshot.changed(
                    change.seq, removed=change.removed, rids=change.rids, ids=write.ids, vectors=write.vectors
                )
                changes.append(change)
        if snapshot is not None:
            self._index.publish(snapshot)
        self._written_at = time.monotonic()
        return changes

    @property
    def path(self) -> Path:
        """Of the database of its items, for messages."""
        return self._directory / FILE

    @property
    def snapshot(self) -> Snapshot:
        """The index as it is now."""
        return self._index.current

    @property
    def effort(self) -> SearchParams:
        """How hard a search tries that asks for nothing else."""
        return self._effort(SearchOptions())

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
        with self._commits.lock, self._records.reading() as view:
            yield view, self._snapshot(view.seq())

    def _snapshot(self, seq: int) -> Snapshot:
        """The snapshot after the write ``seq``, which is the last; only while no other thread writes."""
        if self._index.current.seq != seq:
            # A thread was interrupted between its commit and its publication.
            with self._records.reading() as view:
                self._index.publish(recovery.caught_up(view, self._index.current, self.path))
        return self._index.current


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:  # removed meanwhile
        return 0
