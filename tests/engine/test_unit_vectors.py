"""Vectors from callers at norm 1: many at once get the same bits as one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedserve.engine import unit_vectors
from embedserve.errors import DimensionMismatch, EmbedserveError, InvalidInput

DIMENSION = 37


def outcome(vector: NDArray[np.float32]) -> bytes | tuple[str, str]:
    try:
        return unit_vectors.unit(vector, DIMENSION).tobytes()
    except EmbedserveError as error:
        return error.code, error.message


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(-38, 37))
def test_many_at_once_get_the_bits_that_each_gets_alone(seed: int, count: int, power: int) -> None:
    rows = (np.random.default_rng(seed).standard_normal((count, DIMENSION)) * 10.0**power).astype(np.float32)
    found = unit_vectors.units(list(rows), DIMENSION)
    assert [unit.tobytes() for unit in found if not isinstance(unit, EmbedserveError)] == list(map(outcome, rows))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (np.zeros(DIMENSION, np.float32), InvalidInput),
        (np.full(DIMENSION, np.nan, np.float32), InvalidInput),
        (np.array([1.0] * (DIMENSION - 1) + [-np.inf], np.float32), InvalidInput),
        (np.ones(DIMENSION + 1, np.float32), DimensionMismatch),
        (np.ones((1, DIMENSION), np.float32), DimensionMismatch),
    ],
)
def test_a_bad_vector_among_many_fails_alone(bad: NDArray[np.float32], error: type[EmbedserveError]) -> None:
    good = np.random.default_rng(3).standard_normal((4, DIMENSION)).astype(np.float32)
    found = unit_vectors.units([*good[:2], bad, *good[2:]], DIMENSION)
    refused = found.pop(2)
    assert isinstance(refused, error)
    assert (refused.code, refused.message) == outcome(bad)
    assert [unit.tobytes() for unit in found if not isinstance(unit, EmbedserveError)] == list(map(outcome, good))


def test_vectors_of_several_steps_keep_their_order() -> None:
    wide = np.random.default_rng(5).standard_normal((9, 100_000)).astype(np.float32)
    found = unit_vectors.units(list(wide), 100_000)
    assert [unit.tobytes() for unit in found if not isinstance(unit, EmbedserveError)] == [
        unit_vectors.unit(row, 100_000).tobytes() for row in wide
    ]
