"""Train an image encoder on your own unlabelled pictures and serve it over gRPC.

Public here: the Python client, the values that it takes and returns, and the errors that it raises. Everything else is
reached through the command line.

    from embedserve import Client, Eq

    with Client("localhost:50051") as client:
        hits = client.search("photos", image="query.jpg", k=5, filter=Eq("label", "red"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from embedserve import errors
    from embedserve.client import (
        AddResult,
        AsyncClient,
        Client,
        Embeddings,
        EncoderInfo,
        EncoderRef,
        ImageInput,
        ItemId,
        ItemInput,
        MetadataChange,
        MetadataInput,
        Query,
        ServerInfo,
        Target,
    )
    from embedserve.errors import EmbedserveError
    from embedserve.types import (
        And,
        CheckProgress,
        CheckReport,
        CollectionInfo,
        Eq,
        Exists,
        Filter,
        Hit,
        In,
        Item,
        Keep,
        Limits,
        Media,
        Metadata,
        MetadataValue,
        Not,
        Or,
        Range,
        Recall,
    )

__all__ = [
    "AddResult",
    "And",
    "AsyncClient",
    "CheckProgress",
    "CheckReport",
    "Client",
    "CollectionInfo",
    "Embeddings",
    "EmbedserveError",
    "EncoderInfo",
    "EncoderRef",
    "Eq",
    "Exists",
    "Filter",
    "Hit",
    "ImageInput",
    "In",
    "Item",
    "ItemId",
    "ItemInput",
    "Keep",
    "Limits",
    "Media",
    "Metadata",
    "MetadataChange",
    "MetadataInput",
    "MetadataValue",
    "Not",
    "Or",
    "Query",
    "Range",
    "Recall",
    "ServerInfo",
    "Target",
    "__version__",
    "errors",
]


def __getattr__(name: str) -> object:
    # Names are loaded on first use: the client needs grpc and numpy, for which `embedserve --help` must not wait.
    from importlib import import_module

    if name == "errors":
        return import_module("embedserve.errors")
    if name in __all__:
        for module in ("embedserve.errors", "embedserve.types", "embedserve.client"):
            if hasattr(home := import_module(module), name):
                return getattr(home, name)
    raise AttributeError(f"module 'embedserve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
