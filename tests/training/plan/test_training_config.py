"""Which settings a run may have, how they are chosen, and where each value comes from."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from embedserve.errors import InvalidInput
from embedserve_training.plan.config import METHODS, Settings, TrainConfig, drops
from embedserve_training.plan.plan import Facts, plan

SMALL = Facts(images=3000, median_side_px=28)
PHOTOS = Facts(images=50_000, median_side_px=480, cuda=True, cores=16)


def values(config: TrainConfig, facts: Facts) -> dict[str, object]:
    return plan(config, facts).settings.to_json()


def sources(config: TrainConfig, facts: Facts) -> dict[str, str]:
    return {entry.name: entry.source for entry in plan(config, facts).entries}


def test_every_field_has_one_sentence_of_help() -> None:
    for entry in fields(TrainConfig):
        sentence = entry.metadata["help"]
        assert sentence.endswith(".")
        assert len(sentence) > 10


def test_the_settings_have_the_fields_of_the_config() -> None:
    assert [entry.name for entry in fields(Settings)] == [entry.name for entry in fields(TrainConfig)]


def test_the_plan_lists_every_value_with_its_source() -> None:
    config = TrainConfig(epochs=7, lr=0.5, seed=0)
    found = sources(config, SMALL)
    assert set(found) == {entry.name for entry in fields(TrainConfig)}
    assert (found["epochs"], found["lr"]) == ("flag", "flag")
    assert (found["seed"], found["method"]) == ("default", "default")
    assert (found["backbone"], found["batch_size"], found["device"]) == ("auto", "auto", "auto")


@pytest.mark.parametrize("facts", [SMALL, PHOTOS], ids=["small", "photos"])
@pytest.mark.parametrize("method", METHODS)
def test_every_value_that_is_chosen_and_every_one_of_a_recipe_says_why(method: str, facts: Facts) -> None:
    entries = plan(TrainConfig(method=method), facts).entries
    assert [entry.name for entry in entries if entry.source in ("auto", "recipe") and not entry.why] == []
    assert {entry.source for entry in entries} - {"flag"} == {"default", "auto", "recipe"}


def test_small_images_keep_their_size_and_get_the_small_network_and_recipe() -> None:
    chosen = values(TrainConfig(), SMALL)
    assert (chosen["size_px"], chosen["backbone"], chosen["augmentation"]) == (28, "small-cnn", "small")
    assert (chosen["device"], chosen["precision"]) == ("cpu", "fp32")


def test_small_images_without_colour_are_cropped_less_than_published() -> None:
    assert values(TrainConfig(), SMALL)["crop_min"] == 0.08
    assert values(TrainConfig(), Facts(images=3000, median_side_px=28, grey=True))["crop_min"] == 0.4
    assert values(TrainConfig(), Facts(images=3000, median_side_px=200, grey=True))["crop_min"] == 0.08


def test_photos_on_a_gpu_get_resnet18_at_224_px_in_bf16() -> None:
    chosen = values(TrainConfig(), PHOTOS)
    assert (chosen["size_px"], chosen["backbone"], chosen["augmentation"]) == (224, "resnet18", "photo")
    assert (chosen["device"], chosen["precision"]) == ("cuda", "bf16")


def test_the_usual_batch_depends_on_device_and_size_of_the_images() -> None:
    assert values(TrainConfig(), SMALL)["batch_size"] == 128
    assert values(TrainConfig(), PHOTOS)["batch_size"] == 256
    assert values(TrainConfig(), Facts(images=50_000, median_side_px=32, cuda=True))["batch_size"] == 512


def test_images_are_not_enlarged_to_a_usual_size() -> None:
    assert values(TrainConfig(), Facts(images=3000, median_side_px=100, cuda=True))["size_px"] == 96


def test_the_learning_rate_grows_with_the_square_root_of_the_batch() -> None:
    small, large = (values(TrainConfig(batch_size=b), PHOTOS)["lr"] for b in (64, 256))
    assert large == pytest.approx(2 * small)  # type: ignore[operator]


def test_few_images_reduce_the_automatic_batch_to_four_steps_per_epoch() -> None:
    assert values(TrainConfig(), Facts(images=100, median_side_px=28))["batch_size"] == 16


def test_a_batch_larger_than_the_data_is_refused_with_one_that_fits() -> None:
    with pytest.raises(InvalidInput, match="batch_size is 512, but there are 100 images") as caught:
        plan(TrainConfig(batch_size=512), Facts(images=100, median_side_px=28))
    assert "--batch-size 32" in caught.value.hint


def test_a_budget_in_minutes_replaces_the_default_of_100_epochs() -> None:
    assert values(TrainConfig(), SMALL)["epochs"] == 100
    chosen = values(TrainConfig(minutes=3), SMALL)
    assert (chosen["epochs"], chosen["minutes"]) == (0, 3)


def test_the_lines_of_a_plan_name_the_budget_that_counts() -> None:
    names = [line.split()[0] for line in plan(TrainConfig(minutes=3), SMALL).lines()]
    assert "minutes" in names
    assert "epochs" not in names


@pytest.mark.parametrize(
    ("both", "message"),
    [
        ({"epochs": 3, "minutes": 2.0}, "both epochs = 3 and minutes = 2.0"),
        ({"lr": 0.1, "base_lr": 0.2}, "both lr = 0.1 and base_lr = 0.2"),
        ({"lr": 0.1, "lr_scaling": "sqrt"}, "both lr = 0.1 and lr_scaling = sqrt"),
    ],
)
def test_two_settings_of_which_one_replaces_the_other_are_refused(both: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)) as caught:
        TrainConfig(**both)
    assert caught.value.hint == "give one of the two"


def test_a_setting_that_the_method_lacks_is_refused_with_the_methods_that_have_it() -> None:
    with pytest.raises(InvalidInput, match="queue_size has no meaning for simclr") as caught:
        TrainConfig(queue_size=4096)
    assert caught.value.hint == "it belongs to moco; leave it out, or choose that --method"
    with pytest.raises(InvalidInput, match="tau has no meaning for cpc") as caught:
        TrainConfig(method="cpc", tau=0.1)
    assert "simclr, moco, instance-discrimination" in caught.value.hint


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="method is 'byol'") as caught:
        TrainConfig(method="byol", tau=0.1)
    assert "barlow-twins" in caught.value.hint


@pytest.mark.parametrize(("text", "shares"), [("", ()), ("0.6, 0.8", (0.6, 0.8)), ("0.5", (0.5,)), (" 0.1,", (0.1,))])
def test_drops_are_read_as_increasing_shares(text: str, shares: tuple[float, ...]) -> None:
    assert drops(text) == shares


@pytest.mark.parametrize("text", ["0.8,0.6", "0.6,0.6", "0", "1", "120,160", "half", "nan"])
def test_drops_that_are_not_increasing_shares_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="increasing shares of the run"):
        TrainConfig(lr_drops=text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("minutes", -1.0),
        ("batch_size", 1),
        ("size_px", 4),
        ("lr", float("nan")),
        ("tau", 0.0),
        ("crop_min", 1.5),
        ("warmup", 1.0),
        ("weight_decay", -0.1),
        ("seed", -1),
        ("workers", 0),
        ("optimizer", "adam"),
        ("augmentation", "strong"),
        ("device", "tpu"),
        ("precision", "fp16"),
        ("accumulate", 0),
        ("base_lr", -0.1),
        ("bias_lr", float("inf")),
        ("lr_end", 1.1),
        ("clip_norm", -1.0),
        ("decayed", "none"),
        ("lr_scaling", "cubic"),
        ("projector_layers", 0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=f"{name} is "):
        TrainConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("moco", "queue_size", 0),
        ("moco", "key_momentum", 1.5),
        ("moco", "bn_splits", 0),
        ("barlow-twins", "off_diagonal", 0.0),
        ("instance-discrimination", "noise_samples", -1),
        ("instance-discrimination", "bank_momentum", -0.1),
        ("instance-discrimination", "proximal", float("nan")),
        ("cpc", "patch_px", 0),
        ("cpc", "patch_grid", 1),
        ("cpc", "predict_steps", 0),
        ("cpc", "directions", 3),
    ],
)
def test_a_value_of_one_method_out_of_range_is_refused_by_name(method: str, name: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=f"{name} is "):
        TrainConfig(method=method, **{name: value})  # type: ignore[arg-type]


def test_settings_survive_json() -> None:
    settings = plan(TrainConfig(), SMALL).settings
    assert Settings.from_json(settings.to_json() | {"of_a_newer_version": 1}) == settings


@pytest.mark.parametrize(
    "module", ["augment", "plan.config", "plan.defaults", "plan.plan", "plan.recipes", "plan.sources"]
)
def test_settings_recipes_and_plan_need_no_torch(module: str) -> None:
    program = f"import sys, embedserve_training.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
