"""usearch: one graph, read from its file into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers.search.steps import EF_STEPS, number_of
from searching.system import CORES, Client, K, System
from usearch.index import Index

M, EF_CONSTRUCTION = 16, 128
"""Its defaults."""


class Usearch(System):
    """One graph."""

    ladder = EF_STEPS

    def build(self, vectors: NDArray[np.float32], folder: Path) -> dict[str, Any]:
        index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION)
        for start in range(0, len(vectors), 50_000):
            part = np.ascontiguousarray(vectors[start : start + 50_000])
            index.add(np.arange(start, start + len(part)), part, threads=CORES)
        index.save(str(folder / "index.usearch"))
        return {}

    def open(self, folder: Path) -> str:
        index = Index.restore(str(folder / "index.usearch"))
        assert index is not None
        self._index = index
        return ""

    def about(self) -> str:
        return f"HNSW connectivity={M}, expansion_add={EF_CONSTRUCTION}"

    def tune(self, value: str) -> None:
        self._index.expansion_search = number_of(value)

    def client(self, threads: int) -> Client:
        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            if len(queries) == 1:
                return np.asarray(self._index.search(queries[0], K, threads=1).keys, np.int64)[None]
            return np.asarray(self._index.search(queries, K, threads=threads).keys, np.int64)

        return search
