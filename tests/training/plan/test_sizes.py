"""One rule for what is small, and on a CPU a side and a network that leave eight passes in the minutes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from embedserve_training.networks import backbones
from embedserve_training.plan import cost, sizes
from embedserve_training.plan.config import METHODS, TrainConfig
from embedserve_training.plan.plan import Facts, Plan, plan
from embedserve_training.run.prepare import _preprocess

DRAWINGS = Facts(images=7400, median_side_px=80, cores=2, gflop_per_s=60.0)
PHOTOS = Facts(images=5000, median_side_px=480, cores=2, gflop_per_s=100.0)


def why(the_plan: Plan, name: str) -> str:
    return next(entry.why for entry in the_plan.entries if entry.name == name)


# --- What is small -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size_px", "small"), [(63, True), (64, True), (65, False), (96, False)])
def test_network_stem_augmentations_patches_batch_and_crop_have_the_same_idea_of_small(
    size_px: int, small: bool
) -> None:
    gpu = Facts(images=50_000, median_side_px=size_px, cuda=True)
    chosen = plan(TrainConfig(size_px=size_px), gpu).settings
    patches = plan(TrainConfig(method="cpc", size_px=size_px), gpu).settings
    with torch.device("meta"):
        stem = backbones.build("resnet18", size_px).body.conv1
    found = {
        "augmentation": chosen.augmentation == "small",
        "batch": chosen.batch_size == 512,
        "patches": patches.patch_grid == 5,
        "whole": _preprocess(chosen).resize_px == size_px,
        "stem": stem.stride == (1, 1),
    }
    assert found == dict.fromkeys(found, small)


# --- The network and the side on a CPU -----------------------------------------------------------------------------


# 60 GFLOP/s · 420 s / (7,400 images · 2 views · 3 · 24,240 FLOP · side²): 5.7 passes at 64 px, 7.5 at 56, 10.2 at 48.
def test_drawings_of_80_px_get_small_cnn_at_a_side_that_gives_eight_passes_in_seven_minutes() -> None:
    the_plan = plan(TrainConfig(minutes=7), DRAWINGS)
    assert (the_plan.settings.backbone, the_plan.settings.size_px) == ("small-cnn", 48)
    assert the_plan.passes == pytest.approx(10.2, abs=0.05)
    assert why(the_plan, "size_px") == "median side 80 px, training on the CPU; about 10 passes in 7 minutes"
    faster = plan(TrainConfig(minutes=7), replace(DRAWINGS, gflop_per_s=120.0))
    assert faster.settings.size_px == 64


@pytest.mark.parametrize("side_px", [64, 80, 95, 96, 127])
@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(minutes=7)], ids=["epochs", "minutes"])
def test_without_a_measured_speed_images_below_128_px_get_small_cnn_at_up_to_64_px(
    side_px: int, config: TrainConfig
) -> None:
    chosen = plan(config, Facts(images=7400, median_side_px=side_px)).settings
    assert (chosen.backbone, chosen.size_px, chosen.augmentation) == ("small-cnn", 64, "small")


def test_a_budget_in_epochs_gives_the_same_plan_on_every_machine() -> None:
    slow, fast = (plan(TrainConfig(epochs=9), replace(DRAWINGS, gflop_per_s=speed)) for speed in (1.0, 1e4))
    assert slow == fast


def test_where_eight_passes_do_not_fit_at_any_side_the_plan_says_how_many_do() -> None:
    the_plan = plan(TrainConfig(minutes=1), DRAWINGS)
    assert the_plan.settings.size_px == 32
    assert why(the_plan, "size_px").endswith("about 3.3 passes in 1 minute")


def test_images_are_never_made_smaller_than_32_px_to_gain_passes() -> None:
    chosen = plan(TrainConfig(minutes=0.1), replace(DRAWINGS, median_side_px=28)).settings
    assert chosen.size_px == 28


# ResNet-18 at 96 px: 72,400 FLOP · 96² · 6 = 4.0 GFLOP an image, 100 GFLOP/s: 25 images/s.
def test_photos_keep_resnet18_where_eight_passes_fit_and_else_get_small_cnn() -> None:
    enough = plan(TrainConfig(minutes=30), PHOTOS)
    assert (enough.settings.backbone, enough.settings.size_px) == ("resnet18", 96)
    short = plan(TrainConfig(minutes=7), PHOTOS)
    assert (short.settings.backbone, short.settings.size_px) == ("small-cnn", 64)
    assert why(short, "backbone") == "images of 64 px; resnet18 would make about 2.1 passes in 7 minutes"
    assert short.settings.recipe == "simclr-cpu"


def test_a_network_or_a_side_that_the_user_gives_is_used() -> None:
    given = plan(TrainConfig(minutes=1, backbone="resnet18"), DRAWINGS).settings
    assert (given.backbone, given.size_px) == ("resnet18", 64)
    given = plan(TrainConfig(minutes=1, size_px=100), DRAWINGS).settings
    assert (given.backbone, given.size_px) == ("small-cnn", 100)
    given = plan(TrainConfig(minutes=1, size_px=128), DRAWINGS).settings
    assert (given.backbone, given.size_px) == ("resnet18", 128)


@pytest.mark.parametrize("side_px", [64, 80, 96, 480])
def test_on_a_gpu_images_from_64_px_get_resnet18_and_their_side(side_px: int) -> None:
    facts = Facts(images=7400, median_side_px=side_px, cuda=True, gflop_per_s=1.0)
    chosen = plan(TrainConfig(minutes=1), facts).settings
    assert (chosen.backbone, chosen.size_px) == ("resnet18", min(side_px // 32 * 32, 224))


def test_files_that_turn_out_unreadable_do_not_change_the_side() -> None:
    # The images are decoded for the side that was planned with all files.
    before = replace(DRAWINGS, files=DRAWINGS.images)
    after = replace(before, images=DRAWINGS.images // 3)
    sides = [plan(TrainConfig(minutes=7), facts).settings.size_px for facts in (before, after)]
    assert sides == [48, 48]


@settings(deadline=None)
@given(
    method=st.sampled_from(METHODS),
    side_px=st.integers(1, 2000),
    images=st.integers(16, 1_000_000),
    minutes=st.floats(0.01, 1000),
    speed=st.floats(0.1, 1e5),
)
def test_a_cpu_makes_eight_passes_or_uses_the_least_side(
    method: str, side_px: int, images: int, minutes: float, speed: float
) -> None:
    facts = Facts(images=images, median_side_px=side_px, gflop_per_s=speed)
    the_plan = plan(TrainConfig(method=method, minutes=minutes), facts)
    chosen = the_plan.settings
    assert the_plan.passes is not None
    assert the_plan.passes >= cost.PASSES or (chosen.backbone == "small-cnn" and chosen.size_px <= 32)
    assert chosen.size_px <= max(side_px, 16)
    if side_px < 128:
        assert chosen.backbone == "small-cnn"
    assert sizes.is_small(chosen.size_px) or chosen.backbone == "resnet18"


# --- What it costs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size_px"), [("small-cnn", 32), ("small-cnn", 64), ("resnet18", 32), ("resnet18", 64), ("resnet18", 96)]
)
def test_the_cost_of_a_view_is_that_which_pytorch_counts(name: str, size_px: int) -> None:
    with torch.device("meta"):
        network = backbones.build(name, size_px).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.zeros(1, 3, size_px, size_px))
    assert cost.gflop_per_view(name, size_px) == pytest.approx(counter.get_total_flops() / 1e9, rel=0.1)


def test_the_cost_of_another_network_is_not_guessed() -> None:
    assert cost.gflop_per_view("resnet50", 96) is None
    the_plan = plan(TrainConfig(minutes=7, backbone="resnet50"), DRAWINGS)
    assert the_plan.passes is None
