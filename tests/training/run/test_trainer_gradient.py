"""The gradient of a batch: independent of its parts, clipped on request, and the same for compiled networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from embedserve_training import methods
from embedserve_training.distributed.collectives import Processes
from embedserve_training.methods.instance_discrimination import InstanceDiscrimination
from embedserve_training.networks import batch_norm
from embedserve_training.plan.config import Settings, TrainConfig
from embedserve_training.plan.plan import Facts, plan
from embedserve_training.run import gradient, trainer
from embedserve_training.run.gradient import BatchGradient
from embedserve_training.run.run import run_training
from tests.training.conftest import KINDS, draw

Config = Callable[..., TrainConfig]
BATCH, IMAGES = 8, 16


def quiet(line: str) -> None:
    """Discards the line."""


def settings_of(**changes: object) -> Settings:
    values = {"method": "instance-discrimination", "backbone": "small-cnn", "batch_size": BATCH, "epochs": 1}
    return plan(TrainConfig(**{**values, **changes}), Facts(images=IMAGES, median_side_px=16)).settings  # type: ignore[arg-type]


def built(settings: Settings, processes: Processes | None = None) -> BatchGradient:
    """The gradient of a method without batch-norm, which would make the images of a part depend on each other."""
    torch.manual_seed(0)
    method = methods.build(settings, IMAGES, processes or Processes())
    batch_norm.to_layer_norm(method)
    return BatchGradient(method.train(), settings)


def batch() -> tuple[Tensor, Tensor]:
    """Pixels [G, 16, 16, 3] and positions [G]."""
    pixels = [torch.from_numpy(draw(KINDS[i % 3], i)) for i in range(BATCH)]
    return torch.stack(pixels), torch.arange(BATCH) * 2


def gradients(of: BatchGradient) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone() for name, parameter in of._method.named_parameters() if parameter.grad is not None
    }


def test_in_parts_the_gradient_and_the_loss_are_those_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    views = BatchGradient._views
    monkeypatch.setattr(BatchGradient, "_views", lambda self, *args: [view.double() for view in views(self, *args)])
    pixels_GTTC, indices_G = batch()
    results = []
    for parts in (1, 2, 4):
        taken = built(settings_of(accumulate=parts))
        taken._method.double()
        output = taken.of(pixels_GTTC[taken.rows_B], indices_G[taken.rows_B], step=3)
        results.append((output.loss, gradients(taken)))
    whole_loss, whole = results[0]
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-3
    for loss, in_parts in results[1:]:
        torch.testing.assert_close(loss, whole_loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(in_parts, whole, rtol=1e-11, atol=1e-14)


def test_each_process_takes_a_range_of_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "_distributed", lambda method: None)
    rows = {
        (rank, parts): built(settings_of(accumulate=parts), Processes(rank, 2)).rows_B.tolist()
        for rank in (0, 1)
        for parts in (1, 2)
    }
    assert rows == {
        (0, 1): [0, 1, 2, 3],
        (1, 1): [4, 5, 6, 7],
        (0, 2): [0, 1, 4, 5],
        (1, 2): [2, 3, 6, 7],
    }


def test_two_processes_see_the_views_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "_distributed", lambda method: None)
    pixels_GTTC, indices_G = batch()
    seen: list[Tensor] = []
    for processes in (Processes(), Processes(0, 2), Processes(1, 2)):
        taken = built(settings_of(), processes)
        with monkeypatch.context() as patch:
            patch.setattr(taken, "_forward", lambda views, indices: _keep(views, seen))
            with pytest.raises(_SeenError):
                taken.of(pixels_GTTC[taken.rows_B], indices_G[taken.rows_B], step=0)
    torch.testing.assert_close(torch.cat(seen[1:]), seen[0])


class _SeenError(Exception):
    """Ends a step after its views are made."""


def _keep(views: list[Tensor], seen: list[Tensor]) -> None:
    seen.extend(views)
    raise _SeenError


def test_each_step_has_different_views() -> None:
    pixels_GTTC, indices_G = batch()
    taken = built(settings_of())
    losses = [float(taken.of(pixels_GTTC, indices_G, step=step).loss) for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_the_gradient_is_clipped_and_its_norm_before_is_recorded(
    image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = trainer.Trainer._step

    def step_and_measure(self: trainer.Trainer, *args: Tensor) -> object:
        output = step(self, *args)
        given = [parameter.grad for parameter in self.method.parameters() if parameter.grad is not None]
        norms.append(float(torch.cat([part.flatten() for part in given]).norm()))
        return output

    monkeypatch.setattr(trainer.Trainer, "_step", step_and_measure)
    run_training(image_folder, config=tiny_config(epochs=1), out=tmp_path / "free", report=quiet)
    free, norms = norms, []
    limit = min(free) / 10
    run_training(image_folder, config=tiny_config(epochs=1, clip_norm=limit), out=tmp_path / "cut", report=quiet)
    assert norms == pytest.approx([limit] * 3, rel=1e-3)
    last_lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1] for name in ("free", "cut")]
    records = [json.loads(line) for line in last_lines]
    assert "grad_norm" not in records[0]
    assert records[1]["grad_norm"] > 5 * limit


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:::torch")
def test_compiling_a_network_keeps_its_gradients_and_the_names_of_its_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # PyTorch 2.14 keeps compiled code between processes and reuses it after ATEN_CPU_CAPABILITY or the processor has
    # changed; its gradients are then wrong.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # The head instead of the backbone, which would take minutes to compile.
    monkeypatch.setattr(InstanceDiscrimination, "networks", lambda method: [method.head])
    pixels_GTTC, indices_G = batch()
    plain, compiled = (built(replace(settings_of(), compile=compile_first)) for compile_first in (False, True))
    results = [taken.of(pixels_GTTC, indices_G, step=0).loss for taken in (plain, compiled)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients(compiled), gradients(plain), rtol=1e-3, atol=1e-4)
    assert list(compiled._method.state_dict()) == list(plain._method.state_dict())
    assert cast(Any, compiled._method.head)._compiled_call_impl is not None
    assert cast(Any, plain._method.head)._compiled_call_impl is None
