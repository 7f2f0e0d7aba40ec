"""Which source of a setting wins, what the plan refuses, and how it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from embedserve.cli.training import make_config, read_settings, setting_options
from embedserve.errors import InvalidInput
from embedserve_training.plan.config import METHODS, TrainConfig
from embedserve_training.plan.plan import Facts, Plan, PlanEntry, plan
from embedserve_training.plan.recipes import Recipe
from embedserve_training.plan.sources import SettingSources

SMALL = Facts(images=3000, median_side_px=28, cores=2)
PHOTOS = Facts(images=50_000, median_side_px=480, cuda=True, cores=16)


def entry(the_plan: Plan, name: str) -> PlanEntry:
    return next(entry for entry in the_plan.entries if entry.name == name)


def value_and_source(the_plan: Plan, name: str) -> tuple[Any, str]:
    found = entry(the_plan, name)
    return found.value, found.source


def recipe_file(folder: Path, text: str, method: str = "simclr") -> str:
    path = folder / "mine.toml"
    path.write_text(f'method = "{method}"\n{text}', encoding="utf-8")
    return str(path)


# --- Which source wins ---------------------------------------------------------------------------------------------


def test_default_recipe_file_environment_and_flag_win_in_this_order(tmp_path: Path) -> None:
    mine = recipe_file(tmp_path, "tau = 0.3\nwarmup = 0.2\nclip_norm = 1.0\nlr_end = 0.1\n")
    config = TrainConfig(recipe=mine, warmup=0.3, clip_norm=2.0)
    the_plan = plan(config, SMALL, from_environment={"warmup"})
    assert value_and_source(the_plan, "bias_lr") == (1.0, "default")
    assert value_and_source(the_plan, "projector_dim") == (128, "recipe")
    assert value_and_source(the_plan, "tau") == (0.3, "file")
    assert value_and_source(the_plan, "warmup") == (0.3, "environment")
    assert value_and_source(the_plan, "clip_norm") == (2.0, "flag")
    assert value_and_source(the_plan, "recipe") == (mine, "flag")


def test_settings_that_a_file_leaves_open_come_from_the_recipe_for_the_network(tmp_path: Path) -> None:
    filled = entry(plan(TrainConfig(recipe=recipe_file(tmp_path, "tau = 0.3\n")), SMALL), "base_lr")
    assert filled.source == "recipe"
    assert filled.why.startswith("simclr-cpu: ")


def test_the_source_in_a_file_is_the_reason_in_the_plan(tmp_path: Path) -> None:
    mine = recipe_file(tmp_path, 'tau = { value = 0.3, source = "tried on our tiles" }\n')
    assert entry(plan(TrainConfig(recipe=mine), SMALL), "tau").why == "tried on our tiles"


def test_a_recipe_given_by_name_is_used_once() -> None:
    by_name, by_itself = (plan(TrainConfig(recipe=name), SMALL) for name in ("simclr-cpu", None))
    assert by_name.settings == by_itself.settings
    assert entry(by_name, "tau") == entry(by_itself, "tau")


def test_a_later_recipe_does_not_replace_a_setting_of_an_earlier_one() -> None:
    sources = SettingSources(TrainConfig())
    sources.use(Recipe(name="first", title="", method="simclr", values={"base_lr": 0.1, "epochs": 3}))
    sources.use(Recipe(name="second", title="", method="simclr", values={"lr": 0.2, "minutes": 1.0, "tau": 0.3}))
    given = [sources.from_recipe(name) for name in ("base_lr", "epochs", "lr", "minutes", "tau")]
    assert [entry and entry.value for entry in given] == [0.1, 3, None, None, 0.3]


def test_every_setting_that_is_given_is_used_and_has_its_source() -> None:
    the_plan = plan(TrainConfig(tau=0.5, compile=True, seed=7, crop_min=0.5), SMALL)
    for name, value in (("tau", 0.5), ("compile", True), ("seed", 7), ("crop_min", 0.5)):
        assert value_and_source(the_plan, name) == (value, "flag")


def test_a_recipe_can_ask_for_compilation_and_a_flag_can_refuse_it(tmp_path: Path) -> None:
    mine = recipe_file(tmp_path, "compile = true\n")
    assert value_and_source(plan(TrainConfig(recipe=mine), SMALL), "compile") == (True, "file")
    assert value_and_source(plan(TrainConfig(recipe=mine, compile=False), SMALL), "compile") == (False, "flag")
    assert value_and_source(plan(TrainConfig(), SMALL), "compile") == (False, "default")


@pytest.mark.parametrize(
    ("recipe", "config", "expected"),
    [
        ("epochs = 7", {}, (7, 0.0)),
        ("minutes = 2.0", {}, (0, 2.0)),
        ("epochs = 7", {"minutes": 3.0}, (0, 3.0)),
        ("minutes = 2.0", {"epochs": 5}, (5, 0.0)),
        ("tau = 0.1", {}, (100, 0.0)),
    ],
)
def test_a_budget_that_the_user_gives_replaces_that_of_the_recipe(
    tmp_path: Path, recipe: str, config: dict[str, Any], expected: tuple[int, float]
) -> None:
    settings = plan(TrainConfig(recipe=recipe_file(tmp_path, recipe), **config), SMALL).settings
    assert (settings.epochs, settings.minutes) == expected


# At 64 images: √(64 / 256) = 0.5.
@pytest.mark.parametrize(
    ("recipe", "config", "expected"),
    [
        ("base_lr = 0.4", {}, 0.2),
        ("base_lr = 0.4", {"lr": 0.7}, 0.7),
        ("lr = 0.7", {}, 0.7),
        ("lr = 0.7", {"base_lr": 0.4}, 0.2),
        ("lr = 0.7", {"base_lr": 0.4, "lr_scaling": "linear"}, 0.1),
        ("base_lr = 0.4", {"lr_scaling": "none"}, 0.4),
    ],
)
def test_a_learning_rate_that_the_user_gives_replaces_that_of_the_recipe(
    tmp_path: Path, recipe: str, config: dict[str, Any], expected: float
) -> None:
    settings = plan(TrainConfig(recipe=recipe_file(tmp_path, recipe), batch_size=64, **config), SMALL).settings
    assert settings.lr == pytest.approx(expected)


def test_scaling_a_rate_that_the_recipe_gives_unscaled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="lr_scaling is linear, but the recipe gives lr itself"):
        plan(TrainConfig(recipe=recipe_file(tmp_path, "lr = 0.7"), lr_scaling="linear"), SMALL)


# --- Flags, --set and the environment ------------------------------------------------------------------------------


def read(line: list[str], environment: dict[str, str] | None = None) -> tuple[TrainConfig, frozenset[str]]:
    found: list[tuple[TrainConfig, frozenset[str]]] = []

    @click.command("train", context_settings={"auto_envvar_prefix": "EMBEDSERVE_TRAIN"})
    @setting_options
    def command(settings: tuple[str, ...], **flags: Any) -> None:
        found.append(read_settings(flags, settings))

    CliRunner().invoke(command, line, env=environment, catch_exceptions=False, standalone_mode=False)
    return found[0]


@pytest.mark.parametrize("text", ["false", "False", "no", "0"])
def test_set_of_a_false_truth_value_is_not_true_as_argparse_with_type_bool_has_it(text: str) -> None:
    assert make_config({"method": "moco"}, [f"symmetric={text}"]).symmetric is False


@pytest.mark.parametrize("text", ["true", "YES", "1"])
def test_set_of_a_true_truth_value_is_true(text: str) -> None:
    assert make_config({"method": "moco"}, [f"symmetric={text}"]).symmetric is True


def test_set_of_neither_true_nor_false_is_refused() -> None:
    with pytest.raises(InvalidInput, match="symmetric is 'maybe'"):
        make_config({"method": "moco"}, ["symmetric=maybe"])


def test_an_environment_variable_is_read_and_told_apart_from_a_flag() -> None:
    config, from_environment = read(["--epochs", "3"], {"EMBEDSERVE_TRAIN_BATCH_SIZE": "64"})
    assert (config.epochs, config.batch_size, from_environment) == (3, 64, {"batch_size"})


def test_a_flag_wins_over_its_environment_variable() -> None:
    config, from_environment = read(["--batch-size", "32"], {"EMBEDSERVE_TRAIN_BATCH_SIZE": "64"})
    assert (config.batch_size, from_environment) == (32, frozenset())


def test_set_in_the_environment_gives_several_settings_and_loses_to_a_flag() -> None:
    config, from_environment = read(["--epochs", "3"], {"EMBEDSERVE_TRAIN_SET": "tau=0.3 epochs=9"})
    assert (config.tau, config.epochs, from_environment) == (0.3, 3, {"tau"})


def test_set_on_the_line_wins_over_an_environment_variable_of_the_same_setting() -> None:
    config, from_environment = read(["--set", "batch-size=32"], {"EMBEDSERVE_TRAIN_BATCH_SIZE": "64"})
    assert (config.batch_size, from_environment) == (32, frozenset())


# --- Settings that contradict each other ---------------------------------------------------------------------------


def test_a_queue_longer_than_half_the_images_holding_an_image_among_its_own_negatives_does_not_happen() -> None:
    # The bug of facebookresearch/moco#146.
    capped = entry(plan(TrainConfig(method="moco"), SMALL), "queue_size")
    assert (capped.value, capped.source) == (1500, "auto")
    assert capped.why == "half of 3000 images; the recipe has 4096"
    with pytest.raises(InvalidInput, match="queue_size is 1501, but at most 1500 is possible") as caught:
        plan(TrainConfig(method="moco", queue_size=1501), SMALL)
    assert caught.value.hint == "--set queue_size=1500, or leave it out"
    assert plan(TrainConfig(method="moco", queue_size=1500), SMALL).settings.queue_size == 1500


@pytest.mark.parametrize(
    ("method", "reason"), [("simclr", "negatives"), ("barlow-twins", "cross-correlation"), ("cpc", "negatives")]
)
def test_gradients_are_not_accumulated_where_two_half_batches_are_not_a_batch_and_the_reason_is_given(
    method: str, reason: str
) -> None:
    with pytest.raises(InvalidInput, match=f"accumulate is 4, but {method} needs the whole batch at once") as caught:
        plan(TrainConfig(method=method, accumulate=4), SMALL)
    assert reason in caught.value.message
    assert "two half batches do not equal one batch" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("method", ["moco", "instance-discrimination"])
def test_gradients_are_accumulated_where_images_are_compared_with_earlier_ones(method: str) -> None:
    settings = plan(TrainConfig(method=method, accumulate=4, batch_size=64), SMALL).settings
    assert (settings.accumulate, settings.batch_size) == (4, 64)


@pytest.mark.parametrize(
    ("batch", "accumulate", "processes", "nearest"), [(50, 1, 4, 48), (48, 5, 4, 40), (8, 8, 1, 16)]
)
def test_a_batch_that_cannot_be_shared_evenly_is_refused_with_one_that_can(
    batch: int, accumulate: int, processes: int, nearest: int
) -> None:
    facts = Facts(images=3000, median_side_px=28, processes=processes)
    config = TrainConfig(method="moco", batch_size=batch, accumulate=accumulate)
    with pytest.raises(InvalidInput, match=f"batch_size is {batch}, which {processes} process") as caught:
        plan(config, facts)
    assert caught.value.hint == f"--batch-size {nearest}"


def test_fewer_than_two_images_for_each_process_are_refused() -> None:
    with pytest.raises(InvalidInput, match="16 images are too few for 9 processes"):
        plan(TrainConfig(), Facts(images=16, median_side_px=28, processes=9))


@pytest.mark.parametrize("splits", [3, 64, 128])
def test_batch_norm_parts_that_are_uneven_or_of_single_images_are_refused(splits: int) -> None:
    with pytest.raises(InvalidInput, match=f"bn_splits is {splits}, but 64 images cannot be cut"):
        plan(TrainConfig(method="moco", batch_size=64, bn_splits=splits), SMALL)


def test_more_batch_norm_parts_than_the_recipe_has_are_possible() -> None:
    assert plan(TrainConfig(method="moco", batch_size=64, bn_splits=16), SMALL).settings.bn_splits == 16


def test_more_rows_to_predict_than_there_are_below_the_first_are_refused() -> None:
    with pytest.raises(InvalidInput, match="predict_steps is 5, but at most 4 is possible: a grid of 5 rows"):
        plan(TrainConfig(method="cpc", predict_steps=5), SMALL)


def test_patches_larger_than_the_image_are_refused() -> None:
    with pytest.raises(InvalidInput, match="patch_px is 64, but images have 28 px"):
        plan(TrainConfig(method="cpc", patch_px=64), SMALL)


@pytest.mark.parametrize(("size", "patch"), [(8, 8), (28, 12), (32, 14), (64, 27), (96, 24), (224, 56)])
def test_patches_overlap_and_never_exceed_the_image(size: int, patch: int) -> None:
    settings = plan(TrainConfig(method="cpc", size_px=size), SMALL).settings
    assert settings.patch_px == patch
    assert settings.patch_px * settings.patch_grid > size


def test_a_rate_that_drops_while_it_still_rises_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"rises until 0\.1 of the run"):
        plan(TrainConfig(lr_drops="0.05,0.5"), SMALL)


# --- Several processes ---------------------------------------------------------------------------------------------


def test_the_automatic_batch_grows_with_the_processes_up_to_1024() -> None:
    def batch(processes: int) -> tuple[int, str]:
        facts = Facts(images=1_000_000, median_side_px=480, cuda=True, processes=processes)
        chosen = entry(plan(TrainConfig(), facts), "batch_size")
        return chosen.value, chosen.why.partition("; ")[2]

    assert [batch(1), batch(2)] == [(256, ""), (512, "256 on each of 2 processes")]
    assert [batch(3), batch(8)] == [(768, "256 on each of 3 processes"), (1024, "128 on each of 8 processes")]


def test_the_automatic_batch_is_one_that_the_processes_can_share() -> None:
    facts = Facts(images=3000, median_side_px=28, processes=7)
    chosen = entry(plan(TrainConfig(), facts), "batch_size")
    assert chosen.value == 73 * 7  # of 512, four steps for 3,000 images
    assert "73 on each of 7 processes" in chosen.why


def test_a_recipes_batch_norm_parts_are_those_of_all_processes_together() -> None:
    def splits(processes: int) -> int:
        facts = Facts(images=50_000, median_side_px=480, cuda=True, processes=processes)
        return plan(TrainConfig(method="moco", batch_size=256), facts).settings.bn_splits

    assert [splits(count) for count in (1, 2, 8, 16)] == [8, 4, 1, 1]


# --- Sensible at the extremes --------------------------------------------------------------------------------------


def test_few_images_on_a_laptop_take_four_steps_in_an_epoch() -> None:
    settings = plan(TrainConfig(), Facts(images=500, median_side_px=1200, cores=4)).settings
    assert (settings.backbone, settings.size_px, settings.batch_size) == ("resnet18", 96, 64)


def test_a_million_images_are_compared_with_a_sample_and_some_thousands_to_all() -> None:
    def noise(images: int) -> int:
        facts = Facts(images=images, median_side_px=480, cuda=True)
        return plan(TrainConfig(method="instance-discrimination"), facts).settings.noise_samples

    assert [noise(5000), noise(200_000), noise(1_000_000)] == [0, 0, 4096]


def test_sixteen_images_leave_batch_norm_and_queue_something_to_work_with() -> None:
    settings = plan(TrainConfig(method="moco"), Facts(images=16, median_side_px=28)).settings
    assert (settings.batch_size, settings.queue_size, settings.bn_splits) == (4, 8, 1)


# --- How it reads --------------------------------------------------------------------------------------------------


def shown(the_plan: Plan) -> list[str]:
    names = {entry.name for entry in the_plan.entries}
    return [line.split()[0] for line in the_plan.lines() if not line.startswith(" ") and line.split()[0] in names]


@pytest.mark.parametrize("facts", [SMALL, PHOTOS], ids=["small", "photos"])
@pytest.mark.parametrize("method", METHODS)
def test_no_line_is_wider_than_a_terminal_of_120_columns_with_its_indent(method: str, facts: Facts) -> None:
    assert max(len(line) for line in plan(TrainConfig(method=method), facts).lines()) <= 118
    assert max(len(line) for line in plan(TrainConfig(method=method), facts).lines(76)) <= 76


def test_a_long_reason_is_wrapped_below_itself_and_loses_nothing(tmp_path: Path) -> None:
    reason = " ".join(f"word{number}" for number in range(40))
    mine = recipe_file(tmp_path, f'tau = {{ value = 0.3, source = "{reason}" }}\n')
    lines = plan(TrainConfig(recipe=mine), SMALL).lines()
    [first] = [number for number, line in enumerate(lines) if line.startswith("tau ")]
    last = first + 1
    while lines[last].startswith(" "):
        last += 1
    column = lines[first].index("file: ")
    assert last > first + 1
    assert {line[:column].strip() for line in lines[first + 1 : last]} == {""}
    assert " ".join(line[column:] for line in lines[first:last]) == f"file: {reason}"


def test_a_long_value_shifts_only_its_own_reason(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20)
    folder.mkdir()
    lines = plan(TrainConfig(recipe=recipe_file(folder, "tau = 0.3\n")), SMALL).lines()
    assert any("mine.toml" in line for line in lines)
    assert max(line.index("auto: ") for line in lines if line.startswith("batch_size ")) < 60


@pytest.mark.parametrize(
    ("method", "absent"),
    [
        ("simclr", {"queue_size", "bn_splits", "patch_px", "noise_samples", "off_diagonal", "accumulate"}),
        ("moco", {"patch_px", "noise_samples", "off_diagonal", "directions"}),
        ("barlow-twins", {"tau", "queue_size", "accumulate"}),
        ("instance-discrimination", {"queue_size", "projector_hidden", "symmetric"}),
        ("cpc", {"tau", "projector_dim", "projector_layers", "projector_hidden", "accumulate", "proximal"}),
    ],
)
def test_settings_without_a_meaning_for_the_method_are_not_shown(method: str, absent: set[str]) -> None:
    names = set(shown(plan(TrainConfig(method=method), SMALL)))
    assert names & (absent | {"minutes"}) == set()
    assert names >= {"method", "batch_size", "epochs", "optimizer", "lr", "weight_decay", "seed"}


def test_a_rate_that_is_given_is_shown_without_its_base_and_scaling() -> None:
    assert set(shown(plan(TrainConfig(lr=0.1), SMALL))) & {"lr", "base_lr", "lr_scaling"} == {"lr"}


def test_steps_are_shown_without_the_end_of_a_cosine() -> None:
    assert "lr_end" in shown(plan(TrainConfig(), SMALL))
    assert "lr_end" not in shown(plan(TrainConfig(lr_drops="0.5"), SMALL))


def test_truth_values_are_words_and_an_empty_value_is_a_dash() -> None:
    lines = [" ".join(line.split()[:2]) for line in plan(TrainConfig(method="moco"), SMALL).lines()]
    assert {"symmetric yes", "compile no", "lr_drops –"} <= set(lines)
