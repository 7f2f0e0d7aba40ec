"""hnswlib as its README uses it: one graph in memory, saved to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray
from peers.search.steps import EF_STEPS, number_of
from searching.system import CORES, Client, K, System

M, EF_CONSTRUCTION = 16, 200
"""The defaults of its README."""


class Hnswlib(System):
    """One graph."""

    ladder = EF_STEPS

    def build(self, vectors: NDArray[np.float32], folder: Path) -> dict[str, Any]:
        index = hnswlib.Index(space="ip", dim=vectors.shape[1])
        index.init_index(max_elements=len(vectors), M=M, ef_construction=EF_CONSTRUCTION)
        for start in range(0, len(vectors), 50_000):
            part = vectors[start : start + 50_000]
            index.add_items(part, np.arange(start, start + len(part)), num_threads=CORES)
        index.save_index(str(folder / "index.bin"))
        (folder / "dimension").write_text(str(vectors.shape[1]))
        return {}

    def open(self, folder: Path) -> str:
        self._index = hnswlib.Index(space="ip", dim=int((folder / "dimension").read_text()))
        self._index.load_index(str(folder / "index.bin"))
        return ""

    def about(self) -> str:
        return f"HNSW M={M}, ef_construction={EF_CONSTRUCTION}"

    def tune(self, value: str) -> None:
        self._index.set_ef(number_of(value))

    def client(self, threads: int) -> Client:
        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            found, _ = self._index.knn_query(queries, k=K, num_threads=threads)
            return np.asarray(found, np.int64)

        return search
