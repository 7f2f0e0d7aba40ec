"""From the bytes of a backup to the files of a collection; nothing is trusted until everything is verified.

A backup comes from outside. It is opened read-only, nothing in it may be executed, and it must have exactly the tables
of a collection.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from embedserve.atomic_write import private
from embedserve.errors import InvalidInput
from embedserve.store.local.records.database import connect, schema_of, translate_errors
from embedserve.store.local.records.interruption import interruptible
from embedserve.store.local.records.records import VERSION, schema
from embedserve.store.local.upkeep.backup import FORMAT, LAST_LINE_BYTES, TABLE, Document, first_problem, last_line
from embedserve.types import Limits

_SPARE_BYTES = 16 << 20
"""Room in a value beside the longest image."""
_MAGIC = b"SQLite format 3\x00"
_AGAIN = "get the file again from its origin, or use another backup"


def receive(chunks: Iterable[bytes], path: Path, check: Callable[[], None]) -> None:
    """Write a backup without its last line to a new file; on disk when this returns.

    Args:
        chunks: the bytes of the backup, in pieces of any size.
        path: the new file.
        check: called for every chunk; an exception from it ends the work.

    Raises:
        InvalidInput: the bytes are not a backup, or have changed since it was made.
        DiskFull: there is no room for it.
    """
    digest, kept, has_magic = hashlib.sha256(), b"", False
    with translate_errors(path), open(path, "xb", opener=private) as file:
        for chunk in chunks:
            check()
            kept += chunk
            if not has_magic:
                if len(kept) < len(_MAGIC):
                    continue
                if not kept.startswith(_MAGIC):
                    break
                has_magic = True
            # Hold back what may be the last line.
            ready, kept = kept[:-LAST_LINE_BYTES], kept[-LAST_LINE_BYTES:]
            digest.update(ready)
            file.write(ready)
        if not has_magic:
            raise InvalidInput(
                "this is not a backup of a collection", hint="make one with: embedserve collection backup NAME FILE"
            )
        start, end = last_line("|").split(b"|")
        if not (kept.startswith(start) and kept.endswith(end)):
            raise InvalidInput("this is not a backup of a collection, or its end is missing", hint=_AGAIN)
        if kept != last_line(digest.hexdigest()):
            raise InvalidInput("the backup is damaged: its bytes do not match its sha256", hint=_AGAIN)
        file.flush()
        os.fsync(file.fileno())


def verify(path: Path, *, name: str, uid: str, limits: Limits, check: Callable[[], None]) -> Document:
    """The document of a received backup, after everything in the backup was verified.

    Args:
        path: as ``receive`` wrote it.
        name: of the collection to be created.
        uid: of that collection.
        limits: that its items are held to, as if they came in calls.
        check: called every few milliseconds; an exception from it ends the work.

    Raises:
        InvalidInput: the backup was made by a newer release, is inconsistent, or holds what the wire does not allow.
    """
    with _refused(), closing(_untrusted(path)) as connection, interruptible(connection, check):
        # One value may otherwise take a gigabyte of memory.
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.max_image_bytes + _SPARE_BYTES)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        found = schema_of(connection)
        extra = frozenset({("table", "backup", "backup", TABLE)})
        if not extra <= found:
            raise InvalidInput("the database is not a backup of a collection", hint=_AGAIN)
        (text,) = connection.execute("SELECT document FROM backup").fetchone() or ("",)
        document = json.loads(text) if isinstance(text, str) else None
        if not isinstance(document, dict):
            raise ValueError("the table backup contains no document")
        if _number(document.get("format")) > FORMAT or version > VERSION:
            raise InvalidInput(
                "the backup was made by a newer release of embedserve, which this one cannot read",
                hint="upgrade embedserve",
            )
        if found != extra | schema(version):
            different = sorted(str(name) for _, name, _, _ in found ^ (extra | schema(version)))
            raise ValueError(f"its tables are not those of a collection: {', '.join(different)[:200]}")
        backup = Document.from_json(document, name=name, uid=uid)
        problem = first_problem(connection, backup.entry, check, limits)
        if problem:
            raise ValueError(problem)
        items, seq = connection.execute("SELECT (SELECT COUNT(*) FROM item), (SELECT seq FROM state)").fetchone()
        if (items, seq) != (backup.items, backup.seq):
            raise ValueError(f"it contains {items} items, but was made with {backup.items}")
    return backup


def strip(path: Path) -> None:
    """Turn a verified backup into a database of items; on disk when this returns."""
    with translate_errors(path), closing(connect(path)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("DROP TABLE backup")


def _number(value: object) -> int:
    if type(value) is not int:
        raise ValueError("the table backup does not state its format")
    return value


def _untrusted(path: Path) -> sqlite3.Connection:
    # Immutable: no log beside the file is read, whatever its header says, and nothing is locked.
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA query_only = ON")
    return connection


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError, RecursionError) as error:
        raise InvalidInput(f"the backup is damaged: {error}", hint=_AGAIN) from error
