"""The top level of an ONNX model: its graph, its operator sets, its functions and its metadata properties.

A ModelProto is a sequence of protobuf fields, four of which matter here. They are located without copying the weights
and without holding the GIL for long (protobuf holds it while it copies, 50 ms for a ResNet-18), so that a server can
load the next encoder while it serves. The parts are exactly the bytes of the file, whatever version of ONNX wrote it,
and serving needs no ``onnx`` package. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_GRAPH, _OPSET_IMPORT, _METADATA_PROPS, _TRAINING_INFO, _FUNCTIONS = 7, 8, 14, 20, 25
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


@dataclass(frozen=True)
class Envelope:
    """The parts of a model, as views into its bytes."""

    graph: memoryview
    opset_import: list[memoryview]
    functions: list[memoryview]
    training: list[memoryview]
    """``training_info``, which no inference uses."""
    properties: list[tuple[str, str]]
    """``metadata_props``."""
    rest: list[memoryview]
    """All fields except the properties, with their tags, in the order of the file."""

    def with_properties(self, properties: list[tuple[str, str]]) -> bytes:
        """The same model with these properties."""
        return b"".join([*self.rest, *map(_as_field, properties)])


def parse(model: bytes) -> Envelope:
    """The parts of an ONNX model.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    graphs: list[memoryview] = []
    opsets: list[memoryview] = []
    functions: list[memoryview] = []
    training: list[memoryview] = []
    kept = {_GRAPH: graphs, _OPSET_IMPORT: opsets, _FUNCTIONS: functions, _TRAINING_INFO: training}
    properties, rest = [], []
    for number, payload, whole in fields(memoryview(model)):
        if number == _METADATA_PROPS:
            entry = {key: bytes(value).decode() for key, value, _ in fields(payload)}
            properties.append((entry.get(_ENTRY_KEY, ""), entry.get(_ENTRY_VALUE, "")))
            continue
        rest.append(whole)
        if number in kept:
            kept[number].append(payload)
    # Protobuf would merge several graphs into one, which no part of the file holds.
    if len(graphs) != 1 or not graphs[0] or not opsets:
        raise ValueError("not an ONNX model")
    return Envelope(graphs[0], opsets, functions, training, properties, rest)


def fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Number, payload and complete bytes of each field of a protobuf message; the payload of a varint is its bytes.

    Raises:
        ValueError: it is not a protobuf message.
    """
    position = 0
    while position < len(message):
        tag, begin = _varint(message, position)
        wire_type, end = tag & 7, begin
        if wire_type == _LENGTH:
            size, begin = _varint(message, begin)
            end = begin + size
        elif wire_type == _VARINT:
            end = _varint(message, begin)[1]
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            end = begin + (8 if wire_type == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"wire type {wire_type}")
        # Other parsers keep 32 bits of a longer tag, and would see another field.
        if end > len(message) or tag < 8 or tag >> 32:
            raise ValueError("not a protobuf field")
        yield tag >> 3, message[begin:end], message[position:end]
        position = end


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number in seven bits per byte, least significant first, and the position of its end."""
    value = 0
    for count, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, position + count + 1
    raise ValueError("unterminated varint")


def _as_field(entry: tuple[str, str]) -> bytes:
    """A metadata property as a field of the model."""
    parts = b"".join(
        _prefix(number, text) + text
        for number, text in zip((_ENTRY_KEY, _ENTRY_VALUE), map(str.encode, entry), strict=True)
    )
    return _prefix(_METADATA_PROPS, parts) + parts


def _prefix(number: int, payload: bytes) -> bytes:
    return _as_varint(number << 3 | _LENGTH) + _as_varint(len(payload))


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
