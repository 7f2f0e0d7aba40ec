"""A real encoder file for tests, made without PyTorch."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest


def write_encoder_file(path: Path, *, seed: int = 1) -> Path:
    """Flatten, project with random weights, normalise. The image side is 32 pixels, the dimension 24."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    from embedserve.encoder import encoder_file, reference
    from embedserve.encoder.encoder_file import EncoderMetadata
    from embedserve.encoder.session import Encoder
    from embedserve.images.preprocess import PreprocessSpec

    size_px, dimension = 32, 24
    weights = np.random.default_rng(seed).standard_normal((size_px * size_px * 3, dimension)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "middle"], ["centred"]),
        helper.make_node("Flatten", ["centred"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embeddings"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", size_px, size_px, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", dimension])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array(127.3, np.float32), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    out = io.BytesIO()
    onnx.save_model(model, out)
    metadata = EncoderMetadata(name="test", dimension=dimension, preprocess=PreprocessSpec(size_px=size_px))
    vectors = Encoder.from_file(encoder_file.pack(out.getvalue(), metadata)).encode(reference.draw(size_px))
    metadata = EncoderMetadata(
        name="test", dimension=dimension, preprocess=PreprocessSpec(size_px=size_px), reference=vectors
    )
    encoder_file.write(encoder_file.pack(out.getvalue(), metadata), path)
    return path
