"""What every service does with a call: its deadline in, encoder and timings out."""

from __future__ import annotations

import time
from typing import Any

import grpc

from embedserve import wire
from embedserve.embedder import Timings
from embedserve.encoder import ImageEncoder
from embedserve.types import CollectionInfo
from embedserve.v1 import common_pb2


def deadline_of(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """When the caller stops waiting, on ``time.monotonic``'s clock; None if he never does."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else time.monotonic() + remaining_s


def encoder_ref_of(encoder: ImageEncoder) -> common_pb2.EncoderRef:
    """The encoder that the server runs."""
    return wire.encoder_ref(encoder.metadata.name, encoder.fingerprint, encoder.metadata.dimension)


def collection_encoder_ref(info: CollectionInfo) -> common_pb2.EncoderRef:
    """The encoder that the collection is bound to."""
    return wire.encoder_ref(info.encoder_name, info.fingerprint, info.dimension)


def timings_to_proto(timings: Timings, begun: float) -> common_pb2.Timings:
    """The parts of a call's time, and the whole since ``begun`` on ``time.monotonic``'s clock."""
    return common_pb2.Timings(
        decode_ms=timings.decode_ms,
        queue_ms=timings.queue_ms,
        inference_ms=timings.inference_ms,
        store_ms=timings.store_ms,
        total_ms=(time.monotonic() - begun) * 1000,
    )
