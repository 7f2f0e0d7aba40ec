"""Vectors and fractions ↔ messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embedserve.errors import InvalidInput
from embedserve.v1 import common_pb2 as common_pb

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOATS = common_pb.VECTOR_ENCODING_FLOATS
PACKED_F32 = common_pb.VECTOR_ENCODING_PACKED_F32
PACKED_F16 = common_pb.VECTOR_ENCODING_PACKED_F16


def check_encoding(encoding: int) -> None:
    """Refuse an unknown encoding of vectors.

    Raises:
        InvalidInput: with the number.
    """
    if encoding not in (common_pb.VECTOR_ENCODING_UNSPECIFIED, FLOATS, PACKED_F32, PACKED_F16):
        raise InvalidInput(f"vector_encoding {encoding} is not known")


def vector_to_proto(vector: NDArray[np.float32], encoding: int = FLOATS) -> common_pb.Vector:
    """A vector, float32 [D], in the requested encoding.

    Raises:
        InvalidInput: the encoding is not known.
    """
    check_encoding(encoding)
    if encoding == PACKED_F32:
        return common_pb.Vector(packed_f32=vector.astype("<f4").tobytes())
    if encoding == PACKED_F16:
        return common_pb.Vector(packed_f16=vector.astype("<f2").tobytes())
    # From the bytes of the message: protobuf would take the numbers one by one (6.9 µs against 0.6 µs for 256).
    return common_pb.Vector.FromString(_floats_header(vector.size) + vector.astype("<f4").tobytes())


def vector_from_proto(message: common_pb.Vector) -> NDArray[np.float32]:
    """The vector, float32 [D], in a message of any encoding; its length and numbers are not checked.

    Raises:
        InvalidInput: not exactly one field is set, or the length of a packed field is not a whole number of values.
    """
    f32, f16, floats = message.packed_f32, message.packed_f16, len(message.values)
    if bool(f32) + bool(f16) + bool(floats) != 1:
        given = [name for name in ("values", "packed_f32", "packed_f16") if getattr(message, name)]
        raise InvalidInput(
            "the vector has no numbers" if not given else f"the vector has both {given[0]} and {given[1]}"
        )
    if floats:
        return _floats_from_proto(message)
    packed, dtype, item_bytes = (f32, "<f4", 4) if f32 else (f16, "<f2", 2)
    if len(packed) % item_bytes:
        raise InvalidInput(f"the packed vector has {len(packed)} bytes, not a multiple of {item_bytes}")
    return np.frombuffer(packed, dtype=dtype).astype(np.float32)


def _floats_from_proto(message: common_pb.Vector) -> NDArray[np.float32]:
    # From the bytes of the message: 0.9 µs for 256 numbers, against 12.1 µs one by one.
    encoded, header = message.SerializeToString(), _floats_header(len(message.values))
    if encoded.startswith(header):
        return np.frombuffer(encoded, "<f4", len(message.values), len(header)).astype(np.float32)
    return np.array(message.values, dtype=np.float32)


def _floats_header(count: int) -> bytes:
    """The bytes of a ``Vector`` before its packed values: field tag and size."""
    if not count:
        return b""
    size, header = 4 * count, bytearray(b"\x0a")
    while size > 0x7F:
        header.append(size & 0x7F | 0x80)
        size >>= 7
    header.append(size)
    return bytes(header)


def fraction_from_proto(value: float) -> float:
    """A cosine or a recall with six decimals: float32 on the wire turns 0.3 into 0.30000001."""
    return round(value, 6)
