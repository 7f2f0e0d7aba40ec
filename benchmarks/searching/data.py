"""Vectors to search in, queries, and the true neighbours; made once and kept as .npy files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

K = 10
CHUNK = 20_000
"""Rows made, or compared with the queries, at a time: it bounds the memory with a million rows."""

_CANDIDATES = 4 * K
"""Rows that are ranked again in float64; rows that float32 ranks below them are not among the ten closest."""

CLUSTERS, LATENT = 2000, 48


@dataclass(frozen=True)
class DataSet:
    """The files of a data set: vectors, queries and true neighbours."""

    folder: Path
    name: str
    about: str
    """The origin of the vectors, in a sentence."""

    @property
    def vectors_file(self) -> Path:
        """float32 [N, D], unit norm."""
        return self.folder / "vectors.npy"

    @property
    def queries_file(self) -> Path:
        """float32 [Q, D], unit norm; none of them is among the vectors."""
        return self.folder / "queries.npy"

    @property
    def truth_file(self) -> Path:
        """int32 [Q, 10]: rows of the closest vectors by cosine, closest first."""
        return self.folder / "truth.npy"

    def vectors(self) -> NDArray[np.float32]:
        """The vectors, memory-mapped."""
        found: NDArray[np.float32] = np.load(self.vectors_file, mmap_mode="r")
        return found

    def queries(self) -> NDArray[np.float32]:
        """All queries."""
        found: NDArray[np.float32] = np.load(self.queries_file)
        return found

    def truth(self) -> NDArray[np.int32]:
        """The true neighbours of all queries."""
        found: NDArray[np.int32] = np.load(self.truth_file)
        return found

    def describe(self) -> dict[str, Any]:
        """Size and difficulty, for the report."""
        count, dimension = self.vectors().shape
        difficulty: dict[str, Any] = json.loads((self.folder / "difficulty.json").read_text())
        return {
            "name": self.name,
            "about": self.about,
            "vectors": count,
            "dimension": dimension,
            "queries": len(self.queries()),
            **difficulty,
        }


def kept(
    folder: Path,
    name: str,
    about: str,
    write_vectors: Callable[[Path], None],
    queries: Callable[[], NDArray[np.float32]],
) -> DataSet:
    """The data set in ``folder``, made if it does not exist."""
    data = DataSet(folder, name, about)
    if folder.exists():
        return data
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    unfinished = DataSet(partial, name, about)
    write_vectors(unfinished.vectors_file)
    asked = queries()
    np.save(unfinished.queries_file, asked)
    truth = true_neighbours(unfinished.vectors(), asked)
    np.save(unfinished.truth_file, truth)
    difficulty = asdict(Difficulty.of(unfinished.vectors(), asked[:200]))
    (partial / "difficulty.json").write_text(json.dumps(difficulty))
    partial.rename(folder)
    return data


# --- Clusters -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clusters:
    """A mixture of clusters with sizes by Zipf's law, bent by a tanh layer and blurred by noise.

    Points lie near a curved surface of ``LATENT`` dimensions, as embeddings do; uniform or Gaussian vectors would be
    harder than real ones, and separate clusters without the bend easier.
    """

    dimension: int
    seed: int = 0

    def write(self, path: Path, count: int) -> None:
        """``count`` unit vectors as a .npy file, chunk by chunk."""
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, self.dimension))
        for number, start in enumerate(range(0, count, CHUNK)):
            out[start : start + CHUNK] = self.draw(min(CHUNK, count - start), stream=number)
        out.flush()

    def queries(self, count: int) -> NDArray[np.float32]:
        """Unit vectors of the same mixture that are not among those of ``write``."""
        return self.draw(count, stream=1 << 20)

    def draw(self, count: int, *, stream: int) -> NDArray[np.float32]:
        """``count`` unit vectors, the same for the same stream."""
        fixed = np.random.default_rng([self.seed, 0])
        centres = fixed.standard_normal((CLUSTERS, LATENT), np.float32)
        spread = fixed.uniform(0.35, 0.75, (CLUSTERS, 1)).astype(np.float32)
        weights = fixed.standard_normal((LATENT, self.dimension), np.float32) / np.float32(np.sqrt(LATENT))
        share = 1.0 / np.arange(1, CLUSTERS + 1) ** 0.8
        random = np.random.default_rng([self.seed, 1, stream])
        cluster = random.choice(CLUSTERS, size=count, p=share / share.sum())
        latent = centres[cluster] + spread[cluster] * random.standard_normal((count, LATENT), np.float32)
        points = np.tanh(latent @ weights) + np.float32(0.1) * random.standard_normal(
            (count, self.dimension), np.float32
        )
        return unit(points)


def clustered(work: Path, count: int, dimension: int, queries: int, seed: int = 0) -> DataSet:
    """The data set of ``Clusters``, kept below ``work``."""
    mixture = Clusters(dimension, seed)
    name = f"clustered-{count}x{dimension}"
    about = (
        f"{CLUSTERS:,} clusters with sizes by Zipf's law, {LATENT} latent dimensions through a tanh layer, noise, unit"
        f" norm, seed {seed}"
    )
    folder = work / "data" / f"{name}-{queries}-{seed}"
    return kept(folder, name, about, lambda path: mixture.write(path, count), lambda: mixture.queries(queries))


# --- Truth ----------------------------------------------------------------------------------------------------------


def true_neighbours(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int = K, rows: NDArray[np.int64] | None = None
) -> NDArray[np.int32]:
    """Rows of the k closest vectors by inner product, int32 [Q, k], closest first; −1 where there are fewer.

    float32 finds candidates in chunks, float64 ranks them.

    Args:
        vectors: float32 [N, D].
        queries: float32 [Q, D].
        k: neighbours of each query.
        rows: only these rows count, int64 [M], ascending; None: all.
    """
    wanted = max(_CANDIDATES, 4 * k)
    scores = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for numbers in _chunks(len(vectors) if rows is None else len(rows)):
        chosen = np.arange(numbers.start, numbers.stop) if rows is None else rows[numbers.start : numbers.stop]
        near = queries @ np.asarray(vectors[chosen] if rows is not None else vectors[numbers.start : numbers.stop]).T
        scores = np.concatenate([scores, near], axis=1)
        found = np.concatenate([found, np.broadcast_to(chosen, near.shape)], axis=1)
        if scores.shape[1] > wanted:
            best = np.argpartition(-scores, wanted - 1, axis=1)[:, :wanted]
            scores, found = np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)
    truth = np.full((len(queries), k), -1, np.int32)
    for number, candidates in enumerate(found):
        if len(candidates):
            order = np.sort(candidates)
            exact = vectors[order].astype(np.float64) @ queries[number].astype(np.float64)
            closest = order[np.argsort(-exact, kind="stable")[:k]]
            truth[number, : len(closest)] = closest
    return truth


def recall(found: NDArray[np.int64], truth: NDArray[np.int32]) -> float:
    """The mean share of the true neighbours that were found, 0–1; −1 in ``truth`` is ignored.

    Args:
        found: [Q, k] rows in any order, −1 for no hit.
        truth: [Q, k].
    """
    hits = (found[:, :, None] == truth[:, None, :]) & (truth[:, None, :] >= 0)
    wanted = (truth >= 0).sum(axis=1)
    per_query = hits.any(axis=1).sum(axis=1)[wanted > 0] / wanted[wanted > 0]
    return float(per_query.mean()) if len(per_query) else 1.0


@dataclass(frozen=True)
class Difficulty:
    """How hard a data set is to search."""

    top1_cosine: float
    """Mean cosine of a query and its closest vector."""
    relative_contrast: float
    """Mean distance of a query and a vector ÷ the mean distance to the closest; the nearer to 1, the harder."""
    local_dimension: float
    """Local intrinsic dimension by the 100 closest (maximum likelihood); the higher, the harder."""

    @classmethod
    def of(cls, vectors: NDArray[np.float32], queries: NDArray[np.float32]) -> Difficulty:
        """Measured with some queries."""
        near_count = min(100, len(vectors))
        near = true_neighbours(vectors, queries, near_count)
        closest = np.stack([vectors[rows] @ query for rows, query in zip(near, queries, strict=True)])
        distances = np.sqrt(np.maximum(2 - 2 * closest, 1e-12)).astype(np.float64)
        sample = vectors[:: max(len(vectors) // CHUNK, 1)]
        everywhere = np.sqrt(np.maximum(2 - 2 * (queries @ np.asarray(sample).T), 0)).mean()
        logs = np.log(distances[:, -1:] / distances[:, :-1])
        return cls(
            top1_cosine=round(float(closest[:, 0].mean()), 3),
            relative_contrast=round(float(everywhere / distances[:, 0].mean()), 2),
            local_dimension=round(float((1 / np.maximum(logs.mean(axis=1), 1e-9)).mean()), 1),
        )


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row scaled to unit norm."""
    scaled: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def _chunks(count: int) -> Iterator[range]:
    for start in range(0, count, CHUNK):
        yield range(start, min(start + CHUNK, count))
