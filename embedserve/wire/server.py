"""The encoder and the limits of a server ↔ messages."""

from __future__ import annotations

from embedserve.types import Limits
from embedserve.v1 import common_pb2 as common_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb


def encoder_ref(name: str, fingerprint: str, dimension: int) -> common_pb.EncoderRef:
    """The reference to an encoder that goes with its vectors."""
    return common_pb.EncoderRef(name=name, fingerprint=fingerprint, dimension=dimension)


def limits_to_proto(limits: Limits) -> embedding_pb.ServerLimits:
    """The limits as a message; its fields have the same names."""
    return embedding_pb.ServerLimits(**{name: getattr(limits, name) for name in Limits.__dataclass_fields__})


def limits_from_proto(message: embedding_pb.ServerLimits) -> Limits:
    """The limits in a message; a limit that an older server does not know keeps its default."""
    known = {name: getattr(message, name, 0) for name in Limits.__dataclass_fields__}
    return Limits(**{name: value for name, value in known.items() if value})
