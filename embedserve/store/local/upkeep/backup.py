"""A backup: one file with the whole collection, made while the collection is used.

It is the SQLite database of the items at one moment, with an additional table that describes the collection, followed
by one line with the sha256 of all bytes before it. SQLite ignores the line, so any SQLite tool that opens the file
read-only can inspect it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedserve.errors import EmbedserveError
from embedserve.store.local.records.catalog import Entry, check_filter_keys
from embedserve.store.local.records.database import connect, damaged, translate_errors
from embedserve.store.local.records.facets import Facets
from embedserve.store.local.records.interruption import interruptible
from embedserve.store.local.records.verify import RowLimits, missing_facets, verify_rows
from embedserve.store.local.upkeep.wire_limits import check_entry, check_time, database_problem, number
from embedserve.types import Keep, Limits

FORMAT = 1
"""Version of the document and of the last line; the database has its own."""

TABLE = "CREATE TABLE backup (document TEXT NOT NULL)"

_PAGES = 512
"""Pages copied at a time, 4 or 8 MB. 160 MB beside a writing thread took 0.2 s with 64, 512 and all pages at a time,
and writes waited at most 25 ms. VACUUM INTO took twice as long, and a write waited 80 ms."""
_ROWS = 2048
_LAST_LINE = b"embedserve backup, sha256 %b\n"
LAST_LINE_BYTES = len(_LAST_LINE % bytes(64))


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """What a backup says about itself."""

    entry: Entry
    """The catalog entry of the collection that was backed up."""
    items: int
    seq: int
    """Sequence number of the last write in the backup."""
    made_unix_s: float

    def to_json(self) -> str:
        """The text in the table ``backup``."""
        entry = self.entry
        return json.dumps(
            {
                "format": FORMAT,
                "name": entry.name,
                "fingerprint": entry.fingerprint,
                "encoder_name": entry.encoder_name,
                "dimension": entry.dimension,
                "keep": entry.keep.value,
                "created_unix_s": entry.created_unix_s,
                "index": entry.index,
                "target_recall": entry.target_recall,
                "filter_keys": list(entry.filter_keys),
                "items": self.items,
                "seq": self.seq,
                "made_unix_s": self.made_unix_s,
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, found: dict[str, Any], *, name: str, uid: str) -> Document:
        """Parse a document, for a collection with another name and uid.

        Raises:
            ValueError: a value is missing or not allowed.
        """
        try:
            entry = Entry(
                name=name,
                uid=uid,
                fingerprint=_of(found["fingerprint"], str),
                encoder_name=_of(found["encoder_name"], str),
                dimension=_of(found["dimension"], int),
                keep=Keep(found["keep"]),
                created_unix_s=_real(found["created_unix_s"]),
                index=_of(found["index"], str),
                target_recall=_real(found["target_recall"]),
                filter_keys=check_filter_keys([_of(key, str) for key in _of(found["filter_keys"], list)]),
            )
            document = cls(
                entry=entry,
                items=number("number of items", found["items"]),
                seq=number("sequence number", found["seq"]),
                made_unix_s=_real(found["made_unix_s"]),
            )
        except KeyError as error:
            raise ValueError(f"it does not state {error}") from error
        except (TypeError, OverflowError, EmbedserveError) as error:
            raise ValueError(str(error)) from error
        check_entry(entry)
        check_time("made_unix_s", document.made_unix_s)
        return document


def write_backup(source: Path, target: Path, entry: Entry, check: Callable[[], None]) -> None:
    """Back up the collection as it is now, and verify every row of the backup.

    Args:
        source: the database of the items, which may be read and written meanwhile.
        target: a new file.
        entry: what the catalog says about the collection.
        check: called every few milliseconds; an exception from it ends the work.

    Raises:
        DiskFull: there is no room for ``target``.
        StoreError: a row is damaged; names the item. A backup would hide the damage until it is needed.
    """
    with translate_errors(target):
        _copy(source, target, check)
        with closing(connect(target)) as copy:
            # The file need not survive a power cut.
            copy.execute("PRAGMA synchronous = OFF")
            # A single file, without a log beside it.
            copy.execute("PRAGMA journal_mode = DELETE")
            copy.execute("PRAGMA journal_mode = MEMORY")
            with interruptible(copy, check):
                problem = first_problem(copy, entry, check)
                if problem:
                    raise damaged(source, problem)
                items, seq = copy.execute("SELECT (SELECT COUNT(*) FROM item), (SELECT seq FROM state)").fetchone()
            document = Document(entry=entry, items=items, seq=seq, made_unix_s=time.time())
            copy.execute(TABLE)
            copy.execute("INSERT INTO backup (document) VALUES (?)", (document.to_json(),))
        digest = hashlib.sha256()
        with target.open("r+b") as file:
            while chunk := file.read(1 << 20):
                check()
                digest.update(chunk)
            file.write(last_line(digest.hexdigest()))


def last_line(digest: str) -> bytes:
    """The line after the database, with its sha256 in hexadecimal."""
    return _LAST_LINE % digest.encode()


def first_problem(
    connection: sqlite3.Connection, entry: Entry, check: Callable[[], None], limits: Limits | None = None
) -> str:
    """The first problem in a database of items that is not being written; empty if there is none.

    Args:
        connection: to the database; the caller makes its statements interruptible.
        entry: what is said about its collection.
        check: called for every row; an exception from it ends the work.
        limits: of the wire, for a database from outside.

    Raises:
        sqlite3.Error: its pages are inconsistent.
    """
    # The quick check would not compare the index of ids with the rows.
    (answer,) = connection.execute("PRAGMA integrity_check (1)").fetchone()
    if answer != "ok":
        return str(answer)
    # The first version of the database had neither facets nor declared keys.
    has_facets = connection.execute("PRAGMA user_version").fetchone()[0] > 1
    query = "SELECT number, key FROM facet_key ORDER BY number"
    if (connection.execute(query).fetchall() if has_facets else []) != list(enumerate(entry.filter_keys)):
        return "its filter keys are not those of its collection"
    held_to = None
    if limits is not None:
        if problem := database_problem(connection):
            return problem
        held_to = RowLimits(limits, last_seq=(connection.execute("SELECT seq FROM state").fetchone() or (0,))[0])
    facets, expected, after = Facets(entry.filter_keys), 0, 0
    while batch := verify_rows(connection, entry.dimension, after, _ROWS, check, held_to):
        count, missing = missing_facets(connection, facets, batch, check)
        if batch.problems or missing:
            return [*batch.problems, *missing][0]
        expected, after = expected + count, batch.last_rid
    if has_facets and connection.execute("SELECT COUNT(*) FROM facet").fetchone() != (expected,):
        return "filters would find items by metadata that they lack"
    orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
    if orphan is not None:
        return "an image belongs to no item"
    highest = "SELECT max(seq) FROM item"
    states = connection.execute(f"SELECT seq, seq >= coalesce(({highest}), 0) FROM state").fetchall()
    if len(states) != 1 or states[0][1] != 1:
        return "the table state does not match the rows"
    numbered = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'item'").fetchall()
    if after and not (len(numbered) == 1 and type(numbered[0][0]) is int and numbered[0][0] >= after):
        return "row numbers would be used twice"
    return ""


def _copy(source: Path, target: Path, check: Callable[[], None]) -> None:
    with closing(connect(source)) as reader, closing(connect(target)) as writer:
        reader.execute("PRAGMA query_only = ON")
        writer.execute("PRAGMA journal_mode = OFF")
        writer.execute("PRAGMA synchronous = OFF")
        # All pages of one moment: inside a read transaction a write does not restart the copy.
        reader.execute("BEGIN")
        reader.execute("SELECT seq FROM state").fetchone()
        reader.backup(writer, pages=_PAGES, progress=lambda *_: check())


def _real(value: object) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)  # type: ignore[arg-type]


def _of(value: object, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    return value
