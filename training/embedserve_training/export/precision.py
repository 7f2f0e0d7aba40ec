"""The graph of an encoder in lower precision: float16 for GPUs, 8-bit integers for CPUs.

Only the network itself is converted. The operations before its first layer with weights (scaling pixels) and after its
last (pooling, whitening, unit norm) cost almost nothing and keep float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve.encoder import encoder_file

if TYPE_CHECKING:
    from numpy.typing import NDArray


_WEIGHTED = {"Conv", "Gemm", "MatMul"}
_BETWEEN = {"Add", "Relu", "Clip", "MaxPool"}
"""Converted as well, so that integers go from one convolution to the next without conversion to float32."""
_BATCH = 16


def to_fp16(model: bytes) -> bytes:
    """The same graph with weights and arithmetic of its network in float16; input and output do not change.

    Casts are only where the network starts and ends. (The converter of onnxruntime puts them around every node that
    keeps float32, and stores all weights in float16.)
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    whole = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
    graph = whole.graph
    network = {node.name for node in _network(whole)}
    floats = {entry.name for entry in graph.initializer if entry.data_type == TensorProto.FLOAT}
    weights = {entry.name: entry for entry in graph.initializer if entry.name in floats}
    floats |= {entry.name for entry in graph.value_info if entry.type.tensor_type.elem_type == TensorProto.FLOAT}
    made_inside = {name for node in graph.node if node.name in network for name in node.output}
    names: dict[tuple[str, bool], str] = {}
    nodes = []

    def as_seen(name: str, inside: bool) -> str:
        """The name of a tensor as float16 (inside the network) or float32; the conversion is added on first use."""
        if name not in floats or inside == (name in made_inside):
            return name
        if (name, inside) not in names:
            names[name, inside] = new = f"{name}_{'fp16' if inside else 'fp32'}"
            if name in weights:
                half = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(half, new))
            else:
                kind = TensorProto.FLOAT16 if inside else TensorProto.FLOAT
                nodes.append(helper.make_node("Cast", [name], [new], name=f"{new}_cast", to=kind))
        return names[name, inside]

    for node in graph.node:
        node.input[:] = [as_seen(name, node.name in network) for name in node.input]
        for attribute in node.attribute:
            if node.name in network and node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [entry for entry in graph.initializer if entry.name in used]
    for field, entries in (("node", nodes), ("initializer", kept), ("value_info", [])):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)
    return _serialised(whole)


def to_int8(model: bytes, images_NSSC: NDArray[np.uint8]) -> bytes:
    """The same graph with its network in 8-bit integers, with scales from the activations of these images.

    Static QDQ quantisation, weights per channel with 7 of the 8 bits: with all 8, sums overflow 16 bits on processors
    without VNNI, and the vectors would depend on the machine. The sample encoder (small-cnn, Fashion-MNIST) keeps
    96.2 % of the ten nearest with 7 bits and 96.8 % with 8, at the same speed; 95.2 % with only its convolutions and
    sums, as values are then rounded once more before each ReLU. The first convolution in float32 would gain 0.3 points
    and cost a quarter of the speed (ResNet-18, 224 px: 3.4 times that of fp32 with it quantised, 2.5 without).

    Args:
        model: an exported encoder in fp32.
        images_NSSC: uint8, a few hundred images like those that will be embedded.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class CalibrationReader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            starts = range(0, len(images_NSSC), _BATCH)
            self._batches = iter([images_NSSC[start : start + _BATCH] for start in starts])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {encoder_file.INPUT: batch}

    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
    # The exporter has fused the layers already; without this mark the quantiser warns about it through the root logger.
    add_pre_process_metadata(graph)
    network = _network(graph)
    # Transformers and ConvNeXt carry sums from layer to layer, and lose too much if these are rounded.
    kinds = _WEIGHTED if any(node.op_type == "LayerNormalization" for node in network) else _WEIGHTED | _BETWEEN
    weights = {entry.name for entry in graph.graph.initializer}
    chosen = [
        node.name
        for node in network
        if node.op_type in kinds and (node.op_type not in _WEIGHTED or weights.intersection(node.input))
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        quantize_static(
            graph,
            out,
            CalibrationReader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(kinds),
            nodes_to_quantize=chosen,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return _serialised(onnx.load(out))


def _network(model: Any) -> list[Any]:
    """The nodes from the first to the last with weights of the backbone, and all between them."""
    nodes = list(model.graph.node)
    weights = {entry.name for entry in model.graph.initializer if not entry.name.startswith("whitening.")}
    for number, node in enumerate(nodes):
        node.name = node.name or f"node_{number}"
    with_weights = [node for node in nodes if node.op_type in _WEIGHTED and weights.intersection(node.input)]
    after, before = _reached(nodes, with_weights, forward=True), _reached(nodes, with_weights, forward=False)
    inside = after & before
    made = {name for node in nodes if node.name in inside for name in node.output}
    for node in nodes:  # those that follow the last convolution, as in a residual block
        if node.op_type in _BETWEEN and made.intersection(node.input):
            inside.add(node.name)
            made.update(node.output)
    return [node for node in nodes if node.name in inside]


def _reached(nodes: list[Any], start: list[Any], *, forward: bool) -> set[str]:
    """Names of these nodes and of all after them, or before them, in the graph. ``nodes`` are in topological order."""
    names = {node.name for node in start}
    tensors: set[str] = set()
    for node in nodes if forward else reversed(nodes):
        takes, gives = (node.input, node.output) if forward else (node.output, node.input)
        if node.name in names or tensors.intersection(takes):
            names.add(node.name)
            tensors.update(name for name in gives if name)
    return names


def _serialised(model: Any) -> bytes:
    del model.metadata_props[:]  # notes of the tools
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised
