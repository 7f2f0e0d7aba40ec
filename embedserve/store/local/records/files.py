"""Small JSON files that are replaced atomically and carry their own hash, and hashes of other files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedserve.atomic_write import private, sync

_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path, check: Callable[[], None] = lambda: None) -> str:
    """sha256 of the bytes of a file, in hexadecimal; ``check`` is called for every MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            check()
            digest.update(chunk)
    return digest.hexdigest()


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Replace a file by a JSON document with its own hash; after a power cut the file is the old one or the new one."""
    body = json.dumps(document, indent=1, sort_keys=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", opener=private) as file:
        file.write(json.dumps({"sha256": _hash(body), "document": body}))
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def read_document(path: Path) -> dict[str, Any]:
    """What ``write_document`` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content does not match its hash.
    """
    try:
        outer = json.loads(path.read_text(encoding="utf-8"))
        if _hash(outer["document"]) == outer["sha256"]:
            document: dict[str, Any] = json.loads(outer["document"])
            return document
    except (ValueError, KeyError, TypeError, AttributeError):  # not text, not JSON, or other JSON
        pass
    raise ValueError(f"{path} does not match its hash")


def _hash(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
