"""Train an image encoder on your own unlabelled pictures and serve it over gRPC.

Public here: the client and the values and errors that it takes, gives and raises. Everything else is reached through
the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from embedserve.client import AsyncClient, Client, Embeddings
    from embedserve.errors import EmbedserveError

__all__ = ["AsyncClient", "Client", "Embeddings", "EmbedserveError", "__version__"]


def __getattr__(name: str) -> object:
    # The client needs grpc (0.1 s to import); `embedserve --help` imports this package and must not wait for it.
    if name in ("AsyncClient", "Client", "Embeddings"):
        from embedserve import client

        return getattr(client, name)
    if name == "EmbedserveError":
        from embedserve.errors import EmbedserveError

        return EmbedserveError
    raise AttributeError(f"module 'embedserve' has no attribute {name!r}")
