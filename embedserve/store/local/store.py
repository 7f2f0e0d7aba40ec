"""The store of one machine: a data directory with a catalog and one directory for each collection.

    DATA/LOCK                           process and host that own the directory
    DATA/catalog.sqlite                 names, aliases, what each collection is bound to
    DATA/collections/<uid>/items.sqlite the items

    DATA/collections/<uid>/segments     sealed parts of the index over their vectors

SQLite is the truth; all of the index may be removed, and is made again from the items.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from embedserve.atomic_write import sync
from embedserve.errors import AlreadyExists, CollectionNotFound, DiskFull, EmbedserveError, InvalidInput, StoreError
from embedserve.index import spec
from embedserve.observer import Observer
from embedserve.store.local.collection.collection import Collection
from embedserve.store.local.directories import Directories
from embedserve.store.local.lock import DirectoryLock
from embedserve.store.local.records.catalog import Catalog, Entry, check_filter_keys, check_name
from embedserve.store.local.records.database import damaged, reported
from embedserve.store.local.records.records import FILE
from embedserve.store.local.upkeep.backup import write_backup
from embedserve.store.local.upkeep.check import Check
from embedserve.store.local.upkeep.maintenance import Maintenance
from embedserve.store.local.upkeep.restore import checked, receive, strip
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
    Page,
    SearchOptions,
)


class LocalStore:
    """A VectorStore on local files; ``LocalStore.open`` makes one."""

    def __init__(
        self, directory: Path, lock: DirectoryLock, catalog: Catalog, memory_bytes: int, observer: Observer
    ) -> None:
        self._directories = Directories(directory / "collections")
        self._lock = lock
        self._catalog = catalog
        self._changing = threading.RLock()  # held while collections are made, removed and renamed
        self._names = threading.Lock()  # held for a look at the two dictionaries
        self._collections: dict[str, Collection] = {}
        self._aliases: dict[str, str] = {}
        self._closed = False
        self._memory_bytes = memory_bytes
        self._observer = observer
        self._maintenance: Maintenance | None = None

    @classmethod
    def open(
        cls, directory: Path, *, memory_bytes: int = 0, background: bool = True, observer: Observer | None = None
    ) -> Self:
        """Take a data directory, which is made if it is not there, and open every collection.

        Args:
            directory: the data directory.
            memory_bytes: that the index of a collection may take; 0 for half of this machine's.
            background: seal and merge segments and measure recall in a thread. Without it ``maintain`` does that.
            observer: told of what is built.

        Raises:
            StoreError: it is in use by another process, cannot be written, or is damaged.
            DiskFull: it cannot be made.
        """
        path = directory / "catalog.sqlite"
        with reported(directory), ExitStack() as undo:
            (directory / "collections").mkdir(parents=True, exist_ok=True)
            lock = DirectoryLock(directory)
            undo.callback(lock.release)
            # A new catalog beside collections would know none of them.
            catalog = Catalog(path, create=not Directories(directory / "collections").uids())
            undo.callback(catalog.close)
            observer = observer or Observer()
            store = cls(directory, lock, catalog, memory_bytes or _half_of_memory(), observer)
            undo.callback(store._close_collections)
            store._load()
            undo.pop_all()
        if background:
            store._maintenance = Maintenance(store._all_collections, observer)
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
        """Make an empty collection.

        Raises:
            InvalidInput: the name or a filter key is not allowed, or there are too many filter keys.
            AlreadyExists: a collection or an alias has the name.
            DiskFull: nothing was made.
        """
        check_name(name)
        spec.parse(index)
        if not 0 < target_recall <= 1:
            raise InvalidInput(f"target_recall is {target_recall}; it lies above 0 and is at most 1")
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
        with self._changing:
            self._check_free(name)
            with self._unfinished() as uid:
                collection = self._collection(replace(entry, uid=uid), create=True)
            return self._added(collection)

    def bound(self, name: str) -> CollectionIdentity:
        """What the collection is bound to; does not wait.

        Raises:
            CollectionNotFound: as every call below that takes a collection.
        """
        with self._names:
            self._check_open()
            found = self._collections.get(self._aliases.get(name, name))
        if found is None:
            raise _not_found(name)
        return found.entry.bound

    def get_collection(self, name: str) -> CollectionInfo:
        """What the collection is and holds.

        Raises:
            CollectionNotFound: as every call below that takes a collection.
        """
        with self._used(name) as collection:
            return collection.info(self._aliases_of(collection))

    def list_collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        with self._names:
            self._check_open()
            collections = sorted(self._collections.items())
        infos = []
        for _, collection in collections:
            with collection.gate.entered() as admitted:
                if admitted:
                    infos.append(collection.info(self._aliases_of(collection)))
        return infos

    def delete_collection(self, name: str) -> None:
        """Remove a collection, its items and the aliases that point to it. ``name`` is no alias.

        Raises:
            CollectionNotFound: no collection has the name; the hint says so if it is an alias.
        """
        with self._changing:
            self._check_open()
            collection = self._collections.get(name)
            if collection is None:
                hint = f"{name!r} is an alias of {self._aliases[name]!r}" if name in self._aliases else ""
                raise CollectionNotFound(f"there is no collection {name!r}", hint=hint)
            uid = collection.entry.uid
            with suppress(OSError):  # on a full disk it is removed all the same
                self._directories.mark_for_removal(uid)
            try:
                self._catalog.remove(name)
            except BaseException:
                self._directories.finish(uid)
                raise
            with self._names:
                del self._collections[name]
                self._aliases = {alias: target for alias, target in self._aliases.items() if target != name}
            collection.close()
            self._directories.remove(uid)

    def set_alias(self, alias: str, collection: str) -> None:
        """Point an alias to a collection, at once for every later call; an empty ``collection`` removes it.

        Raises:
            InvalidInput: the alias is not allowed as a name.
            AlreadyExists: a collection has the name.
            CollectionNotFound: there is no such collection, or no such alias to remove.
        """
        check_name(alias)
        with self._changing:
            self._check_open()
            if alias in self._collections:
                raise AlreadyExists(f"{alias!r} is a collection, so it cannot be an alias")
            if not collection:
                if alias not in self._aliases:
                    raise CollectionNotFound(f"there is no alias {alias!r}")
                self._catalog.remove_alias(alias)
                with self._names:
                    del self._aliases[alias]
                return
            target = self._aliases.get(collection, collection)
            if target not in self._collections:
                raise _not_found(collection)
            self._catalog.set_alias(alias, target)
            with self._names:
                self._aliases[alias] = target

    def upsert(self, collection: str, items: Sequence[Item], *, uid: str = "") -> None:
        """Write items in one transaction, replacing those with the same ids; on disk when it returns.

        Raises:
            DiskFull: nothing was written.
            StoreError: the write failed.
        """
        with self._used(collection, uid) as found:
            found.upsert(items)

    def get_items(self, collection: str, ids: Sequence[str], include: Include, *, uid: str = "") -> list[Item | None]:
        """The items with these ids, in order; None where there is none."""
        with self._used(collection, uid) as found:
            return found.items(ids, include)

    def delete_items(self, collection: str, ids: Sequence[str]) -> int:
        """Remove items in one transaction, on disk when it returns; how many of them there were."""
        with self._used(collection) as found:
            return found.delete(ids)

    def list_items(
        self,
        collection: str,
        *,
        page_size: int,
        page_token: str,
        filter: Filter | None,
        include: Include,
        uid: str = "",
    ) -> Page:
        """A page of items in the order of their ids' UTF-8 bytes.

        Raises:
            InvalidInput: the page token was not made by an earlier page.
        """
        with self._used(collection, uid) as found:
            return found.page(page_size, page_token, filter, include)

    def search(
        self,
        collection: str,
        queries: NDArray[np.float32],
        options: SearchOptions,
        exclude_ids: Sequence[str | None],
        *,
        uid: str = "",
    ) -> list[list[Hit]]:
        """The nearest items for each query; see VectorStore."""
        with self._used(collection, uid) as found:
            return found.search(queries, options, exclude_ids)

    def check_collection(self, name: str, on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        """Compare everything that is kept more than once; see VectorStore.

        Raises:
            StoreError: the collection was removed or the store closed meanwhile.
        """
        with self._used(name) as collection:
            return Check(collection, on_progress).run()

    @contextmanager
    def backup_collection(self, name: str, on_progress: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
        """One file with the collection as it is at this moment; see VectorStore.

        Raises:
            DiskFull: there is no room for the copy.
            StoreError: a row is damaged, or the collection was removed or the store closed meanwhile.
        """
        with self._unfinished(remains=False) as uid, self._used(name) as collection:
            path = self._directories[uid] / "backup"

            def check() -> None:
                if collection.gate.closed:
                    raise StoreError(f"collection {name!r} was closed while it was copied")
                on_progress()

            write_backup(self._directories[collection.entry.uid] / FILE, path, collection.entry, check)
            file = path.open("rb")
        # The open file stays readable, and nothing of it is left when it is closed, however that comes about.
        with file:
            yield file

    def restore_collection(
        self, name: str, chunks: Iterable[bytes], on_progress: Callable[[], None] = lambda: None
    ) -> CollectionInfo:
        """Make a collection with this new name from a backup; see VectorStore.

        Raises:
            InvalidInput: the name is not allowed, or the bytes are no backup, are cut, or damaged.
            AlreadyExists: a collection or an alias has the name.
            DiskFull: nothing was made.
        """

        def check() -> None:
            self._check_open()
            on_progress()

        check_name(name)
        with self._changing:
            self._check_free(name)
        with self._unfinished() as uid:
            path = self._directories[uid] / FILE
            receive(chunks, path, check)
            entry = checked(path, name=name, uid=uid, check=check).entry
            strip(path)
            check()
            collection = self._collection(entry)
        with self._changing:
            try:
                self._check_free(name)
            except EmbedserveError:
                collection.close()
                self._directories.remove(uid)
                raise
            return self._added(collection)

    def maintain(self) -> None:
        """Seal all that waits and merge all segments that are due, now and in this thread; for tests and tools."""
        for collection in self._all_collections():
            while collection.maintain(at_once=True) is not None:
                pass

    def close(self) -> None:
        """Wait for calls that are under way, then close all files and give the data directory free."""
        with self._changing:
            if self._closed:
                return
            self._closed = True
            if self._maintenance is not None:
                self._maintenance.stop()
            self._close_collections()
            self._catalog.close()
            self._lock.release()

    def _check_free(self, name: str) -> None:
        """Only while ``_changing`` is held."""
        self._check_open()
        if name in self._collections:
            raise AlreadyExists(f"there is a collection {name!r} already")
        if name in self._aliases:
            raise AlreadyExists(f"{name!r} is an alias of collection {self._aliases[name]!r}")

    def _added(self, collection: Collection) -> CollectionInfo:
        """Give a collection whose files are there its name; only while ``_changing`` is held."""
        uid = collection.entry.uid
        try:
            with reported(self._directories[uid]):
                # It is there to stay before the catalog names it.
                sync(self._directories[uid])
                sync(self._directories.root)
            self._catalog.add(collection.entry)
            with suppress(OSError):  # the next start takes the mark off
                self._directories.finish(uid)
        except DiskFull:  # nothing was committed
            collection.close()
            self._directories.remove(uid)
            raise
        except BaseException:
            # After a failed commit nobody knows whether the catalog names it, so the files stay until the next start,
            # which knows.
            collection.close()
            raise
        with self._names:
            self._collections[collection.entry.name] = collection
        return collection.info(())

    @contextmanager
    def _unfinished(self, *, remains: bool = True) -> Iterator[str]:
        """The uid of a new directory, which is removed if the block fails, or in any case unless it ``remains``."""
        with reported(self._directories.root):
            uid = self._directories.make()
            try:
                with reported(self._directories[uid]):
                    yield uid
            except BaseException:
                remains = False
                raise
            finally:
                if not remains:
                    self._directories.remove(uid)

    @contextmanager
    def _used(self, name: str, uid: str = "") -> Iterator[Collection]:
        """The collection with this name or alias, which is not removed before the block is left."""
        with self._names:
            self._check_open()
            collection = self._collections.get(self._aliases.get(name, name))
        if collection is None or (uid and collection.entry.uid != uid):
            raise _not_found(name)
        with collection.gate.entered() as admitted:
            if not admitted:
                self._check_open()
                raise _not_found(name)
            yield collection

    def _aliases_of(self, collection: Collection) -> list[str]:
        with self._names:
            return [alias for alias, target in self._aliases.items() if target == collection.entry.name]

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")

    def _load(self) -> None:
        entries = self._catalog.entries()
        self._directories.clear({entry.uid for entry in entries})
        for entry in entries:
            if not self._directories[entry.uid].is_dir():
                raise damaged(self._directories[entry.uid], f"the files of collection {entry.name!r} are missing")
            self._directories.finish(entry.uid)
            self._collections[entry.name] = self._collection(entry)
        self._aliases = self._catalog.aliases()

    def _collection(self, entry: Entry, *, create: bool = False) -> Collection:
        return Collection(
            entry,
            self._directories[entry.uid],
            create=create,
            memory_bytes=self._memory_bytes,
            observer=self._observer,
        )

    def _all_collections(self) -> list[Collection]:
        with self._names:
            return list(self._collections.values())

    def _close_collections(self) -> None:
        for collection in self._collections.values():
            collection.close()


def _not_found(name: str) -> CollectionNotFound:
    return CollectionNotFound(f"there is no collection {name!r}", hint="list them with: embedserve collection list")


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
