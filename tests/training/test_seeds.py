"""Seeds differ for every run, purpose and step, in the bits that torch uses."""

from __future__ import annotations

import torch

from embedserve_training.seeds import seed_of


def drawn(seed: int) -> list[float]:
    """The first numbers of torch's generator."""
    values: list[float] = torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()
    return values


def test_the_seeds_of_a_run_follow_each_other_so_that_no_two_steps_have_the_same() -> None:
    first = seed_of(3, "views", 0)
    assert [seed_of(3, "views", step) for step in (1, 2, 1000)] == [first + 1, first + 2, first + 1000]


def test_seeds_wrap_at_32_bits_as_torch_uses_no_more() -> None:
    first = seed_of(0, "order", 0)
    assert seed_of(0, "order", (1 << 32) - first) == 0
    assert drawn(5) == drawn(5 + (1 << 32))  # so higher bits cannot tell seeds apart


def test_runs_whose_seeds_differ_by_two_draw_different_numbers() -> None:
    # With the seed shifted left by 31 bits torch would use only one bit of it.
    values = [drawn(seed_of(seed, "views", 7)) for seed in range(8)]
    assert all(one != other for i, one in enumerate(values) for other in values[:i])


def test_each_purpose_draws_different_numbers() -> None:
    values = [drawn(seed_of(0, purpose, 7)) for purpose in ("order", "views", "method 0", "method 1", "network 0")]
    assert all(one != other for i, one in enumerate(values) for other in values[:i])


def test_seeds_do_not_change_so_that_older_runs_can_be_continued() -> None:
    assert [seed_of(0, "order", 0), seed_of(1, "views", 2)] == [2393782532, 414988305]
