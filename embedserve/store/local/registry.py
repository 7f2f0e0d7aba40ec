"""Which collection a name or an alias leads to."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from embedserve.errors import AlreadyExists, CollectionNotFound, StoreError
from embedserve.store.local.collection.collection import Collection


class Registry:
    """The open collections by name, and their aliases. Safe to use from several threads."""

    def __init__(self) -> None:
        self.changing = threading.RLock()
        """Held while collections and aliases are created, removed and renamed, in the catalog and here. It reserves a
        name between ``check_free`` and ``add``."""
        self.closed = False
        """Set when the store closes; then nothing is found any more."""
        self._lock = threading.Lock()  # held for a look at the two dictionaries
        self._collections: dict[str, Collection] = {}
        self._aliases: dict[str, str] = {}

    # --- Look-ups -------------------------------------------------------------------

    def find(self, name: str, uid: str = "") -> Collection:
        """The collection with this name or alias, and with this uid if one is given.

        Raises:
            CollectionNotFound: there is none.
            StoreError: the store is closed.
        """
        with self._lock:
            found = self._collections.get(self._aliases.get(name, name))
        if self.closed:
            raise closed()
        if found is None or (uid and found.entry.uid != uid):
            raise not_found(name)
        return found

    def collections(self) -> list[Collection]:
        """All of them, by name."""
        with self._lock:
            return [collection for _, collection in sorted(self._collections.items())]

    def aliases_of(self, collection: Collection) -> list[str]:
        """The aliases that point to a collection."""
        with self._lock:
            return [alias for alias, target in self._aliases.items() if target == collection.entry.name]

    def check_open(self) -> None:
        """Raise StoreError if the store is closed."""
        if self.closed:
            raise closed()

    # --- Changes: only while ``changing`` is held -----------------------------------

    def check_free(self, name: str) -> None:
        """Check that nothing has this name.

        Raises:
            AlreadyExists: a collection or an alias has it.
            StoreError: the store is closed.
        """
        self.check_open()
        if name in self._collections:
            raise AlreadyExists(f"there is already a collection {name!r}")
        if name in self._aliases:
            raise AlreadyExists(f"{name!r} is an alias of collection {self._aliases[name]!r}")

    def named(self, name: str) -> Collection:
        """The collection with this name, which is not an alias.

        Raises:
            CollectionNotFound: there is none; the hint says if it is an alias.
            StoreError: the store is closed.
        """
        self.check_open()
        found = self._collections.get(name)
        if found is None:
            hint = f"{name!r} is an alias of {self._aliases[name]!r}" if name in self._aliases else ""
            raise CollectionNotFound(f"there is no collection {name!r}", hint=hint)
        return found

    def check_alias(self, alias: str, *, exists: bool = False) -> None:
        """Check that a name may be set as an alias or, if it must exist, removed.

        Raises:
            AlreadyExists: a collection has the name.
            CollectionNotFound: there is no such alias, but it must exist.
            StoreError: the store is closed.
        """
        self.check_open()
        if alias in self._collections:
            raise AlreadyExists(f"{alias!r} is a collection, so it cannot be an alias")
        if exists and alias not in self._aliases:
            raise CollectionNotFound(f"there is no alias {alias!r}")

    def load_aliases(self, aliases: Mapping[str, str]) -> None:
        """Set all aliases, as the catalog has them."""
        with self._lock:
            self._aliases = dict(aliases)

    def add(self, collection: Collection) -> None:
        """Make a collection known under its name."""
        with self._lock:
            self._collections[collection.entry.name] = collection

    def remove(self, name: str) -> None:
        """Remove a collection and the aliases that point to it."""
        with self._lock:
            del self._collections[name]
            self._aliases = {alias: target for alias, target in self._aliases.items() if target != name}

    def set_alias(self, alias: str, name: str) -> None:
        """Point an alias to the collection with this name."""
        with self._lock:
            self._aliases[alias] = name

    def remove_alias(self, alias: str) -> None:
        """Remove an alias."""
        with self._lock:
            del self._aliases[alias]


def closed() -> StoreError:
    """The error for every call after the store was closed."""
    return StoreError("the store is closed")


def not_found(name: str) -> CollectionNotFound:
    """The error for a name or alias that leads to no collection."""
    return CollectionNotFound(f"there is no collection {name!r}", hint="list them with: embedserve collection list")
