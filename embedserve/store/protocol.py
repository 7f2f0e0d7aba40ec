"""What the engine needs of a vector store: the local store implements it, and so may other databases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, BinaryIO, Protocol

from embedserve.answer_size import AnswerSize
from embedserve.changes import MetadataChange
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
from embedserve.wanted import Wanted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class VectorStore(Protocol):
    """Collections of items with unit vectors. All calls block, and may come from several threads at once.

    ``collection`` is a name or an alias, except in ``delete_collection``. If ``uid`` is given and is not that of the
    collection, the collection is not found: between a check and the call that relies on it, the name may have passed
    to another one. Callers have checked limits, metadata and filters; vectors are float32 with the dimension of the
    collection and unit norm.

    What may take long has an argument ``wanted``, whose ``check`` is to be called at least every 20 ms of work; what
    may become large has an argument ``size``, to which is added what is read, as it is read. Both raise what ends the
    call.
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
        """Create an empty collection.

        Args:
            name: 1–64 characters; see ``catalog.check_name``.
            fingerprint: of the encoder that the collection is bound to, or EXTERNAL.
            encoder_name: of that encoder.
            dimension: D.
            keep: which form of the images is kept.
            index: "auto", or a kind of index with its parameters, as in "hnsw:m=32".
            target_recall: recall@10 that approximate search is tuned to.
            filter_keys: metadata keys to be indexed.

        Raises:
            InvalidInput: the name, the index or a key is not allowed.
            AlreadyExists: a collection or an alias has the name.
        """

    def identity(self, name: str) -> CollectionIdentity:
        """The identity of the collection. Never waits, so that the event loop may call it before every other call.

        Raises:
            CollectionNotFound: so does every other call that takes a collection.
        """

    def get_collection(self, name: str) -> CollectionInfo:
        """What the collection is and holds.

        Raises:
            CollectionNotFound: so does every other call that takes a collection.
        """

    def list_collections(self, wanted: Wanted = ...) -> list[CollectionInfo]:
        """All collections, by name."""

    def delete_collection(self, name: str) -> None:
        """Remove a collection, its items and the aliases that point to it. ``name`` must not be an alias.

        Raises:
            CollectionNotFound: no collection has the name; the hint says if it is an alias.
        """

    def set_alias(self, alias: str, collection: str) -> None:
        """Point an alias to a collection, effective for every later call; an empty ``collection`` removes the alias.

        Raises:
            InvalidInput: the alias is not allowed as a name.
            AlreadyExists: a collection has the name.
            CollectionNotFound: there is no such collection, or no such alias to remove.
        """

    def upsert(self, collection: str, items: Sequence[Item], *, uid: str = "") -> None:
        """Write items in one transaction, replacing those with the same ids; on disk when this returns.

        Every item has a vector. If an id occurs twice, the later item counts.

        Raises:
            DiskFull: nothing was written.
        """

    def get_items(
        self,
        collection: str,
        ids: Sequence[str],
        include: Include,
        *,
        uid: str = "",
        size: AnswerSize | None = None,
        wanted: Wanted = ...,
    ) -> list[Item | None]:
        """The items with these ids, in order; None where there is none. An id may occur several times."""

    def delete_items(self, collection: str, ids: Sequence[str]) -> int:
        """Remove items in one transaction, on disk when this returns; how many of them existed."""

    def delete_matching(
        self, collection: str, filter: Filter, on_progress: Callable[[], None] = ..., *, uid: str = ""
    ) -> Iterator[int]:
        """Remove all items that match a filter, in transactions of at most a thousand items.

        Items that match when they are looked for are removed unless they match no more when their turn comes; of those
        that match later, some may be. Memory does not grow with what matches: a byte for each row
        of the index, and a thousand row numbers.

        Args:
            collection: name or alias.
            filter: on metadata.
            on_progress: called now and then, in the same thread, while items are looked for; an exception from it ends
                the work.

        Yields:
            0 once the items are found; then, after each transaction, how many it removed, which is on disk. A
            caller that stops there keeps the rest.

        Raises:
            CollectionNotFound: also if the collection is removed meanwhile.
            DiskFull: nothing more was removed.
        """

    def update_metadata(
        self, collection: str, changes: Sequence[MetadataChange], max_metadata_bytes: int, *, uid: str = ""
    ) -> list[int | None]:
        """Change the metadata of items in one transaction, on disk when this returns; nothing else of them changes.

        Args:
            collection: name or alias.
            changes: checked; made one after the other, also where an id occurs twice.
            max_metadata_bytes: a change that would leave more than this, as JSON, is not made.

        Returns:
            For each change the size of the metadata that comes of it, in bytes as JSON; None if there is no such item.

        Raises:
            DiskFull: nothing was changed.
            StoreError: an item is damaged; nothing was changed.
        """

    def count_items(
        self, collection: str, filter: Filter | None = None, on_progress: Callable[[], None] = ..., *, uid: str = ""
    ) -> int:
        """How many items there are, or match a filter, at one moment; ``on_progress`` as in ``delete_matching``."""

    def list_items(
        self,
        collection: str,
        *,
        page_size: int,
        page_token: str,
        filter: Filter | None,
        include: Include,
        uid: str = "",
        page_bytes: int = ...,
        size: AnswerSize | None = None,
        wanted: Wanted = ...,
    ) -> Page:
        """A page of items in the order of their ids' UTF-8 bytes.

        It ends before it has more than ``page_size`` items, or several items with more than ``page_bytes``.

        Raises:
            InvalidInput: the page token does not come from an earlier page.
        """

    def search(
        self,
        collection: str,
        queries: NDArray[np.float32],
        options: SearchOptions,
        exclude_ids: Sequence[str | None],
        *,
        uid: str = "",
        sizes: Sequence[AnswerSize] | None = None,
        wanted: Wanted = ...,
    ) -> list[list[Hit]]:
        """The nearest items for each query.

        Args:
            collection: name or alias.
            queries: float32 [Q, D] with unit norm.
            options: k, minimum score, filter and the rest.
            exclude_ids: for each query the id of an item that must not be a hit, or None.
            uid: of the collection.
            sizes: for each query the size of the answer that its hits belong to, the same for all of a call.
            wanted: by the callers of at least one of the queries.

        Returns:
            For each query its min(k, matching items) hits, closest first, ties ordered by id.
        """

    def check_collection(self, name: str, on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        """Compare everything that is stored redundantly, while the collection is used.

        Every row with its checksum, the files of the index with their hashes, the rows of the index with the items, and
        every item with what a search for its own vector finds; and measure recall. Segments with a problem are rebuilt
        from the items.

        Args:
            name: name or alias.
            on_progress: called now and then, in the same thread; an exception from it ends the check.
        """

    def backup_collection(self, name: str, on_progress: Callable[[], None] = ...) -> AbstractContextManager[BinaryIO]:
        """One file with the collection as it is now, open for reading; removed when the block ends.

        Args:
            name: name or alias.
            on_progress: called now and then, in the same thread, until the file is complete; an exception from it ends
                the work.

        Raises:
            DiskFull: there is no room for the copy.
        """

    def restore_collection(
        self, name: str, chunks: Iterable[bytes], on_progress: Callable[[], None] = ...
    ) -> CollectionInfo:
        """Create a collection with this new name from a backup.

        It appears only once all of it has been received, verified and written to disk.

        Args:
            name: of the new collection.
            chunks: the bytes of the backup.
            on_progress: called now and then, in the same thread; an exception from it ends the work, and nothing is
                created.

        Raises:
            InvalidInput: the name is not allowed, or the bytes are not a backup, truncated, or damaged.
            AlreadyExists: a collection or an alias has the name.
            DiskFull: nothing was created.
        """

    def close(self) -> None:
        """Finish all writes and release the data directory."""
