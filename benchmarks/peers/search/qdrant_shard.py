"""qdrant-edge: the segment engine of Qdrant in the process of the caller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as qdrant
from numpy.typing import NDArray
from peers.search.steps import EF_STEPS, number_of
from searching.system import Client, K, System

M, EF_CONSTRUCTION = 16, 100
"""Qdrant's defaults."""


class QdrantEdge(System):
    """A shard whose vectors and graph are in memory."""

    ladder = EF_STEPS

    def build(self, vectors: NDArray[np.float32], folder: Path) -> dict[str, Any]:
        config = qdrant.EdgeConfig(
            vectors=qdrant.EdgeVectorParams(size=vectors.shape[1], distance=qdrant.Distance.Cosine, on_disk=False),
            hnsw_config=qdrant.HnswIndexConfig(m=M, ef_construct=EF_CONSTRUCTION, full_scan_threshold=10),
            optimizers=qdrant.EdgeOptimizersConfig(
                default_segment_number=1, indexing_threshold=1, max_segment_size=1 << 31
            ),
        )
        shard = qdrant.EdgeShard.create(str(folder / "shard"), config)
        for start in range(0, len(vectors), 1000):
            part = vectors[start : start + 1000].tolist()
            points = [qdrant.Point(start + row, vector) for row, vector in enumerate(part)]
            shard.update(qdrant.UpdateOperation.upsert_points(points))
        while shard.optimize():
            pass
        shard.flush()
        shard.close()
        return {}

    def open(self, folder: Path) -> str:
        self._shard = qdrant.EdgeShard.load(str(folder / "shard"))
        return ""

    def close(self) -> None:
        self._shard.close()

    def about(self) -> str:
        return f"HNSW m={M}, ef_construct={EF_CONSTRUCTION}"

    def tune(self, value: str) -> None:
        self._params = qdrant.SearchParams(hnsw_ef=number_of(value))

    def client(self, threads: int) -> Client:
        def request(query: NDArray[np.float32]) -> Any:
            nearest = qdrant.Query.Nearest(query.tolist())
            return qdrant.QueryRequest(limit=K, query=nearest, params=self._params)

        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            if len(queries) == 1:
                answers = [self._shard.query(request(queries[0]))]
            else:
                answers = self._shard.query_batch(qdrant.QueryBatchRequest([request(query) for query in queries]))
            return np.array([[point.id for point in answer] for answer in answers], np.int64)

        return search
