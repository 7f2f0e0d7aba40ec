"""What the engine needs of a vector store. The local store is one; other engines behind the same calls are others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, BinaryIO, Protocol

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

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class VectorStore(Protocol):
    """Collections of items with unit vectors. All calls block, and may come from several threads at once.

    ``collection`` is a name or an alias everywhere but in ``delete_collection``. Where ``uid`` is given, it has to be
    that of the collection, else there is no such collection: between a check and the call that relies on it, another
    one may have been given the name. Callers have checked limits, metadata and filters already; vectors are float32
    with the collection's dimension and unit norm.
    """

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

        Args:
            name: 1–64 characters; see ``catalog.check_name``.
            fingerprint: of the encoder it is bound to, or EXTERNAL.
            encoder_name: of that encoder.
            dimension: D.
            keep: what is kept of images.
            index: "auto", or the kind of index with its parameters, as in "hnsw:m=32".
            target_recall: recall@10 that approximate search is tuned to.
            filter_keys: metadata keys to keep an index of.

        Raises:
            InvalidInput: the name, the index or a key is not allowed.
            AlreadyExists: a collection or an alias has the name.
        """

    def bound(self, name: str) -> CollectionIdentity:
        """What the collection is bound to. Never waits, so that the event loop may ask before every call.

        Raises:
            CollectionNotFound: as every call below that takes a collection.
        """

    def get_collection(self, name: str) -> CollectionInfo:
        """What the collection is and holds.

        Raises:
            CollectionNotFound: as every call below that takes a collection.
        """

    def list_collections(self) -> list[CollectionInfo]:
        """All collections, by name."""

    def delete_collection(self, name: str) -> None:
        """Remove a collection, its items and the aliases that point to it. ``name`` is no alias.

        Raises:
            CollectionNotFound: no collection has the name; the hint says so if it is an alias.
        """

    def set_alias(self, alias: str, collection: str) -> None:
        """Point an alias to a collection, at once for every later call; an empty ``collection`` removes it.

        Raises:
            InvalidInput: the alias is not allowed as a name.
            AlreadyExists: a collection has the name.
            CollectionNotFound: there is no such collection, or no such alias to remove.
        """

    def upsert(self, collection: str, items: Sequence[Item], *, uid: str = "") -> None:
        """Write items in one transaction, replacing those with the same ids; on disk when it returns.

        Every item has a vector. If an id comes twice, the later item counts.

        Raises:
            DiskFull: nothing was written.
        """

    def get_items(self, collection: str, ids: Sequence[str], include: Include, *, uid: str = "") -> list[Item | None]:
        """The items with these ids, in order; None where there is none."""

    def delete_items(self, collection: str, ids: Sequence[str]) -> int:
        """Remove items in one transaction, on disk when it returns; how many of them there were."""

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

    def search(
        self,
        collection: str,
        queries: NDArray[np.float32],
        options: SearchOptions,
        exclude_ids: Sequence[str | None],
        *,
        uid: str = "",
    ) -> list[list[Hit]]:
        """The nearest items for each query.

        Args:
            collection: name or alias.
            queries: float32 [Q, D] with unit norm.
            options: k, minimum score, filter and the rest.
            exclude_ids: for each query the id of an item that is not to be among its hits, or None.

        Returns:
            For each query its hits, closest first, ties broken by id; min(k, matching items) of them.
        """

    def check_collection(self, name: str, on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        """Compare everything that is kept more than once, while the collection is used.

        Every row with its checksum, the index's files with their hashes, the rows of the index with the items, and
        every item's own vector with what a search for it finds; and measure recall. What is wrong with the index is
        rebuilt from the items.

        Args:
            name: name or alias.
            on_progress: called now and then, in the same thread; what it raises ends the check.
        """

    def backup_collection(self, name: str, on_progress: Callable[[], None] = ...) -> AbstractContextManager[BinaryIO]:
        """One file with the collection as it is at this moment, open for reading; gone when the block is left.

        Args:
            name: name or alias.
            on_progress: called now and then, in the same thread, until the file is there; what it raises ends the work.

        Raises:
            DiskFull: there is no room for the copy.
        """

    def restore_collection(
        self, name: str, chunks: Iterable[bytes], on_progress: Callable[[], None] = ...
    ) -> CollectionInfo:
        """Make a collection with this new name from a backup.

        It is there only once all of it has been received, checked and written to disk.

        Args:
            name: of the new collection.
            chunks: the bytes of the backup.
            on_progress: called now and then, in the same thread; what it raises ends the work, and nothing is made.

        Raises:
            InvalidInput: the name is not allowed, or the bytes are no backup, are cut, or damaged.
            AlreadyExists: a collection or an alias has the name.
            DiskFull: nothing was made.
        """

    def close(self) -> None:
        """Finish writing and give the data directory free."""
