"""Columns as DuckDB, pandas, Polars and Arrow write them: ids, vectors, and metadata of every kind."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedserve.cli.collection.parquet_file import CollectionFile
from embedserve.cli.collection.parquet_metadata import ALL
from embedserve.errors import DataError
from embedserve.types import Item

UUIDS = [uuid.UUID(int=number) for number in (1, 2**127)]
UTC = dt.UTC


def written(path: Path, **columns: Any) -> Path:
    """A file with two rows; what is not given is plain."""
    pq.write_table(pa.table({"id": ["a", "b"], "vector": [[1.0, 2.0], [3.0, 4.0]], **columns}), path)
    return path


def read(path: Path, *chosen: str) -> list[Item]:
    with CollectionFile(path, chosen) as file:
        assert len(list(file.check())) == file.rows
        return list(file.items())


def extension(kind: Any, values: Any) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))


# --- Ids and vectors ---


@pytest.mark.parametrize(
    "ids",
    [
        extension(pa.uuid(), [one.bytes for one in UUIDS]),
        pa.array([one.bytes for one in UUIDS], pa.binary(16)),
        pa.array([str(one) for one in UUIDS]),
        pa.array([str(one) for one in UUIDS]).dictionary_encode(),
    ],
    ids=["logical", "bytes", "text", "dictionary"],
)
def test_uuids_are_ids_as_they_are_written(tmp_path: Path, ids: Any) -> None:
    assert [item.id for item in read(written(tmp_path / "f.parquet", id=ids))] == [str(one) for one in UUIDS]


@pytest.mark.parametrize(
    "vectors",
    [
        extension(pa.fixed_shape_tensor(pa.float32(), [2]), [[1, 2], [3, 4]]),
        extension(pa.fixed_shape_tensor(pa.float64(), [1, 2]), [[1, 2], [3, 4]]),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float32())),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float64(), 2)),
        pa.array(list(np.array([[1, 2], [3, 4]], np.float16)), pa.list_(pa.float16(), 2)),
        pa.array([[1, 2], [3, 4]], pa.large_list(pa.float64())),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int8())),
        pa.array([[Decimal(1), Decimal(2)], [Decimal(3), Decimal(4)]], pa.list_(pa.decimal128(2, 1))),
    ],
    ids=lambda vectors: str(vectors.type),
)
def test_vectors_are_lists_or_tensors_of_numbers(tmp_path: Path, vectors: Any) -> None:
    path = written(tmp_path / "f.parquet", vector=vectors)
    assert [np.asarray(item.vector).tolist() for item in read(path)] == [[1, 2], [3, 4]]
    assert all(np.asarray(item.vector).dtype == np.float32 for item in read(path))
    with CollectionFile(path) as file:
        assert file.dimension == 2


def test_a_tensor_of_two_dimensions_is_no_vector(tmp_path: Path) -> None:
    tensors = extension(pa.fixed_shape_tensor(pa.float32(), [2, 2]), [[1, 2, 3, 4]] * 2)
    with pytest.raises(DataError, match="the column 'vector' holds tensors of 2 × 2, not vectors"):
        CollectionFile(written(tmp_path / "f.parquet", vector=tensors))


# --- Metadata ---

MOMENT = dt.datetime(2026, 11, 24, 9, 30, 0, 5, tzinfo=UTC)

COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    "bool": (pa.array([True, None]), [True, None]),
    "int8": (pa.array([-5, None], pa.int8()), [-5, None]),
    "int64": (pa.array([2**63 - 1, -(2**63)]), [2**63 - 1, -(2**63)]),
    "uint64": (pa.array([2**63 - 1, 0], pa.uint64()), [2**63 - 1, 0]),
    "float": (pa.array([0.5, None], pa.float32()), [0.5, None]),
    "half": (pa.array(np.array([0.5, 2.0], np.float16)), [0.5, 2.0]),
    "nan": (pa.array([1.0, float("nan")]), [1.0, None]),
    "price": (pa.array([Decimal("12.30"), None], pa.decimal128(18, 2)), [12.3, None]),
    "count": (pa.array([Decimal(2**62), Decimal(0)], pa.decimal128(38, 0)), [2**62, 0]),
    "wide": (pa.array([Decimal("-0.10"), Decimal(3)], pa.decimal256(50, 2)), [-0.1, 3.0]),
    "text": (pa.array(["cat", None]), ["cat", None]),
    "large": (pa.array(["cat", ""], pa.large_string()), ["cat", ""]),
    "enum": (pa.array(["cat", None]).dictionary_encode(), ["cat", None]),
    "codes": (pa.array([7, None]).dictionary_encode(), [7, None]),
    "uuid": (extension(pa.uuid(), [UUIDS[0].bytes, None]), [str(UUIDS[0]), None]),
    "date": (pa.array([dt.date(2026, 11, 24), None]), ["2026-11-24", None]),
    "early": (pa.array([dt.date(1, 1, 1), dt.date(9999, 12, 31)], pa.date64()), ["0001-01-01", "9999-12-31"]),
    "seconds": (pa.array([1_795_512_600, None], pa.timestamp("s")), ["2026-11-24T09:30:00.000000Z", None]),
    "micros": (pa.array([MOMENT, None], pa.timestamp("us", "UTC")), ["2026-11-24T09:30:00.000005Z", None]),
    "berlin": (pa.array([MOMENT, None], pa.timestamp("us", "Europe/Berlin")), ["2026-11-24T09:30:00.000005Z", None]),
    "before": (pa.array([-1, None], pa.timestamp("ms", "UTC")), ["1969-12-31T23:59:59.999000Z", None]),
    "time": (pa.array([dt.time(9, 30), None], pa.time64("us")), ["09:30:00.000000", None]),
    "tags": (pa.array([["a", None, "b"], None]), [["a", "b"], None]),
    "none": (pa.array([[], ["x"]], pa.list_(pa.string())), [[], ["x"]]),
    "pair": (pa.array([["a", "b"], None], pa.list_(pa.string(), 2)), [["a", "b"], None]),
    "days": (pa.array([[dt.date(2026, 11, 24)], None]), [["2026-11-24"], None]),
    "json": (extension(pa.json_(), ["7", "null"]), [7, None]),
    "nothing": (pa.nulls(2), [None, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_becomes_metadata(tmp_path: Path, name: str) -> None:
    column, values = COLUMNS[name]
    for items in (
        read(written(tmp_path / "f.parquet", **{name: column}), name),
        read(written(tmp_path / "f.parquet", **{name: column}), *ALL),
        read(written(tmp_path / "f.parquet", **{name: column.slice(1), "id": ["a"], "vector": [[1.0]]}), name),
    ):
        found = [item.metadata.get(name) for item in items]
        wanted = values[-len(items) :]
        assert [(type(value), value) for value in found] == [(type(value), value) for value in wanted]
        assert [name in item.metadata for item in items] == [value is not None for value in wanted]


def test_fields_of_structs_and_of_json_become_keys_with_dots(tmp_path: Path) -> None:
    structs = pa.array([{"a": 1, "b": {"c": "x", "d": None}}, None, {"a": None, "b": None}])
    texts = extension(pa.json_(), ['{"x": {"y": true, "z": null}, "tags": ["t"]}', None, '"plain"'])
    path = tmp_path / "f.parquet"
    written(path, id=["a", "b", "c"], vector=[[1.0]] * 3, s=structs, j=texts)
    assert [dict(item.metadata) for item in read(path, "s", "j")] == [
        {"s.a": 1, "s.b.c": "x", "j.x.y": True, "j.tags": ["t"]},
        {},
        {"j": "plain"},
    ]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"label": "cat", "size": {"w": 3}}, None]),
        pa.array(['{"label": "cat", "size": {"w": 3, "h": null}}', None]),
        extension(pa.json_(), ['{"label": "cat", "size": {"w": 3}}', "null"]),
    ],
    ids=["struct", "text", "json"],
)
def test_the_column_metadata_may_be_a_struct_or_json(tmp_path: Path, column: Any) -> None:
    path = written(tmp_path / "f.parquet", metadata=column, price=[1, 2])
    assert [dict(item.metadata) for item in read(path, "price")] == [
        {"label": "cat", "size.w": 3, "price": 1},
        {"price": 2},
    ]


def test_logical_types_of_parquet_count_where_pyarrow_reads_plain_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"j": extension(pa.json_(), ['{"a": 1}', "2"]), "u": extension(pa.uuid(), [one.bytes for one in UUIDS])}
    path = written(tmp_path / "f.parquet", id=columns["u"], **columns)
    pq.write_table(pq.read_table(path), path, store_schema=False)  # as DuckDB does, without Arrow's types
    real = pq.ParquetFile

    def as_before_21(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **options, arrow_extensions_enabled=False)

    if pa.__version__ >= "21":
        monkeypatch.setattr(pq, "ParquetFile", as_before_21)
    [first, second] = read(path, *ALL)
    assert (first.id, dict(first.metadata)) == (str(UUIDS[0]), {"j.a": 1, "u": str(UUIDS[0])})
    assert (second.id, dict(second.metadata)) == (str(UUIDS[1]), {"j": 2, "u": str(UUIDS[1])})


def test_a_type_that_pyarrow_does_not_know_is_named_not_guessed(tmp_path: Path) -> None:
    field = pa.field("month", pa.int64(), metadata={"ARROW:extension:name": "pandas.period"})
    columns = {"id": ["a"], "vector": [[1.0]], "month": [648]}
    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32())), field])
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "f.parquet")
    with CollectionFile(tmp_path / "f.parquet", ALL) as file:
        assert file.metadata.unusable == ["month (pandas.period)"]
    assert [dict(item.metadata) for item in read(tmp_path / "f.parquet", *ALL)] == [{}]


UNUSABLE = {
    "m": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    "bytes": pa.array([b"x", None]),
    "interval": pa.array([b"x" * 12, None], pa.binary(12)),
    "numbers": pa.array([[1], None]),
    "lists": pa.array([[["x"]], None]),
    "duration": pa.array([1, None], pa.duration("s")),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_column_that_cannot_be_metadata_is_named(tmp_path: Path, name: str) -> None:
    column = UNUSABLE[name]
    path = written(tmp_path / "f.parquet", price=[1, 2], **{name: column})
    with pytest.raises(DataError, match=rf"f\.parquet: {name} \(.*\) cannot be metadata"):
        CollectionFile(path, ["price", name])
    with CollectionFile(path, ALL) as file:
        [unusable] = file.metadata.unusable
        assert unusable.startswith(f"{name} (")
        assert file.ignored == [name]
    assert [dict(item.metadata) for item in read(path, *ALL)] == [{"price": 1}, {"price": 2}]


def test_a_field_that_cannot_be_metadata_is_named_and_the_others_taken(tmp_path: Path) -> None:
    path = written(tmp_path / "f.parquet", s=pa.array([{"a": 1, "b": b"x"}] * 2))
    with CollectionFile(path, ["s"]) as file:
        assert file.metadata.unusable == ["s.b (binary)"]
    assert [dict(item.metadata) for item in read(path, "s")] == [{"s.a": 1}] * 2


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (pa.array([1.0, float("inf")]), "metadata 'x' is inf; only finite numbers"),
        (pa.array([1, 2**63], pa.uint64()), "metadata 'x' is 9223372036854775808, which does not fit 64 bits"),
        (pa.array([Decimal(1), Decimal(10**20)], pa.decimal128(38, 0)), "which does not fit 64 bits"),
        (pa.array([Decimal(1), Decimal("1." + "1" * 20)], pa.decimal128(38, 20)), "'x' is 1.1*, which has more digits"),
        (pa.array([0, 2**62], pa.timestamp("us")), "'x' is 4611686018427387904 us after 1970; only"),
        (pa.array([0, 2**31 - 1], pa.int32()).cast(pa.date32()), "'x' is 2147483647 days after 1970"),
        (extension(pa.json_(), ["1", "{"]), "'x' is not JSON"),
        (extension(pa.json_(), ["1", "[1]"]), "metadata 'x' is a list"),
        (pa.array(["1", "x" * 20_000]), "bytes of metadata; max_metadata_bytes is 16384"),
    ],
    ids=lambda value: str(getattr(value, "type", ""))[:30],
)
def test_a_value_that_cannot_be_kept_is_named_with_its_row(tmp_path: Path, column: Any, why: str) -> None:
    path = written(tmp_path / "f.parquet", x=column)
    with pytest.raises(DataError, match=rf"f\.parquet, row 2: .*{why}"):
        read(path, "x")


def test_a_key_that_two_columns_would_set_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "f.parquet", metadata=['{"x": 1}', None], x=[1, 2])
    with pytest.raises(DataError, match=r"row 1: 'x' is in the column metadata too"):
        read(path, "x")
    path = written(tmp_path / "g.parquet", **{"s": pa.array([{"a": 1}] * 2), "s.a": [1, 2]})
    with pytest.raises(DataError, match=r"row 1: there are two values for 's\.a'"):
        read(path, "s", "s.a")


def test_what_is_not_exact_is_noted(tmp_path: Path) -> None:
    at, ms = pa.array([1001, 2000], pa.timestamp("ns")), pa.array([1, 2], pa.timestamp("ms"))
    path = written(tmp_path / "f.parquet", at=at, ms=ms)
    with CollectionFile(path, ALL) as file:
        list(file.check())
        assert file.metadata.notes == {
            "at has no time zone and is taken as UTC",
            "at has nanoseconds and is cut to microseconds",
            "ms has no time zone and is taken as UTC",
        }


def test_timestamps_of_every_unit_sort_as_text(tmp_path: Path) -> None:
    counts = [-(2**40), -1, 0, 1, 999_999, 1_000_000, 2**40]
    columns = {"id": [str(n) for n in range(7)], "vector": [[1.0]] * 7, "t": pa.array(counts, pa.timestamp("us"))}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    texts = [str(item.metadata["t"]) for item in read(tmp_path / "f.parquet", "t")]
    assert texts == sorted(texts)
    assert {len(text) for text in texts} == {27}


@pytest.mark.parametrize(
    ("chosen", "hint"),
    [("prise", "did you mean 'price'?"), ("id", "there are 'price'"), ("metadata", "there are 'price'")],
)
def test_a_column_that_is_not_there_is_named(tmp_path: Path, chosen: str, hint: str) -> None:
    path = written(tmp_path / "f.parquet", price=[1, 2], metadata=["{}", "{}"])
    with pytest.raises(DataError, match=f"there is no column '{chosen}' for metadata") as refused:
        CollectionFile(path, [chosen])
    assert refused.value.hint == hint


def test_the_index_of_pandas_is_not_taken_with_all(tmp_path: Path) -> None:
    path = written(tmp_path / "f.parquet", __index_level_0__=[0, 1], price=[1, 2])
    assert [dict(item.metadata) for item in read(path, *ALL)] == [{"price": 1}, {"price": 2}]


@pytest.mark.parametrize(("ids", "count"), [(["a", "b", "c"], 0), (["a", "b", "a"], 1), (["a"] * 5000, 4999)])
def test_duplicate_ids_are_counted(tmp_path: Path, ids: list[str], count: int) -> None:
    pq.write_table(pa.table({"id": ids, "vector": [[1.0]] * len(ids)}), tmp_path / "f.parquet")
    with CollectionFile(tmp_path / "f.parquet") as file:
        list(file.check())
        assert file.duplicates == count


def test_metadata_of_our_own_files_is_not_changed(tmp_path: Path) -> None:
    document = {"a.b": 1, "c": [], "d": "", "e": 1.0, "f": False}
    path = written(tmp_path / "f.parquet", metadata=[json.dumps(document)] * 2)
    assert [dict(item.metadata) for item in read(path)] == [document] * 2
