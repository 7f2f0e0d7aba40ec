"""A backup is held to what the wire allows: each field, spoiled alone in a backup that is otherwise valid, is named."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve.store.local.records.row import Row
from embedserve.store.local.records.view import media_crc
from embedserve.store.local.store import LocalStore
from embedserve.types import Limits
from tests.store.upkeep.backup_cases import backup_of, changed, database_of, filled, refused, sealed

SPOILED_DOCUMENT: dict[str, tuple[str, object, str]] = {
    "year 99999": (
        "created_unix_s",
        3.0936e12,
        "its created_unix_s is 3.0936e+12; it must lie in the years 1970 to 9999",
    ),
    "before 1970": ("created_unix_s", -1, "its created_unix_s is -1"),
    "no finite time": ("created_unix_s", "9e999", "its created_unix_s is inf"),
    "time as text": ("created_unix_s", '"12"', "'12' is not a number"),
    "made in year 99999": ("made_unix_s", 3.0936e12, "its made_unix_s is 3.0936e+12"),
    "fingerprint": (
        "fingerprint",
        '"sha256:abc"',
        "its fingerprint is 'sha256:abc', neither 64 hexadecimal digits nor",
    ),
    "fingerprint in capitals": ("fingerprint", f'"{"AB" * 32}"', "its fingerprint is 'ABAB"),
    "fingerprint with a line end": ("fingerprint", f'"{"ab" * 32}\\n"', "its fingerprint is"),
    "fingerprint as number": ("fingerprint", 5, "5 is not a str"),
    "surrogate in a name": (
        "encoder_name",
        '"a\\ud800"',
        "its encoder name is 'a\\ud800', which cannot be written in UTF-8",
    ),
    "10 MB name": ("encoder_name", f'"{"a" * 10_000_000}"', "its encoder name has 10000000 characters; at most 1024"),
    "dimension 0": ("dimension", 0, "its dimension is 0; 1–65536 are allowed"),
    "dimension 65537": ("dimension", 65537, "its dimension is 65537; 1–65536 are allowed"),
    "negative dimension": ("dimension", -16, "its dimension is -16"),
    "dimension as float": ("dimension", 16.0, "16.0 is not a int"),
    "dimension as boolean": ("dimension", "true", "True is not a int"),
    "keep": ("keep", '"everything"', "'everything' is not a valid Keep"),
    "index": ("index", '"hnsw:m=0"', "hnsw"),
    "unknown index": ("index", '"tree"', "tree"),
    "recall 0": ("target_recall", 0, "its target_recall is 0.0; it must be above 0 and at most 1"),
    "recall above 1": ("target_recall", 1.01, "its target_recall is 1.01"),
    "recall as text": ("target_recall", '"0.9"', "'0.9' is not a number"),
    "filter key": ("filter_keys", '["a\\"b", "number"]', "is not allowed"),
    "surrogate in a filter key": ("filter_keys", '["\\ud800", "number"]', "is not allowed"),
    "filter keys as text": ("filter_keys", '"text"', "'text' is not a list"),
    "65 filter keys": ("filter_keys", str([f"k{n}" for n in range(65)]).replace("'", '"'), "at most 64"),
    "sequence number -1": ("seq", -1, "its sequence number is '-1'; integers from 0 to 2^62 are allowed"),
    "last sequence number": ("seq", 2**63 - 1, f"its sequence number is '{2**63 - 1}'"),
    "sequence number beyond 64 bits": ("seq", 2**64, f"its sequence number is '{2**64}'"),
    "items": ("items", -1, "its number of items is '-1'"),
}


@pytest.mark.parametrize("case", SPOILED_DOCUMENT)
def test_a_field_of_the_document_is_refused_by_name(
    store: LocalStore, data: Path, backup: bytes, tmp_path: Path, case: str
) -> None:
    field, value, message = SPOILED_DOCUMENT[case]
    path = tmp_path / "forged"
    path.write_bytes(database_of(backup))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (text,) = connection.execute("SELECT document FROM backup").fetchone()
        document = {name: json.dumps(old) for name, old in json.loads(text).items()}
        assert field in document
        document[field] = str(value)
        text = "{" + ", ".join(f'"{name}": {value}' for name, value in document.items()) + "}"
        connection.execute("UPDATE backup SET document = ?", (text,))
    said = refused(store, data, sealed(path.read_bytes()))
    assert said.startswith("the backup is damaged: ")
    assert message in said
    assert len(said) < 1000


SPOILED_TABLES = {
    "state -1": ("UPDATE state SET seq = -1", "its sequence number is '-1'"),
    "state 2^63-1": (f"UPDATE state SET seq = {2**63 - 1}", f"its sequence number is '{2**63 - 1}'"),
    "state as text": ("UPDATE state SET seq = 'many'", "its sequence number is 'many'"),
    "row numbers used up": (f"UPDATE sqlite_sequence SET seq = {2**63 - 1}", f"its last row number is '{2**63 - 1}'"),
    "row number 0": (
        "UPDATE item SET rid = 0 WHERE id = 'item-002'; UPDATE facet SET rid = 0 WHERE rid = 3",
        "an item has the row number 0; they begin with 1",
    ),
    "negative row number": ("UPDATE item SET rid = -5 WHERE id = 'item-002'", "an item has the row number -5"),
    "item's number 0": ("UPDATE item SET seq = 0 WHERE id = 'item-002'", "item 'item-002': its sequence number is 0"),
    "item's number of the future": (
        "UPDATE item SET seq = (SELECT seq + 1 FROM state) WHERE id = 'item-002'; UPDATE state SET seq = seq",
        "item 'item-002': its sequence number is ",
    ),
    "item's number as real": (
        "UPDATE item SET seq = 1.5 WHERE id = 'item-002'",
        "item 'item-002': a column of its row",
    ),
}


@pytest.mark.parametrize("case", SPOILED_TABLES)
def test_a_number_of_the_tables_is_refused_by_name(
    store: LocalStore, data: Path, backup: bytes, tmp_path: Path, case: str
) -> None:
    statements, message = SPOILED_TABLES[case]
    said = refused(store, data, changed(backup, tmp_path / "forged", *statements.split("; ")))
    assert said.startswith("the backup is damaged: ")
    assert message in said or case == "item's number of the future"


def test_texts_in_another_encoding_are_refused(store: LocalStore, data: Path, backup: bytes, tmp_path: Path) -> None:
    path = tmp_path / "forged"
    path.write_bytes(database_of(backup))
    with (
        closing(sqlite3.connect(path)) as source,
        closing(sqlite3.connect(tmp_path / "wide", isolation_level=None)) as wide,
    ):
        wide.execute("PRAGMA encoding = 'UTF-16le'")
        wide.execute("PRAGMA user_version = 2")
        for name, statement in source.execute("SELECT name, sql FROM sqlite_schema WHERE sql NOT LIKE '%sqlite_seq%'"):
            wide.execute(statement)
            rows = source.execute(f"SELECT * FROM {name}").fetchall()
            wide.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    said = refused(store, data, sealed((tmp_path / "wide").read_bytes()))
    assert said == "the backup is damaged: its texts are in UTF-16le"


@dataclass
class Columns:
    """The columns of a row with an image."""

    id: Any
    sha: Any
    meta: Any
    vec: Any
    media_type: Any
    image: Any


def unit_vector(*first: float) -> bytes:
    return np.array([*first, *[0.0] * (16 - len(first))], "<f4").tobytes()


BIG = "x" * 10_000_000
SPOILED_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "empty id": ({"id": ""}, "item '': its id is empty"),
    "10 MB id": ({"id": BIG}, f"item {'x' * 80!r}: 10000000 bytes in its id; max_id_bytes is 256"),
    "id of 257 bytes": ({"id": "ü" * 128 + "x"}, "257 bytes in its id; max_id_bytes is 256"),
    "id that is no text": ({"id": b"item-004"}, "item 'item-004': a column of its row or image has a wrong type"),
    "sha256 of 5 bytes": ({"sha": b"12345"}, "item 'item-004': the sha256 of its image has 5 bytes"),
    "sha256 as text": ({"sha": "a" * 32}, "item 'item-004': a column of its row or image has a wrong type"),
    "metadata in a list": ({"meta": "[]"}, "item 'item-004': its id or metadata cannot be read"),
    "metadata that is no JSON": ({"meta": "{"}, "item 'item-004': its id or metadata cannot be read"),
    "metadata with an object": ({"meta": '{"a":{"b":1}}'}, "item 'item-004': metadata 'a' is a dict"),
    "metadata with null": ({"meta": '{"a":null}'}, "item 'item-004': metadata 'a' is a NoneType"),
    "metadata with a list of numbers": ({"meta": '{"a":[1]}'}, "item 'item-004': metadata 'a' is a list"),
    "metadata beyond 64 bits": ({"meta": f'{{"a":{2**63}}}'}, "item 'item-004': metadata 'a' is 9223372036854775808"),
    "metadata NaN": ({"meta": '{"a":NaN}'}, "item 'item-004': metadata 'a' is nan; only finite numbers"),
    "metadata with half a surrogate pair": ({"meta": '{"a":"\\ud800"}'}, "item 'item-004': metadata 'a' is '\\ud800'"),
    "metadata key with a quote": ({"meta": '{"a\'":1}'}, "item 'item-004': metadata key \"a'\" is not allowed"),
    "metadata key too long": ({"meta": f'{{"{"k" * 129}":1}}'}, "item 'item-004': metadata key 'kkk"),
    "metadata key twice": ({"meta": '{"a":1,"a":2}'}, "item 'item-004': its metadata has a key twice"),
    "metadata too large": ({"meta": f'{{"a":"{"m" * 20_000}"}}'}, "bytes of metadata; max_metadata_bytes is 16384"),
    "10 MB of metadata": ({"meta": f'{{"a":"{BIG}"}}'}, "bytes of metadata; max_metadata_bytes is 16384"),
    "vector with NaN": ({"vec": unit_vector(float("nan"))}, "item 'item-004': its vector does not have norm 1"),
    "vector with infinity": ({"vec": unit_vector(float("inf"))}, "item 'item-004': its vector does not have norm 1"),
    "zero vector": ({"vec": unit_vector(0.0)}, "item 'item-004': its vector does not have norm 1"),
    "long vector": ({"vec": unit_vector(2.0)}, "item 'item-004': its vector does not have norm 1"),
    "vector of 17 numbers": (
        {"vec": unit_vector(1.0) + bytes(4)},
        "item 'item-004': its row does not match its checksum",
    ),
    "media type with a line end": ({"media_type": "image/png\n"}, "the media type of its image is 'image/png\\n'"),
    "empty media type": ({"media_type": ""}, "the media type of its image is ''"),
    "10 MB media type": ({"media_type": "image/" + BIG}, "the media type of its image is 'image/xxx"),
    "media type with half": ({"media_type": "image"}, "the media type of its image is 'image'"),
    "image that is text": ({"image": "picture"}, "item 'item-004': a column of its row or image has a wrong type"),
    "image too large": ({"image": bytes(5000)}, "item 'item-004': 5000 bytes in its image; max_image_bytes is 4096"),
}


def spoiled(backup: bytes, path: Path, columns: dict[str, Any]) -> bytes:
    """The backup with other columns in the row item-004, and with the checksums that belong to them."""
    path.write_bytes(database_of(backup))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogatepass")
        query = "SELECT rid, id, sha, meta, vec, type, data FROM item JOIN media USING (rid) WHERE id = 'item-004'"
        rid, *found = connection.execute(query).fetchone()
        row = Columns(*found)
        for name, value in columns.items():
            assert hasattr(row, name)
            setattr(row, name, value)
        as_bytes = [part.encode() if isinstance(part, str) else part for part in (row.id, row.sha, row.meta, row.vec)]
        image = row.image.encode() if isinstance(row.image, str) else row.image
        connection.execute(
            "UPDATE item SET id = ?, sha = ?, meta = ?, vec = ?, crc = ? WHERE rid = ?",
            (row.id, row.sha, row.meta, row.vec, Row(*as_bytes).crc, rid),
        )
        connection.execute(
            "UPDATE media SET type = ?, data = ?, crc = ? WHERE rid = ?",
            (row.media_type, row.image, media_crc(row.media_type, image), rid),
        )
        if "meta" in columns:
            connection.execute("DELETE FROM facet WHERE rid = ?", (rid,))
    return sealed(path.read_bytes())


@pytest.fixture
def strict_store(data: Path) -> Any:
    """A store whose server takes images of at most 4 KiB."""
    with LocalStore.open(data, limits=Limits(max_image_bytes=4096)) as opened:
        yield opened


def test_the_forger_of_these_tests_can_forge_a_backup_that_is_taken(
    strict_store: LocalStore, backup_of_another_store: bytes, tmp_path: Path
) -> None:
    forged = spoiled(backup_of_another_store, tmp_path / "forged", {"media_type": "image/webp", "image": bytes(4096)})
    assert strict_store.restore_collection("restored", [forged]).items > 0


@pytest.mark.parametrize("case", SPOILED_ROWS)
def test_a_column_of_an_item_is_refused_by_item_and_name(
    strict_store: LocalStore, data: Path, backup_of_another_store: bytes, tmp_path: Path, case: str
) -> None:
    columns, message = SPOILED_ROWS[case]
    said = refused(strict_store, data, spoiled(backup_of_another_store, tmp_path / "forged", columns), 1 << 20)
    assert said.startswith("the backup is damaged: item ")
    assert message in said
    assert len(said) < 500


@pytest.fixture(scope="module")
def backup_of_another_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with LocalStore.open(tmp_path_factory.mktemp("other") / "data") as other:
        filled(other)
        return backup_of(other)
