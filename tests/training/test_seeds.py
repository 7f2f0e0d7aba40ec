"""Seeds: another one for every run, purpose and step, in the bits that torch looks at."""

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


def test_seeds_go_round_at_32_bits_of_which_torch_takes_no_more() -> None:
    first = seed_of(0, "order", 0)
    assert seed_of(0, "order", (1 << 32) - first) == 0
    assert drawn(5) == drawn(5 + (1 << 32))  # why they may not be told apart by higher bits


def test_runs_whose_seeds_differ_by_two_draw_other_numbers() -> None:
    # The step added to the seed shifted left by 31 bits left torch one bit of it.
    values = [drawn(seed_of(seed, "views", 7)) for seed in range(8)]
    assert all(one != other for i, one in enumerate(values) for other in values[:i])


def test_each_purpose_draws_its_own_numbers() -> None:
    values = [drawn(seed_of(0, purpose, 7)) for purpose in ("order", "views", "method 0", "method 1", "network 0")]
    assert all(one != other for i, one in enumerate(values) for other in values[:i])


def test_seeds_are_what_they_were_when_runs_that_may_still_go_on_were_begun() -> None:
    assert [seed_of(0, "order", 0), seed_of(1, "views", 2)] == [2393782532, 414988305]
