"""The part of the local store that counts, changes and removes items where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from embedserve.changes import MetadataChange
from embedserve.store.local.collection.collection import Collection
from embedserve.store.local.registry import not_found
from embedserve.types import Filter


class FilteredItems:
    """Counts, deletions by filter and changes of metadata; see VectorStore."""

    def _used(self, name: str, uid: str = "") -> AbstractContextManager[Collection]:
        """The collection with this name or alias, which is not closed before the block ends."""
        raise NotImplementedError

    def delete_matching(
        self, collection: str, filter: Filter, on_progress: Callable[[], None] = lambda: None, *, uid: str = ""
    ) -> Iterator[int]:
        """Remove all items that match a filter, some at a time; see VectorStore."""
        with self._used(collection, uid) as found:
            name, uid = found.entry.name, found.entry.uid
            batches = found.matching_batches(filter, _while_open(found, on_progress))
        yield 0
        for rids in batches:
            # Entered for each of them: closing the collection waits for one transaction at most.
            with self._used(name, uid) as found:
                count = found.delete_matching(rids, filter)
            yield count

    def update_metadata(
        self, collection: str, changes: Sequence[MetadataChange], max_metadata_bytes: int, *, uid: str = ""
    ) -> list[int | None]:
        """Change metadata in one transaction, on disk when this returns; see VectorStore."""
        with self._used(collection, uid) as found:
            return found.update_metadata(changes, max_metadata_bytes)

    def count_items(
        self,
        collection: str,
        filter: Filter | None = None,
        on_progress: Callable[[], None] = lambda: None,
        *,
        uid: str = "",
    ) -> int:
        """How many items there are, or match a filter; see VectorStore."""
        with self._used(collection, uid) as found:
            return found.count(filter, _while_open(found, on_progress))


def _while_open(collection: Collection, on_progress: Callable[[], None]) -> Callable[[], None]:
    """``on_progress``, and an end as soon as the collection is being closed."""

    def check() -> None:
        if collection.close_guard.closed:
            raise not_found(collection.entry.name)
        on_progress()

    return check
