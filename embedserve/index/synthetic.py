"""Queries made from the rows of a segment, as hard as those that will be asked.

Usually a query is an image that is not in the collection but like those that are: it is as far from its nearest row as
rows are from each other. Where items are near-copies of each other (frames of a video, one photograph in forty sizes),
that is no distance at all: such a query is one more copy, and says nothing about any other. There, and only there,
three more kinds are made: as far from a row as the nearest row that is no copy of it, half-way between two rows, and
unlike all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels
from embedserve.index.structures import Stopped

QUERIES = 200
_OF_COPIES = 300
"""Queries of each kind among near-copies, where recall varies more: all ten nearest are found or none."""
_SEED = 4321
_NEIGHBOURS = 1024
"""Nearest rows that are looked at for a gap."""
_GAP = 1.5
"""If the distance grows by this factor from one neighbour to the next, with at least _MANY before it, these are copies:
of 40 rows around each of 600 random directions, those with a cosine of 0.8 and more. Of points spread evenly in L
dimensions a share of 1.5^(−4L) has such a gap: 0.8 % in 3 dimensions."""
_WIDE_GAP = 2.0
"""The same with fewer before it: 2^(−L), 0.1 % in 10 dimensions."""
_MANY = 4
"""Copies of a row, beside it, from which on they take all its links to others."""
_SHARE = 0.1
"""Of the rows with many copies, from which on a segment is one of near-copies."""
_NO_DISTANCE = 1e-3
"""Two float32 vectors that should be equal may be this far apart."""
_FAR = 4.0
"""A row also has many copies if the last of these neighbours is nearer than a row at random by this factor."""


def never() -> bool:
    """Not stopped."""
    return False


def synthetic_queries(
    vectors: NDArray[np.float32], count: int = QUERIES, stopped: Callable[[], bool] = never
) -> NDArray[np.float32]:
    """Queries of all kinds in equal parts: float32 [about count, D], no more than there are rows of each."""
    made = kinds(vectors, count, stopped)
    return np.concatenate([of_kind[: -(-count // len(made))] for of_kind in made])


def kinds(
    vectors: NDArray[np.float32], count: int = QUERIES, stopped: Callable[[], bool] = never
) -> tuple[NDArray[np.float32], ...]:
    """Queries for vectors [N, D]: for each kind float32 [min(count, N), D], unit norm; one kind if few rows are copies.

    A row is linked to its neighbours, so searching for it is easier than searching for a new image. Each query is a row
    moved in a random direction, as far as its nearest neighbour is away, which is at least as hard.

    Raises:
        Stopped: ``stopped`` returned true.
    """
    random = np.random.default_rng(_SEED)
    places = np.sort(random.choice(len(vectors), min(count, len(vectors)), replace=False))
    nearest = best_scores(np.ascontiguousarray(vectors[places]), vectors, min(1 + _NEIGHBOURS, len(vectors)), stopped)
    next_one, beyond, many = _beyond_copies(nearest, _typical_score(vectors, places))
    near = _moved(vectors[places], next_one, random)
    if many.mean() < _SHARE:
        return (near,)
    random = np.random.default_rng(_SEED + 1)
    more = max(count, _OF_COPIES) if count >= QUERIES else count
    rows = vectors[random.choice(len(vectors), (2, more))].astype(np.float64)
    strangers = random.standard_normal(rows[0].shape)
    middle = rows[0] + rows[1]
    middle += 1e-6 * strangers  # so that the middle of opposite rows is somewhere
    return near, _moved(vectors[places], beyond, random), _unit(middle), _unit(strangers)


def best_scores(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, stopped: Callable[[], bool]
) -> NDArray[np.float32]:
    """Scores of the k nearest of vectors [N, D] for each of the queries [Q, D]: float32 [Q, k], descending.

    Raises:
        Stopped: ``stopped`` returned true.
    """
    some, step = kernels.step_of(len(queries), len(vectors), vectors.shape[1], k)
    best = np.full((len(queries), k), -np.inf, np.float32)
    for start in range(0, len(vectors), step):
        rows = vectors[start : start + step]
        for first in range(0, len(queries), some):
            if stopped():
                raise Stopped
            part = slice(first, first + some)
            found = kernels.nearest(queries[part], rows, min(k, len(rows)), None)[1]
            both = np.concatenate([best[part], found], axis=1)
            best[part] = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]
    best.sort(axis=1)
    return best[:, ::-1]


def _beyond_copies(
    nearest: NDArray[np.float32], typical: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """For rows with the scores of themselves and their neighbours [Q, 1 + C] three arrays [Q].

    Returns:
        The score of the nearest neighbour, beyond a copy or a few; that of the nearest beyond all copies; and whether
        there are many.
    """
    all_rows, most = np.arange(len(nearest)), nearest.shape[1] - 1
    distances = np.sqrt(np.maximum(2 - 2 * nearest[:, 1:].astype(np.float64), 0.0))
    growth = distances[:, 1:] / np.maximum(distances[:, :-1], _NO_DISTANCE)
    few, many = growth[:, : _MANY - 1] >= _WIDE_GAP, growth[:, _MANY - 1 :] >= _GAP
    after_few, after_many = _after_last(few), _after_last(many)
    next_one = nearest[all_rows, np.minimum(1 + after_few, most)]
    beyond = nearest[all_rows, np.minimum(np.where(after_many, _MANY + after_many, 1 + after_few), most)]
    all_near = np.zeros(len(nearest), np.bool_)
    if most == _NEIGHBOURS:
        all_near = distances[:, -1] * _FAR <= np.sqrt(max(2 - 2 * typical, 0.0))
    return next_one, np.where(all_near, np.float32(typical), beyond), (after_many > 0) | all_near


def _after_last(gaps: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row of bool [Q, C] the number of columns up to its last true one, 0 if none is: int64 [Q]."""
    if not gaps.shape[1]:
        return np.zeros(len(gaps), np.int64)
    last: NDArray[np.int64] = np.where(gaps.any(axis=1), gaps.shape[1] - gaps[:, ::-1].argmax(axis=1), 0)
    return last


def _typical_score(vectors: NDArray[np.float32], places: NDArray[np.int64]) -> float:
    """The median score of two of the rows at ``places``."""
    some = vectors[places]
    return float(np.median(some @ some.T))


def _moved(rows: NDArray[np.float32], scores: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Rows [Q, D], each moved in a random direction until its score with itself is the given one [Q]."""
    wide = rows.astype(np.float64)
    noise = random.standard_normal(wide.shape)
    noise -= (noise * wide).sum(axis=1, keepdims=True) * wide
    noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-12)
    cosine = np.clip(scores[:, None].astype(np.float64), 0.0, 1.0)
    return _unit(cosine * wide + np.sqrt(1 - cosine**2) * noise)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    scaled: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled.astype(np.float32)
