"""Whether augmented images find their originals: ranks by hand, and what must not change the answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from embedserve.errors import DataError, InvalidInput
from embedserve_training.augment import PRESETS, Augmentation
from embedserve_training.evaluate import raw_pixels, self_retrieval
from embedserve_training.evaluate.self_retrieval import Question, answer, ask, distinct, spread
from tests.training.conftest import KINDS, draw

NOTHING = Augmentation(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=0)


def at(*degrees: float) -> np.ndarray:
    """Points on the unit circle."""
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], np.float32)


def question(originals: list[int], chosen: list[int]) -> Question:
    return Question(
        views_QSSC=np.zeros((len(chosen), 1, 1, 3), np.uint8),
        originals_U=np.array(originals),
        chosen_Q=np.array(chosen),
    )


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.stack([draw(kind, seed) for kind in KINDS for seed in range(20)])


def test_ranks_and_their_reciprocals_are_those_worked_out_by_hand() -> None:
    originals = at(*range(0, 120, 10))
    # 1° wants 0° (rank 1). 2° wants 20°: 0° and 10° are nearer (3). 3° wants 110°: the last of twelve.
    result = answer(question(list(range(12)), [0, 2, 11]), originals, at(1, 2, 3))
    assert (result.recall_1, result.recall_5, result.recall_10) == (
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )
    assert result.mrr == pytest.approx((1 + 1 / 3 + 1 / 12) / 3)
    assert (result.images, result.queries) == (12, 3)


def test_an_encoder_to_which_all_images_are_alike_finds_none() -> None:
    result = answer(question([0, 1, 2, 3], [0, 3]), at(30, 30, 30, 30), at(30, 30))
    assert (result.recall_1, result.mrr) == (0, 0.25)


def test_only_different_images_are_searched() -> None:
    # The second vector repeats the first image and would be as near.
    result = answer(question([0, 2], [0]), at(0, 0, 90), at(1))
    assert (result.recall_1, result.images) == (1, 2)


def test_images_that_do_not_change_find_themselves(pictures: np.ndarray) -> None:
    result = self_retrieval(raw_pixels, pictures, NOTHING)
    assert (result.recall_1, result.mrr, result.images, result.queries) == (1, 1, 60, 60)


def test_repeated_images_are_used_once(pictures: np.ndarray) -> None:
    twice = np.concatenate([pictures[:5], pictures, pictures[:5]])
    assert distinct(twice).tolist() == [*range(5), *range(10, 65)]
    assert self_retrieval(raw_pixels, twice, "small") == self_retrieval(raw_pixels, pictures, "small")


def test_an_image_alone_asks_nothing(pictures: np.ndarray) -> None:
    # It would be found by any encoder, as all that there is.
    with pytest.raises(DataError, match="a search needs 2 different images, and here is 1"):
        self_retrieval(raw_pixels, np.concatenate([pictures[:1], pictures[:1]]), "small")
    assert self_retrieval(raw_pixels, pictures[:2], NOTHING).images == 2


def test_the_questions_are_the_same_every_time_and_others_for_another_seed(pictures: np.ndarray) -> None:
    views = ask(pictures, "small").views_QSSC
    assert np.array_equal(views, ask(pictures, "small").views_QSSC)
    assert not np.array_equal(views, ask(pictures, "small", seed=1).views_QSSC)
    assert views.shape == pictures.shape
    assert views.dtype == np.uint8


def test_queries_are_spread_over_the_folder_and_searched_among_all_of_it(pictures: np.ndarray) -> None:
    assert spread(7, 3).tolist() == [0, 3, 6]
    assert spread(3, 7).tolist() == [0, 1, 2]
    result = self_retrieval(raw_pixels, pictures, NOTHING, queries=4)
    assert (result.images, result.queries, result.recall_1) == (60, 4, 1)


def test_the_first_view_of_a_named_preset_is_used(pictures: np.ndarray) -> None:
    first, second = PRESETS["barlow-twins"]
    named = ask(pictures, "barlow-twins").views_QSSC
    assert np.array_equal(named, ask(pictures, first).views_QSSC)
    assert not np.array_equal(named, ask(pictures, second).views_QSSC)


def test_a_preset_that_does_not_exist_is_named(pictures: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="there is no augmentation 'magic'") as caught:
        self_retrieval(raw_pixels, pictures, "magic")
    assert "photo" in caught.value.hint
