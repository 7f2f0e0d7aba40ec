"""Whitening of served embeddings: its effect on vectors, and its way from training to the encoder file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from embedserve.encoder.session import Encoder
from embedserve_training.export.export import export
from embedserve_training.networks.backbones import Backbone
from embedserve_training.networks.whitening import FLOOR, IMAGES_PER_NUMBER, Whitening, fit_to_images
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import checkpoint, run_folder, served
from embedserve_training.run.run import run_training

Config = Callable[..., TrainConfig]


def quiet(line: str) -> None:
    """Discard a report."""


def correlated(rows: int) -> torch.Tensor:
    """Vectors of three correlated numbers far from 0, [N, 3]."""
    mixing = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.8]])
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1)) @ mixing + torch.tensor([10.0, -4.0, 2.0])


def test_whitened_vectors_have_mean_zero_and_the_identity_as_covariance_but_for_the_floor() -> None:
    h_ND = correlated(4000)
    white_ND = Whitening.fit(h_ND)(h_ND)
    torch.testing.assert_close(white_ND.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    # W = (C + f·I)^(−1/2) commutes with the covariance C, so W·C·W = C·(C + f·I)⁻¹.
    covariance_DD = torch.cov(h_ND.T, correction=0)
    floor_DD = FLOOR * torch.linalg.eigvalsh(covariance_DD).max() * torch.eye(3)
    expected_DD = covariance_DD @ torch.linalg.inv(covariance_DD + floor_DD)
    torch.testing.assert_close(white_ND.T @ white_ND / 4000, expected_DD, atol=1e-3, rtol=0)
    assert float(expected_DD.diagonal().min()) > 0.8  # so nearly the identity


def test_a_direction_without_variance_is_not_amplified() -> None:
    h_ND = correlated(1000)
    h_ND[:, 2] = 5.0
    h_ND[1, 2] += 1e-6
    white_ND = Whitening.fit(h_ND)(h_ND)
    assert float(white_ND[:, 2].std()) < 0.01
    # The variance of a direction becomes v / (v + floor · greatest): with v = 0 the factor is 1 / √(floor · greatest).
    greatest = float(torch.linalg.eigvalsh(torch.cov(h_ND.T, correction=0)).max())
    factor = float(Whitening.fit(h_ND).matrix_DD[2, 2])
    assert factor == pytest.approx((FLOOR * greatest) ** -0.5, rel=1e-3)


def test_vectors_that_are_already_white_keep_their_cosines() -> None:
    h_ND = torch.randn(20000, 4, generator=torch.Generator().manual_seed(2))
    white_ND = Whitening.fit(h_ND)(h_ND)
    assert float(torch.cosine_similarity(h_ND, white_ND).min()) > 0.98


def test_equal_vectors_stay_finite() -> None:
    h_ND = torch.ones(10, 3)
    assert torch.isfinite(Whitening.fit(h_ND)(h_ND)).all()


class Means(Backbone):
    """An embedding of three numbers: the mean of each channel."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1), "means", 3)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images_NCSS: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(images_NCSS.shape))
        assert not self.training
        return images_NCSS.mean((2, 3))


# Small images are served whole, for any size of the cached ones; large ones without their margin.
@pytest.mark.parametrize(
    ("cached", "size", "cut"), [(10, 8, 0), (8, 8, 0), (6, 8, 0), (74, 64, 0), (110, 96, 7), (96, 96, 0)]
)
def test_it_is_fitted_to_images_as_the_encoder_sees_them(cached: int, size: int, cut: int) -> None:
    rng = np.random.default_rng(3)
    pixels = np.zeros((40, cached, cached, 3), np.uint8)
    pixels[:] = rng.integers(0, 256, (40, 1, 1, 3))
    if cut:  # the margin must not count
        pixels[:, :cut] = pixels[:, -cut:] = pixels[:, :, :cut] = pixels[:, :, -cut:] = 255
    network = Means().train()
    fitted = fit_to_images(network, pixels, size)
    count = 3 * IMAGES_PER_NUMBER
    chosen = pixels[np.linspace(0, 39, count).round().astype(int), cached // 2, cached // 2].astype(float) / 255
    np.testing.assert_allclose(fitted.mean_D.numpy(), chosen.mean(0), atol=1e-5)
    assert network.seen == [(count, 3, size, size)]
    assert network.training


def test_a_run_of_64_px_of_an_older_version_is_fitted_to_images_without_their_margin_as_it_serves_them() -> None:
    pixels = np.full((40, 74, 74, 3), 255, np.uint8)
    pixels[:, 5:69, 5:69] = 51
    assert served.sees_whole_images({"size_px": 64, "resize_px": 64})
    whole = served.sees_whole_images({"size_px": 64, "resize_px": 74})
    fitted = fit_to_images(Means(), pixels, 64, whole=whole)
    np.testing.assert_allclose(fitted.mean_D.numpy(), 0.2, atol=1e-6)


def test_a_finished_run_serves_whitened_embeddings_through_the_file(finished_run: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(finished_run)
    assert saved.whitening is not None
    encoder = served.trained(finished_run)
    images = np.load(finished_run / run_folder.SAMPLES)
    with torch.no_grad():
        h_ND = encoder.backbone(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        expected_ND = (h_ND - saved.whitening["mean_D"]) @ saved.whitening["matrix_DD"]
        expected_ND = expected_ND / expected_ND.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(served.embed(encoder, images), expected_ND.numpy(), atol=1e-5)
    export(finished_run, tmp_path / "encoder.onnx", report=quiet)
    served_ND = Encoder.open(tmp_path / "encoder.onnx").encode(images)
    np.testing.assert_allclose(served_ND, expected_ND.numpy(), atol=1e-4)


def test_it_can_be_switched_off(image_folder: Path, tmp_path: Path, tiny_config: Config) -> None:
    run_training(image_folder, config=tiny_config(epochs=1, whiten=False), out=tmp_path, report=quiet)
    assert checkpoint.load(tmp_path).whitening is None
    encoder = served.trained(tmp_path)
    assert isinstance(encoder.whitening, nn.Identity)


def test_a_killed_run_is_whitened_with_its_decoded_images(
    finished_run: Path, image_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A checkpoint of a running training has no whitening; its decoded images still exist.
    from embedserve_training.run import trainer

    class Killed(Exception):
        """Like SIGKILL: nothing after the step is done."""

    def die(self: trainer.Trainer) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_whitening", die)
        patch.setattr(trainer, "CHECKPOINT_EVERY_S", 0.0)
        with pytest.raises(Killed):
            run_training(image_folder, config=tiny_config(epochs=2), out=tmp_path, report=quiet)
    assert checkpoint.load(tmp_path).whitening is None
    images = np.load(finished_run / run_folder.SAMPLES)
    np.testing.assert_allclose(
        served.embed(served.trained(tmp_path), images), served.embed(served.trained(finished_run), images), atol=1e-5
    )
    shutil.rmtree(tmp_path / run_folder.CACHE)
    lines: list[str] = []
    file = export(tmp_path, tmp_path / "encoder.onnx", report=lines.append)
    assert any("no whitening layer" in line for line in lines)
    assert file.metadata.training["whiten"] is False
