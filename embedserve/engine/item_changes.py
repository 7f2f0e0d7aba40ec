"""Count, change and delete items where they are: by filter, or without their vectors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Self

from embedserve.changes import MetadataChange, check_change
from embedserve.engine.core import Core
from embedserve.engine.inputs import id_error, positioned
from embedserve.engine.items import item_not_found
from embedserve.engine.jobs import Ended
from embedserve.errors import EmbedserveError, InvalidInput
from embedserve.types import (
    CollectionIdentity,
    Filter,
    Metadata,
    check_filter,
    has_condition,
    metadata_bytes,
    metadata_bytes_at_most,
)


class ItemChanges:
    """Counts, deletions by filter and changes of metadata in an engine's collections.

    ``collection`` is a name or an alias everywhere; CollectionNotFound is raised if none has that name.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._limits = core.limits

    async def delete_matching(self, collection: str, filter: Filter) -> int:
        """Delete all items that match a filter, a thousand at a time; how many.

        Cancelling this ends the work after the current transaction; what was deleted until then stays deleted.

        Raises:
            InvalidInput, LimitExceeded: the filter is not allowed, is too large, or has no condition on any key.
            DiskFull, StoreError: says how many items were deleted before.
        """
        check_filter(filter, self._limits)
        if not has_condition(filter):
            raise InvalidInput(
                "the filter has no condition, so that all items would be deleted, or none",
                hint="name a condition on a key; to delete everything, delete the collection",
            )
        identity, wanted = self._core.identity(collection), _Wanted()
        deleting = self._core.store.delete_matching(identity.name, filter, wanted.check, uid=identity.uid)
        deleted = 0
        with wanted:
            count = await self._core.in_store(lambda _: next(deleting, None), self._core.scans)
            while count is not None:
                deleted += count
                try:
                    count = await self._core.in_store(lambda _: next(deleting, None), self._core.writers)
                except EmbedserveError as error:
                    raise error.at(f"after {deleted} items were deleted") from error
        return deleted

    async def count(self, collection: str, filter: Filter | None) -> int:
        """How many items there are or, with a filter, match it. Cancelling this ends the work.

        Raises:
            InvalidInput, LimitExceeded: the filter is not allowed, or is too large.
        """
        if filter is not None:
            check_filter(filter, self._limits)
        identity = self._core.identity(collection)
        with _Wanted() as wanted:
            return await self._core.in_store(
                lambda store: store.count_items(identity.name, filter, wanted.check, uid=identity.uid),
                self._core.scans,
            )

    async def update_metadata(
        self, collection: str, changes: Sequence[MetadataChange | EmbedserveError]
    ) -> list[str | EmbedserveError]:
        """Change the metadata of items in one transaction; for each its id, or why it was not changed.

        A change that is an error already, because it could not be read, keeps its place.

        Raises:
            LimitExceeded, DiskFull, StoreError: nothing was changed.
        """
        self._limits.check("max_items", len(changes), "changes in one call")
        identity = self._core.identity(collection)
        checked = [
            change if isinstance(change, EmbedserveError) else self._checked_change(change) for change in changes
        ]
        made = [change for change in checked if isinstance(change, MetadataChange)]
        most = self._limits.max_metadata_bytes
        sizes: list[int | None] = []
        if made:
            sizes = await self._core.in_store(
                lambda store: store.update_metadata(identity.name, made, most, uid=identity.uid), self._core.writers
            )
        remaining = iter(sizes)
        return positioned(
            "change",
            [
                change if isinstance(change, EmbedserveError) else self._outcome(change, next(remaining), identity)
                for change in checked
            ],
        )

    def _checked_change(self, change: MetadataChange) -> MetadataChange | EmbedserveError:
        """The change, or why it cannot be made whatever the item is."""
        try:
            if error := id_error(change.id, self._limits):
                return error
            check_change(change)
            self._check_metadata_bytes(change.set)
        except EmbedserveError as refused:
            return refused
        return change

    def _outcome(self, change: MetadataChange, size: int | None, identity: CollectionIdentity) -> str | EmbedserveError:
        if size is None:
            return item_not_found(change.id, identity)
        try:
            self._limits.check("max_metadata_bytes", size, f"bytes of metadata would be those of item {change.id!r}")
        except EmbedserveError as refused:
            return refused
        return change.id

    def _check_metadata_bytes(self, metadata: Metadata) -> None:
        if metadata_bytes_at_most(metadata) > self._limits.max_metadata_bytes:
            self._limits.check("max_metadata_bytes", metadata_bytes(metadata), "bytes of metadata")


class _Wanted:
    """Whether the caller of some work in a thread still waits for it: until the block ends."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def check(self) -> None:
        """Return while the caller waits.

        Raises:
            Ended: it has gone.
        """
        if self._ended.is_set():
            raise Ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
