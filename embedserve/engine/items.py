"""Write, read, list and delete the items of collections."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from embedserve.answer_size import AnswerSize
from embedserve.encoder.session import ImageEncoder
from embedserve.engine import compatibility, unit_vectors
from embedserve.engine.answers import Answer
from embedserve.engine.core import Core
from embedserve.engine.embedder import Embedded, Results
from embedserve.engine.inputs import NewItem, id_error, positioned
from embedserve.engine.timings import Timings
from embedserve.errors import EmbedserveError, InvalidInput, ItemNotFound
from embedserve.types import (
    CollectionIdentity,
    Filter,
    Include,
    Item,
    Page,
    check_filter,
    check_metadata,
    metadata_bytes,
    metadata_bytes_at_most,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FEWER_IDS = "ask for fewer ids at once, or leave media, vectors or metadata out"
_FEWER_ITEMS = "ask for fewer items on a page, or leave vectors or metadata out"
_PAGE_SHARE = 4
"""A page ends at this share of a message, one in so many: metadata with many short entries take up to three times as
much on the wire as in the database."""


class Items:
    """The items of an engine's collections.

    ``collection`` is a name or an alias everywhere; CollectionNotFound is raised if none has that name.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._limits = core.limits

    async def upsert(
        self,
        collection: str,
        items: Sequence[NewItem | EmbedserveError],
        *,
        encoder_fingerprint: str = "",
        deadline: float | None = None,
        timings: Timings | None = None,
    ) -> tuple[CollectionIdentity, list[str | EmbedserveError]]:
        """Write items; for each the id under which it is now on disk, or why it was not written.

        An item that is an error already, because it could not be read, keeps its place. ``encoder_fingerprint`` is that
        of the encoder that made the vectors.

        Raises:
            EncoderMismatch: the vectors cannot be compared with the collection's.
            LimitExceeded, Overloaded, DiskFull: nothing was written.
        """
        timings = timings or Timings()
        identity = self._core.identity(collection)
        embedder = self._core.embedder
        checked = self._check(identity, embedder.encoder, items, encoder_fingerprint)
        embedded = await embedder.embed(_images(checked), keep=identity.keep, deadline=deadline, timings=timings)
        [results] = await self._write(identity, [(checked, embedded)], timings)
        return identity, positioned("item", results)

    def begin_upsert(
        self,
        identity: CollectionIdentity,
        items: Sequence[NewItem | EmbedserveError],
        *,
        encoder_fingerprint: str,
        deadline: float | None,
        flow: Hashable,
    ) -> tuple[list[NewItem | EmbedserveError], Results]:
        """The first half of ``upsert`` for a message of a stream, whose images have been admitted: embed them.

        Returns:
            The checked items and the future of their embeddings; ``finish_upsert`` takes both once it is done.

        Raises:
            EncoderMismatch, LimitExceeded: as ``upsert``.
        """
        embedder = self._core.embedder
        checked = self._check(identity, embedder.encoder, items, encoder_fingerprint)
        images = _images(checked)
        return checked, embedder.submit(images, keep=identity.keep, deadline=deadline, timings=Timings(), flow=flow)

    async def finish_upsert(
        self,
        identity: CollectionIdentity,
        begun: Sequence[tuple[list[NewItem | EmbedserveError], list[Embedded | EmbedserveError]]],
    ) -> list[list[str | EmbedserveError]]:
        """The second half: write the items of several messages in one transaction.

        Returns:
            For each message what ``upsert`` returns for its items; errors have no positions, which only the reader of
            the stream knows.

        Raises:
            DiskFull: nothing was written.
        """
        return await self._write(identity, begun, Timings())

    async def get(
        self,
        collection: str,
        ids: Sequence[str],
        include: Include,
        *,
        answer: Answer | None = None,
        deadline: float | None = None,
    ) -> tuple[CollectionIdentity, list[Item | EmbedserveError]]:
        """The items with these ids, in order; ItemNotFound in the place of one that does not exist.

        ``answer`` holds their room for as long as the caller holds them; without one, only this call does.

        Raises:
            LimitExceeded: too many ids, or more than one message holds.
            Overloaded: other answers hold all the room.
        """
        if answer is None:
            with self._core.answers.begin(_FEWER_IDS) as answer:
                return await self.get(collection, ids, include, answer=answer, deadline=deadline)
        self._limits.check("max_items", len(ids), "ids in one call")
        identity = self._core.identity(collection)
        refused = {bad: error for bad in ids if (error := id_error(bad, self._limits))}
        good = [item_id for item_id in ids if item_id not in refused]
        await answer.reserve(len(good), self._item_bytes(identity, include), deadline=deadline)
        read = iter(await self.read(identity, good, include, answer, deadline=deadline))
        answer.settle(len(good))
        results: list[Item | EmbedserveError] = []
        for item_id in ids:
            error = refused.get(item_id)
            results.append(error or next(read) or item_not_found(item_id, identity))
        return identity, results

    async def read(
        self,
        identity: CollectionIdentity,
        ids: Sequence[str],
        include: Include,
        size: AnswerSize,
        *,
        deadline: float | None = None,
    ) -> list[Item | None]:
        """The items with these ids, which have been checked, in order; None in the place of one that does not exist.

        Raises:
            LimitExceeded: they have more bytes than ``size`` allows.
        """
        return await self._core.read(
            lambda store, wanted: store.get_items(
                identity.name, ids, include, uid=identity.uid, size=size, wanted=wanted
            ),
            self._core.readers,
            deadline=deadline,
        )

    def _item_bytes(self, identity: CollectionIdentity, include: Include) -> int:
        """Of the largest item that may be read."""
        limits = self._limits
        return (
            limits.max_id_bytes
            + (limits.max_metadata_bytes if include.metadata else 0)
            + (4 * identity.dimension if include.vectors else 0)
            + (limits.max_image_bytes if include.media else 0)
        )

    async def delete(self, collection: str, ids: Sequence[str]) -> int:
        """Delete items; how many of them existed.

        Raises:
            InvalidInput, LimitExceeded: an id is empty or too long, or there are too many.
        """
        self._limits.check("max_items", len(ids), "ids in one call")
        for item_id in ids:
            if error := id_error(item_id, self._limits):
                raise error
        return await self._core.in_store(lambda store: store.delete_items(collection, ids), self._core.writers)

    async def list_page(
        self,
        collection: str,
        *,
        page_size: int,
        page_token: str,
        filter: Filter | None,
        include: Include,
        answer: Answer | None = None,
        deadline: float | None = None,
    ) -> tuple[CollectionIdentity, Page]:
        """A page of items in the order of their ids; ``page_size`` 0 means 100. ``answer`` as in ``get``.

        It has fewer items, but at least one if there is one, where as many would not fit one message.

        Raises:
            LimitExceeded: the page or the filter is too large.
            InvalidInput: the filter is not allowed, or the page token is not one of an earlier page.
            Overloaded: other answers hold all the room.
        """
        if answer is None:
            with self._core.answers.begin(_FEWER_ITEMS) as answer:
                return await self.list_page(
                    collection, page_size=page_size, page_token=page_token, filter=filter, include=include,
                    answer=answer, deadline=deadline,
                )  # fmt: skip
        size = page_size or 100
        self._limits.check("max_page_size", size, "items on a page")
        if filter is not None:
            check_filter(filter, self._limits)
        identity = self._core.identity(collection)
        await answer.reserve(size, self._item_bytes(identity, include), deadline=deadline)
        page = await self._core.read(
            lambda store, wanted: store.list_items(
                identity.name,
                page_size=size,
                page_token=page_token,
                filter=filter,
                include=include,
                uid=identity.uid,
                page_bytes=answer.most_bytes // _PAGE_SHARE,
                size=answer,
                wanted=wanted,
            ),
            self._core.readers,
            deadline=deadline,
        )
        answer.settle(len(page.items))
        return identity, page

    def _check(
        self,
        identity: CollectionIdentity,
        encoder: ImageEncoder,
        items: Sequence[NewItem | EmbedserveError],
        encoder_fingerprint: str,
    ) -> list[NewItem | EmbedserveError]:
        """The items with unit vectors; in the place of one that cannot be written, why."""
        images = sum(isinstance(item, NewItem) and item.image is not None for item in items)
        self._limits.check("max_items", len(items), "items in one call")
        self._limits.check("max_images", images, "images in one call")
        has_vectors = any(isinstance(item, NewItem) and item.vector is not None for item in items)
        compatibility.check(identity, encoder, encoder_fingerprint, has_images=images > 0, has_vectors=has_vectors)
        checked = [item if isinstance(item, EmbedserveError) else self._checked(item) for item in items]
        given = [item.vector for item in checked if isinstance(item, NewItem) and item.vector is not None]
        units = iter(unit_vectors.units(given, identity.dimension))
        return [_with_vector(item, units) if isinstance(item, NewItem) else item for item in checked]

    def _checked(self, item: NewItem) -> NewItem | EmbedserveError:
        """The item, or why it cannot be written whatever its vector is."""
        try:
            if item.id and (error := id_error(item.id, self._limits)):
                return error
            if item.metadata:
                check_metadata(item.metadata)
                if metadata_bytes_at_most(item.metadata) > self._limits.max_metadata_bytes:
                    self._limits.check("max_metadata_bytes", metadata_bytes(item.metadata), "bytes of metadata")
            if (item.image is None) == (item.vector is None):
                raise InvalidInput("the item has neither an image nor a vector")
        except EmbedserveError as refused:
            return refused
        return item

    async def _write(
        self,
        identity: CollectionIdentity,
        begun: Sequence[tuple[list[NewItem | EmbedserveError], list[Embedded | EmbedserveError]]],
        timings: Timings,
    ) -> list[list[str | EmbedserveError]]:
        writes: list[Item] = []
        results: list[list[str | EmbedserveError]] = []
        for items, embedded in begun:
            remaining = iter(embedded)
            done = [_to_item(item, remaining) for item in items]
            writes += [item for item in done if isinstance(item, Item)]
            results.append([item.id if isinstance(item, Item) else item for item in done])
        if writes:
            begun_at = time.monotonic()
            await self._core.in_store(
                lambda store: store.upsert(identity.name, writes, uid=identity.uid), self._core.writers
            )
            timings.store_ms = self._core.on_store("upsert", begun_at)
        return results


