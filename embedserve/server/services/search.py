"""SearchService: messages in, engine called, messages out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc

from embedserve import wire
from embedserve.engine.inputs import ImageQuery, ItemQuery, Query, VectorQuery
from embedserve.engine.timings import Timings
from embedserve.errors import EmbedserveError, InvalidInput
from embedserve.server.calls.responses import build, collection_encoder_ref, deadline_of, stored_bytes, timings_to_proto
from embedserve.server.lifecycle.state import ServerState
from embedserve.types import SearchOptions
from embedserve.v1 import search_service_pb2 as pb
from embedserve.v1 import search_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_HIT_BYTES = 16
"""A hit with a short id in a response, without its metadata and vector."""


class SearchService(pb_grpc.SearchServiceServicer):
    """Search."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        """Answer the queries of one call."""
        begun, engine, timings = time.monotonic(), self._state.engine, Timings()
        # Checked first: refusing costs less than converting.
        engine.limits.check("max_queries", len(request.queries), "queries in one call")
        wire.check_encoding(request.vector_encoding)
        options = SearchOptions(
            k=request.k or 10,
            min_score=wire.fraction_from_proto(request.min_score) if request.HasField("min_score") else None,
            filter=wire.filter_from_proto(request.filter, engine.limits) if request.HasField("filter") else None,
            group_by=request.group_by,
            exact=request.exact,
            ef=request.ef,
            nprobe=request.nprobe,
            target_recall=wire.fraction_from_proto(request.target_recall)
            if request.HasField("target_recall")
            else None,
            include_metadata=request.include_metadata,
            include_vectors=request.include_vectors,
        )
        identity, results = await engine.searcher.search(
            request.collection,
            [_query(query) for query in request.queries],
            options,
            encoder_fingerprint=request.encoder_fingerprint,
            deadline=deadline_of(context),
            timings=timings,
        )
        found = [result for result in results if not isinstance(result, EmbedserveError)]
        size_bytes = _HIT_BYTES * sum(map(len, found))
        if options.include_metadata or options.include_vectors:
            size_bytes += sum(stored_bytes(hit.metadata, hit.vector) for hits in found for hit in hits)

        def response() -> pb.SearchResponse:
            made = pb.SearchResponse(encoder=collection_encoder_ref(identity))
            for result in results:
                if isinstance(result, EmbedserveError):
                    made.results.add(error=wire.error_to_status(result))
                else:
                    wire.hits_into(made.results.add().hits, result, request.vector_encoding)
            made.timings.CopyFrom(timings_to_proto(timings, begun))
            return made

        return await build(size_bytes, engine.limits, response)


def _query(message: pb.SearchQuery) -> Query | EmbedserveError:
    match message.WhichOneof("query"):
        case "image":
            return ImageQuery(message.image)
        case "vector":
            try:
                return VectorQuery(wire.vector_from_proto(message.vector))
            except EmbedserveError as error:
                return error
        case "item_id":
            return ItemQuery(message.item_id)
        case None:
            return InvalidInput("the query has neither an image, a vector nor an item id")
