"""Eight steps of each method cost what they cost when the file of golden curves was made.

A change that moves a curve changes what a method computes. If it is meant to, tests/training/golden/make.py writes the
file anew. The file holds six decimals and was made with losses in fp32: curves in fp64 differ from it by up to 4e-6 of
a loss. Differences of 1e-9 in the weights change a loss by less than 1e-6 of it, and other builds of PyTorch differ by
1e-15 in fp64. So 2e-5 is far above what rounding does and far below what a wrong constant does.
"""

from __future__ import annotations

import pytest

from embedserve_training.plan.config import METHODS
from tests.training.golden.curves import CASES, losses, stored


@pytest.mark.parametrize("name", CASES)
def test_eight_steps_cost_what_they_did(name: str) -> None:
    assert losses(name) == pytest.approx(stored()[name], rel=2e-5)


def test_there_is_a_golden_curve_for_every_case() -> None:
    assert set(stored()) == set(CASES)
    assert all(len(curve) == 8 for curve in stored().values())


def test_a_temperature_one_percent_off_would_show() -> None:
    changed = losses("moco", tau=0.202)
    assert changed != pytest.approx(stored()["moco"], rel=1e-3)


def test_every_method_has_a_curve() -> None:
    assert {method for method, _ in CASES.values()} == set(METHODS)
