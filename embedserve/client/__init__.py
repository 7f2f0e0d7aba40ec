"""The Python client: ``Client`` blocks, ``AsyncClient`` has the same methods as coroutines.

    with embedserve.Client("localhost:50051") as client:
        vectors = client.embed(["a.jpg", "b.jpg"]).vectors          # float32 [2, D]
        hits = client.search("photos", image="query.jpg", k=5)      # list of Hit: id, score, metadata

An error of the server is raised here as the same class of ``embedserve.errors``.
"""

from __future__ import annotations

from embedserve.changes import MetadataChange
from embedserve.client.aio import AsyncClient
from embedserve.client.sync import Client
from embedserve.client.target import Target
from embedserve.client.values import (
    AddResult,
    Embeddings,
    EncoderInfo,
    EncoderRef,
    ImageInput,
    ItemId,
    ItemInput,
    MetadataInput,
    Query,
    ServerInfo,
)

__all__ = [
    "AddResult",
    "AsyncClient",
    "Client",
    "Embeddings",
    "EncoderInfo",
    "EncoderRef",
    "ImageInput",
    "ItemId",
    "ItemInput",
    "MetadataChange",
    "MetadataInput",
    "Query",
    "ServerInfo",
    "Target",
]
