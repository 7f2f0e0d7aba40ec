"""The same results on every device. `make gpu` selects only the CUDA cases."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedserve.encoder.providers import cuda_problem
from embedserve.encoder.reference import lowest_cosine
from embedserve.encoder.session import Encoder
from embedserve_training import augment
from embedserve_training.export.export import export
from embedserve_training.losses import nt_xent
from embedserve_training.methods.method import StepOutput
from embedserve_training.plan.config import METHODS, TrainConfig
from embedserve_training.run import checkpoint
from embedserve_training.run.run import RunResult, run_training
from embedserve_training.run.trainer import Trainer
from tests.fakes import picture
from tests.training.method_cases import build, drawn_views

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")],
)
on_every_device = pytest.mark.parametrize("device", ["cpu", CUDA])


def quiet(_: str) -> None:
    """Discards the line."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(64):
        (folder / f"{number:02}.png").write_bytes(picture(number, size=(32, 32)))
    return folder


def train(folder: Path, out: Path, device: str, *, epochs: int, **changes: Any) -> RunResult:
    values: dict[str, Any] = {"batch_size": 32, "backbone": "small-cnn", "workers": 1, "crop_min": 0.5, "lr": 2e-3}
    values |= changes
    return run_training(folder, config=TrainConfig(device=device, epochs=epochs, **values), out=out, report=quiet)


@on_every_device
def test_the_loss_is_that_of_the_cpu_in_double_precision(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z1_BD, z2_BD = torch.randn(2, 48, 32, generator=generator)
    loss, _ = nt_xent(z1_BD.to(device), z2_BD.to(device), 0.2)
    z_ND = torch.nn.functional.normalize(torch.cat([z1_BD, z2_BD]).double(), dim=1)
    logits_NN = (z_ND @ z_ND.T / 0.2).fill_diagonal_(-torch.inf)
    partner_N = torch.arange(96).roll(48)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits_NN, partner_N).item(), abs=1e-4)


@on_every_device
@pytest.mark.parametrize("preset", sorted(augment.PRESETS))
def test_a_seed_gives_the_same_views(device: str, preset: str) -> None:
    images_BTTC = torch.randint(0, 256, (16, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    views = [
        augment.augment(images_BTTC.to(where), 32, augment.PRESETS[preset][-1], torch.Generator().manual_seed(2)).cpu()
        for where in ("cpu", device)
    ]
    assert (views[0] - views[1]).abs().max() < 2e-3  # TF32 would be ten times worse


@on_every_device
@pytest.mark.slow
def test_a_run_learns_and_its_export_agrees_on_the_cpu(device: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    result = train(folder, tmp_path / "run", device, epochs=40)
    assert result.status == "finished"
    assert result.plan.settings.precision == ("bf16" if device == "cuda" else "fp32")
    assert result.progress is not None
    assert result.progress.loss < result.progress.chance - 0.5
    file = export(tmp_path / "run", tmp_path / "encoder.onnx", report=quiet)  # compares with PyTorch, or raises
    assert Encoder.from_file(file, device="cpu").reference_cosine() > 0.9999


def assert_trained(result: RunResult, out: Path, steps: int) -> None:
    assert (result.status, result.steps) == ("finished", steps)
    assert result.progress is not None
    assert math.isfinite(result.progress.loss)
    state = checkpoint.load(out).method
    assert all(bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point())


@on_every_device
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_bf16(device: str, name: str, folder: Path, tmp_path: Path) -> None:
    result = train(folder, tmp_path / "run", device, epochs=2, method=name, precision="bf16")
    assert_trained(result, tmp_path / "run", steps=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_compiled(name: str, folder: Path, tmp_path: Path) -> None:
    result = train(folder, tmp_path / "run", "cuda", epochs=2, method=name, compile=True)
    assert_trained(result, tmp_path / "run", steps=4)


@on_every_device
@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_every_device_has_the_loss_and_embeddings_of_the_cpu(device: str, name: str) -> None:
    outputs = []
    for where in ("cpu", device):
        method = build(name).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        views_VBCSS = [view_BCSS.to(where) for view_BCSS in drawn_views(method)]
        outputs.append(method(views_VBCSS, torch.arange(8, device=where), torch.Generator().manual_seed(3)))
        outputs[-1].loss.backward()
        method.after_step()
    on_cpu, on_device = outputs
    assert on_device.loss.item() == pytest.approx(on_cpu.loss.item(), rel=1e-2)  # convolutions may be in TF32
    cosine_N = torch.nn.functional.cosine_similarity(on_device.features_ND.cpu(), on_cpu.features_ND)
    assert cosine_N.min() > 0.999


@on_every_device
def test_a_stopped_run_continues_from_its_checkpoint(
    device: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def stop_after_three(self: Trainer, indices_B: torch.Tensor, pixels_BTTC: torch.Tensor) -> StepOutput:
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, indices_B, pixels_BTTC)

    with monkeypatch.context() as stopping:
        stopping.setattr(Trainer, "_step", stop_after_three)
        stopped = train(folder, tmp_path / "run", device, epochs=4)
    assert (stopped.status, stopped.steps) == ("stopped", 3)
    finished = train(folder, tmp_path / "run", device, epochs=4)
    assert (finished.status, finished.steps) == ("finished", 8)
    assert finished.progress is not None
    assert math.isfinite(finished.progress.loss)


@pytest.mark.gpu
@pytest.mark.skipif(cuda_problem() is not None, reason=f"onnxruntime cannot use CUDA: {cuda_problem()}")
def test_onnxruntime_on_the_gpu_gives_the_vectors_of_the_cpu(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "run", "cpu", epochs=1)
    file = export(tmp_path / "run", tmp_path / "encoder.onnx", report=quiet)
    images = np.random.default_rng(0).integers(0, 256, (33, 32, 32, 3), dtype=np.uint8)
    on_gpu, on_cpu = (Encoder.from_file(file, device=device).encode(images) for device in ("cuda", "cpu"))
    assert lowest_cosine(on_gpu, on_cpu) > 0.9999
