"""What may be said about a run, what is chosen for it, and where each value comes from."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from embedserve.errors import InvalidInput
from embedserve_training.config import Settings, TrainConfig
from embedserve_training.plan import Facts, plan

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


def test_every_automatic_value_says_why() -> None:
    for entry in plan(TrainConfig(), SMALL).entries:
        assert bool(entry.why) == (entry.source == "auto")


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


def test_lars_has_the_published_square_root_rule() -> None:
    assert values(TrainConfig(batch_size=4096), PHOTOS)["optimizer"] == "lars"
    assert values(TrainConfig(batch_size=4096), PHOTOS)["lr"] == pytest.approx(0.075 * 64)


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


def test_two_budgets_at_once_are_refused() -> None:
    with pytest.raises(InvalidInput, match="both epochs = 3 and minutes = 2"):
        TrainConfig(epochs=3, minutes=2)


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
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=f"{name} is "):
        TrainConfig(**{name: value})  # type: ignore[arg-type]


def test_settings_survive_json() -> None:
    settings = plan(TrainConfig(), SMALL).settings
    assert Settings.from_json(settings.to_json() | {"of_a_newer_version": 1}) == settings


def test_the_config_can_be_shown_without_importing_torch() -> None:
    program = "import sys, embedserve_training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
