"""The store of one machine: a data directory with a catalog and one directory for each collection.

    DATA/LOCK                           process and host that own the directory
    DATA/RESERVE                        space for removing something from a full disk
    DATA/catalog.sqlite                 names, aliases, and the encoder that each collection is bound to
    DATA/collections/<uid>/items.sqlite the items
    DATA/collections/<uid>/segments     the segments of the index over their vectors

SQLite is the source of truth; the whole index may be removed, and is then rebuilt from the items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from embedserve import memory
from embedserve.answer_size import AnswerSize
from embedserve.atomic_write import make_private_directory, sync
from embedserve.errors import DiskFull, EmbedserveError, InvalidInput, StoreError
from embedserve.index import spec
from embedserve.observer import Observer
from embedserve.store.local.collection.collection import Collection
from embedserve.store.local.collection.describe import describe
from embedserve.store.local.directories import Directories, warn_if_readable
from embedserve.store.local.filtered_items import FilteredItems
from embedserve.store.local.lock import DirectoryLock
from embedserve.store.local.records.catalog import Catalog, Entry, check_filter_keys, check_name
from embedserve.store.local.records.database import damaged, translate_errors
from embedserve.store.local.records.open_files import OpenFiles, most_connections
from embedserve.store.local.records.records import FILE
from embedserve.store.local.registry import Registry, not_found
from embedserve.store.local.reserve import Reserve
from embedserve.store.local.upkeep import restore, sealing
from embedserve.store.local.upkeep.backup import write_backup
from embedserve.store.local.upkeep.check import Check
from embedserve.store.local.upkeep.maintenance import Maintenance
from embedserve.types import (
    DEFAULT_TARGET_RECALL,
    CheckProgress,
    CheckReport,
    CollectionIdentity,
    CollectionInfo,
    Filter,
    Hit,
    Include,
    Item,
    Keep,
    Limits,
    Page,
    SearchOptions,
)
from embedserve.wanted import ALWAYS, Asking, Wanted

_UNBOUNDED = 1 << 62
"""Bytes, for callers in this process that hold what they ask for."""


class LocalStore(FilteredItems):
    """A VectorStore on local files; ``LocalStore.open`` makes one."""

    def __init__(
        self,
        directory: Path,
        lock: DirectoryLock,
        catalog: Catalog,
        memory_bytes: int,
        observer: Observer,
        limits: Limits,
    ) -> None:
        self._directories = Directories(directory / "collections")
        self._open_files = OpenFiles(most_connections())
        self._reserve = Reserve(directory)
        self._lock = lock
        self._catalog = catalog
        self._registry = Registry()
        self._memory_bytes = memory_bytes
        self._observer = observer
        self._limits = limits
        self._maintenance: Maintenance | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        memory_bytes: int = 0,
        background: bool = True,
        observer: Observer | None = None,
        limits: Limits | None = None,
    ) -> Self:
        """Take ownership of a data directory, which is created if it does not exist, and open all its collections.

        Args:
            directory: the data directory.
            memory_bytes: budget for the index of each collection; 0 for half of this machine's memory.
            background: seal and merge segments and measure recall in a thread; otherwise ``maintain`` seals.
            observer: told what is built.
            limits: of the server, which the items of a restored backup are held to.

        Raises:
            StoreError: it is in use by another process, cannot be written, or is damaged.
            DiskFull: it cannot be created.
        """
        path = directory / "catalog.sqlite"
        with translate_errors(directory), ExitStack() as undo:
            make_private_directory(directory)
            make_private_directory(directory / "collections")
            lock = DirectoryLock(directory)
            undo.callback(lock.release)
            # A new catalog beside existing collections would not know them.
            catalog = Catalog(path, create=not Directories(directory / "collections").uids())
            undo.callback(catalog.close)
            observer = observer or Observer()
            memory_bytes = memory_bytes or memory.usable_bytes() // 2
            store = cls(directory, lock, catalog, memory_bytes, observer, limits or Limits())
            undo.callback(store._close_collections)
            store._load()
            undo.pop_all()
        warn_if_readable(directory)
        store._reserve.keep()
        if background:
            store._maintenance = Maintenance(store._maintained, observer)
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_collection(
        self,
        name: str,
        *,
        fingerprint: str,
        encoder_name: str,
        dimension: int,
        keep: Keep,
        index: str = "auto",
        target_recall: float = DEFAULT_TARGET_RECALL,
        filter_keys: Sequence[str] = (),
    ) -> CollectionInfo:
        """Create an empty collection; see VectorStore.

        Raises:
            InvalidInput: the name, the index or a filter key is not allowed, or there are too many filter keys.
            AlreadyExists: a collection or an alias has the name.
            DiskFull: nothing was created.
        """
        check_name(name)
        spec.parse(index)
        if not 0 < target_recall <= 1:
            raise InvalidInput(f"target_recall is {target_recall}; it must be above 0 and at most 1")
        entry = Entry(
            name=name,
            uid="",
            fingerprint=fingerprint,
            encoder_name=encoder_name,
            dimension=dimension,
            keep=keep,
            created_unix_s=time.time(),
            index=index,
            target_recall=target_recall,
            filter_keys=check_filter_keys(filter_keys),
        )
        with self._registry.changing:
            self._registry.check_free(name)
            with self._directories.unfinished() as uid:
                collection = self._open_collection(replace(entry, uid=uid), create=True)
            return self._add(collection)

    def identity(self, name: str) -> CollectionIdentity:
        """The identity of the collection; see VectorStore."""
        return self._registry.find(name).entry.identity

    def get_collection(self, name: str) -> CollectionInfo:
        """What the collection is and holds."""
        with self._used(name) as collection:
            return describe(collection, self._registry.aliases_of(collection))

    def list_collections(self, wanted: Wanted = ALWAYS) -> list[CollectionInfo]:
        """All collections, by name."""
        self._registry.check_open()
        infos = []
        for collection in self._registry.collections():
            wanted.check()
            with collection.close_guard.entered() as admitted:
                if admitted:
                    infos.append(describe(collection, self._registry.aliases_of(collection), in_list=True))
        return infos

    def delete_collection(self, name: str) -> None:
        """Remove a collection, its items and the aliases that point to it. ``name`` must not be an alias.

        Raises:
            CollectionNotFound: no collection has the name; the hint says if it is an alias.
        """
        with self._registry.changing:
            collection = self._registry.named(name)
            uid = collection.entry.uid
            with suppress(OSError):  # a full disk does not prevent the removal
                self._directories.mark_for_removal(uid)
            try:
                self._reserve.used_if_full(lambda: self._catalog.remove(name))
            except BaseException:
                self._directories.finish(uid)
                raise
            self._registry.remove(name)
            collection.close()
            self._directories.remove(uid)
        self._reserve.keep(at_once=True)

    def set_alias(self, alias: str, collection: str) -> None:
        """Point an alias to a collection, effective for every later call; an empty ``collection`` removes the alias.

        Raises:
            InvalidInput: the alias is not allowed as a name.
            AlreadyExists: a collection has the name.
            CollectionNotFound: there is no such collection, or no such alias to remove.
        """
        check_name(alias)
        with self._registry.changing:
            self._registry.check_alias(alias, exists=not collection)
            if not collection:
                self._catalog.remove_alias(alias)
                self._registry.remove_alias(alias)
                return
            target = self._registry.find(collection).entry.name
            self._catalog.set_alias(alias, target)
            self._registry.set_alias(alias, target)

    def upsert(self, collection: str, items: Sequence[Item], *, uid: str = "") -> None:
        """Write items in one transaction, replacing those with the same ids; on disk when this returns.

        Raises:
            DiskFull: nothing was written.
            StoreError: the write failed.
        """
        with self._used(collection, uid) as found:
            found.upsert(items)

    def get_items(
        self,
        collection: str,
        ids: Sequence[str],
        include: Include,
        *,
        uid: str = "",
        size: AnswerSize | None = None,
        wanted: Wanted = ALWAYS,
    ) -> list[Item | None]:
        """The items with these ids, in order; None where there is none."""
        with self._used(collection, uid) as found:
            return found.items(ids, include, size or AnswerSize(_UNBOUNDED), wanted)

    def delete_items(self, collection: str, ids: Sequence[str]) -> int:
        """Remove items in one transaction, on disk when this returns; how many of them existed."""
        with self._used(collection) as found:
            return self._reserve.used_if_full(lambda: found.delete(ids), first=found.make_room)

    def list_items(
        self,
        collection: str,
        *,
        page_size: int,
        page_token: str,
        filter: Filter | None,
        include: Include,
        uid: str = "",
        page_bytes: int = _UNBOUNDED,
        size: AnswerSize | None = None,
        wanted: Wanted = ALWAYS,
    ) -> Page:
        """A page of items in the order of their ids' UTF-8 bytes; see VectorStore.

        Raises:
            InvalidInput: the page token does not come from an earlier page.
        """
        with self._used(collection, uid) as found:
            size = size or AnswerSize(_UNBOUNDED)
            return found.page(page_size, page_bytes, page_token, filter, include, size, wanted)

    def search(
        self,
        collection: str,
        queries: NDArray[np.float32],
        options: SearchOptions,
        exclude_ids: Sequence[str | None],
        *,
        uid: str = "",
        sizes: Sequence[AnswerSize] | None = None,
        wanted: Wanted = ALWAYS,
    ) -> list[list[Hit]]:
        """The nearest items for each query; see VectorStore."""
        with self._used(collection, uid) as found:
            sizes = sizes or [AnswerSize(_UNBOUNDED)] * len(queries)
            return found.search(queries, options, exclude_ids, sizes, wanted)

    def check_collection(self, name: str, on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        """Compare everything that is stored redundantly; see VectorStore.

        Raises:
            StoreError: the collection was removed, or the store closed, meanwhile.
        """
        with self._used(name) as collection:
            return Check(collection, on_progress).run()

    @contextmanager
    def backup_collection(self, name: str, on_progress: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
        """One file with the collection as it is now; see VectorStore.

        Raises:
            DiskFull: there is no room for the copy.
            StoreError: a row is damaged, or the collection was removed, or the store closed, meanwhile.
        """
        with self._directories.unfinished(keep=False) as uid, self._used(name) as collection:
            path = self._directories[uid] / "backup"

            def check() -> None:
                if collection.close_guard.closed:
                    raise StoreError(f"collection {name!r} was closed while it was copied")
                on_progress()

            write_backup(self._directories[collection.entry.uid] / FILE, path, collection.entry, check)
            file = path.open("rb")
        # The open file stays readable, and its space is freed when it is closed, however that happens.
        with file:
            yield file

    def restore_collection(
        self, name: str, chunks: Iterable[bytes], on_progress: Callable[[], None] = lambda: None
    ) -> CollectionInfo:
        """Create a collection with this new name from a backup; see VectorStore.

        Raises:
            InvalidInput: the name is not allowed, or the bytes are not a backup, truncated, or damaged.
            AlreadyExists: a collection or an alias has the name.
            DiskFull: nothing was created.
        """

        def check() -> None:
            self._registry.check_open()
            on_progress()

        check_name(name)
        with self._registry.changing:
            self._registry.check_free(name)
        with self._directories.unfinished() as uid:
            path = self._directories[uid] / FILE
            restore.receive(chunks, path, check)
            entry = restore.verify(path, name=name, uid=uid, limits=self._limits, check=check).entry
            restore.strip(path)
            check()
            collection = self._open_collection(entry, wanted=Asking(check))
        with self._registry.changing:
            try:
                self._registry.check_free(name)
            except EmbedserveError:
                collection.close()
                self._directories.remove(uid)
                raise
            return self._add(collection)

    def maintain(self) -> None:
        """Seal all rows that wait and merge all segments that are due, now and in this thread; for tests and tools."""
        for collection in self._registry.collections():
            while sealing.seal_next(collection, at_once=True) is not None:
                pass

    def close(self) -> None:
        """Wait for the calls in flight, then close all files and release the data directory."""
        with self._registry.changing:
            if self._registry.closed:
                return
            self._registry.closed = True
            if self._maintenance is not None:
                self._maintenance.stop()
            self._close_collections()
            self._catalog.close()
            self._lock.release()

    def _add(self, collection: Collection) -> CollectionInfo:
        """Give a collection whose files exist its name. Needs ``Registry.changing``."""
        uid = collection.entry.uid
        try:
            with translate_errors(self._directories[uid]):
                # Its files are on disk before the catalog names it.
                sync(self._directories[uid])
                sync(self._directories.root)
            self._catalog.add(collection.entry)
            with suppress(OSError):  # the next start removes the mark
                self._directories.finish(uid)
        except DiskFull:  # nothing was committed
            collection.close()
            self._directories.remove(uid)
            raise
        except BaseException:
            # After a failed commit it is unknown whether the catalog names it, so the files stay until the next start.
            collection.close()
            raise
        self._registry.add(collection)
        return describe(collection, ())

    @contextmanager
    def _used(self, name: str, uid: str = "") -> Iterator[Collection]:
        """The collection with this name or alias, which is not closed before the block ends."""
        collection = self._registry.find(name, uid)
        with collection.close_guard.entered() as admitted:
            if not admitted:
                self._registry.check_open()
                raise not_found(name)
            yield collection

    def _load(self) -> None:
        entries = self._catalog.entries()
        self._directories.clear({entry.uid for entry in entries})
        for entry in entries:
            if not self._directories[entry.uid].is_dir():
                raise damaged(self._directories[entry.uid], f"the files of collection {entry.name!r} are missing")
            self._directories.finish(entry.uid)
            self._registry.add(self._open_collection(entry))
        self._registry.load_aliases(self._catalog.aliases())

    def _open_collection(self, entry: Entry, *, create: bool = False, wanted: Wanted = ALWAYS) -> Collection:
        return Collection(
            entry,
            self._directories[entry.uid],
            create=create,
            memory_bytes=self._memory_bytes,
            observer=self._observer,
            open_files=self._open_files,
            wanted=wanted,
        )

    def _maintained(self) -> list[Collection]:
        self._reserve.keep()
        return self._registry.collections()

    def _close_collections(self) -> None:
        for collection in self._registry.collections():
            collection.close()
