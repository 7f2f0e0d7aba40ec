"""Embed, add, search, delete: what every door calls. Knows neither gRPC nor HTTP.

Holds one embedder and, where there is a data directory, its collections, and checks whatever concerns both: limits,
metadata, and that vectors of different encoders never meet.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from embedserve import vectors
from embedserve.embedder import Embedded, Embedder, Timings
from embedserve.encoder import ImageEncoder
from embedserve.errors import (
    EmbedserveError,
    EncoderMismatch,
    FailedPrecondition,
    InvalidInput,
    ItemNotFound,
)
from embedserve.store.protocol import VectorStore
from embedserve.types import (
    EXTERNAL,
    CollectionInfo,
    Filter,
    Hit,
    Include,
    Item,
    Keep,
    Limits,
    Metadata,
    Page,
    SearchOptions,
    check_filter,
    check_metadata,
    check_metadata_key,
    metadata_bytes,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_T = TypeVar("_T")
_STORE_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class NewItem:
    """An item to be written: an image or a vector."""

    id: str = ""
    """Empty: the engine makes one."""
    image: bytes | None = None
    vector: NDArray[np.float32] | None = None
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """Items that look like this encoded image."""

    image: bytes


@dataclass(frozen=True, slots=True)
class VectorQuery:
    """Items close to this vector."""

    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ItemQuery:
    """Items close to this one, which is not among its own hits."""

    id: str


Query: TypeAlias = ImageQuery | VectorQuery | ItemQuery


class Engine:
    """One encoder and, if there is a data directory, its collections. Make it with ``start``.

    ``deadline`` is everywhere a time on ``time.monotonic``'s clock after which the answer is no longer wanted. A
    result that is an EmbedserveError concerns that image, item or query alone; a raised one concerns the whole call.
    """

    def __init__(self, embedder: Embedder, store: VectorStore | None, limits: Limits) -> None:
        self.embedder = embedder
        self.encoder = embedder.encoder
        self.limits = limits
        self._store = store
        self._store_pool = ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="store")

    @classmethod
    async def start(
        cls,
        encoder: ImageEncoder,
        store: VectorStore | None = None,
        *,
        limits: Limits | None = None,
        decode_threads: int = 0,
        max_batch: int = 0,
    ) -> Engine:
        """An engine that is warm: see ``Embedder.start``. It owns the store from now on and closes it."""
        limits = limits or Limits()
        embedder = await Embedder.start(encoder, limits=limits, decode_threads=decode_threads, max_batch=max_batch)
        return cls(embedder, store, limits)

    async def close(self) -> None:
        """Finish what was admitted, then give threads and store free."""
        await self.embedder.close()
        self._store_pool.shutdown()
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    @property
    def has_collections(self) -> bool:
        """True if there is a store."""
        return self._store is not None

    # --- Embedding ------------------------------------------------------------------

    async def embed(
        self,
        images: Sequence[bytes],
        *,
        deadline: float | None = None,
        timings: Timings | None = None,
        stream: object = None,
    ) -> list[NDArray[np.float32] | EmbedserveError]:
        """A vector (float32 [D], unit norm) or an error for each encoded image.

        ``stream``, if given, stands for the stream that the images are part of: they wait for room instead of being
        refused, and take turns with other calls as one.

        Raises:
            InvalidInput, LimitExceeded: no images, or more than max_images.
            Overloaded: as many images are in work as may be.
        """
        if not images:
            raise InvalidInput("the call has no images")
        self.limits.check("max_images", len(images), "images in one call")
        results = await self.embedder.embed(
            images,
            keep=Keep.NONE,
            deadline=deadline,
            timings=timings or Timings(),
            call=stream,
            wait=stream is not None,
        )
        return _positioned("image", [r.vector if isinstance(r, Embedded) else r for r in results])

    # --- Collections ----------------------------------------------------------------

    async def create_collection(
        self, name: str, *, keep: Keep = Keep.THUMBNAILS, external: bool = False, dimension: int = 0
    ) -> CollectionInfo:
        """Make an empty collection, bound to the encoder or, if external, to none.

        Raises:
            InvalidInput: the name or the dimension is not allowed.
            AlreadyExists: the name is taken.
        """
        ours = self.encoder.metadata
        if external and not 1 <= dimension <= 65536:
            raise InvalidInput(f"an external collection needs a dimension of 1–65536, not {dimension}")
        if not external and dimension not in (0, ours.dimension):
            raise InvalidInput(
                f"dimension {dimension} was asked for; the encoder makes vectors of {ours.dimension}",
                hint="leave the dimension out, or make the collection external",
            )
        return await self._in_store(
            lambda store: store.create_collection(
                name,
                fingerprint=EXTERNAL if external else self.encoder.fingerprint,
                encoder_name="" if external else ours.name,
                dimension=dimension if external else ours.dimension,
                keep=keep,
            )
        )

    async def get_collection(self, name: str) -> CollectionInfo:
        """What a collection, by name or alias, is and holds.

        Raises:
            CollectionNotFound: as every call that takes a collection.
        """
        return await self._in_store(lambda store: store.get_collection(name))

    async def list_collections(self) -> list[CollectionInfo]:
        """All collections, by name."""
        return await self._in_store(lambda store: store.list_collections())

    async def delete_collection(self, name: str) -> None:
        """Remove a collection, not an alias, with all its items."""
        await self._in_store(lambda store: store.delete_collection(name))

    async def set_alias(self, alias: str, collection: str) -> None:
        """Point an alias to a collection, or, if that is empty, remove it."""
        await self._in_store(lambda store: store.set_alias(alias, collection))

    # --- Items ----------------------------------------------------------------------

    async def upsert(
        self,
        collection: str,
        items: Sequence[NewItem | EmbedserveError],
        *,
        encoder_fingerprint: str = "",
        deadline: float | None = None,
        timings: Timings | None = None,
        stream: object = None,
    ) -> tuple[CollectionInfo, list[str | EmbedserveError]]:
        """Write items; for each the id under which it is now on disk, or why it was not written.

        An item that is an error already, since it could not be read, keeps its place. ``encoder_fingerprint`` says
        which encoder made the vectors. ``stream`` as in ``embed``.

        Raises:
            EncoderMismatch: the vectors could not be compared with the collection's.
            LimitExceeded, Overloaded, DiskFull: nothing was written.
        """
        timings = timings or Timings()
        self.limits.check("max_items", len(items), "items in one call")
        pictures = sum(isinstance(item, NewItem) and item.image is not None for item in items)
        self.limits.check("max_images", pictures, "images in one call")
        info = await self.get_collection(collection)
        self._check_binding(
            info,
            encoder_fingerprint,
            has_images=pictures > 0,
            has_vectors=any(isinstance(item, NewItem) and item.vector is not None for item in items),
        )
        checked = [item if isinstance(item, EmbedserveError) else self._checked(item, info) for item in items]
        images = [item.image for item in checked if isinstance(item, NewItem) and item.image is not None]
        embedded = iter(
            await self.embedder.embed(
                images, keep=info.keep, deadline=deadline, timings=timings, call=stream, wait=stream is not None
            )
        )
        writes: list[Item] = []
        results: list[str | EmbedserveError] = []
        for item in checked:
            write = _to_item(item, embedded)
            if isinstance(write, Item):
                writes.append(write)
            results.append(write.id if isinstance(write, Item) else write)
        if writes:
            begun = time.monotonic()
            # By the name that was checked: an alias may point elsewhere by now.
            await self._in_store(lambda store: store.upsert(info.name, writes))
            timings.store_ms = (time.monotonic() - begun) * 1000
        return info, _positioned("item", results)

    async def get_items(
        self, collection: str, ids: Sequence[str], include: Include
    ) -> tuple[CollectionInfo, list[Item | EmbedserveError]]:
        """The items with these ids, in order; ItemNotFound in the place of one that is not there."""
        self.limits.check("max_items", len(ids), "ids in one call")
        info = await self.get_collection(collection)
        found = await self._in_store(lambda store: store.get_items(info.name, ids, include))
        return info, [item or _item_not_found(id_, info) for id_, item in zip(ids, found, strict=True)]

    async def delete_items(self, collection: str, ids: Sequence[str]) -> int:
        """Remove items; how many of them there were."""
        self.limits.check("max_items", len(ids), "ids in one call")
        return await self._in_store(lambda store: store.delete_items(collection, ids))

    async def list_items(
        self, collection: str, *, page_size: int, page_token: str, filter: Filter | None, include: Include
    ) -> tuple[CollectionInfo, Page]:
        """A page of items in the order of their ids; ``page_size`` 0 means 100."""
        size = page_size or 100
        self.limits.check("max_page_size", size, "items on a page")
        if filter is not None:
            check_filter(filter, self.limits)
        info = await self.get_collection(collection)
        page = await self._in_store(
            lambda store: store.list_items(
                info.name, page_size=size, page_token=page_token, filter=filter, include=include
            )
        )
        return info, page

    # --- Search ---------------------------------------------------------------------

    async def search(
        self,
        collection: str,
        queries: Sequence[Query | EmbedserveError],
        options: SearchOptions,
        *,
        encoder_fingerprint: str = "",
        deadline: float | None = None,
        timings: Timings | None = None,
    ) -> tuple[CollectionInfo, list[list[Hit] | EmbedserveError]]:
        """The nearest items for each query, closest first, or why it could not be answered.

        A query that is an error already, since it could not be read, keeps its place. ``encoder_fingerprint`` says
        which encoder made the vectors among the queries.

        Raises:
            EncoderMismatch: the query vectors could not be compared with the collection's.
            InvalidInput, LimitExceeded, Overloaded: concern the whole call.
        """
        import numpy as np

        timings = timings or Timings()
        if not queries:
            raise InvalidInput("the call has no queries")
        self.limits.check("max_queries", len(queries), "queries in one call")
        self._check_options(options)
        info = await self.get_collection(collection)
        images = [query.image for query in queries if isinstance(query, ImageQuery)]
        self._check_binding(
            info,
            encoder_fingerprint,
            has_images=bool(images),
            has_vectors=any(isinstance(query, VectorQuery) for query in queries),
        )
        embedded = iter(await self.embedder.embed(images, keep=Keep.NONE, deadline=deadline, timings=timings))
        begun = time.monotonic()
        ids = [query.id for query in queries if isinstance(query, ItemQuery)]
        stored: list[Item | None] = []
        if ids:
            stored = await self._in_store(lambda store: store.get_items(info.name, ids, Include(vectors=True)))
        neighbours = iter(stored)
        results: list[list[Hit] | EmbedserveError] = []
        answerable: list[tuple[int, NDArray[np.float32], str | None]] = []
        for position, query in enumerate(queries):
            vector = _query_vector(query, info, embedded, neighbours)
            if isinstance(vector, EmbedserveError):
                results.append(vector)
            else:
                results.append([])
                answerable.append((position, vector, query.id if isinstance(query, ItemQuery) else None))
        if answerable:
            matrix = np.stack([vector for _, vector, _ in answerable])
            excluded = [item_id for _, _, item_id in answerable]
            found = await self._in_store(lambda store: store.search(info.name, matrix, options, excluded))
            for (position, _, _), hits in zip(answerable, found, strict=True):
                results[position] = hits
        timings.store_ms = (time.monotonic() - begun) * 1000
        return info, _positioned("query", results)

    # --- Checks ---------------------------------------------------------------------

    def _check_binding(self, info: CollectionInfo, given: str, *, has_images: bool, has_vectors: bool) -> None:
        """The one place where vectors of different encoders are kept apart."""
        bound_to = f"collection {info.name!r} is bound to encoder {info.encoder_name} ({info.fingerprint[:12]})"
        if has_images and info.external:
            raise FailedPrecondition(
                f"collection {info.name!r} is external: its vectors come from outside, so it takes no images",
                hint="bring vectors, or make a collection that is bound to the encoder",
            )
        if has_images and info.fingerprint != self.encoder.fingerprint:
            raise EncoderMismatch(
                f"{bound_to}; this server runs {self.encoder.metadata.name} ({self.encoder.fingerprint[:12]})",
                hint="serve the encoder that the collection was made with, or add the images to a new collection",
            )
        if given and given != info.fingerprint and not (info.external and not has_vectors):
            raise EncoderMismatch(
                f"the vectors are of encoder {given[:12]}; {bound_to}",
                hint="embed the images with the collection's encoder",
            )
        if has_vectors and not given and not info.external:
            raise EncoderMismatch(
                f"the vectors do not say which encoder made them; {bound_to}",
                hint="give encoder_fingerprint, as the response of Embed names it",
            )

    def _check_options(self, options: SearchOptions) -> None:
        if options.k < 1:
            raise InvalidInput(f"k is {options.k}; it is at least 1")
        self.limits.check("max_k", options.k, "hits asked for (k)")
        if options.min_score is not None and not -1 <= options.min_score <= 1:
            raise InvalidInput(f"min_score is {options.min_score}; a cosine lies in [-1, 1]")
        if options.group_by:
            check_metadata_key(options.group_by)
        if options.filter is not None:
            check_filter(options.filter, self.limits)

    def _checked(self, item: NewItem, info: CollectionInfo) -> NewItem | EmbedserveError:
        """The item with its vector, if it has one, at unit norm; or why it cannot be written."""
        try:
            self.limits.check("max_id_bytes", len(item.id.encode()), "bytes in the id")
            check_metadata(item.metadata)
            self.limits.check("max_metadata_bytes", metadata_bytes(item.metadata), "bytes of metadata")
            if (item.image is None) == (item.vector is None):
                raise InvalidInput("the item has neither an image nor a vector")
            if item.vector is not None:
                return replace(item, vector=vectors.unit(item.vector, info.dimension))
        except EmbedserveError as error:
            return error
        return item

    async def _in_store(self, work: Callable[[VectorStore], _T]) -> _T:
        store = self._store
        if store is None:
            raise FailedPrecondition(
                "the server has no data directory, so it has no collections",
                hint="start it with: embedserve serve encoder.onnx --data DIR",
            )
        return await asyncio.get_running_loop().run_in_executor(self._store_pool, lambda: work(store))


def _positioned(noun: str, results: list[_T | EmbedserveError]) -> list[_T | EmbedserveError]:
    """The results of a call with each error saying where it belongs, as in "image 3 of 8: …"."""
    if len(results) == 1:
        return results
    return [
        result.at(f"{noun} {position} of {len(results)}") if isinstance(result, EmbedserveError) else result
        for position, result in enumerate(results, start=1)
    ]


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
        media=result.media,
    )


def _query_vector(
    query: Query | EmbedserveError,
    info: CollectionInfo,
    embedded: Iterator[Embedded | EmbedserveError],
    neighbours: Iterator[Item | None],
) -> NDArray[np.float32] | EmbedserveError:
    match query:
        case ImageQuery():
            result = next(embedded)
            return result.vector if isinstance(result, Embedded) else result
        case VectorQuery(vector):
            try:
                return vectors.unit(vector, info.dimension)
            except EmbedserveError as error:
                return error
        case ItemQuery(item_id):
            item = next(neighbours)
            return _item_not_found(item_id, info) if item is None or item.vector is None else item.vector
        case _:
            return query


def _item_not_found(item_id: str, info: CollectionInfo) -> ItemNotFound:
    return ItemNotFound(f"collection {info.name!r} has no item {item_id!r}")
