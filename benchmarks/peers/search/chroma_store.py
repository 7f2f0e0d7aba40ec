"""Chroma's PersistentClient: the library in the process of the caller, its data in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chromadb
import numpy as np
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import Settings
from numpy.typing import NDArray
from peers.search.steps import EF_STEPS, number_of
from searching.system import Client, K, System

M, EF_CONSTRUCTION = 16, 100
"""Its defaults."""


class Chroma(System):
    """A collection of vectors without documents."""

    ladder = EF_STEPS

    def build(self, vectors: NDArray[np.float32], folder: Path) -> dict[str, Any]:
        client = self._client(folder)
        collection = client.create_collection(
            "items",
            configuration={
                "hnsw": {"space": "ip", "max_neighbors": M, "ef_construction": EF_CONSTRUCTION, "ef_search": 100}
            },
            embedding_function=None,
        )
        most = min(client.get_max_batch_size(), 5000)
        for start in range(0, len(vectors), most):
            part = np.asarray(vectors[start : start + most])
            collection.add(ids=[str(row) for row in range(start, start + len(part))], embeddings=part)
        return {}

    def _client(self, folder: Path) -> Any:
        return chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))

    def open(self, folder: Path) -> str:
        self._folder = folder
        self._collection = self._client(folder).get_collection("items", embedding_function=None)
        return ""

    def about(self) -> str:
        return f"HNSW M={M}, ef_construction={EF_CONSTRUCTION}"

    def tune(self, value: str) -> None:
        self._collection.modify(configuration={"hnsw": {"ef_search": number_of(value)}})
        # An open index keeps the ef that it was opened with.
        SharedSystemClient.clear_system_cache()
        self.open(self._folder)

    def client(self, threads: int) -> Client:
        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            answer = self._collection.query(query_embeddings=queries, n_results=K, include=[])
            return np.array(answer["ids"], np.int64)

        return search
