"""The top level of an ONNX model: the same parts that protobuf finds, and errors for other bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from embedserve.encoder import envelope


def model() -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g" * 300,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("other", 3)])


def test_the_parts_are_the_bytes_that_protobuf_writes() -> None:
    whole = model()
    body = [helper.make_node("Relu", ["x"], ["y"])]
    whole.functions.append(helper.make_function("other", "F", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))
    whole.metadata_props.add(key="ключ", value="значение" * 100)
    found = envelope.parse(whole.SerializeToString())
    assert found.graph == whole.graph.SerializeToString()
    assert found.opset_import == [opset.SerializeToString() for opset in whole.opset_import]
    assert found.functions == [function.SerializeToString() for function in whole.functions]
    assert found.properties == [("ключ", "значение" * 100)]


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_properties_are_read_back_by_protobuf_and_by_us(properties: list[tuple[str, str]]) -> None:
    before = model()
    before.metadata_props.add(key="old", value="gone")
    packed = envelope.parse(before.SerializeToString()).with_properties(properties)
    after = ModelProto.FromString(packed)
    assert [(entry.key, entry.value) for entry in after.metadata_props] == properties
    assert envelope.parse(packed).properties == properties
    del before.metadata_props[:], after.metadata_props[:]
    assert after == before


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x3a\x00",  # a graph without content
        b"\x3a\x01a",  # no operator set
        b"\x3a\x01a\x42\x01b\x3a\x01c",  # two graphs
        b"\x3a\x05a",  # truncated
        b"\x3a" + b"\xff" * 11,  # a length without an end
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7fa",  # a length beyond all memory
        b"\x3b\x01a",  # an obsolete wire type
        b"\x02\x01a",  # a field with the number 0
        b"\x3a\x01a\x42\x01b\x72\x04\x0a\x02\xff\xfe",  # a property that is not text
        b"\x3a\x01a\x42\x01b\x09\x00\x00",  # two of eight bytes
    ],
    ids=repr,
)
def test_bytes_that_are_not_a_model_are_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"not an? |unterminated|wire type|codec"):
        envelope.parse(message)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_model_or_a_value_error(message: bytes) -> None:
    try:
        found = envelope.parse(b"\x3a\x01a\x42\x01b" + message)
    except ValueError:
        return
    assert found.graph == b"a"
    assert found.opset_import[0] == b"b"


def test_fields_of_every_wire_type_are_kept() -> None:
    extra = b"\x08\x96\x01" + b"\x11" + bytes(8) + b"\x1d" + bytes(4)
    packed = envelope.parse(b"\x3a\x01a" + extra + b"\x42\x01b").with_properties([])
    assert packed == b"\x3a\x01a" + extra + b"\x42\x01b"
