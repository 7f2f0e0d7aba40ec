"""EmbeddingService: messages in, engine called, messages out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import grpc

import embedserve
from embedserve import wire
from embedserve.encoder.session import ImageEncoder
from embedserve.engine.batcher import Encoded
from embedserve.engine.embedder import Embedded, Results
from embedserve.engine.inputs import positioned
from embedserve.engine.timings import Timings
from embedserve.errors import EmbedserveError, EncoderMismatch, InvalidInput
from embedserve.server.calls.responses import deadline_of, encoder_ref_of, timings_to_proto
from embedserve.server.calls.streams import Cost, ReadAhead, ordered
from embedserve.server.lifecycle.state import ServerState
from embedserve.types import Keep
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1 import embedding_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedserve.encoder.encoder_file import EncoderMetadata

    Context = grpc.aio.ServicerContext[Any, Any]

_STREAM_WINDOW = 128
"""Images of one stream in flight at a time: two batches for a GPU."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the response to a message of a stream needs of it."""

    key: str
    vector_encoding: int
    encoder: ImageEncoder
    has_several: bool
    """Whether it holds a list of images, so that the response holds a list."""


class EmbeddingService(pb_grpc.EmbeddingServiceServicer):
    """Embed, EmbedStream, GetEncoder, GetServerInfo."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """Embed the images of one call."""
        begun, engine, timings = time.monotonic(), self._state.engine, Timings()
        wire.check_encoding(request.vector_encoding)
        _check_encoder(engine.encoder, request.encoder_fingerprint)
        encoder, results = await engine.embed(request.images, deadline=deadline_of(context), timings=timings)
        return pb.EmbedResponse(
            results=[_result(result, request.vector_encoding) for result in results],
            encoder=encoder_ref_of(encoder),
            timings=timings_to_proto(timings, begun),
        )

    async def EmbedStream(
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        """Embed the images of a stream, with responses in order."""
        engine, flow, deadline = self._state.engine, object(), deadline_of(context)
        limits = engine.limits
        fingerprint: str | None = None

        def begin(request: pb.EmbedStreamRequest) -> tuple[_Asked, Results]:
            nonlocal fingerprint
            if fingerprint is None:
                fingerprint = request.encoder_fingerprint
            embedder = engine.embedder  # may have been replaced since the previous message
            _check_encoder(embedder.encoder, fingerprint)
            asked = _Asked(request.key, request.vector_encoding, embedder.encoder, bool(request.images))
            images = request.images or [request.image]
            try:
                limits.check("max_id_bytes", len(request.key.encode()), "bytes in the key")
                limits.check("max_images", len(images), "images in one message")
                wire.check_encoding(request.vector_encoding)
                if request.image and request.images:
                    raise InvalidInput("the message has both image and images", hint="send one of the two")
            except EmbedserveError as error:
                engine.refuse(len(images))
                refused: Results = asyncio.get_running_loop().create_future()
                refused.set_result([error])
                return replace(asked, has_several=False), refused
            return asked, embedder.submit(images, keep=Keep.NONE, deadline=deadline, timings=Timings(), flow=flow)

        async def finish(group: list[tuple[_Asked, list[Embedded | EmbedserveError]]]) -> list[pb.EmbedStreamResponse]:
            return [_response(asked, results) for asked, results in group]

        read_ahead: ReadAhead[pb.EmbedStreamRequest] = ReadAhead(
            window=_STREAM_WINDOW, admission=engine.admission, cost_of=_cost, readers=self._state.readers
        )
        async for responses in ordered(request_iterator, begin, finish, read_ahead):
            for response in responses:
                yield response

    async def GetEncoder(self, request: pb.GetEncoderRequest, context: Context) -> pb.GetEncoderResponse:
        """Describe the encoder."""
        encoder = self._state.engine.encoder
        metadata = encoder.metadata
        return pb.GetEncoderResponse(
            encoder=pb.Encoder(
                name=metadata.name,
                fingerprint=encoder.fingerprint,
                dimension=metadata.dimension,
                size_px=metadata.preprocess.size_px,
                channels=metadata.channels,
                preprocess=_preprocess_to_proto(metadata),
                method=metadata.method,
                backbone=metadata.backbone,
                precision=metadata.precision,
                metadata_json=json.dumps(metadata.to_json(), ensure_ascii=False),
            )
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        """Tell version, encoder, limits and load."""
        engine = self._state.engine
        response = pb.GetServerInfoResponse(
            version=embedserve.__version__,
            provider=engine.encoder.provider,
            encoder=encoder_ref_of(engine.encoder),
            limits=wire.limits_to_proto(engine.limits),
            images_in_flight=engine.admission.images,
            has_collections=engine.has_collections,
        )
        response.started_at.FromNanoseconds(int(self._state.ready_unix_s * 1e9))
        return response


def _response(asked: _Asked, results: list[Embedded | EmbedserveError]) -> pb.EmbedStreamResponse:
    encoded = [
        _result(result.vector if isinstance(result, Encoded) else result, asked.vector_encoding)
        for result in positioned("image", results)
    ]
    return pb.EmbedStreamResponse(
        key=asked.key,
        result=None if asked.has_several else encoded[0],
        results=encoded if asked.has_several else (),
        encoder=encoder_ref_of(asked.encoder),
    )


def _cost(request: pb.EmbedStreamRequest) -> Cost:
    images = request.images or [request.image]
    return Cost(len(images), len(images), sum(map(len, images)))


def _check_encoder(encoder: ImageEncoder, fingerprint: str) -> None:
    if fingerprint and fingerprint != encoder.fingerprint:
        raise EncoderMismatch(
            f"encoder {fingerprint[:12]} was asked for; this server runs"
            f" {encoder.metadata.name} ({encoder.fingerprint[:12]})",
            hint="ask the server that runs it, or leave encoder_fingerprint out",
        )


def _result(result: NDArray[np.float32] | EmbedserveError, encoding: int) -> pb.EmbedResult:
    if isinstance(result, EmbedserveError):
        return pb.EmbedResult(error=wire.error_to_status(result))
    return pb.EmbedResult(vector=wire.vector_to_proto(result, encoding))


def _preprocess_to_proto(metadata: EncoderMetadata) -> pb.Preprocess:
    rule, pixels = metadata.preprocess, metadata.preprocess.pixels
    words = isinstance(pixels.value_range, str)
    lowest, highest = (0.0, 0.0) if isinstance(pixels.value_range, str) else pixels.value_range
    return pb.Preprocess(
        size_px=rule.size_px,
        resize_px=rule.resize_px,
        filter=rule.filter,
        fit=rule.fit,
        pad_colour=rule.pad_colour if rule.fit == "pad" else (),
        colour=pixels.colour,
        value_range=str(pixels.value_range) if words else "given",
        lowest_value=lowest,
        highest_value=highest,
        bands=pixels.bands,
    )
