"""SearchService: messages in, engine called, messages out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc

from embedserve import wire
from embedserve.answer_size import AnswerSize
from embedserve.engine.inputs import ImageQuery, ItemQuery, Query, VectorQuery
from embedserve.engine.timings import Timings
from embedserve.errors import EmbedserveError, InvalidInput
from embedserve.server.calls.responses import begin_answer, build, collection_encoder_ref, deadline_of, timings_to_proto
from embedserve.server.lifecycle.state import ServerState
from embedserve.types import SearchOptions
from embedserve.v1 import search_service_pb2 as pb
from embedserve.v1 import search_service_pb2_grpc as pb_grpc
from embedserve.wanted import Wanted

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_FEWER = "ask for fewer hits (k) or queries at once, or leave metadata and vectors out"


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
        answer = begin_answer(engine, _FEWER)
        identity, results = await engine.searcher.search(
            request.collection,
            [_query(query) for query in request.queries],
            options,
            encoder_fingerprint=request.encoder_fingerprint,
            deadline=deadline_of(context),
            timings=timings,
            answer=answer,
        )

        def rest() -> pb.SearchResponse:
            return pb.SearchResponse(encoder=collection_encoder_ref(identity), timings=timings_to_proto(timings, begun))

        def response() -> pb.SearchResponse:
            made = rest()
            for result in results:
                if isinstance(result, EmbedserveError):
                    made.results.add(error=wire.error_to_status(result))
                else:
                    wire.hits_into(made.results.add().hits, result, request.vector_encoding)
            return made

        def encoded(size: AnswerSize, wanted: Wanted) -> bytes:
            return wire.encoded_search(results, request.vector_encoding, rest(), size, wanted)

        return await build(answer, response, encoded, rest)


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
