"""The same network trained on labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embedserve.errors import DataError
from embedserve_training.evaluate.supervised import train_supervised
from embedserve_training.plan.config import Settings
from embedserve_training.run import served
from embedserve_training.run.run_folder import read_plan
from tests.training.conftest import KINDS, draw


def quiet(line: str) -> None:
    """Discards the line."""


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """96 pictures of three kinds, and their labels."""
    labels = np.arange(96) % 3
    return np.stack([draw(KINDS[label], 1000 + i) for i, label in enumerate(labels)]), labels


@pytest.fixture
def settings(finished_run: Path) -> Settings:
    return read_plan(finished_run).settings


def test_it_classifies_pictures_it_never_saw(pictures: tuple[np.ndarray, np.ndarray], settings: Settings) -> None:
    # Crops of a twelfth of 16 pixels would leave too little to tell the kinds apart.
    encoder = train_supervised(replace(settings, crop_min=0.7), *pictures, epochs=20, report=quiet)
    unseen = np.stack([draw(kind, 5000 + i) for i in range(20) for kind in KINDS])
    right = (encoder.classify(unseen) == np.arange(60) % 3).mean()
    assert right > 0.7  # by chance 0.33; three seeds gave 0.85 to 0.88


def test_it_starts_with_the_weights_of_the_untrained_network(
    pictures: tuple[np.ndarray, np.ndarray], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedserve_training.run.optim.lr_factor", lambda progress, warmup: 0.0)
    trained = train_supervised(settings, *pictures, epochs=1, report=quiet)
    untrained = dict(served.untrained(settings).named_parameters())
    for name, value in trained.named_parameters():
        if not name.startswith("classifier"):
            assert torch.equal(value, untrained[name]), name


def test_it_depends_on_its_seed_only_and_does_not_change_the_global_generator(
    pictures: tuple[np.ndarray, np.ndarray], settings: Settings
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = train_supervised(settings, *pictures, epochs=1, report=quiet).state_dict()
    assert torch.equal(torch.rand(1), expected)
    again = train_supervised(settings, *pictures, epochs=1, report=quiet).state_dict()
    other = train_supervised(replace(settings, seed=1), *pictures, epochs=1, report=quiet).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_it_is_returned_in_evaluation_mode_so_that_an_embedding_does_not_depend_on_the_batch(
    pictures: tuple[np.ndarray, np.ndarray], settings: Settings
) -> None:
    encoder = train_supervised(settings, *pictures, epochs=1, report=quiet)
    assert not any(module.training for module in encoder.modules())
    batched = served.embed(encoder, pictures[0][:8])
    alone = np.concatenate([served.embed(encoder, pictures[0][i : i + 1]) for i in range(8)])
    np.testing.assert_allclose(batched, alone, atol=1e-5)


@pytest.mark.parametrize(("images", "batch_size"), [(1, 16), (4, 1)])
def test_a_single_image_in_a_batch_is_refused(
    images: int, batch_size: int, pictures: tuple[np.ndarray, np.ndarray], settings: Settings
) -> None:
    few = pictures[0][:images], pictures[1][:images]
    with pytest.raises(DataError, match=f"needs 2 images in a batch, but of {images} there is 1") as caught:
        train_supervised(replace(settings, batch_size=batch_size), *few, epochs=1, report=quiet)
    assert "--supervised-epochs" in caught.value.hint


def test_two_images_are_enough(pictures: tuple[np.ndarray, np.ndarray], settings: Settings) -> None:
    encoder = train_supervised(settings, pictures[0][:2], pictures[1][:2], epochs=1, report=quiet)
    assert bool(np.isfinite(served.embed(encoder, pictures[0][:2])).all())


def test_it_reports_progress_after_each_epoch(pictures: tuple[np.ndarray, np.ndarray], settings: Settings) -> None:
    lines: list[str] = []
    train_supervised(settings, *pictures, epochs=2, report=lines.append)
    assert [line.split("loss")[0].split() for line in lines] == [
        ["supervised", "epoch", "1/2"],
        ["supervised", "epoch", "2/2"],
    ]


def test_a_missing_device_is_replaced_by_the_cpu(
    pictures: tuple[np.ndarray, np.ndarray], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    encoder = train_supervised(replace(settings, device="cuda"), *pictures, epochs=1, report=quiet)
    assert {parameter.device.type for parameter in encoder.parameters()} == {"cpu"}
