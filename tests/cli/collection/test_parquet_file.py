"""Collections as Parquet files: what is written is read back as it was, and what others write is read or named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedserve.cli.collection import parquet_file
from embedserve.cli.collection.parquet_file import CollectionFile, CollectionWriter, rows_per_group
from embedserve.errors import DataError, SetupError
from embedserve.types import CollectionInfo, Item, Keep

INFO = CollectionInfo(
    name="photos",
    fingerprint="ab" * 32,
    encoder_name="clothes",
    dimension=3,
    keep=Keep.ORIGINALS,
    created_unix_s=1.0,
    index_spec="hnsw:m=16",
    target_recall=0.9,
    filter_keys=("label",),
)
METADATA: dict[str, Any] = {
    "text": 'naïve "quotes" \u2028 😀',
    "integer": 1,
    "largest": 2**63 - 1,
    "smallest": -(2**63),
    "whole float": 1.0,
    "tenth": 0.1,
    "least": 5e-324,
    "true": True,
    "list": ["a", "", "b"],
    "empty list": [],
}


def vector(seed: int, dimension: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    return values / np.linalg.norm(values)


def write(path: Path, items: list[Item], info: CollectionInfo = INFO) -> Path:
    with path.open("wb") as file:
        writer = CollectionWriter(file, info)
        for item in items:
            writer.write(item)
        writer.close()
    return path


def foreign(path: Path, **columns: Any) -> Path:
    """A file as another program would write it."""
    pq.write_table(pa.table(columns), path)
    return path


def read(path: Path) -> list[Item]:
    with CollectionFile(path) as file:
        assert list(file.check()) == list(range(1, file.rows + 1))
        return list(file.items())


def test_items_come_back_as_they_were(tmp_path: Path) -> None:
    items = [Item(id=f"ü {number}", vector=vector(number), metadata=METADATA) for number in range(10)]
    items.append(Item(id="bare", vector=vector(11)))
    found = read(write(tmp_path / "f.parquet", items))
    assert [item.id for item in found] == [item.id for item in items]
    for given, item in zip(items, found, strict=True):
        assert dict(item.metadata) == dict(given.metadata)
        assert [type(value) for value in item.metadata.values()] == [type(value) for value in given.metadata.values()]
        assert item.vector is not None
        assert given.vector is not None
        assert item.vector.tobytes() == given.vector.tobytes()


def test_a_file_holds_the_settings_of_its_collection(tmp_path: Path) -> None:
    with CollectionFile(write(tmp_path / "f.parquet", [Item(id="a", vector=vector(1))])) as file:
        header = file.header
        assert file.fingerprint() == "ab" * 32
    assert header is not None
    assert (header.collection, header.encoder_name, header.dimension, header.keep) == (
        "photos",
        "clothes",
        3,
        "originals",
    )
    assert (header.index, header.target_recall, list(header.filter_keys)) == ("hnsw:m=16", 0.9, ["label"])


def test_other_programs_see_four_plain_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "f.parquet", [Item(id="a", vector=vector(1), metadata={"n": 1})])
    table = pq.read_table(path)
    assert table.schema.names == ["id", "vector", "metadata", "fingerprint"]
    assert table.schema.field("vector").type.list_size == 3
    assert pa.types.is_dictionary(table.schema.field("fingerprint").type)
    assert table.column("metadata").to_pylist() == ['{"n": 1}']
    assert table.column("fingerprint").to_pylist() == ["ab" * 32]


def test_a_group_holds_a_few_thousand_rows_and_no_more_than_32_mebibytes(tmp_path: Path) -> None:
    assert (rows_per_group(3), rows_per_group(2048), rows_per_group(65536), rows_per_group(1 << 24)) == (
        4096,
        4096,
        128,
        1,
    )
    items = [Item(id=str(number), vector=vector(1)) for number in range(5000)]
    metadata = pq.ParquetFile(write(tmp_path / "f.parquet", items)).metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [4096, 904]


def test_a_collection_without_items_is_a_file_without_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "f.parquet", [])
    assert read(path) == []
    with CollectionFile(path) as file:
        assert (file.rows, file.dimension, file.fingerprint()) == (0, 3, "ab" * 32)


@pytest.mark.parametrize(
    "vectors",
    [
        pa.array([[1, 2, 2], [0, 0, 3]], pa.list_(pa.float64())),
        pa.array([[1, 2, 2], [0, 0, 3]], pa.large_list(pa.float32())),
        pa.array([[1, 2, 2], [0, 0, 3]], pa.list_(pa.float32(), 3)),
        pa.array(list(np.array([[1, 2, 2], [0, 0, 3]], np.float16)), pa.list_(pa.float16())),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "ids", [["7", "8"], [7, 8], pa.array(["7", "8"]).dictionary_encode()], ids=lambda ids: type(ids).__name__
)
def test_files_of_other_programs_need_ids_and_vectors_only(tmp_path: Path, vectors: Any, ids: Any) -> None:
    path = foreign(tmp_path / "f.parquet", id=ids, vector=vectors, price=[1.5, 2.5])
    assert [(item.id, np.asarray(item.vector).tolist(), item.metadata) for item in read(path)] == [
        ("7", [1, 2, 2], {}),
        ("8", [0, 0, 3], {}),
    ]
    with CollectionFile(path) as file:
        assert (file.header, file.fingerprint(), file.dimension, file.ignored) == (None, "", 3, ["price"])


def test_a_fingerprint_may_be_in_the_rows_only(tmp_path: Path) -> None:
    path = foreign(tmp_path / "f.parquet", id=["a"], vector=[[1.0]], fingerprint=["cd" * 32])
    with CollectionFile(path) as file:
        assert file.fingerprint() == "cd" * 32


@pytest.mark.parametrize("fingerprints", [["cd" * 32, "ef" * 32], ["cd" * 32, None]])
def test_vectors_of_several_encoders_are_refused(tmp_path: Path, fingerprints: list[str | None]) -> None:
    path = foreign(tmp_path / "f.parquet", id=["a", "b"], vector=[[1.0], [1.0]], fingerprint=fingerprints)
    with CollectionFile(path) as file, pytest.raises(DataError, match=r"several encoders|without a fingerprint"):
        file.fingerprint()


NAN, BIG = float("nan"), "[" * 100_000


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"id": None}, "the id is missing"),
        ({"id": ""}, "the id is missing"),
        ({"vector": None}, "the vector is missing"),
        ({"vector": [1.0, 2.0]}, "the vector has 2 numbers, others have 3"),
        ({"vector": []}, "the vector has 0 numbers"),
        ({"vector": [1.0, NAN, 1.0]}, "number 1 of the vector is not finite, or missing"),
        ({"vector": [1.0, 2.0, None]}, "number 2 of the vector is not finite, or missing"),
        ({"vector": [1e300, 0.0, 0.0]}, "number 0 of the vector is not finite"),
        ({"vector": [0.0, 0.0, 0.0]}, "the vector is zero"),
        ({"metadata": "{"}, "the metadata is not JSON"),
        ({"metadata": BIG}, "the metadata is not JSON"),
        ({"metadata": "[1]"}, "not a JSON object"),
        ({"metadata": '{"a": {"b": [1]}}'}, "metadata 'a.b' is a list"),
        ({"metadata": '{"a": 1, "a": 2}'}, "the metadata has a key twice in one JSON object"),
        ({"metadata": '{"a.b": 1, "a": {"b": 2}}'}, "there are two values for 'a.b'"),
        ({"metadata": '{"a": NaN}'}, "only finite numbers"),
        ({"metadata": '{"a": 9223372036854775808}'}, "does not fit 64 bits"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, bad: dict[str, Any], why: str) -> None:
    good: dict[str, Any] = {"id": "a", "vector": [1.0, 2.0, 2.0], "metadata": '{"a": 1}'}
    rows = [{**good, "id": str(number)} for number in range(5000)]
    rows[4500] |= bad
    path = foreign(
        tmp_path / "f.parquet",
        id=[row["id"] for row in rows],
        vector=pa.array([row["vector"] for row in rows], pa.list_(pa.float64())),
        metadata=[row["metadata"] for row in rows],
    )
    with CollectionFile(path) as file, pytest.raises(DataError, match=rf"f\.parquet, row 4501: .*{why}"):
        for _ in file.check():
            pass


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"key": ["a"], "vector": [[1.0]]}, "has no column 'id'; its columns are 'key', 'vector'"),
        ({"id": ["a"], "embedding": [[1.0]]}, "has no column 'vector'"),
        ({"id": [1.5], "vector": [[1.0]]}, "the column 'id' holds double"),
        ({"id": ["a"], "vector": [1.0]}, "the column 'vector' holds double, not lists of floats"),
        ({"id": ["a"], "vector": [["x"]]}, "not lists of floats"),
        ({"id": ["a"], "vector": [[1.0]], "metadata": [[1]]}, "the column 'metadata' holds list"),
        ({"id": ["a"], "vector": [[1.0]], "fingerprint": [1]}, "the column 'fingerprint' holds int64, not text"),
    ],
)
def test_columns_that_cannot_be_used_are_named(tmp_path: Path, columns: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why):
        CollectionFile(foreign(tmp_path / "f.parquet", **columns))


def test_a_file_of_a_later_format_is_refused(tmp_path: Path) -> None:
    schema = pa.schema({"id": pa.string(), "vector": pa.list_(pa.float32())}, metadata={"embedserve": '{"format": 2}'})
    pq.write_table(pa.table({"id": ["a"], "vector": [[1.0]]}, schema=schema), tmp_path / "f.parquet")
    with pytest.raises(DataError, match="has the format 2; this embedserve reads formats up to 1"):
        CollectionFile(tmp_path / "f.parquet")


@pytest.mark.parametrize("said", ["[]", "{", '{"format": 1}', json.dumps({"format": "x"})])
def test_a_malformed_header_is_refused(tmp_path: Path, said: str) -> None:
    schema = pa.schema({"id": pa.string(), "vector": pa.list_(pa.float32())}, metadata={"embedserve": said})
    pq.write_table(pa.table({"id": ["a"], "vector": [[1.0]]}, schema=schema), tmp_path / "f.parquet")
    with pytest.raises(DataError, match="its header cannot be read"):
        CollectionFile(tmp_path / "f.parquet")


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.parquet", [Item(id="a", vector=vector(1))]).read_bytes()
    for number, content in enumerate([b"", b"hello", whole[:-1], whole[:-20]]):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"\.parquet"):
            CollectionFile(path)
    with pytest.raises(DataError, match=r"none\.parquet cannot be read"):
        CollectionFile(tmp_path / "none.parquet")


def test_pages_that_are_damaged_are_named_and_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "f.parquet", [Item(id=str(n), vector=vector(n), metadata=METADATA) for n in range(500)])
    content = bytearray(path.read_bytes())
    content[8:200] = bytes(192)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"f\.parquet cannot be read: [^\n]*$"):
        read(path)


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SetupError, match="pyarrow, which is not installed") as refused:
        parquet_file.CollectionFile(tmp_path / "f.parquet")
    assert refused.value.hint == "pip install 'embedserve[parquet]'"
