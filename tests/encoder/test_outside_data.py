"""An encoder whose weights are in another file is refused by the tensor's name, wherever in the model the tensor is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, TrainingInfoProto, helper, numpy_helper

from embedserve.encoder import encoder_file, envelope
from embedserve.encoder.outside_data import first_outside
from embedserve.encoder.session import Encoder
from embedserve.errors import EncoderFileError
from tests.encoders import write_encoder_file


def outside(name: str = "far") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def inside(name: str = "near") -> TensorProto:
    return numpy_helper.from_array(np.arange(300, dtype=np.float32), name)


def node(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], **attributes)


def graph_with(tensor: TensorProto) -> onnx.GraphProto:
    return helper.make_graph([], "inner", [], [], [tensor])


def model() -> ModelProto:
    graph = helper.make_graph([node(value=inside())], "g", [], [], [inside("w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def in_initializer(whole: ModelProto) -> None:
    whole.graph.initializer.append(outside())


def in_sparse_values(whole: ModelProto) -> None:
    whole.graph.sparse_initializer.add().values.CopyFrom(outside())


def in_sparse_indices(whole: ModelProto) -> None:
    sparse = whole.graph.sparse_initializer.add()
    sparse.values.CopyFrom(inside())
    sparse.indices.CopyFrom(outside())


def in_constant(whole: ModelProto) -> None:
    whole.graph.node.append(node(value=outside()))


def in_list_of_tensors(whole: ModelProto) -> None:
    attribute = AttributeProto(name="a", type=AttributeProto.TENSORS, tensors=[inside(), outside()])
    whole.graph.node.add(op_type="Other").attribute.append(attribute)


def in_sparse_attribute(whole: ModelProto) -> None:
    attribute = AttributeProto(name="a", type=AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(outside())
    whole.graph.node.add(op_type="Constant").attribute.append(attribute)


def in_list_of_sparse_tensors(whole: ModelProto) -> None:
    attribute = AttributeProto(name="a", type=AttributeProto.SPARSE_TENSORS)
    attribute.sparse_tensors.add().indices.CopyFrom(outside())
    whole.graph.node.add(op_type="Other").attribute.append(attribute)


def in_branch(whole: ModelProto) -> None:
    deeper = graph_with(inside())
    deeper.node.append(helper.make_node("If", ["x"], ["y"], then_branch=graph_with(outside())))
    whole.graph.node.append(helper.make_node("If", ["x"], ["y"], else_branch=deeper))


def in_list_of_graphs(whole: ModelProto) -> None:
    attribute = AttributeProto(
        name="a", type=AttributeProto.GRAPHS, graphs=[graph_with(inside()), graph_with(outside())]
    )
    whole.graph.node.add(op_type="Other").attribute.append(attribute)


def in_function(whole: ModelProto) -> None:
    body = [node(value=outside())]
    whole.functions.append(helper.make_function("other", "F", [], ["c"], body, [helper.make_opsetid("", 18)]))


def in_default_of_function(whole: ModelProto) -> None:
    function = helper.make_function("other", "F", [], ["c"], [node(value=inside())], [helper.make_opsetid("", 18)])
    function.attribute_proto.append(helper.make_attribute("a", outside()))
    whole.functions.append(function)


def in_training_info(whole: ModelProto) -> None:
    whole.training_info.append(TrainingInfoProto(algorithm=graph_with(outside())))


def by_location_alone(whole: ModelProto) -> None:
    whole.graph.initializer.append(
        TensorProto(name="far", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    )


def by_entries_alone(whole: ModelProto) -> None:
    tensor = outside()
    tensor.ClearField("data_location")
    whole.graph.initializer.append(tensor)


PLACES: list[Callable[[ModelProto], None]] = [
    *(in_initializer, in_sparse_values, in_sparse_indices, in_constant, in_list_of_tensors, in_sparse_attribute),
    *(in_list_of_sparse_tensors, in_branch, in_list_of_graphs, in_function, in_default_of_function, in_training_info),
    *(by_location_alone, by_entries_alone),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_tensor_in_another_file_is_found_by_name(place: Callable[[ModelProto], None]) -> None:
    whole = model()
    assert first_outside(envelope.parse(whole.SerializeToString())) == ""
    place(whole)
    assert first_outside(envelope.parse(whole.SerializeToString())) == "tensor 'far'"


def test_a_stated_default_location_is_inside() -> None:
    whole = model()
    whole.graph.initializer[0].data_location = TensorProto.DEFAULT
    assert first_outside(envelope.parse(whole.SerializeToString())) == ""


def test_a_compiled_network_is_found_by_its_node() -> None:
    whole = model()
    whole.graph.node.add(op_type="EPContext", domain="com.microsoft", name="engine")
    assert first_outside(envelope.parse(whole.SerializeToString())) == "the compiled network of node 'engine'"


def test_a_tag_that_other_parsers_would_shorten_is_no_model() -> None:
    with pytest.raises(ValueError, match="not a protobuf field"):
        envelope.parse(model().SerializeToString() + b"\xba\x80\x80\x80\x10\x01a")


def external(path: Path, folder: Path) -> Path:
    """The same encoder with its weights beside it."""
    whole = onnx.load(path)
    target = folder / "external.onnx"
    onnx.save_model(whole, target, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return target


def test_an_encoder_with_weights_beside_it_is_refused_wherever_it_is_opened(tmp_path: Path) -> None:
    path = external(write_encoder_file(tmp_path / "encoder.onnx"), tmp_path)
    for opened in (encoder_file.read, Encoder.open):
        with pytest.raises(EncoderFileError) as caught:
            opened(path)
        assert caught.value.message in {
            f"{path} keeps tensor {name!r} in another file, which its fingerprint would not cover"
            for name in ("weights", "middle")
        }
        assert "save_as_external_data=False" in caught.value.hint
    # The hint works.
    whole = tmp_path / "whole.onnx"
    onnx.save(onnx.load(path), whole, save_as_external_data=False)
    assert Encoder.open(whole, device="cpu").reference_cosine() > 0.9999
    metadata = encoder_file.read(whole).metadata
    with pytest.raises(EncoderFileError, match="the model keeps tensor"):
        encoder_file.pack(path.read_bytes(), metadata)
