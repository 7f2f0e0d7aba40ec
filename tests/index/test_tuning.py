"""ef and nprobe are tuned to a recall, which holds for queries that they were not tuned with."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from embedserve.index import structures, synthetic, tuning
from embedserve.index.copies import Copies
from embedserve.index.spec import parse
from embedserve.index.structures import Stopped, Structure
from embedserve.index.tuning import OperatingPoint


def clustered(count: int, seed: int, dimension: int = 48) -> NDArray[np.float32]:
    """Rows around 60 centres, which are the same for every seed."""
    centres = np.random.default_rng(0).standard_normal((60, dimension))
    random = np.random.default_rng(seed)
    rows = centres[random.integers(0, 60, count)] + 0.6 * random.standard_normal((count, dimension))
    scaled: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled.astype(np.float32)


def never() -> bool:
    return False


def built(kind: str, vectors: NDArray[np.float32]) -> Structure:
    structure = structures.build(parse(kind), vectors, never)
    assert structure is not None
    return structure


@pytest.mark.parametrize("kind", ["hnsw:m=8", "ivf:nlist=50"])
def test_tuned_parameters_reach_their_recall_on_fresh_queries(kind: str) -> None:
    vectors, queries = clustered(6000, 1), clustered(300, 2)
    structure = built(kind, vectors)
    points = tuning.operating_points(structure, vectors, never)
    truth = np.sort(queries @ vectors.T, axis=1)[:, :-11:-1]
    for target in (0.8, 0.9, 0.95):
        param = tuning.param_for(points, target)
        positions, _ = structure.search(queries, 10, param)
        found = (queries[:, None] @ vectors[positions].transpose(0, 2, 1))[:, 0]
        # The standard error of either measurement is about 0.005.
        assert (found >= truth[:, -1:] - 1e-5).mean() >= target - 0.02
    values = [point.param for point in points]
    assert values == list(structure.param_values)[: len(values)]
    assert points[-1].recall >= 0.999 or len(points) == len(structure.param_values)
    assert all(point.recall < 0.999 for point in points[:-1])


def test_any_of_several_equal_rows_counts_as_found() -> None:
    # 20 of each: the ten found rows are rarely the ten that exact search finds.
    vectors = np.repeat(clustered(300, 3), 20, axis=0)[np.random.default_rng(4).permutation(6000)]
    copies = Copies.of(vectors)
    graph = structures.build(parse("hnsw:m=16"), vectors, never, copies.distinct(6000))
    assert graph is not None
    points = tuning.operating_points(graph, vectors, never, copies)
    assert tuning.param_for(points, 0.95) <= 64
    assert points[-1].recall >= 0.99


def test_the_smallest_parameter_that_suffices_is_taken_and_the_largest_where_none_does() -> None:
    points = (OperatingPoint(16, 0.80), OperatingPoint(32, 0.90), OperatingPoint(64, 0.97))
    # With a margin of 0.3 of the allowed misses: 0.65, 0.797, 0.804, 0.895, 0.902, 0.965, 0.979, 1.
    assert [tuning.param_for(points, target) for target in (0.5, 0.71, 0.72, 0.85, 0.86, 0.95, 0.97, 1.0)] == [
        *(16, 16, 32, 32, 64, 64, 64, 64)
    ]


def test_recall_is_the_share_of_rows_as_near_as_the_last_that_counts() -> None:
    best = np.array([[0.9, 0.8], [0.5, 0.5]], np.float32)
    found = np.array([[0.8, 0.7], [0.5, -np.inf]], np.float32)
    assert tuning.recall(best, best, 8) == 1.0
    assert tuning.recall(found, best, 8) == 0.5
    # float32 scores of equal rows differ in the last digits.
    assert tuning.recall(best - np.float32(5e-7), best, 8) == 1.0
    assert tuning.recall(best - np.float32(1e-4), best, 8) == 0.25


@pytest.mark.parametrize("count", [1, 2, 7, 500])
def test_synthetic_queries_are_as_near_to_a_row_as_its_neighbour_is(count: int) -> None:
    vectors = clustered(count, 5)
    queries, *_ = synthetic.kinds(vectors, 100)
    assert queries.shape == (min(count, 100), 48)
    assert queries.dtype == np.float32
    assert np.abs(np.linalg.norm(queries.astype(np.float64), axis=1) - 1).max() < 1e-6
    if count == 500:
        nearest = np.sort(vectors @ vectors.T, axis=1)[:, -2]
        cosines = (queries @ vectors.T).max(axis=1)
        assert cosines.max() < 0.9999
        assert nearest.min() - 1e-3 < cosines.min()
    assert np.array_equal(queries, synthetic.kinds(vectors, 100)[0])


def near_copies(noise: float) -> NDArray[np.float32]:
    """Forty rows around each of 100 random directions."""
    random = np.random.default_rng(7)
    rows = np.repeat(random.standard_normal((100, 48)), 40, axis=0)
    rows += noise * random.standard_normal(rows.shape)
    scaled: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled.astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-3, 0.1, 0.3])
def test_among_near_copies_no_query_but_those_of_the_first_kind_is_a_copy(noise: float) -> None:
    vectors = near_copies(noise)
    near, moved, halfway, strangers = synthetic.kinds(vectors)
    assert (near @ vectors.T).max(axis=1).min() > 0.7
    for queries in (moved, halfway, strangers):
        assert np.abs(np.linalg.norm(queries.astype(np.float64), axis=1) - 1).max() < 1e-6
        assert np.median((queries @ vectors.T).max(axis=1)) < 0.85
    mixed = synthetic.synthetic_queries(vectors, 100)
    assert mixed.shape == (100, 48)


def test_pairs_of_copies_are_no_near_copies_but_no_query_is_a_copy_either() -> None:
    vectors = np.repeat(clustered(2000, 8), 2, axis=0)
    (queries,) = synthetic.kinds(vectors)
    assert (queries @ vectors.T).max(axis=1).max() < 0.999


def test_recall_of_an_operating_point_is_that_of_the_hardest_kind() -> None:
    vectors = near_copies(0.01)
    structure = built("hnsw:m=8", vectors)
    points = {point.param: point.recall for point in tuning.operating_points(structure, vectors, never)}
    strangers = synthetic.kinds(vectors)[3]
    truth = np.sort(strangers @ vectors.T, axis=1)[:, -10:-9]
    _, found = structure.search(strangers, 10, 16)
    assert points[16] <= float((found >= truth - 1e-5).mean()) + 1e-6
    assert points[16] < 0.8


def test_tuning_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(1000, 6)
    # As large a step beside these rows as the usual one beside some hundred thousand.
    monkeypatch.setattr("embedserve.index.kernels.STEP_NUMBERS", 50 * vectors.size)
    structure = built("hnsw:m=8", vectors)
    asked: list[int] = []
    tuning.operating_points(structure, vectors, lambda: bool(asked.append(1)))  # type: ignore[func-returns-value]
    for allowed in range(len(asked)):
        left = iter([False] * allowed + [True] * len(asked))
        with pytest.raises(Stopped):
            tuning.operating_points(structure, vectors, lambda left=left: next(left))  # type: ignore[misc]
    # Both comparisons with all rows, and every parameter.
    assert len(asked) >= 2 * 4 + 1
