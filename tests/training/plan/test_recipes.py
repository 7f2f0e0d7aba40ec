"""The recipes of the project against what is published, and what a user's recipe may contain."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from embedserve.errors import InvalidInput
from embedserve_training.plan import recipes
from embedserve_training.plan.config import ALTERNATIVES, METHODS, TrainConfig, applies
from embedserve_training.plan.plan import Facts, plan

IMAGENET = Facts(images=1_281_167, median_side_px=375, cuda=True, cores=16)
CIFAR = Facts(images=50_000, median_side_px=32, cuda=True, cores=16)
FEW_ON_A_LAPTOP = Facts(images=500, median_side_px=1200, cores=4)
PUBLISHED = [name for name in recipes.names() if name.endswith(("-imagenet", "-cifar"))]
USUAL = [name for name in recipes.names() if name not in PUBLISHED]


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- Recipes of the project ----------------------------------------------------------------------------------------


def test_every_method_has_a_recipe_for_a_cpu_one_for_a_gpu_and_a_published_one() -> None:
    found: dict[str, set[str]] = {kind: set() for kind in ("cpu", "gpu", "imagenet")}
    for name in recipes.names():
        found.get(name.rpartition("-")[2], set()).add(recipes.load(name).method)
    assert found == {kind: set(METHODS) for kind in found}


@pytest.mark.parametrize("name", recipes.names())
def test_every_value_of_a_recipe_has_a_source_and_every_recipe_a_title(name: str) -> None:
    recipe = recipes.load(name)
    assert not recipe.own
    assert recipe.title != name
    assert recipe.values.keys() == recipe.sources.keys() != set()
    assert [key for key, source in recipe.sources.items() if len(source) < 8] == []


@pytest.mark.parametrize("facts", [IMAGENET, CIFAR, FEW_ON_A_LAPTOP], ids=["imagenet", "cifar", "laptop"])
@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_gives_a_plan_for_many_images_and_for_few(name: str, facts: Facts) -> None:
    method = recipes.load(name).method
    assert plan(TrainConfig(method=method, recipe=name), facts).settings.recipe == name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_leaves_nothing_to_be_filled_in_but_what_the_machine_decides(name: str) -> None:
    recipe = recipes.load(name)
    facts = IMAGENET if name.endswith("imagenet") else CIFAR
    entries = plan(TrainConfig(method=recipe.method, recipe=name), facts).entries
    others = {entry.name for entry in entries if entry.source != "recipe" and applies(entry.name, recipe.method)}
    ours = {"device", "precision", "workers", "compile", "seed", "whiten"}
    images = {"fit", "pad_colour", "colour", "value_range", "bands"}  # how files are read, as the images need it
    assert others <= ours | images | {"method", "recipe", "minutes", "lr", "accumulate"}
    assert [
        entry.name for entry in entries if entry.source == "recipe" and entry.value != recipe.values[entry.name]
    ] == []


@pytest.mark.parametrize("name", USUAL)
def test_what_depends_on_images_and_machine_is_not_in_the_usual_recipes(name: str) -> None:
    # They are chosen by the network, which follows from size and device.
    assert recipes.load(name).values.keys() & {"size_px", "precision"} == set()
    backbone = recipes.load(name).values.get("backbone")
    assert backbone == ("small-cnn" if name.endswith("-cpu") else None)


# What the papers and the authors' code have (their sections and files are the sources in the recipes), as effective
# values at the published batch. lr is what the optimiser gets.
CHEAT_SHEET: dict[str, dict[str, Any]] = {
    "simclr-imagenet": {
        "backbone": "resnet50", "batch_size": 4096, "epochs": 100, "size_px": 224, "augmentation": "photo", "tau": 0.1,
        "projector_layers": 2, "projector_dim": 128, "optimizer": "lars", "lr": 0.3 * 4096 / 256, "weight_decay": 1e-4,
        "decayed": "matrices", "warmup": 10 / 100, "lr_drops": "", "lr_end": 0.0, "crop_min": 0.08,
    },
    "moco-v1-imagenet": {
        "backbone": "resnet50", "batch_size": 256, "epochs": 200, "size_px": 224, "augmentation": "moco-v1",
        "tau": 0.07, "queue_size": 65536, "key_momentum": 0.999, "symmetric": False, "bn_splits": 8,
        "projector_layers": 1, "projector_dim": 128, "optimizer": "sgd", "lr": 0.03, "weight_decay": 1e-4,
        "decayed": "all", "warmup": 0.0, "lr_drops": "0.6,0.8", "crop_min": 0.2,
    },
    "moco-v2-imagenet": {
        "backbone": "resnet50", "batch_size": 256, "epochs": 200, "size_px": 224, "augmentation": "moco-v2",
        "tau": 0.2, "queue_size": 65536, "key_momentum": 0.999, "symmetric": False, "bn_splits": 8,
        "projector_layers": 2, "projector_hidden": 0, "projector_dim": 128, "optimizer": "sgd", "lr": 0.03,
        "weight_decay": 1e-4, "decayed": "all", "warmup": 0.0, "lr_drops": "", "lr_end": 0.0, "crop_min": 0.2,
    },
    "barlow-twins-imagenet": {
        "backbone": "resnet50", "batch_size": 2048, "epochs": 1000, "size_px": 224, "augmentation": "barlow-twins",
        "projector_layers": 3, "projector_hidden": 8192, "projector_dim": 8192, "off_diagonal": 0.0051,
        "optimizer": "lars", "lr": 0.2 * 2048 / 256, "bias_lr": 0.0048 / 0.2, "weight_decay": 1e-6,
        "decayed": "matrices", "warmup": 10 / 1000, "lr_drops": "", "lr_end": 0.001, "crop_min": 0.08,
    },
    "instance-discrimination-imagenet": {
        "backbone": "resnet50", "batch_size": 256, "epochs": 200, "size_px": 224, "augmentation": "moco-v1",
        "tau": 0.07, "noise_samples": 4096, "bank_momentum": 0.5, "proximal": 0.0, "projector_layers": 1,
        "projector_dim": 128, "optimizer": "sgd", "lr": 0.03, "weight_decay": 1e-4, "decayed": "all", "warmup": 0.0,
        "lr_drops": "0.6,0.8", "crop_min": 0.2,
    },
    "cpc-imagenet": {
        "batch_size": 32 * 16, "size_px": 256, "augmentation": "cpc", "patch_px": 64, "patch_grid": 7,
        "predict_steps": 5, "directions": 1, "optimizer": "adamw", "lr": 2e-4, "weight_decay": 0.0,
        "crop_min": 256**2 / 300**2,
    },
    "simclr-cifar": {
        "backbone": "resnet18", "batch_size": 512, "epochs": 1000, "size_px": 32, "augmentation": "small", "tau": 0.5,
        "projector_layers": 3, "projector_dim": 128, "optimizer": "lars", "lr": 1.0 * 512 / 256, "weight_decay": 1e-4,
        "warmup": 10 / 1000, "lr_drops": "",
    },
    "moco-cifar": {
        "backbone": "resnet18", "batch_size": 512, "epochs": 200, "size_px": 32, "augmentation": "small", "tau": 0.1,
        "queue_size": 4096, "key_momentum": 0.99, "symmetric": False, "bn_splits": 8, "projector_layers": 1,
        "projector_dim": 128, "optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "decayed": "all", "warmup": 0.0,
        "lr_drops": "", "crop_min": 0.08,
    },
    "instance-discrimination-cifar": {
        "backbone": "resnet18", "batch_size": 128, "epochs": 200, "size_px": 32, "tau": 0.1, "noise_samples": 0,
        "bank_momentum": 0.5, "proximal": 0.0, "projector_dim": 128, "optimizer": "sgd", "lr": 0.03,
        "weight_decay": 5e-4, "decayed": "all", "warmup": 0.0, "lr_drops": "0.6,0.8", "crop_min": 0.2,
    },
}  # fmt: skip


def test_the_cheat_sheet_has_every_published_recipe() -> None:
    assert sorted(CHEAT_SHEET) == PUBLISHED


@pytest.mark.parametrize("name", CHEAT_SHEET)
def test_a_published_recipe_says_what_was_published(name: str) -> None:
    facts = IMAGENET if name.endswith("imagenet") else CIFAR
    settings = plan(TrainConfig(method=recipes.load(name).method, recipe=name), facts).settings
    expected = CHEAT_SHEET[name]
    found = {key: getattr(settings, key) for key in expected}
    assert found == {key: pytest.approx(value) if type(value) is float else value for key, value in expected.items()}


def test_linear_and_square_root_scaling_of_simclr_agree_at_the_published_batch_only() -> None:
    def lr(batch: int) -> float:
        return plan(TrainConfig(recipe="simclr-imagenet", batch_size=batch), IMAGENET).settings.lr

    assert lr(4096) == pytest.approx(0.3 * 4096 / 256) == pytest.approx(0.075 * 4096**0.5)
    assert lr(256) == pytest.approx(1.2)  # linear: 0.3


@pytest.mark.parametrize(("batch", "published"), [(128, 0.35), (256, 0.4), (512, 0.6), (1024, 1.0)])
def test_the_rates_of_barlow_twins_for_small_batches_are_near_those_of_its_author(batch: int, published: float) -> None:
    # facebookresearch/barlowtwins#7: --learning-rate 0.7, 0.4, 0.3 and 0.25, which the code multiplies by batch / 256.
    config = TrainConfig(method="barlow-twins", recipe="barlow-twins-gpu", batch_size=batch)
    assert plan(config, IMAGENET).settings.lr == pytest.approx(published, rel=0.21)


# --- Recipes of a user ---------------------------------------------------------------------------------------------


def test_a_file_may_give_plain_values(tmp_path: Path) -> None:
    recipe = recipes.load(write(tmp_path, 'method = "simclr"\ntau = 0.3\nbase_lr = { value = 1, source = "tried" }\n'))
    assert (recipe.name, recipe.title, recipe.own) == ("mine", "mine", True)
    assert recipe.values == {"tau": 0.3, "base_lr": 1.0}
    assert recipe.sources == {"base_lr": "tried"}
    assert type(recipe.values["base_lr"]) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tau = 0.2", "does not say which method"),
        ('method = "byol"', "is for the method 'byol'"),
        ('method = "simclr"\ntemperature = 0.2', "sets 'temperature', which a recipe cannot set"),
        ('method = "simclr"\nseed = 1', "sets 'seed', which a recipe cannot set"),
        ('method = "simclr"\nqueue_size = 64', "queue_size, which has no meaning for simclr"),
        ('method = "simclr"\ntau = "low"', "tau to 'low', which is not a number"),
        ('method = "simclr"\nepochs = 1.5', "epochs to 1.5, which is not a whole number"),
        ('method = "simclr"\nepochs = true', "epochs to True, which is not a whole number"),
        ('method = "moco"\nsymmetric = 1', "symmetric to 1, which is not true or false"),
        ('method = "simclr"\nlr_drops = [0.5]', "which is not text in quotes"),
        ('method = "simclr"\ntau = -1', "tau is -1.0; it must be greater than 0"),
        ('method = "simclr"\nlr_drops = "0.8,0.6"', "increasing shares"),
        ('method = "simclr"\nepochs = 1\nminutes = 2', "both epochs = 1 and minutes = 2.0 were given"),
        ('method = "simclr"\nlr = 1\nbase_lr = 2', "both lr = 1.0 and base_lr = 2.0 were given"),
        ('method = "simclr"\ntau = { source = "?" }', "gives tau as { source }"),
        ('method = "simclr"\ntau = { value = 1, from = "?" }', "gives tau as { value, from }"),
        ("method = ", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        recipes.load(write(tmp_path, text))
    assert message in caught.value.message
    assert "mine.toml" in caught.value.message


def test_a_missing_file_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.toml cannot be read: No such file"):
        recipes.load(str(tmp_path / "none.toml"))
    with pytest.raises(InvalidInput, match="there is no recipe 'simclr-tpu'") as caught:
        recipes.load("simclr-tpu")
    assert "simclr-gpu" in caught.value.hint


def test_a_recipe_of_another_method_is_refused_with_the_method_to_name() -> None:
    with pytest.raises(InvalidInput, match="moco-cifar is for moco, not for simclr") as caught:
        plan(TrainConfig(recipe="moco-cifar"), CIFAR)
    assert "--method moco" in caught.value.hint


def test_every_setting_has_one_type_that_toml_knows() -> None:
    assert {recipes.type_of(entry.name) for entry in fields(TrainConfig)} == {int, float, str, bool}


def test_alternatives_are_settings_and_symmetric() -> None:
    assert {ALTERNATIVES[ALTERNATIVES[name]] == name for name in ALTERNATIVES} == {True}
    assert ALTERNATIVES.keys() <= {entry.name for entry in fields(TrainConfig)}
