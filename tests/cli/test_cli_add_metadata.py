"""`embedserve add --metadata` against a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedserve import Client
from tests.cli.outcome import Cli
from tests.fakes import picture

IDS = ["cats/a.png", "cats/b.jpg", "dogs/big/c.png", "dogs/big/d.webp", "top.png"]


def counts(document: dict[str, Any]) -> tuple[int, int, int, int]:
    return document["added"], document["changed"], document["known"], len(document["failed"])


def test_a_table_gives_typed_metadata_by_path(cli: Cli, client: Client, collection: str, photos: Path) -> None:
    table = photos / "table.csv"
    table.write_text(
        'path,price,weight,sold,article,note,label\ncats/a.png,12,0.5,true,007,"tall, thin",lion\n./top.png,,,,,,\n',
        encoding="utf-8-sig",
    )
    outcome = cli("add", photos, "--collection", collection, "--metadata", table)
    assert outcome.exit_code == 0
    cat, top = client.get_items(collection, ["cats/a.png", "top.png"])
    assert cat is not None
    assert top is not None
    assert dict(cat.metadata) == {
        "root": "photos",
        "label": "lion",
        "folder": "cats",
        "price": 12,
        "weight": 0.5,
        "sold": True,
        "article": "007",
        "note": "tall, thin",
    }
    assert dict(top.metadata) == {"root": "photos"}


def test_rows_without_an_image_are_counted(cli: Cli, collection: str, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,price\ntop.png,1\ngone.png,2\n")
    outcome = cli("add", photos, "--collection", collection, "--metadata", table)
    assert outcome.exit_code == 0
    assert f"1 of 2 rows in {table} match no image, such as 'gone.png'" in outcome.err


def test_changed_metadata_are_a_change(cli: Cli, client: Client, collection: str, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,price\ntop.png,1\ncats/a.png,true\n")
    cli("add", photos, "--collection", collection, "--metadata", table)
    table.write_text("path,price\ntop.png,2\ncats/a.png,1\n")
    outcome = cli("add", photos, "--collection", collection, "--metadata", table, "--json")
    assert counts(outcome.json) == (0, 2, 3, 0)
    assert [item and item.metadata["price"] for item in client.get_items(collection, ["top.png", "cats/a.png"])] == [
        2,
        1,
    ]


def test_a_run_without_the_table_leaves_its_metadata_alone(
    cli: Cli, client: Client, collection: str, photos: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,price\ntop.png,1\ncats/a.png,2\n")
    cli("add", photos, "--collection", collection, "--metadata", table)
    (photos / "cats/a.png").write_bytes(picture(77))
    outcome = cli("add", photos, "--collection", collection, "--json")
    assert counts(outcome.json) == (0, 1, 4, 0)
    assert [item and item.metadata["price"] for item in client.get_items(collection, ["top.png", "cats/a.png"])] == [
        1,
        2,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file,price\na.png,1\n", "has no column 'path'; its columns are 'file', 'price'"),
        (b"", "has no column 'path'; its columns are none"),
        (b"path,price\na.png,1\na.png,2\n", "line 3: 'a.png' already has a row"),
        (b"path,price\na.png,1,2\n", "line 2: the number of cells differs from that of the columns"),
        (b"path,price\na.png\n", "line 2: the number of cells differs from that of the columns"),
        (b"path,'price'\na.png,1\n", "metadata key \"'price'\" is not allowed"),
        (b"path,price\na.png,\xff\n", "is not a CSV file in UTF-8"),
        (b'path,price\na.png,"1\n', "is not a CSV file in UTF-8"),
    ],
    ids=["no-path", "empty", "twice", "more-cells", "fewer-cells", "bad-key", "not-utf-8", "open-quote"],
)
def test_a_malformed_table_is_refused_before_anything_is_sent(
    cli: Cli, client: Client, collection: str, photos: Path, tmp_path: Path, text: bytes, message: str
) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(text)
    outcome = cli("add", photos, "--collection", collection, "--metadata", table)
    assert outcome.exit_code == 2
    assert message in outcome.err
    assert collection not in [info.name for info in client.list_collections()]


def test_filters_find_what_pandas_wrote(
    cli: Cli, client: Client, collection: str, photos: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    table.write_text(
        "path,sold,loss,share,zip,card,taken\n"
        "cats/a.png,True,1e-05,.5,01234,4111111111111111111,2024-01-31\n"
        "cats/b.jpg,False,0.25,1.,90210,4111111111111111112,2024-02-01\n"
        "top.png,,NaN,,,,\n"
    )
    outcome = cli("add", photos, "--collection", collection, "--metadata", table)
    assert "column 'zip' of" in outcome.err
    for conditions, ids in {
        ("sold=True",): ["cats/a.png"],
        ("sold!=true", "sold"): ["cats/b.jpg"],
        ("loss<0.001",): ["cats/a.png"],
        ("share>=.5",): ["cats/a.png", "cats/b.jpg"],
        ("zip=90210",): ["cats/b.jpg"],
        ("zip=01234",): ["cats/a.png"],
        ("card=4111111111111111112",): ["cats/b.jpg"],
        ("taken in (2024-01-31, 2024-02-02)",): ["cats/a.png"],
    }.items():
        where = [argument for condition in conditions for argument in ("--where", condition)]
        listed = cli("collection", "list-items", collection, *where, "--json").json_lines
        assert (conditions, [row["id"] for row in listed]) == (conditions, ids)
    [top] = client.get_items(collection, ["top.png"])
    assert top is not None
    assert dict(top.metadata) == {"root": "photos"}


def test_a_table_that_matches_no_image_is_refused(cli: Cli, collection: str, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,price\nphotos/top.png,1\ncats\\a.png,2\n")
    outcome = cli("add", photos, "--collection", collection, "--metadata", table)
    assert outcome.exit_code == 2
    assert f"none of the 2 rows in {table} matches an image" in outcome.err
    assert "relative to the folder" in outcome.err
