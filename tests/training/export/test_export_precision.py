"""Encoder files in fp16 and int8: only the network is converted, and its loss of fidelity is measured and limited."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto

from embedserve.cli import main
from embedserve.encoder import encoder_file
from embedserve.encoder.session import Encoder
from embedserve.errors import DataError, ExportError
from embedserve.images import preprocess
from embedserve_training.export import calibration, fidelity, precision
from embedserve_training.export import export as module
from embedserve_training.export.export import export, to_onnx
from embedserve_training.networks import backbones
from embedserve_training.networks.whitening import Whitening
from embedserve_training.run import run_folder, served
from embedserve_training.run.served import ServedEncoder

REDUCED = ("fp16", "int8")


def quiet(line: str) -> None:
    """Discards the line."""


@pytest.fixture(scope="module")
def files(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The encoder of ``finished_run`` in each precision."""
    folder = tmp_path_factory.mktemp("precisions")
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", *REDUCED)}
    for name, path in paths.items():
        # Forced: after two epochs a vote among neighbours is so close that rounding may turn one of 38.
        export(finished_run, path, precision=name, force=name != "fp32", report=quiet)
    return paths


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


# --- The files -----------------------------------------------------------------------------------------------------


def test_half_precision_nearly_gives_the_vectors_of_pytorch(
    files: dict[str, Path], finished_run: Path, image_folder: Path
) -> None:
    encoder = Encoder.open(files["fp16"], device="cpu")
    paths = sorted(image_folder.rglob("*.png"))
    squares = np.stack([preprocess.load(encoder.metadata.preprocess, path.read_bytes()) for path in paths])
    cosines = (encoder.encode(squares) * served.embed(served.trained(finished_run), squares)).sum(1)
    assert 0.999 < cosines.min() <= cosines.max() < 1 + 1e-5


@pytest.mark.parametrize("name", REDUCED)
def test_a_less_precise_file_states_its_precision_and_fidelity(files: dict[str, Path], name: str) -> None:
    exact, reduced = encoder_file.read(files["fp32"]), encoder_file.read(files[name])
    assert reduced.metadata.precision == name
    assert exact.metadata.fidelity == {}
    assert reduced.metadata.fidelity.keys() == {
        "images", "mean_cosine", "lowest_cosine", "recall_at_10", "as_near_at_10", "same_label",
    }  # fmt: skip
    assert reduced.metadata.fidelity["images"] == 38  # of 48, ten to calibrate with
    assert reduced.fingerprint != exact.fingerprint
    assert len(reduced.model) < 0.7 * len(exact.model)
    assert reduced.metadata.training == exact.metadata.training


@pytest.mark.parametrize("name", REDUCED)
def test_the_reference_vectors_are_those_of_the_less_precise_graph(files: dict[str, Path], name: str) -> None:
    assert Encoder.open(files[name], device="cpu").reference_cosine() > 0.99999


