"""LanceDB: the library in the process of the caller, a table with an IVF_HNSW_SQ index in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import HnswSq
from numpy.typing import NDArray
from searching.system import Client, K, System

M, EF_CONSTRUCTION = 16, 100
EF_AND_REFINE = ((16, 1), (32, 1), (48, 1), (64, 1), (64, 2), (96, 2), (128, 2), (192, 3), (256, 4), (512, 4))
"""Candidates of the graph, and how many times k of them are re-scored with their vectors; 1: none."""

os.environ.setdefault("LANCE_LOG", "error")


class Lance(System):
    """A table with one partition, so that recall depends on ef alone."""

    ladder = tuple(f"ef={ef} k×{refine}" for ef, refine in EF_AND_REFINE)

    def build(self, vectors: NDArray[np.float32], folder: Path) -> dict[str, Any]:
        dimension = vectors.shape[1]
        schema = pa.schema({"id": pa.int64(), "vector": pa.list_(pa.float32(), dimension)})

        def batches() -> Any:
            for start in range(0, len(vectors), 50_000):
                part = np.ascontiguousarray(vectors[start : start + 50_000])
                column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), dimension)
                yield pa.record_batch([pa.array(np.arange(start, start + len(part))), column], schema=schema)

        table = lancedb.connect(str(folder)).create_table("items", batches(), schema=schema)
        table.create_index(
            "vector",
            config=HnswSq(distance_type="cosine", num_partitions=1, m=M, ef_construction=EF_CONSTRUCTION),
        )
        return {}

    def open(self, folder: Path) -> str:
        self._table = lancedb.connect(str(folder)).open_table("items")
        return ""

    def about(self) -> str:
        return f"IVF_HNSW_SQ, 1 partition, m={M}, ef_construction={EF_CONSTRUCTION}"

    def tune(self, value: str) -> None:
        self._ef, self._refine = EF_AND_REFINE[self.ladder.index(value)]

    def client(self, threads: int) -> Client:
        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            asked = queries[0] if len(queries) == 1 else queries
            query = self._table.search(asked).distance_type("cosine").nprobes(1).ef(self._ef).limit(K)
            if self._refine > 1:
                query = query.refine_factor(self._refine)
            answer = query.select(["id", "_distance"]).to_arrow()
            # The hits of several queries follow each other.
            found: NDArray[np.int64] = answer["id"].to_numpy().reshape(len(queries), -1)
            return found

        return search
