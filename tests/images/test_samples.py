"""The arithmetic of the value range."""

from __future__ import annotations

import numpy as np

from embedserve.images.samples import to_uint8


def test_sixteen_bits_are_rounded_and_not_cut() -> None:
    values = np.arange(65_536, dtype=np.uint16)
    assert to_uint8(values, (0, 65_535)).tolist() == [(value + 128) // 257 for value in range(65_536)]


def test_a_range_of_twelve_bits_spans_black_to_white_and_clips() -> None:
    values = np.array([0, 2048, 4095, 60_000], np.uint16)
    assert to_uint8(values, (0, 4095)).tolist() == [0, 128, 255, 255]


def test_white_is_zero_turns_the_result_round() -> None:
    assert to_uint8(np.array([0, 65_535], np.uint16), (0, 65_535), white_is_zero=True).tolist() == [255, 0]


def test_floats_and_signed_values_follow_the_range_and_nan_is_black() -> None:
    assert to_uint8(np.array([0.0, 0.5, 1.0, np.nan, np.inf, -np.inf]), (0, 1)).tolist() == [0, 128, 255, 0, 255, 0]
    assert to_uint8(np.array([-100, 0, 100], np.int16), (-100, 100)).tolist() == [0, 128, 255]