@pytest.mark.parametrize("name", REDUCED)
def test_vectors_have_unit_norm_and_do_not_depend_on_their_batch(files: dict[str, Path], name: str) -> None:
    encoder = Encoder.open(files[name], device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    batched = encoder.encode(images)
    np.testing.assert_allclose(np.linalg.norm(batched, axis=1), 1, atol=1e-5)
    for image, vector in zip(images, batched, strict=True):
        assert float(encoder.encode(image[None])[0] @ vector) > 0.9999


@pytest.mark.parametrize("name", REDUCED)
def test_exporting_twice_gives_the_same_file(
    files: dict[str, Path], finished_run: Path, tmp_path: Path, name: str
) -> None:
    export(finished_run, tmp_path / "again.onnx", precision=name, force=True, report=quiet)
    assert (tmp_path / "again.onnx").read_bytes() == files[name].read_bytes()


@pytest.mark.parametrize("name", REDUCED)
def test_no_path_of_this_machine_is_in_the_file(files: dict[str, Path], finished_run: Path, name: str) -> None:
    content = files[name].read_bytes()
    for path in (finished_run, Path(torch.__file__).parent, Path.home(), Path("/tmp")):
        assert f"{path}/".encode() not in content


# --- The graphs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> bytes:
    torch.manual_seed(0)
    backbone = backbones.build("resnet18", 32).eval()
    return to_onnx(ServedEncoder(backbone, Whitening(torch.zeros(512), torch.eye(512))).eval(), 32)


def test_in_fp16_the_weights_of_the_network_are_half_and_those_of_the_whitening_are_not(resnet: bytes) -> None:
    graph = onnx.load_from_string(precision.to_fp16(resnet)).graph
    kinds = {entry.name: entry.data_type for entry in graph.initializer}
    network = [name for name in kinds if name.startswith("backbone.") and name.endswith("weight_fp16")]
    assert len(network) == 20
    assert not [name for name in kinds if name.endswith("conv1.weight")]
    assert kinds["whitening.matrix_DD"] == TensorProto.FLOAT


def test_in_fp16_casts_are_only_where_the_network_starts_and_ends(resnet: bytes) -> None:
    casts = [node for node in onnx.load_from_string(precision.to_fp16(resnet)).graph.node if node.op_type == "Cast"]
    before = [node for node in onnx.load_from_string(resnet).graph.node if node.op_type == "Cast"]
    assert len(casts) - len(before) == 2


def test_in_int8_every_convolution_is_quantised_and_the_whitening_is_not(resnet: bytes) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    graph = onnx.load_from_string(precision.to_int8(resnet, images)).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    weighted = [node for node in graph.node if node.op_type in ("Conv", "MatMul")]
    assert {makers.get(name) for node in weighted if node.op_type == "Conv" for name in node.input[:2]} == {
        "DequantizeLinear"
    }
    [whitening] = [node for node in weighted if node.op_type == "MatMul"]
    assert "whitening.matrix_DD" in whitening.input


def test_in_int8_weights_have_a_scale_for_each_channel_and_seven_bits(resnet: bytes) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    graph = onnx.load_from_string(precision.to_int8(resnet, images)).graph
    arrays = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    weights = {name: array for name, array in arrays.items() if array.dtype == np.int8 and array.ndim == 4}
    assert len(weights) == 20
    for name, array in weights.items():
        assert np.abs(array.astype(int)).max() <= 64, name
        assert arrays[name.replace("_quantized", "_scale")].shape == (len(array),), name


# --- Fidelity ------------------------------------------------------------------------------------------------------


def test_equal_vectors_have_full_fidelity() -> None:
    vectors = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    measured = fidelity.compare(vectors, vectors, ["a", "b", "c"] * 10)
    assert (measured.images, measured.recall_at_10, measured.as_near_at_10, measured.same_label) == (30, 1, 1, 1)
    assert measured.lowest_cosine == pytest.approx(1)


def test_the_fidelity_of_a_small_set_is_the_one_worked_out_by_hand() -> None:
    # Twelve images on a circle; the last one is moved to the other side.
    angles = np.deg2rad(np.arange(12) * 5.0)
    exact = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    moved = exact.copy()
    moved[11] *= -1
    measured = fidelity.compare(exact, moved, None)
    assert measured.lowest_cosine == pytest.approx(-1)
    assert measured.mean_cosine == pytest.approx(10 / 12)
    # Each image has ten of the eleven others for neighbours: all but the furthest. For images 0 to 5 that is image 11
    # already, and stays so. Images 6 to 10 leave out image 0, and now image 11. For image 11, opposite, the furthest
    # was image 0; it is now the nearest, and image 10 the furthest.
    assert measured.recall_at_10 == pytest.approx((6 * 10 + 5 * 9 + 9) / 120)
    assert measured.same_label is None


def test_neighbours_that_are_as_near_may_change_places() -> None:
    # From image 0, images 1 to 10 are at 10 degrees or less, image 11 hardly further; here 10 and 11 are swapped.
    angles = np.deg2rad([0, *range(1, 10), 10, 10.001])
    exact = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    swapped = exact.copy()
    swapped[[10, 11]] = swapped[[11, 10]]
    measured = fidelity.compare(exact, swapped, None)
    assert measured.as_near_at_10 == 1 > measured.recall_at_10


def test_images_to_calibrate_with_and_to_compare_on_are_disjoint(image_folder: Path) -> None:
    images = calibration.gather(
        image_folder, preprocess.PreprocessSpec(size_px=16), np.zeros((0, 16, 16, 3), np.uint8),
        must_exist=True, report=quiet,
    )  # fmt: skip
    assert (len(images.calibration_NSSC), len(images.held_out_NSSC)) == (10, 38)
    assert images.labels is not None
    assert sorted(set(images.labels)) == ["checks", "discs", "stripes"]
    to_calibrate = {image.tobytes() for image in images.calibration_NSSC}
    assert not to_calibrate & {image.tobytes() for image in images.held_out_NSSC}


def test_without_its_folder_a_run_is_compared_on_the_images_kept_in_it(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    plan = run_folder.read_plan(run)
    cast(Any, plan.data)["folder"] = str(tmp_path / "gone")
    run_folder.write_plan(plan, run)
    lines: list[str] = []
    file = export(run, tmp_path / "encoder.onnx", precision="fp16", report=lines.append)
    [warning] = [line for line in lines if line.startswith("warning")]
    assert "gone does not exist; only the 32 images" in warning
    assert file.metadata.fidelity["images"] == 25


def test_a_folder_that_was_named_must_exist(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        export(finished_run, tmp_path / "encoder.onnx", precision="int8", calibration=tmp_path / "gone", report=quiet)


# --- Limits --------------------------------------------------------------------------------------------------------


def test_a_file_below_a_limit_is_not_written_unless_forced(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.LIMITS, "fp16", {"lowest_cosine": 1.5})
    with pytest.raises(ExportError, match=r"fp16: lowest cosine is \d\.\d+, at least 1.5 is required") as caught:
        export(finished_run, tmp_path / "encoder.onnx", precision="fp16", report=quiet)
    assert "--force" in caught.value.hint
    assert list(tmp_path.iterdir()) == []

    lines: list[str] = []
    export(finished_run, tmp_path / "encoder.onnx", precision="fp16", force=True, report=lines.append)
    assert any(line.startswith("warning: lowest cosine is") for line in lines)
    assert encoder_file.read(tmp_path / "encoder.onnx").metadata.precision == "fp16"


# --- The command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_fidelity_and_speed(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "encoder.onnx"
    arguments = ["export", str(finished_run), "-o", str(out), "--precision", "int8", "--force"]
    printed = CliRunner().invoke(main, arguments, catch_exceptions=False).stderr
    assert "calibrating with 10 images" in printed
    assert "recall@10" in printed
    assert "times the images per second of fp32" in printed
    assert "Dequantize" in " ".join(operators(out))
    checked = CliRunner().invoke(main, ["doctor", str(out), "--device", "cpu"], catch_exceptions=False)
    assert (checked.exit_code, "int8" in checked.stdout, "no drift" in checked.stdout) == (0, True, True)
