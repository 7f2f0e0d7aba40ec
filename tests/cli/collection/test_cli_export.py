"""`embedserve collection export` and `import` against a real server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedserve import Client
from embedserve.cli.collection.parquet_file import CollectionFile
from embedserve.client import ItemInput
from embedserve.errors import CollectionNotFound
from embedserve.types import Keep
from tests.cli.outcome import Cli
from tests.fakes import DIMENSION, FakeEncoder, picture

OURS = FakeEncoder().fingerprint


@pytest.fixture
def filled(client: Client, collection: str) -> str:
    """Twelve pictures with metadata, and one vector."""
    client.create_collection(
        collection, keep="originals", index="hnsw:m=16", target_recall=0.9, filter_keys=["label", "year"]
    )
    items = [
        ItemInput(id=f"ü/{seed}.png", image=picture(seed), metadata={"label": "cat", "year": seed, "price": 1.0})
        for seed in range(12)
    ]
    items.append(ItemInput(id="v", vector=np.arange(1, DIMENSION + 1), metadata={"tags": ["a", "b"], "ok": True}))
    assert [result.error for result in client.add(collection, items, encoder_fingerprint=OURS)] == [None] * 13
    return collection


@pytest.fixture
def other(client: Client, collection: str) -> Iterator[str]:
    """Another name that no other test uses."""
    name = f"{collection}-2"
    yield name
    with suppress(CollectionNotFound):
        client.delete_collection(name)


def everything(client: Client, name: str) -> tuple[list[tuple[str, dict[str, Any]]], np.ndarray]:
    """Ids with metadata, and the vectors, float32 [N, D]."""
    items = list(client.list_items(name, include_vectors=True))
    return [(item.id, dict(item.metadata)) for item in items], np.array([item.vector for item in items])


def assert_same(client: Client, name: str, other: str) -> None:
    (rows, vectors), (other_rows, other_vectors) = everything(client, name), everything(client, other)
    assert rows == other_rows
    # The encoder's vectors have unit norm to the last digit but one; those that come from outside are scaled to it.
    np.testing.assert_allclose(vectors, other_vectors, rtol=0, atol=1e-6)


def test_what_is_exported_is_imported_as_it_was(
    cli: Cli, client: Client, filled: str, other: str, tmp_path: Path
) -> None:
    path = tmp_path / "photos.parquet"
    exported = cli("collection", "export", filled, path)
    assert (exported.exit_code, exported.out) == (0, "")
    assert exported.err.splitlines()[-1] == f"wrote {path}: 13 items of {filled}, 16 numbers per vector"
    imported = cli("collection", "import", other, path, "--json")
    assert imported.exit_code == 0
    assert imported.json == {"collection": other, "written": 13, "duplicates": 0, "failed": []}
    assert_same(client, other, filled)
    info = client.get_collection(other)
    assert (info.fingerprint, info.keep, info.index_spec) == (OURS, Keep.ORIGINALS, "hnsw:m=16")
    assert (info.target_recall, info.filter_keys) == (0.9, ("label", "year"))
    assert [hit.id for hit in client.search(other, image=picture(3), k=1)] == ["ü/3.png"]


def test_an_import_that_is_repeated_changes_nothing(
    cli: Cli, client: Client, filled: str, other: str, tmp_path: Path
) -> None:
    cli("collection", "export", filled, tmp_path / "first.parquet")
    assert cli("collection", "import", other, tmp_path / "first.parquet").exit_code == 0
    rows, vectors = everything(client, other)
    cli("collection", "export", other, tmp_path / "second.parquet")
    for path in (tmp_path / "first.parquet", tmp_path / "second.parquet"):
        assert cli("collection", "import", other, path).exit_code == 0
        assert everything(client, other)[0] == rows
        assert everything(client, other)[1].tobytes() == vectors.tobytes()


def test_an_export_does_not_replace_a_file_without_overwrite(cli: Cli, filled: str, tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    path.write_bytes(b"of last week")
    refused = cli("collection", "export", filled, path)
    assert refused.exit_code == 1
    assert "already exists" in refused.err
    assert path.read_bytes() == b"of last week"
    assert cli("collection", "export", filled, path, "--overwrite").exit_code == 0
    assert pq.read_table(path).num_rows == 13


def test_an_export_that_fails_leaves_no_file(cli: Cli, tmp_path: Path) -> None:
    refused = cli("collection", "export", "nowhere", tmp_path / "photos.parquet")
    assert refused.exit_code == 1
    assert "there is no collection 'nowhere'" in refused.err
    assert list(tmp_path.iterdir()) == []


def test_an_item_that_exists_all_the_time_is_exported_once_while_others_are_written(
    cli: Cli, server: str, filled: str, tmp_path: Path
) -> None:
    stopping = threading.Event()

    def write() -> None:
        with Client(server) as writer:
            number = 0
            while not stopping.is_set():
                vector = np.random.default_rng(number).standard_normal(DIMENSION)
                writer.add(filled, [ItemInput(id=f"w{number % 50}", vector=vector)], encoder_fingerprint=OURS)
                writer.delete_items(filled, [f"w{(number * 7) % 50}"])
                number += 1

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for number in range(5):
            path = tmp_path / f"{number}.parquet"
            assert cli("collection", "export", filled, path).exit_code == 0
            ids = pq.read_table(path).column("id").to_pylist()
            assert len(ids) == len(set(ids))
            assert [id for id in ids if not id.startswith("w")] == sorted(["v", *(f"ü/{n}.png" for n in range(12))])
    finally:
        stopping.set()
        writing.join(20)


# --- What does not fit ---


def foreign(path: Path, dimension: int = DIMENSION, **more: Any) -> Path:
    """Three rows as another program would write them."""
    vectors = np.random.default_rng(1).standard_normal((3, dimension))
    columns: dict[str, Any] = {"id": ["a", "b", "c"], "vector": vectors.tolist(), **more}
    pq.write_table(pa.table(columns), path)
    return path


def test_a_file_of_another_program_needs_the_encoder_of_its_vectors(
    cli: Cli, client: Client, other: str, tmp_path: Path
) -> None:
    path = foreign(tmp_path / "f.parquet", price=[1, 2, 3])
    refused = cli("collection", "import", other, path)
    assert refused.exit_code == 2
    assert "does not say which encoder made its vectors" in refused.err
    assert other not in [info.name for info in client.list_collections()]
    taken = cli("collection", "import", other, path, "--external")
    assert taken.exit_code == 0
    assert "columns that are not read: price" in taken.err
    info = client.get_collection(other)
    assert (info.external, info.dimension, info.items) == (True, DIMENSION, 3)


def test_a_file_may_be_bound_to_an_encoder_that_the_server_does_not_run(
    cli: Cli, client: Client, other: str, tmp_path: Path
) -> None:
    path = foreign(tmp_path / "f.parquet", 5)
    assert cli("collection", "import", other, path, "--fingerprint", "cd" * 32).exit_code == 0
    info = client.get_collection(other)
    assert (info.fingerprint, info.dimension, info.items) == ("cd" * 32, 5, 3)


def test_a_file_that_does_not_fit_the_collection_changes_nothing(
    cli: Cli, client: Client, filled: str, tmp_path: Path
) -> None:
    rows, vectors = everything(client, filled)
    for number, (path, options, why) in enumerate(
        [
            (foreign(tmp_path / "0", fingerprint=["cd" * 32] * 3), [], "is bound to fafafafafafa"),
            (foreign(tmp_path / "1"), ["--external"], "is bound to fafafafafafa"),
            (foreign(tmp_path / "2", 5), ["--fingerprint", OURS], f"of 5 numbers; collection {filled} of 16"),
            (foreign(tmp_path / "3", fingerprint=[OURS] * 3), ["--fingerprint", "cd" * 32], "not of cdcdcdcdcdcd"),
            (
                foreign(tmp_path / "4", metadata=["{}", "{}", "{"]),
                ["--fingerprint", OURS],
                "row 3: the metadata is",
            ),
        ]
    ):
        refused = cli("collection", "import", filled, path, *options)
        assert (number, refused.exit_code) == (number, 1)
        assert why in refused.err
    assert everything(client, filled)[0] == rows
    assert everything(client, filled)[1].tobytes() == vectors.tobytes()


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"id": ["a", "b" * 257, "c"]}, "row 2: 257 bytes in the id; max_id_bytes is 256"),
        ({"metadata": ["{}", "{}", '{"a": "' + "ü" * (8 << 10) + '"}']}, "row 3: 16393 bytes of metadata; max_meta"),
    ],
    ids=["id", "metadata"],
)
def test_a_row_above_a_limit_of_the_server_is_refused_before_anything_is_written(
    cli: Cli, client: Client, filled: str, tmp_path: Path, columns: dict[str, Any], why: str
) -> None:
    path = foreign(tmp_path / "f.parquet", **columns)
    refused = cli("collection", "import", filled, path, "--fingerprint", OURS)
    assert refused.exit_code == 1
    assert why in refused.err
    assert client.get_collection(filled).items == 13


def test_an_import_says_which_images_go(cli: Cli, client: Client, filled: str, other: str, tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    assert cli("collection", "export", filled, path).exit_code == 0
    warning = f"collection {filled} keeps originals of images: an item whose id is in {path} is replaced and loses its"
    assert warning in cli("collection", "import", filled, path).err
    [item] = client.get_items(filled, ["ü/3.png"], include_media=True)
    assert item is not None
    assert item.media is None
    client.create_collection(other, keep="none")
    client.add(other, [ItemInput(id="a", image=picture(1))])
    assert "images" not in cli("collection", "import", other, path).err


def test_a_row_that_the_server_refuses_fails_alone_and_is_named(
    cli: Cli, client: Client, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where the server was started again with other limits.
    monkeypatch.setattr(CollectionFile, "check", lambda *_: iter(range(3)))
    path = foreign(tmp_path / "f.parquet", id=["a", "b" * 300, "c"])
    outcome = cli("collection", "import", filled, path, "--fingerprint", OURS, "--json")
    assert outcome.exit_code == 1
    assert outcome.json["written"] == 2
    [failed] = outcome.json["failed"]
    assert (failed["row"], failed["id"], failed["code"]) == (2, "b" * 300, "LIMIT_EXCEEDED")
    assert "failed  row 2, bbb" in outcome.err
    assert [item is not None for item in client.get_items(filled, ["a", "c"])] == [True, True]


# --- Columns of other programs ---


def test_other_columns_become_metadata_that_filters_find(cli: Cli, client: Client, other: str, tmp_path: Path) -> None:
    path = foreign(tmp_path / "f.parquet", price=[1, 2, None], shop=[{"city": "Bonn"}] * 3, raw=[b"x"] * 3)
    outcome = cli("collection", "import", other, path, "--external", "--metadata-columns", "price, shop")
    assert outcome.exit_code == 0
    assert "columns that are not read: raw; see --metadata-columns" in outcome.err
    assert [dict(item.metadata) for item in client.list_items(other)] == [
        {"price": 1, "shop.city": "Bonn"},
        {"price": 2, "shop.city": "Bonn"},
        {"shop.city": "Bonn"},
    ]
    listed = cli("collection", "list-items", other, "--where", "shop.city=Bonn", "--where", "price>1")
    assert listed.out == "b  price=2  shop.city=Bonn\n"


def test_all_columns_that_can_become_metadata_and_the_others_are_named(
    cli: Cli, client: Client, other: str, tmp_path: Path
) -> None:
    path = foreign(tmp_path / "f.parquet", price=[1, 2, 3], raw=[b"x"] * 3)
    outcome = cli("collection", "import", other, path, "--external", "--metadata-columns", "*")
    assert outcome.exit_code == 0
    assert "columns that cannot be metadata: raw (binary)" in outcome.err
    assert [dict(item.metadata) for item in client.list_items(other)] == [{"price": n} for n in (1, 2, 3)]


def test_of_rows_with_one_id_the_last_counts_and_the_others_are_counted(
    cli: Cli, client: Client, other: str, tmp_path: Path
) -> None:
    path = foreign(tmp_path / "f.parquet", id=["a", "a", "a"], n=[1, 2, 3])
    options = ("--external", "--metadata-columns", "n")
    outcome = cli("collection", "import", other, path, *options)
    assert outcome.err.endswith(f"wrote 3 of 3 rows to {other}\n2 duplicate ids: the later row counts\n")
    assert cli("collection", "import", other, path, *options, "--json").json["duplicates"] == 2
    assert [(item.id, item.metadata["n"]) for item in client.list_items(other)] == [("a", 3)]


@pytest.mark.parametrize("columns", ["price,,shop", "*,price", ""])
def test_a_list_of_columns_with_a_gap_is_wrong_usage(cli: Cli, tmp_path: Path, columns: str) -> None:
    path = foreign(tmp_path / "f.parquet", price=[1, 2, 3])
    outcome = cli("collection", "import", "any", path, "--external", "--metadata-columns", columns)
    assert outcome.exit_code == 2
