"""Structures for approximate search over the rows of a segment: a graph, and inverted lists of codes.

Each is filled once and then only searched: FAISS crashes or returns wrong results when an index changes while it is
searched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from embedserve.index import kernels
from embedserve.index.clustering import spherical_kmeans
from embedserve.index.search_params import SearchParams
from embedserve.index.spec import POINTS_PER_LIST, IndexSpec

_GRAPH_ROWS = 64
"""Rows added to a graph at a time; a build can be stopped between two steps. They take about 20 ms where the graph is
large; with 4,096 at a time a build was no quicker (0.88 and 0.82 s for 20,000 rows of 128 numbers)."""
_TRAINING_POINTS = 64
"""Maximum number of rows per list that k-means is trained with."""
_ITERATIONS = 10
TUNED_K = 10
"""k of the searches that ef and nprobe are tuned for."""
_MOST_PER_ROW = 32
"""Codes that are re-scored for each row that is asked for, at most; for searches of few rows up to _MOST in all: where
many rows are about as near, as near-copies are, one bit per number does not tell which are nearest."""
_MOST = 128 * TUNED_K
_SEED = 1234


class Stopped(Exception):
    """A build or measurement was stopped, as when its collection closes."""


class Structure(Protocol):
    """Finds rows by position."""

    @property
    def spec(self) -> IndexSpec:
        """What it was built as."""

    @property
    def param_values(self) -> Sequence[int]:
        """Values of ef or nprobe worth trying, ascending."""

    def given_param(self, params: SearchParams) -> int:
        """The ef or nprobe that ``params`` gives; 0 if none."""

    def search(self, queries: NDArray[np.float32], k: int, param: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """About the k nearest rows of each of the queries [Q, D].

        Args:
            queries: float32 [Q, D], unit norm.
            k: at least 1.
            param: ef of HNSW, nprobe of IVF.

        Returns:
            Positions int64 [Q, C], −1 where there are fewer, and inner products float32 [Q, C], −inf there.
        """

    def write(self, path: Path) -> None:
        """Write it to a file; neither atomic nor synced."""


@dataclass(frozen=True, slots=True, eq=False)
class Hnsw:
    """A graph of the rows (Malkov and Yashunin, 2018), which also holds their vectors."""

    index: faiss.IndexHNSWFlat
    spec: IndexSpec
    vectors: NDArray[np.float32]
    """float32 [N, D], a view of the index's memory."""

    @classmethod
    def build(
        cls,
        spec: IndexSpec,
        vectors: NDArray[np.float32],
        stopped: Callable[[], bool],
        distinct: NDArray[np.int64] | None = None,
    ) -> Hnsw:
        """A new graph of vectors [N, D], which leads to the rows ``distinct`` [U]; None: to all.

        Raises:
            Stopped: ``stopped`` returned true.
        """
        count = len(vectors) if distinct is None else len(distinct)
        index = _empty_graph(spec, vectors.shape[1])
        _reserve(index, count)
        for start in range(0, count, _GRAPH_ROWS):
            if stopped():
                raise Stopped
            some = slice(start, start + _GRAPH_ROWS)
            index.add(np.ascontiguousarray(vectors[some if distinct is None else distinct[some]]))
        if count < len(vectors):
            assert distinct is not None
            links = _Links.of(index)
            del index  # and its vectors
            index = _empty_graph(spec, vectors.shape[1])
            _reserve(index, len(vectors))
            _flat(index).add(np.ascontiguousarray(vectors))
            links.over(distinct, len(vectors), _room(index)).put_into(index)
        return cls.over(index, spec)

    @classmethod
    def over(cls, index: faiss.IndexHNSWFlat, spec: IndexSpec) -> Hnsw:
        """From an existing graph."""
        return cls(index, spec, kernels.vectors_of(_flat(index), index.d, index))

    @property
    def param_values(self) -> Sequence[int]:
        """Values of ef."""
        return (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

    def given_param(self, params: SearchParams) -> int:
        """ef."""
        return params.ef

    def search(self, queries: NDArray[np.float32], k: int, param: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As Structure."""
        parameters = kernels.hnsw_parameters(max(param, k))
        scores, positions = self.index.search(queries, k, params=parameters)
        return positions, np.where(positions < 0, np.float32(-np.inf), scores)

    def write(self, path: Path) -> None:
        """As Structure."""
        faiss.write_index(self.index, str(path))


@dataclass(frozen=True, slots=True, eq=False)
class Ivf:
    """Inverted lists of RaBitQ codes, one bit per number (Gao and Long, 2024).

    The codes choose candidates, whose scores are then computed from the vectors.
    """

    index: faiss.IndexIVFRaBitQFastScan
    spec: IndexSpec
    vectors: NDArray[np.float32]
    """float32 [N, D]; not part of the index."""

    @classmethod
    def build(
        cls,
        spec: IndexSpec,
        vectors: NDArray[np.float32],
        stopped: Callable[[], bool],
        distinct: NDArray[np.int64] | None = None,
    ) -> Ivf:
        """New lists of vectors [N, D], with the rows ``distinct`` [U]; None: with all. Few rows get fewer lists.

        Raises:
            Stopped: ``stopped`` returned true.
        """
        rows = np.arange(len(vectors)) if distinct is None else distinct
        nlist = spec.get("nlist") if distinct is None else min(spec.get("nlist"), max(len(rows) // POINTS_PER_LIST, 1))
        spec = IndexSpec("ivf", {"nlist": nlist})
        index: faiss.IndexIVFRaBitQFastScan = faiss.index_factory(  # type: ignore[assignment]
            vectors.shape[1], f"IVF{nlist},RaBitQfs", faiss.METRIC_INNER_PRODUCT
        )

        def look() -> None:
            if stopped():
                raise Stopped

        points = min(len(rows), nlist * _TRAINING_POINTS)
        places = np.sort(np.random.default_rng(_SEED).choice(len(rows), points, replace=False))
        training = vectors[rows[places]]
        # The index takes the trained lists, and trains the rest.
        centroids = spherical_kmeans(training, nlist, iterations=_ITERATIONS, seed=_SEED, look=look)
        index.quantizer.add(centroids)
        index.train(training)
        step = max(kernels.STEP_NUMBERS // (nlist * vectors.shape[1]), 32)
        for start in range(0, len(rows), step):
            look()
            some = rows[start : start + step]
            index.add_with_ids(np.ascontiguousarray(vectors[some]), some)
        return cls(index, spec, vectors)

    @property
    def param_values(self) -> Sequence[int]:
        """Values of nprobe."""
        nlist = self.index.nlist
        return (*(n for n in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024) if n < nlist), nlist)

    def given_param(self, params: SearchParams) -> int:
        """nprobe."""
        return params.nprobe

    def search(self, queries: NDArray[np.float32], k: int, param: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As Structure."""
        nprobe = min(param, self.index.nlist)
        # With one bit per number, higher recall needs more candidates. A search for fewer rows than nprobe was tuned
        # for re-scores no fewer, or its recall would be lower.
        per_row, least = max(nprobe // 2, 4) if nprobe < self.index.nlist else _MOST, max(k, TUNED_K)
        candidates = max(least * min(per_row, _MOST_PER_ROW), min(TUNED_K * per_row, _MOST))
        candidates = min(candidates, self.index.ntotal)
        parameters = kernels.ivf_parameters(nprobe)
        _, positions = self.index.search(queries, max(candidates, k), params=parameters)
        scores = kernels.inner_products_of_each(queries, self.vectors, positions)
        if positions.shape[1] > k:
            best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            positions, scores = np.take_along_axis(positions, best, 1), np.take_along_axis(scores, best, 1)
        return positions, scores

    def write(self, path: Path) -> None:
        """As Structure."""
        faiss.write_index(self.index, str(path))


def build(
    spec: IndexSpec,
    vectors: NDArray[np.float32],
    stopped: Callable[[], bool],
    distinct: NDArray[np.int64] | None = None,
) -> Structure | None:
    """A new structure over vectors [N, D]; None for "exact".

    Args:
        spec: what to build.
        vectors: float32 [N, D], unit norm.
        stopped: asked now and then.
        distinct: int64 [U], ascending: the rows that it finds; None: all.

    Raises:
        Stopped: ``stopped`` returned true.
    """
    match spec.kind:
        case "hnsw":
            return Hnsw.build(spec, vectors, stopped, distinct)
        case "ivf":
            return Ivf.build(spec, vectors, stopped, distinct)
    return None


def open_structure(spec: IndexSpec, path: Path, vectors: NDArray[np.float32] | None, copies: int = 0) -> Structure:
    """A structure from its file, which is mapped, not read.

    Args:
        spec: what it was built as.
        path: as ``Structure.write`` wrote it.
        vectors: of the rows, float32 [N, D]; None where the file holds them.
        copies: rows among them that it does not find, since they equal others.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[-1]) from error
    if spec.kind == "hnsw" and isinstance(index, faiss.IndexHNSWFlat):
        return Hnsw.over(index, spec)
    if spec.kind == "ivf" and isinstance(index, faiss.IndexIVFRaBitQFastScan) and vectors is not None:
        if index.ntotal != len(vectors) - copies or index.d != vectors.shape[1]:
            raise ValueError(f"{index.ntotal} codes of {index.d} numbers for vectors of shape {vectors.shape}")
        return Ivf(index, spec, vectors)
    raise ValueError(f"a {type(index).__name__} where {spec.kind} was expected")


@dataclass(frozen=True, slots=True, eq=False)
class _Links:
    """What a graph consists of besides its vectors."""

    levels: NDArray[np.int32]
    """[N]: the number of layers that each row is in."""
    neighbours: NDArray[np.int32]
    """Rows, row by row and layer by layer; −1 where there are fewer than a layer has room for."""
    entry_point: int
    max_level: int

    @classmethod
    def of(cls, index: faiss.IndexHNSWFlat) -> _Links:
        """Copied from a graph."""
        graph: Any = index.hnsw
        levels, neighbours = (faiss.vector_to_array(numbers) for numbers in (graph.levels, graph.neighbors))
        return cls(levels, neighbours, graph.entry_point, graph.max_level)

    def over(self, rows: NDArray[np.int64], count: int, room: NDArray[np.int64]) -> _Links:
        """The same graph with its rows at ``rows`` [N] of ``count``; no link leads to the others or from them.

        Args:
            rows: int64, ascending.
            count: of all rows.
            room: for each number of layers how many links a row has room for.
        """
        levels = np.ones(count, np.int32)  # FAISS has no row without a layer
        levels[rows] = self.levels
        linked = np.zeros(count, np.bool_)
        linked[rows] = True
        neighbours = np.full(int(room[levels].sum()), -1, np.int32)
        neighbours[np.repeat(linked, room[levels])] = np.where(self.neighbours < 0, -1, rows[self.neighbours])
        return _Links(levels, neighbours, int(rows[self.entry_point]), self.max_level)

    def put_into(self, index: faiss.IndexHNSWFlat) -> None:
        """Make them the links of an index that has vectors only."""
        graph: Any = index.hnsw
        offsets = np.concatenate([[0], np.cumsum(_room(index)[self.levels])]).astype(np.uint64)
        faiss.copy_array_to_vector(self.levels, graph.levels)
        faiss.copy_array_to_vector(offsets, graph.offsets)
        faiss.copy_array_to_vector(self.neighbours, graph.neighbors)
        graph.entry_point, graph.max_level = self.entry_point, self.max_level
        index.ntotal = len(self.levels)


def _room(index: faiss.IndexHNSWFlat) -> NDArray[np.int64]:
    """For each number of layers how many links a row in them has room for."""
    room: NDArray[np.int64] = faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level).astype(np.int64)
    return room


def _empty_graph(spec: IndexSpec, dimension: int) -> faiss.IndexHNSWFlat:
    index = faiss.IndexHNSWFlat(dimension, spec.get("m"), faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = spec.get("ef_construction")
    return index


def _reserve(index: faiss.IndexHNSWFlat, count: int) -> None:
    """Room for vectors: growth by doubling would hold all of them three times for a moment."""
    _flat(index).codes.resize(count * index.d * 4)
    _flat(index).codes.resize(0)


def _flat(index: faiss.IndexHNSWFlat) -> faiss.IndexFlat:
    flat: faiss.IndexFlat = faiss.downcast_index(index.storage)  # type: ignore[assignment]
    return flat
