"""Whether augmented images find their originals: ranks by hand, and what must not change the figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from embedserve.errors import DataError, InvalidInput
from embedserve_training.augment import PRESETS, Augmentation
from embedserve_training.evaluate import raw_pixels, self_retrieval
from embedserve_training.evaluate.self_retrieval import (
    Queries,
    distinct,
    evenly_spaced,
    make_queries,
    score,
)
from tests.training.conftest import KINDS, draw

NOTHING = Augmentation(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=0)


def at(*degrees: float) -> np.ndarray:
    """Points on the unit circle."""
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], np.float32)


def queries_of(originals: list[int], chosen: list[int]) -> Queries:
    return Queries(
        views_QSSC=np.zeros((len(chosen), 1, 1, 3), np.uint8),
        originals_U=np.array(originals),
        chosen_Q=np.array(chosen),
    )


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([draw(kind, seed) for kind in KINDS for seed in range(20)])


def test_ranks_and_their_reciprocals_are_those_worked_out_by_hand() -> None:
    originals = at(*range(0, 120, 10))
    # Originals: of 1° 0° (rank 1); of 2° 20°, where 0° and 10° are nearer (3); of 3° 110°, the last of twelve.
    result = score(queries_of(list(range(12)), [0, 2, 11]), originals, at(1, 2, 3))
    assert (result.recall_1, result.recall_5, result.recall_10) == (
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )
    assert result.mrr == pytest.approx((1 + 1 / 3 + 1 / 12) / 3)
    assert (result.images, result.queries) == (12, 3)


def test_an_encoder_that_maps_all_images_to_one_vector_finds_none() -> None:
    result = score(queries_of([0, 1, 2, 3], [0, 3]), at(30, 30, 30, 30), at(30, 30))
    assert (result.recall_1, result.mrr) == (0, 0.25)


def test_only_different_images_are_searched() -> None:
    # The second vector repeats the first image and would be as near.
    result = score(queries_of([0, 2], [0]), at(0, 0, 90), at(1))
    assert (result.recall_1, result.images) == (1, 2)


def test_images_that_do_not_change_find_themselves(pictures: np.ndarray) -> None:
    result = self_retrieval(raw_pixels, pictures, NOTHING)
    assert (result.recall_1, result.mrr, result.images, result.queries) == (1, 1, 60, 60)


def test_repeated_images_are_used_once(pictures: np.ndarray) -> None:
    twice = np.concatenate([pictures[:5], pictures, pictures[:5]])
    assert distinct(twice).tolist() == [*range(5), *range(10, 65)]
    assert self_retrieval(raw_pixels, twice, "small") == self_retrieval(raw_pixels, pictures, "small")


def test_a_single_image_is_refused(pictures: np.ndarray) -> None:
    # Any encoder would find the only image.
    with pytest.raises(DataError, match="self-retrieval needs 2 different images, but there is 1"):
        self_retrieval(raw_pixels, np.concatenate([pictures[:1], pictures[:1]]), "small")
    assert self_retrieval(raw_pixels, pictures[:2], NOTHING).images == 2


def test_the_queries_are_the_same_every_time_and_differ_for_another_seed(pictures: np.ndarray) -> None:
    views = make_queries(pictures, "small").views_QSSC
    assert np.array_equal(views, make_queries(pictures, "small").views_QSSC)
    assert not np.array_equal(views, make_queries(pictures, "small", seed=1).views_QSSC)
    assert views.shape == pictures.shape
    assert views.dtype == np.uint8


def test_queries_are_evenly_spaced_over_the_folder_and_search_in_all_of_it(pictures: np.ndarray) -> None:
    assert evenly_spaced(7, 3).tolist() == [0, 3, 6]
    assert evenly_spaced(3, 7).tolist() == [0, 1, 2]
    result = self_retrieval(raw_pixels, pictures, NOTHING, queries=4)
    assert (result.images, result.queries, result.recall_1) == (60, 4, 1)


def test_the_first_view_of_a_named_preset_is_used(pictures: np.ndarray) -> None:
    first, second = PRESETS["barlow-twins"]
    named = make_queries(pictures, "barlow-twins").views_QSSC
    assert np.array_equal(named, make_queries(pictures, first).views_QSSC)
    assert not np.array_equal(named, make_queries(pictures, second).views_QSSC)


def test_an_unknown_preset_is_refused(pictures: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="there is no augmentation 'magic'") as caught:
        self_retrieval(raw_pixels, pictures, "magic")
    assert "photo" in caught.value.hint
