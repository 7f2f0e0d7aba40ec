"""Finds what an ONNX model would load from other files: weights that its fingerprint does not cover.

A tensor may keep its numbers in a second file (``data_location`` is EXTERNAL), wherever in the model it is; a node
EPContext is a compiled network, usually in a file of its own. The tree of messages is walked by field numbers, those of
onnx.proto3, without copying.
"""

from __future__ import annotations

from collections.abc import Mapping

from embedserve.encoder.envelope import Envelope, fields

_NODE, _ATTRIBUTE, _GRAPH, _FUNCTION, _TRAINING, _SPARSE, _TENSOR = (
    *("node", "attribute", "graph", "function", "training", "sparse tensor", "tensor"),
)
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
}
"""Kind of message → field number → kind of the message in that field."""
_NODE_NAME, _NODE_OPERATOR = 3, 4
_TENSOR_NAME, _TENSOR_OUTSIDE, _TENSOR_LOCATION = 8, 13, 14
_COMPILED = b"EPContext"


def first_outside(envelope: Envelope) -> str:
    """What the model keeps in another file, as in "tensor 'layer1.weight'"; empty if it is complete.

    Raises:
        ValueError: a part is not a protobuf message.
    """
    waiting = [(_GRAPH, envelope.graph), *((_FUNCTION, part) for part in envelope.functions)]
    waiting += [(_TRAINING, part) for part in envelope.training]
    while waiting:
        kind, message = waiting.pop()
        if kind == _TENSOR:
            if found := _outside(message):
                return found
            continue
        children = _CHILDREN[kind]
        name, operator = b"", b""
        for number, payload, _ in fields(message):
            if number in children:
                waiting.append((children[number], payload))
            elif kind == _NODE and number == _NODE_NAME:
                name = bytes(payload)
            elif kind == _NODE and number == _NODE_OPERATOR:
                operator = bytes(payload)
        if operator == _COMPILED:
            return f"the compiled network of node {_text(name)}"
    return ""


def _outside(tensor: memoryview) -> str:
    name, outside = b"", False
    for number, payload, _ in fields(tensor):
        if number == _TENSOR_NAME:
            name = bytes(payload)
        elif number == _TENSOR_OUTSIDE or (number == _TENSOR_LOCATION and bytes(payload) != b"\x00"):
            outside = True
    return f"tensor {_text(name)}" if outside else ""


def _text(name: bytes) -> str:
    return repr(name.decode(errors="replace")[:80])
