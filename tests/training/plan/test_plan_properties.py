"""Whatever the images and the machine, the settings of a plan are consistent."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.errors import InvalidInput
from embedserve_training.plan import recipes
from embedserve_training.plan.config import METHODS, MIN_IMAGES, Settings, TrainConfig, drops
from embedserve_training.plan.plan import Facts, plan

TYPES = get_type_hints(Settings)

any_facts = st.builds(
    Facts,
    images=st.one_of(st.integers(MIN_IMAGES, 300), st.integers(MIN_IMAGES, 20_000_000)),
    median_side_px=st.one_of(st.integers(1, 100), st.integers(1, 20_000)),
    grey=st.booleans(),
    cuda=st.booleans(),
    mps=st.booleans(),
    cores=st.integers(1, 256),
    processes=st.one_of(st.just(1), st.integers(1, 64)),
)


def check_consistent(chosen: Settings, facts: Facts) -> None:
    for entry in fields(Settings):
        assert type(getattr(chosen, entry.name)) is TYPES[entry.name], entry.name
    shares = facts.processes * chosen.accumulate
    assert 2 * shares <= chosen.batch_size <= facts.images
    assert chosen.batch_size % shares == 0
    part = chosen.batch_size // shares
    assert 8 <= chosen.size_px <= 4096
    assert 0 < chosen.crop_min <= 1
    assert math.isfinite(chosen.lr)
    assert chosen.lr > 0
    assert bool(chosen.epochs) != bool(chosen.minutes)
    assert all(drop > chosen.warmup for drop in drops(chosen.lr_drops))
    assert 1 <= chosen.workers <= 16
    if chosen.method == "moco":
        assert 1 <= chosen.queue_size <= facts.images / 2
        assert part % chosen.bn_splits == 0
        assert part // chosen.bn_splits >= 2
    if chosen.method == "cpc":
        assert 1 <= chosen.predict_steps < chosen.patch_grid
        assert 0 < chosen.patch_px <= chosen.size_px
    if chosen.method == "instance-discrimination":
        assert chosen.noise_samples in (0, 4096)


@settings(deadline=None)
@given(method=st.sampled_from(METHODS), facts=any_facts)
def test_an_automatic_plan_is_consistent_or_there_are_too_few_images_for_the_processes(
    method: str, facts: Facts
) -> None:
    if facts.images < 2 * facts.processes:
        with pytest.raises(InvalidInput, match="too few for"):
            plan(TrainConfig(method=method), facts)
        return
    the_plan = plan(TrainConfig(method=method), facts)
    check_consistent(the_plan.settings, facts)
    assert max(len(line) for line in the_plan.lines()) <= 118


@settings(deadline=None)
@given(name=st.sampled_from(recipes.names()), facts=any_facts, accumulate=st.integers(1, 5))
def test_every_recipe_is_fitted_to_the_images(name: str, facts: Facts, accumulate: int) -> None:
    method = recipes.load(name).method
    parts = accumulate if method in ("moco", "instance-discrimination") else 1
    config = TrainConfig(method=method, recipe=name, accumulate=parts)
    if facts.images < 2 * facts.processes * parts:
        with pytest.raises(InvalidInput, match="too few for"):
            plan(config, facts)
        return
    check_consistent(plan(config, facts).settings, facts)


@settings(deadline=None)
@given(
    facts=any_facts,
    given_values=st.fixed_dictionaries(
        {},
        optional={
            "batch_size": st.integers(2, 4096),
            "accumulate": st.integers(1, 16),
            "queue_size": st.integers(1, 100_000),
            "bn_splits": st.integers(1, 64),
            "size_px": st.integers(8, 512),
            "warmup": st.floats(0, 0.99),
            "lr_drops": st.sampled_from(["", "0.5", "0.6,0.8"]),
            "backbone": st.sampled_from(["small-cnn", "resnet18"]),
        },
    ),
)
def test_a_given_value_is_used_unchanged_or_refused_with_what_to_type(
    facts: Facts, given_values: dict[str, Any]
) -> None:
    refusal: InvalidInput | None = None
    try:
        chosen = plan(TrainConfig(method="moco", **given_values), facts).settings
    except InvalidInput as error:
        refusal = error
    if refusal:
        assert refusal.hint
        return
    assert {name: getattr(chosen, name) for name in given_values} == given_values
    check_consistent(chosen, facts)


@settings(deadline=None)
@given(facts=any_facts, batch=st.integers(2, 5000), accumulate=st.integers(1, 8))
def test_the_batch_that_a_refusal_names_is_accepted(facts: Facts, batch: int, accumulate: int) -> None:
    config = {"method": "moco", "accumulate": accumulate}
    try:
        plan(TrainConfig(**config, batch_size=batch), facts)  # type: ignore[arg-type]
    except InvalidInput as error:
        if not error.hint.startswith("--batch-size "):
            return
        named = int(error.hint.removeprefix("--batch-size ").partition(",")[0])
        assert plan(TrainConfig(**config, batch_size=named), facts).settings.batch_size == named  # type: ignore[arg-type]
