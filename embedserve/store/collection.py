"""One collection: its records and the index over them, which show the same writes to every reader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedserve.index.exact import ExactIndex
from embedserve.index.snapshot import Snapshot
from embedserve.store import hits
from embedserve.store.catalog import Entry
from embedserve.store.database import damaged, reported
from embedserve.store.gate import Gate
from embedserve.store.page_token import last_id, page_token
from embedserve.store.records import Change, Records, Writing
from embedserve.store.rows import Row
from embedserve.store.view import View
from embedserve.types import CollectionInfo, Filter, Hit, Include, Item, Page, SearchOptions

_FILE = "items.sqlite"
_TRIES = 20
"""How often a reader looks for records and index in step before it makes writers wait."""
_WAIT_S = 0.05


class Collection:
    """Items of one directory. Safe to use from several threads.

    Args:
        entry: what the catalog knows of it.
        directory: where its file is.
        create: make the file.

    Raises:
        StoreError: the file cannot be used, or a row is damaged.
    """

    def __init__(self, entry: Entry, directory: Path, *, create: bool = False) -> None:
        self.entry = entry
        self.gate = Gate()
        self._directory = directory
        self._write_lock = threading.Lock()
        self._records = Records(directory / _FILE, entry.dimension, create=create, filter_keys=entry.filter_keys)
        try:
            with self._records.reading() as view:
                self._index = ExactIndex(self._rebuilt(view))
        except BaseException:
            self._records.close()
            raise

    def upsert(self, items: Sequence[Item]) -> None:
        """Write items in one transaction; if an id comes twice, the later one counts."""
        latest = {item.id: item for item in items}
        if not latest:
            return
        rows = [(Row.of(item, self.entry.dimension), item.media) for item in latest.values()]
        vectors = np.stack([row.vector for row, _ in rows])
        self._write(lambda writing: writing.upsert(rows), vectors)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove items in one transaction; how many of them there were."""
        none = np.empty((0, self.entry.dimension), np.float32)
        change = self._write(lambda writing: writing.delete(list(dict.fromkeys(ids))), none)
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

    def search(
        self, queries: NDArray[np.float32], options: SearchOptions, exclude_ids: Sequence[str | None]
    ) -> list[list[Hit]]:
        """Hits for each query."""
        with self._in_step() as (view, snapshot):
            return hits.search(view, snapshot, queries, options, exclude_ids)

    def info(self, aliases: Sequence[str]) -> CollectionInfo:
        """What the collection is and holds."""
        with reported(self._directory):
            disk_bytes = sum(file.stat().st_size for file in self._directory.iterdir())
        return CollectionInfo(
            name=self.entry.name,
            fingerprint=self.entry.fingerprint,
            encoder_name=self.entry.encoder_name,
            dimension=self.entry.dimension,
            keep=self.entry.keep,
            created_unix_s=self.entry.created_unix_s,
            items=self._index.current.items,
            aliases=tuple(sorted(aliases)),
            index=self._index.description,
            disk_bytes=disk_bytes,
            uid=self.entry.uid,
            index_spec=self.entry.index,
            target_recall=self.entry.target_recall,
            filter_keys=self.entry.filter_keys,
        )

    def close(self) -> None:
        """Let nobody in any more, wait for those inside, close the file."""
        self.gate.close()
        self._records.close()

    def _write(self, write: Callable[[Writing], Change], vectors: NDArray[np.float32]) -> Change:
        with self._write_lock:
            with self._records.writing() as writing:
                change = write(writing)
                # Made before the commit: if there is no memory for it, nothing is written either.
                snapshot = self._snapshot(change.seq - 1).changed(
                    change.seq, removed=change.removed, rids=change.rids, vectors=vectors
                )
            self._index.publish(snapshot)
        return change

    @contextmanager
    def _in_step(self) -> Iterator[tuple[View, Snapshot]]:
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
        with self._write_lock, self._records.reading() as view:
            yield view, self._snapshot(view.seq())

    def _snapshot(self, seq: int) -> Snapshot:
        """The snapshot after the write ``seq``, which is the last; only while no other thread writes."""
        if self._index.current.seq != seq:
            # A thread was interrupted between its commit and its publication.
            with self._records.reading() as view:
                self._index.publish(self._rebuilt(view))
        return self._index.current

    def _rebuilt(self, view: View) -> Snapshot:
        try:
            return ExactIndex.rebuilt(self.entry.dimension, view.seq(), view.count(), view.vectors())
        except ValueError as error:
            raise damaged(self._directory / _FILE, str(error)) from error
