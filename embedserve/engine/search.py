"""Search collections by image, vector and item."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from embedserve.answer_size import AnswerSize
from embedserve.engine import compatibility, unit_vectors
from embedserve.engine.answers import Answer
from embedserve.engine.batcher import Encoded
from embedserve.engine.core import Core
from embedserve.engine.embedder import Embedded
from embedserve.engine.inputs import (
    ImageQuery,
    ItemQuery,
    Query,
    VectorQuery,
    check_target_recall,
    id_error,
    positioned,
)
from embedserve.engine.items import Items, item_not_found
from embedserve.engine.timings import Timings
from embedserve.errors import EmbedserveError, InvalidInput, LimitExceeded
from embedserve.types import (
    CollectionIdentity,
    Hit,
    Include,
    Item,
    Keep,
    SearchOptions,
    check_filter,
    check_metadata_key,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_EXAMINED = 65_536
"""Largest ef and nprobe: with more of either, exact search is faster."""
_FEWER_HITS = "ask for fewer hits (k) or queries at once, or leave metadata and vectors out"


class Searcher:
    """Finds the nearest items of an engine's collections."""

    def __init__(self, core: Core, items: Items) -> None:
        self._core = core
        self._items = items
        self._limits = core.limits

    async def search(
        self,
        collection: str,
        queries: Sequence[Query | EmbedserveError],
        options: SearchOptions,
        *,
        encoder_fingerprint: str = "",
        deadline: float | None = None,
        timings: Timings | None = None,
        answer: Answer | None = None,
    ) -> tuple[CollectionIdentity, list[list[Hit] | EmbedserveError]]:
        """The nearest items for each query, closest first, or why it could not be answered.

        A query that is an error already, because it could not be read, keeps its place. ``encoder_fingerprint`` is that
        of the encoder that made the vectors among the queries. ``answer`` holds the room of the hits for as long as the
        caller holds them; without one, only this call does.

        Raises:
            CollectionNotFound: no collection or alias has the name.
            EncoderMismatch: the query vectors cannot be compared with the collection's.
            InvalidInput, LimitExceeded, Overloaded: concern the whole call.
        """
        import numpy as np

        if answer is None:
            with self._core.answers.begin(_FEWER_HITS) as answer:
                return await self.search(
                    collection, queries, options, encoder_fingerprint=encoder_fingerprint, deadline=deadline,
                    timings=timings, answer=answer,
                )  # fmt: skip
        timings = timings or Timings()
        if not queries:
            raise InvalidInput("the call has no queries")
        self._limits.check("max_queries", len(queries), "queries in one call")
        self._check_options(options)
        identity = self._core.identity(collection)
        images = [query.image for query in queries if isinstance(query, ImageQuery)]
        if options.include_vectors:
            await self._check_vector_bytes(collection, identity.dimension * len(queries), options.k)
        embedder = self._core.embedder
        compatibility.check(
            identity,
            embedder.encoder,
            encoder_fingerprint,
            has_images=bool(images),
            has_vectors=any(isinstance(query, VectorQuery) for query in queries),
        )
        embedded = iter(await embedder.embed(images, keep=Keep.NONE, deadline=deadline, timings=timings))
        begun = time.monotonic()
        queries = [
            (id_error(query.id, self._limits) or query) if isinstance(query, ItemQuery) else query for query in queries
        ]
        ids = [query.id for query in queries if isinstance(query, ItemQuery)]
        stored = iter(await self._stored(identity, ids, deadline) if ids else [])
        given = [query.vector for query in queries if isinstance(query, VectorQuery)]
        units = iter(unit_vectors.units(given, identity.dimension))
        results: list[list[Hit] | EmbedserveError] = []
        answerable: list[tuple[int, NDArray[np.float32], str | None]] = []
        for position, query in enumerate(queries):
            vector = _query_vector(query, identity, embedded, units, stored)
            if isinstance(vector, EmbedserveError):
                results.append(vector)
            else:
                results.append([])
                answerable.append((position, vector, query.id if isinstance(query, ItemQuery) else None))
        if answerable:
            matrix = np.stack([vector for _, vector, _ in answerable])
            excluded = [item_id for _, _, item_id in answerable]
            hit_bytes = (
                self._limits.max_id_bytes
                + (self._limits.max_metadata_bytes if options.include_metadata else 0)
                + (4 * identity.dimension if options.include_vectors else 0)
            )
            await answer.reserve(options.k * len(answerable), hit_bytes, deadline=deadline)
            searches = self._core.searches(options)
            found = await searches.submit(identity, matrix, options, excluded, size=answer, deadline=deadline)
            answer.settle(sum(map(len, found)))
            for (position, _, _), hits in zip(answerable, found, strict=True):
                results[position] = hits
        timings.store_ms = self._core.on_store("search", begun)
        return identity, positioned("query", results)

    async def _stored(
        self, identity: CollectionIdentity, ids: Sequence[str], deadline: float | None
    ) -> list[Item | None]:
        """The items that are queries, with their vectors."""
        size = AnswerSize(self._core.answers.most_bytes, _FEWER_HITS)
        return await self._items.read(identity, ids, Include(vectors=True), size, deadline=deadline)

    async def _check_vector_bytes(self, collection: str, numbers: int, k: int) -> None:
        """Refuse a search whose hits' vectors do not fit one message; ``numbers`` is Q × D."""
        most = self._limits.max_message_bytes
        if 4 * numbers * k <= most:
            return
        items = (await self._core.in_store(lambda store: store.get_collection(collection))).items
        vector_bytes = 4 * numbers * min(k, max(items, 1))
        if vector_bytes > most:
            raise LimitExceeded(
                f"the vectors of all hits have {vector_bytes} bytes; max_message_bytes is {most}",
                hint="ask for fewer hits or queries at once, or leave the vectors out",
            )

    def _check_options(self, options: SearchOptions) -> None:
        if options.k < 1:
            raise InvalidInput(f"k is {options.k}; it must be at least 1")
        self._limits.check("max_k", options.k, "hits asked for (k)")
        if options.min_score is not None and not -1 <= options.min_score <= 1:
            raise InvalidInput(f"min_score is {options.min_score}; a cosine is in [-1, 1]")
        for name, value in (("ef", options.ef), ("nprobe", options.nprobe)):
            if not 0 <= value <= _MOST_EXAMINED:
                raise InvalidInput(f"{name} is {value}; it lies between 1 and {_MOST_EXAMINED}")
        if options.target_recall is not None:
            check_target_recall(options.target_recall)
        parameters = {
            "ef": bool(options.ef),
            "nprobe": bool(options.nprobe),
            "target_recall": options.target_recall is not None,
            "exact": options.exact,
        }
        given = [name for name, is_given in parameters.items() if is_given]
        if len(given) > 1:
            raise InvalidInput(
                f"{' and '.join(given)} are given; each of them sets how much is searched",
                hint="give at most one of ef, nprobe, target_recall and exact",
            )
        if options.group_by:
            check_metadata_key(options.group_by)
        if options.filter is not None:
            check_filter(options.filter, self._limits)


def _query_vector(
    query: Query | EmbedserveError,
    identity: CollectionIdentity,
    embedded: Iterator[Embedded | EmbedserveError],
    units: Iterator[NDArray[np.float32] | EmbedserveError],
    stored: Iterator[Item | None],
) -> NDArray[np.float32] | EmbedserveError:
    """The unit vector of the next query, float32 [D], taken from the iterator of its kind; or why there is none."""
    match query:
        case ImageQuery():
            result = next(embedded)
            return result.vector if isinstance(result, Encoded) else result
        case VectorQuery():
            return next(units)
        case ItemQuery(item_id):
            item = next(stored)
            return item_not_found(item_id, identity) if item is None or item.vector is None else item.vector
        case _:
            return query
