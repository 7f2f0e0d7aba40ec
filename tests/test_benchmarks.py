"""The benchmarks start, and the short ones measure what they say they measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from embedserve import encoder_file
from embedserve.encoder_file import EncoderMetadata
from embedserve.preprocess import PreprocessSpec

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((REPOSITORY / "benchmarks").glob("*.py"))
LEGS = ("bare loop", "unary", "batch", "stream")


def run(script: str, *arguments: str, **environment: str) -> str:
    """What a benchmark prints."""
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> Path:
    """Mean colour at unit norm."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["colour"], keepdims=0),
        helper.make_node("LpNormalization", ["colour"], ["embeddings"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = EncoderMetadata(name="tiny", dimension=3, preprocess=PreprocessSpec(size_px=8))
    path = tmp_path / "tiny.onnx"
    encoder_file.write(encoder_file.pack(model.SerializeToString(), metadata), path)
    return path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_benchmark_explains_itself(script: Path) -> None:
    assert "usage:" in run(script.name, "--help")


def test_serve_overhead_prints_both_numbers_and_writes_them(tiny_encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--encoder", str(tiny_encoder), "--seconds", "0.1", "--rounds", "2", "--json", str(out)]
    said = run("serve_overhead.py", *options)
    document = json.loads(out.read_text(encoding="utf-8"))

    assert {"date", "command", "hardware", "versions", "rounds", "caveat", "encoders"} <= document.keys()
    assert document["hardware"].keys() >= {"cpu", "cores"}
    [measured] = document["encoders"]
    assert measured["encoder"] == "tiny"
    assert tuple(measured["legs"]) == LEGS
    assert measured["legs"]["bare loop"]["ratio"] == 1
    for name, leg in measured["legs"].items():
        assert leg["images_per_s"] > 0, name
        assert len(leg["by_round"]["ratio"]) == 2, name
        assert f"{leg['images_per_s']:.1f}" in said, name
    for name in ("unary", "batch"):
        assert 0 < measured["legs"][name]["p50_ms"] <= measured["legs"][name]["p99_ms"]
    assert document["caveat"] in said


def test_serve_overhead_names_an_encoder_that_is_not_there() -> None:
    command = [sys.executable, "benchmarks/serve_overhead.py", "--encoder", "missing.onnx"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "missing.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_gpu_benchmark_says_that_it_is_skipped_where_there_is_no_gpu() -> None:
    assert run("gpu.py", CUDA_VISIBLE_DEVICES="").startswith("skipped: ")