def item_not_found(item_id: str, identity: CollectionIdentity) -> ItemNotFound:
    """The error in the place of an item that does not exist."""
    return ItemNotFound(f"collection {identity.name!r} has no item {item_id!r}")


def _images(items: Sequence[NewItem | EmbedserveError]) -> list[bytes]:
    return [item.image for item in items if isinstance(item, NewItem) and item.image is not None]


def _to_item(item: NewItem | EmbedserveError, embedded: Iterator[Embedded | EmbedserveError]) -> Item | EmbedserveError:
    if isinstance(item, EmbedserveError):
        return item
    item_id = item.id or uuid.uuid4().hex
    if item.image is None:
        return Item(id=item_id, metadata=item.metadata, vector=item.vector)
    result = next(embedded)
    if isinstance(result, EmbedserveError):
        return result
    return Item(
        id=item_id,
        metadata=item.metadata,
        vector=result.vector,
        content_sha256=hashlib.sha256(item.image).digest(),
        media=result.extra,
    )


def _with_vector(item: NewItem, units: Iterator[NDArray[np.float32] | EmbedserveError]) -> NewItem | EmbedserveError:
    """The item with its vector, if it has one, at unit norm; or what is wrong with the vector."""
    if item.vector is None:
        return item
    vector = next(units)
    if isinstance(vector, EmbedserveError):
        return vector
    return NewItem(id=item.id, vector=vector, metadata=item.metadata)
