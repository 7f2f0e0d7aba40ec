"""Embed, add, search, delete: what every door calls. Knows neither gRPC nor HTTP.

Holds one embedder and, where there is a data directory, its collections, and checks whatever concerns both: limits,
metadata, and that vectors of different encoders never meet.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from embedserve.cores import usable_cores
from embedserve.encoder.session import ImageEncoder
from embedserve.engine import compatibility, unit_vectors
from embedserve.engine.admission import Admission
from embedserve.engine.batcher import Encoded
from embedserve.engine.embedder import Embedded, Embedder, Results, Timings
from embedserve.engine.inputs import BackupPart, ImageQuery, ItemQuery, NewItem, Query, VectorQuery
from embedserve.engine.jobs import LongWork
from embedserve.engine.searches import Searches
from embedserve.errors import (
    AlreadyExists,
    CollectionNotFound,
    EmbedserveError,
    FailedPrecondition,
    InvalidInput,
    ItemNotFound,
    LimitExceeded,
)
from embedserve.observer import Observer
from embedserve.store.protocol import VectorStore
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
    check_filter,
    check_metadata,
    check_metadata_key,
    metadata_bytes,
    metadata_bytes_at_most,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_T = TypeVar("_T")
_STORE_THREADS = 4
"""Of calls that are neither reads nor writes of items: making collections, removing them, naming them."""
_WRITERS = 16
"""They mostly wait for the disk. Writes that come while it is busy are committed together, so more of them at a time
make fewer commits."""
_MAX_EFFORT = 65_536
"""Largest ef and nprobe: with more of either, exact search is faster."""
_CHUNK_BYTES = 1 << 20
_PROGRESS_S = 0.2
"""How often a check says how far it is."""


class Engine:
    """One encoder and, if there is a data directory, its collections. Make it with ``start``.

    ``deadline`` is everywhere a time on ``time.monotonic``'s clock after which the answer is no longer wanted. A
    result that is an EmbedserveError concerns that image, item or query alone; a raised one concerns the whole call.
    """

    def __init__(
        self,
        start_embedder: Callable[[ImageEncoder], Awaitable[Embedder]],
        embedder: Embedder,
        store: VectorStore | None,
        observer: Observer,
    ) -> None:
        self.embedder = embedder
        """What embeds from now on. It can be replaced while a call runs, so a call takes it once, when it begins."""
        self.admission = embedder.admission
        self.limits = embedder.admission.limits
        self._start_embedder = start_embedder
        self._replacing = asyncio.Lock()
        self._store = store
        # Pools of their own, or a few writes that wait for the disk would hold up every search.
        self._store_pool = ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="store")
        self._readers = ThreadPoolExecutor(usable_cores(), thread_name_prefix="read")
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        self._long_work = LongWork()
        self._searches = None if store is None else Searches(store, usable_cores())
        self._observer = observer

    @classmethod
    async def start(
        cls,
        encoder: ImageEncoder,
        store: VectorStore | None = None,
        *,
        limits: Limits | None = None,
        decode_threads: int = 0,
        max_batch: int = 0,
        observer: Observer | None = None,
    ) -> Engine:
        """An engine that is warm: see ``Embedder.start``. It owns the store from now on and closes it."""
        start_embedder = partial(
            Embedder.start,
            admission=Admission(limits or Limits()),
            decode_threads=decode_threads,
            max_batch=max_batch,
            observer=observer,
        )
        return cls(start_embedder, await start_embedder(encoder), store, observer or Observer())

    async def close(self) -> None:
        """Finish what was admitted, then give threads and store free."""
        await self.embedder.close()
        if self._searches is not None:
            await self._searches.close()
        for pool in (self._readers, self._writers, self._store_pool):
            pool.shutdown()
        await self._long_work.close()
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    @property
    def encoder(self) -> ImageEncoder:
        """The encoder that new calls get."""
        return self.embedder.encoder

    async def replace_encoder(self, encoder: ImageEncoder) -> None:
        """Embed with another encoder from now on.

        It is warmed up first, while the old one goes on; what the old one was given it still answers, and when this
        returns it has.
        """
        async with self._replacing:
            embedder = await self._start_embedder(encoder)
            old, self.embedder = self.embedder, embedder
            await old.close()

    def refuse(self, images: int) -> None:
        """Images of a stream that have been admitted are not looked at, since their message cannot be used."""
        for _ in range(images):
            self._observer.on_image("refused")

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
    ) -> tuple[ImageEncoder, list[NDArray[np.float32] | EmbedserveError]]:
        """The encoder that was used, and a vector (float32 [D], unit norm) or an error for each encoded image.

        Raises:
            InvalidInput, LimitExceeded: no images, or more than max_images.
            Overloaded: as many images are in work as may be.
        """
        if not images:
            raise InvalidInput("the call has no images")
        self.limits.check("max_images", len(images), "images in one call")
        embedder = self.embedder
        results = await embedder.embed(images, keep=Keep.NONE, deadline=deadline, timings=timings or Timings())
        vectors = [r.vector if isinstance(r, Encoded) else r for r in results]
        return embedder.encoder, positioned("image", vectors)

    # --- Collections ----------------------------------------------------------------

    async def create_collection(
        self,
        name: str,
        *,
        keep: Keep = Keep.THUMBNAILS,
        external: bool = False,
        dimension: int = 0,
        index: str = "auto",
        target_recall: float = DEFAULT_TARGET_RECALL,
        filter_keys: Sequence[str] = (),
        encoder_fingerprint: str = "",
        encoder_name: str = "",
    ) -> CollectionInfo:
        """Make an empty collection: bound to our encoder, to the one that is named, or, if external, to none.

        Raises:
            InvalidInput: something of what it is to be is not allowed.
            AlreadyExists: the name is taken.
        """
        bound = compatibility.new(
            name,
            self.encoder,
            keep=keep,
            external=external,
            dimension=dimension,
            encoder_fingerprint=encoder_fingerprint,
            encoder_name=encoder_name,
        )
        _check_target_recall(target_recall)
        for key in filter_keys:
            check_metadata_key(key)
        return await self._in_store(
            lambda store: store.create_collection(
                name,
                fingerprint=bound.fingerprint,
                encoder_name=bound.encoder_name,
                dimension=bound.dimension,
                keep=keep,
                index=index,
                target_recall=target_recall,
                filter_keys=filter_keys,
            )
        )

    def bound(self, name: str) -> CollectionIdentity:
        """What a collection, by name or alias, is bound to; does not wait.

        Raises:
            CollectionNotFound: as every call that takes a collection.
        """
        return self._the_store().identity(name)

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

    def check_collection(self, name: str) -> AsyncGenerator[CheckProgress | CheckReport]:
        """Compare everything that is kept more than once; how far that is, and last the report.

        Closing the iterator ends the check, as it ends a backup.
        """
        store = self._the_store()
        store.identity(name)  # before it waits for its turn

        def check(give: Callable[[CheckProgress | CheckReport], None], go_on: Callable[[], None]) -> None:
            last, told = CheckProgress("", 0, 0), 0.0

            def on_progress(progress: CheckProgress) -> None:
                nonlocal last, told
                go_on()
                now = time.monotonic()
                if progress.stage != last.stage or now - told > _PROGRESS_S:
                    last, told = progress, now
                    give(progress)

            give(store.check_collection(name, on_progress))

        return self._long_work.given_by(check)

    def backup_collection(self, name: str) -> AsyncGenerator[BackupPart]:
        """The collection as it is at one moment, in pieces of at most 1 MiB."""
        store = self._the_store()
        store.identity(name)

        def back_up(give: Callable[[BackupPart], None], go_on: Callable[[], None]) -> None:
            digest = hashlib.sha256()
            with store.backup_collection(name, go_on) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    give(BackupPart(chunk))
            give(BackupPart(b"", digest.digest()))

        return self._long_work.given_by(back_up)

    async def restore_collection(self, name: str, parts: AsyncIterator[BackupPart]) -> CollectionInfo:
        """Make a collection with this new name from a backup, which comes in pieces of any size.

        Cancelling this ends the work; where that comes too late it returns what was made.

        Raises:
            Overloaded: too many long works wait already, as for a check or a backup.
            InvalidInput: the name is not allowed, or the backup is cut, damaged or none.
            AlreadyExists: the name is taken.
            DiskFull: nothing was made.
        """
        store = self._the_store()
        with suppress(CollectionNotFound):  # an alias too; the store looks again when all has come
            store.identity(name)
            raise AlreadyExists(f"there is a collection or an alias {name!r} already")
        return await self._long_work.taken_by(
            lambda taken, go_on: store.restore_collection(name, _whole(taken), go_on), parts
        )

    # --- Items ----------------------------------------------------------------------

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

        An item that is an error already, since it could not be read, keeps its place. ``encoder_fingerprint`` says
        which encoder made the vectors.

        Raises:
            EncoderMismatch: the vectors could not be compared with the collection's.
            LimitExceeded, Overloaded, DiskFull: nothing was written.
        """
        timings = timings or Timings()
        bound = self.bound(collection)
        embedder = self.embedder
        checked = self._check_items(bound, embedder.encoder, items, encoder_fingerprint)
        embedded = await embedder.embed(_images(checked), keep=bound.keep, deadline=deadline, timings=timings)
        [results] = await self._write(bound, [(checked, embedded)], timings)
        return bound, positioned("item", results)

    def begin_upsert(
        self,
        bound: CollectionIdentity,
        items: Sequence[NewItem | EmbedserveError],
        *,
        encoder_fingerprint: str,
        deadline: float | None,
        turn: object,
    ) -> tuple[list[NewItem | EmbedserveError], Results]:
        """The first half of ``upsert`` for a message of a stream, whose images have been admitted: embed them.

        Returns:
            What ``finish_upsert`` takes once the second of them, which is to come, is there.

        Raises:
            EncoderMismatch, LimitExceeded: as ``upsert``.
        """
        embedder = self.embedder
        checked = self._check_items(bound, embedder.encoder, items, encoder_fingerprint)
        images = _images(checked)
        return checked, embedder.submit(images, keep=bound.keep, deadline=deadline, timings=Timings(), turn=turn)

    async def finish_upsert(
        self,
        bound: CollectionIdentity,
        begun: Sequence[tuple[list[NewItem | EmbedserveError], list[Embedded | EmbedserveError]]],
    ) -> list[list[str | EmbedserveError]]:
        """The second half: write what several messages hold in one transaction.

        Returns:
            For each message what ``upsert`` returns for its items; errors have no positions, for only whoever reads the
            stream knows them.

        Raises:
            DiskFull: nothing was written.
        """
        return await self._write(bound, begun, Timings())

    def _check_items(
        self,
        bound: CollectionIdentity,
        encoder: ImageEncoder,
        items: Sequence[NewItem | EmbedserveError],
        encoder_fingerprint: str,
    ) -> list[NewItem | EmbedserveError]:
        """The items, each refused if it cannot be written."""
        images = sum(isinstance(item, NewItem) and item.image is not None for item in items)
        self.limits.check("max_items", len(items), "items in one call")
        self.limits.check("max_images", images, "images in one call")
        has_vectors = any(isinstance(item, NewItem) and item.vector is not None for item in items)
        compatibility.check(bound, encoder, encoder_fingerprint, has_images=images > 0, has_vectors=has_vectors)
        checked = [item if isinstance(item, EmbedserveError) else self._checked(item) for item in items]
        given = [item.vector for item in checked if isinstance(item, NewItem) and item.vector is not None]
        own = iter(unit_vectors.units(given, bound.dimension))
        return [_with_vector(item, own) if isinstance(item, NewItem) else item for item in checked]

    async def _write(
        self,
        bound: CollectionIdentity,
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
            await self._in_store(lambda store: store.upsert(bound.name, writes, uid=bound.uid), self._writers)
            timings.store_ms = self._stored("upsert", begun_at)
        return results

    async def get_items(
        self, collection: str, ids: Sequence[str], include: Include
    ) -> tuple[CollectionIdentity, list[Item | EmbedserveError]]:
        """The items with these ids, in order; in the place of one that is not there, ItemNotFound.

        Raises:
            LimitExceeded: too many ids, or more media than one message holds.
        """
        self.limits.check("max_items", len(ids), "ids in one call")
        bound = self.bound(collection)
        found: dict[str, Item | EmbedserveError] = {bad: error for bad in ids if (error := self._bad_id(bad))}
        wanted = [item_id for item_id in dict.fromkeys(ids) if item_id not in found]
        # Media one by one: a thousand originals at once would be more than this machine's memory.
        step = 1 if include.media else max(len(wanted), 1)
        media_bytes = 0
        for start in range(0, len(wanted), step):
            part = wanted[start : start + step]
            for item_id, item in zip(part, await self._read_items(bound, part, include), strict=True):
                found[item_id] = item or _item_not_found(item_id, bound)
                if item is not None and item.media is not None:
                    media_bytes += len(item.media.data) * ids.count(item_id)
            if media_bytes > self.limits.max_message_bytes:
                raise LimitExceeded(
                    f"the media of these items have more than {self.limits.max_message_bytes} bytes"
                    " (max_message_bytes)",
                    hint="ask for fewer ids at once",
                )
        return bound, [found[item_id] for item_id in ids]

    async def _read_items(self, bound: CollectionIdentity, ids: Sequence[str], include: Include) -> list[Item | None]:
        return await self._in_store(
            lambda store: store.get_items(bound.name, ids, include, uid=bound.uid), self._readers
        )

    async def delete_items(self, collection: str, ids: Sequence[str]) -> int:
        """Remove items; how many of them there were.

        Raises:
            InvalidInput, LimitExceeded: an id is empty or too long, or there are too many.
        """
        self.limits.check("max_items", len(ids), "ids in one call")
        for item_id in ids:
            if error := self._bad_id(item_id):
                raise error
        return await self._in_store(lambda store: store.delete_items(collection, ids), self._writers)

    async def list_items(
        self, collection: str, *, page_size: int, page_token: str, filter: Filter | None, include: Include
    ) -> tuple[CollectionIdentity, Page]:
        """A page of items in the order of their ids; ``page_size`` 0 means 100."""
        size = page_size or 100
        self.limits.check("max_page_size", size, "items on a page")
        if filter is not None:
            check_filter(filter, self.limits)
        bound = self.bound(collection)
        page = await self._in_store(
            lambda store: store.list_items(
                bound.name, page_size=size, page_token=page_token, filter=filter, include=include, uid=bound.uid
            ),
            self._readers,
        )
        return bound, page

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
    ) -> tuple[CollectionIdentity, list[list[Hit] | EmbedserveError]]:
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
        bound = self.bound(collection)
        images = [query.image for query in queries if isinstance(query, ImageQuery)]
        if options.include_vectors:
            await self._check_vector_bytes(collection, bound.dimension * len(queries), options.k)
        embedder = self.embedder
        compatibility.check(
            bound,
            embedder.encoder,
            encoder_fingerprint,
            has_images=bool(images),
            has_vectors=any(isinstance(query, VectorQuery) for query in queries),
        )
        embedded = iter(await embedder.embed(images, keep=Keep.NONE, deadline=deadline, timings=timings))
        begun = time.monotonic()
        queries = [(self._bad_id(query.id) or query) if isinstance(query, ItemQuery) else query for query in queries]
        ids = [query.id for query in queries if isinstance(query, ItemQuery)]
        stored = await self._read_items(bound, ids, Include(vectors=True)) if ids else []
        neighbours = iter(stored)
        own = iter(unit_vectors.units([q.vector for q in queries if isinstance(q, VectorQuery)], bound.dimension))
        results: list[list[Hit] | EmbedserveError] = []
        answerable: list[tuple[int, NDArray[np.float32], str | None]] = []
        for position, query in enumerate(queries):
            vector = _query_vector(query, bound, embedded, own, neighbours)
            if isinstance(vector, EmbedserveError):
                results.append(vector)
            else:
                results.append([])
                answerable.append((position, vector, query.id if isinstance(query, ItemQuery) else None))
        if answerable:
            matrix = np.stack([vector for _, vector, _ in answerable])
            excluded = [item_id for _, _, item_id in answerable]
            found = await self._searching().submit(bound, matrix, options, excluded, deadline=deadline)
            for (position, _, _), hits in zip(answerable, found, strict=True):
                results[position] = hits
        timings.store_ms = self._stored("search", begun)
        return bound, positioned("query", results)

    # --- Checks ---------------------------------------------------------------------

    async def _check_vector_bytes(self, collection: str, numbers: int, k: int) -> None:
        """Refuse a search whose hits' vectors do not fit one message; ``numbers`` is Q × D."""
        most = self.limits.max_message_bytes
        if 4 * numbers * k <= most:
            return
        items = (await self.get_collection(collection)).items
        vector_bytes = 4 * numbers * min(k, max(items, 1))
        if vector_bytes > most:
            raise LimitExceeded(
                f"the vectors of so many hits have {vector_bytes} bytes; max_message_bytes is {most}",
                hint="ask for fewer hits or queries at once, or leave the vectors out",
            )

    def _check_options(self, options: SearchOptions) -> None:
        if options.k < 1:
            raise InvalidInput(f"k is {options.k}; it is at least 1")
        self.limits.check("max_k", options.k, "hits asked for (k)")
        if options.min_score is not None and not -1 <= options.min_score <= 1:
            raise InvalidInput(f"min_score is {options.min_score}; a cosine lies in [-1, 1]")
        for name, value in (("ef", options.ef), ("nprobe", options.nprobe)):
            if not 0 <= value <= _MAX_EFFORT:
                raise InvalidInput(f"{name} is {value}; it lies between 1 and {_MAX_EFFORT}")
        if options.target_recall is not None:
            _check_target_recall(options.target_recall)
        efforts = {
            "ef": bool(options.ef),
            "nprobe": bool(options.nprobe),
            "target_recall": options.target_recall is not None,
            "exact": options.exact,
        }
        given = [name for name, is_given in efforts.items() if is_given]
        if len(given) > 1:
            raise InvalidInput(
                f"{' and '.join(given)} are given; each says in its own way how hard to search",
                hint="give at most one of ef, nprobe, target_recall and exact",
            )
        if options.group_by:
            check_metadata_key(options.group_by)
        if options.filter is not None:
            check_filter(options.filter, self.limits)

    def _checked(self, item: NewItem) -> NewItem | EmbedserveError:
        """The item, or why it cannot be written whatever its vector is."""
        try:
            if item.id and (error := self._bad_id(item.id)):
                return error
            if item.metadata:
                check_metadata(item.metadata)
                if metadata_bytes_at_most(item.metadata) > self.limits.max_metadata_bytes:
                    self.limits.check("max_metadata_bytes", metadata_bytes(item.metadata), "bytes of metadata")
            if (item.image is None) == (item.vector is None):
                raise InvalidInput("the item has neither an image nor a vector")
        except EmbedserveError as refused:
            return refused
        return item

    def _bad_id(self, item_id: str) -> EmbedserveError | None:
        """Why no item can have this id."""
        try:
            self.limits.check("max_id_bytes", len(item_id.encode()), "bytes in an item id")
        except EmbedserveError as error:
            return error
        return None if item_id else InvalidInput("an item id is empty")

    def _stored(self, operation: Literal["search", "upsert"], begun: float) -> float:
        """Milliseconds since ``begun``, which the observer is told of."""
        seconds = time.monotonic() - begun
        self._observer.on_store(operation, seconds)
        return seconds * 1000

    async def _in_store(self, work: Callable[[VectorStore], _T], pool: ThreadPoolExecutor | None = None) -> _T:
        store = self._the_store()
        return await asyncio.get_running_loop().run_in_executor(pool or self._store_pool, work, store)

    def _searching(self) -> Searches:
        self._the_store()
        assert self._searches is not None
        return self._searches

    def _the_store(self) -> VectorStore:
        if self._store is None:
            raise FailedPrecondition(
                "the server has no data directory, so it has no collections",
                hint="start it with: embedserve serve encoder.onnx --data DIR",
            )
        return self._store


