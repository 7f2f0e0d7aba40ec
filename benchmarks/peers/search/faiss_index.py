"""Bare FAISS: the ceiling. Three kinds of index, built as in embedserve."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from peers.search.steps import EF_STEPS, NPROBE, number_of
from searching.system import Client, K, System

HNSW_M, EF_CONSTRUCTION = 32, 40
"""FAISS' default of efConstruction."""

_ADDED = 50_000
_TRAINED_WITH, _AT_LEAST = 64, 39
"""Training vectors for each list, and the fewest: below, FAISS warns."""


def lists_for(count: int) -> int:
    """Inverted lists for N vectors: 4·√N."""
    return max(min(int(4 * math.sqrt(count)), count // _AT_LEAST), 1)


def factor_for(nprobe: int) -> int:
    """How many times k candidates are re-scored with their vectors: one bit per number tells few of them apart."""
    return min(max(nprobe // 2, 4), 32)


class Faiss(System):
    """An index in one file, read into memory."""

    KIND = ""

    def build(self, vectors: NDArray[np.float32], folder: Path) -> dict[str, Any]:
        index = self._made(vectors)
        for start in range(0, len(vectors), _ADDED):
            index.add(np.ascontiguousarray(vectors[start : start + _ADDED]))
        faiss.write_index(index, str(folder / "index.faiss"))
        return {}

    def _made(self, vectors: NDArray[np.float32]) -> Any:
        raise NotImplementedError

    def open(self, folder: Path) -> str:
        self._index: Any = faiss.read_index(str(folder / "index.faiss"))
        return ""

    def about(self) -> str:
        return self.KIND

    def client(self, threads: int) -> Client:
        faiss.omp_set_num_threads(threads)  # applies to the calling thread only

        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            found: NDArray[np.int64] = self._index.search(queries, K, params=self._parameters)[1]
            return found

        return search

    _parameters: Any = None


class Flat(Faiss):
    """Every vector is compared."""

    KIND = "Flat"
    ladder = ("exact",)

    def _made(self, vectors: NDArray[np.float32]) -> Any:
        return faiss.IndexFlatIP(vectors.shape[1])

    def tune(self, value: str) -> None:
        pass


class Hnsw(Faiss):
    """A graph."""

    KIND = f"HNSW{HNSW_M}"
    ladder = EF_STEPS

    def _made(self, vectors: NDArray[np.float32]) -> Any:
        index = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        return index

    def tune(self, value: str) -> None:
        self._parameters = faiss.SearchParametersHNSW(efSearch=number_of(value))  # type: ignore[attr-defined]


class IvfRaBitQ(Faiss):
    """Lists of vectors in one bit for each number; the best are re-scored with the vectors themselves."""

    KIND = "IVF+RaBitQfs, refined"
    ladder = tuple(f"nprobe={nprobe}" for nprobe in NPROBE)

    def _made(self, vectors: NDArray[np.float32]) -> Any:
        dimension, lists = vectors.shape[1], lists_for(len(vectors))
        index = faiss.index_factory(dimension, f"IVF{lists},RaBitQfs,Refine(Flat)", faiss.METRIC_INNER_PRODUCT)
        wanted = min(len(vectors), _TRAINED_WITH * lists)
        rows = np.sort(np.random.default_rng(0).choice(len(vectors), wanted, replace=False))
        index.train(np.ascontiguousarray(vectors[rows]))
        return index

    def tune(self, value: str) -> None:
        nprobe = number_of(value)
        lists = faiss.SearchParametersIVF(nprobe=nprobe)  # type: ignore[call-arg]
        self._held = lists  # FAISS keeps only its address
        self._parameters = faiss.IndexRefineSearchParameters(  # type: ignore[call-arg]
            k_factor=float(factor_for(nprobe)), base_index_params=lists
        )