def positioned(noun: str, results: list[_T | EmbedserveError]) -> list[_T | EmbedserveError]:
    """The results of a call with each error saying where it belongs, as in "image 3 of 8: …"."""
    if len(results) == 1:
        return results
    return [
        result.at(f"{noun} {position} of {len(results)}") if isinstance(result, EmbedserveError) else result
        for position, result in enumerate(results, start=1)
    ]


def _check_target_recall(target_recall: float) -> None:
    if not 0 < target_recall <= 1:
        raise InvalidInput(f"target_recall is {target_recall}; it lies above 0 and is at most 1")


def _whole(parts: Iterator[BackupPart]) -> Iterator[bytes]:
    """The bytes of a backup, ending only if they are those that were sent.

    Raises:
        InvalidInput: some are missing, or others.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.chunk)
        if part.chunk:
            yield part.chunk
        if part.sha256:
            if part.sha256 != digest.digest():
                raise InvalidInput(
                    f"the backup has the sha256 {digest.hexdigest()}, and {part.sha256.hex()} was sent with it",
                    hint="it was damaged on its way, or while it lay on disk; send it again, or take another",
                )
            return
    raise InvalidInput("the backup is cut: its last message, with the sha256, has not come", hint="send it again")


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
    """The item with its vector, if it has one, at unit norm; or what is wrong with it."""
    if item.vector is None:
        return item
    vector = next(units)
    if isinstance(vector, EmbedserveError):
        return vector
    return NewItem(id=item.id, vector=vector, metadata=item.metadata)


def _query_vector(
    query: Query | EmbedserveError,
    bound: CollectionIdentity,
    embedded: Iterator[Embedded | EmbedserveError],
    own: Iterator[NDArray[np.float32] | EmbedserveError],
    neighbours: Iterator[Item | None],
) -> NDArray[np.float32] | EmbedserveError:
    match query:
        case ImageQuery():
            result = next(embedded)
            return result.vector if isinstance(result, Encoded) else result
        case VectorQuery():
            return next(own)
        case ItemQuery(item_id):
            item = next(neighbours)
            return _item_not_found(item_id, bound) if item is None or item.vector is None else item.vector
        case _:
            return query


def _item_not_found(item_id: str, bound: CollectionIdentity) -> ItemNotFound:
    return ItemNotFound(f"collection {bound.name!r} has no item {item_id!r}")
