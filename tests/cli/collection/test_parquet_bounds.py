"""A Parquet file with rows of gigabytes is refused by what its footer says, and read in bounded batches otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedserve.cli.collection import parquet_bounds
from embedserve.cli.collection.parquet_file import CollectionFile
from embedserve.errors import DataError
from embedserve.types import Limits


def write(path: Path, rows: int = 3, *, vector: Any = None, **columns: Any) -> Path:
    table = {
        "id": [f"i{number}" for number in range(rows)],
        "vector": vector if vector is not None else pa.array([[1.0, 0.0]] * rows, pa.list_(pa.float32(), 2)),
        **columns,
    }
    pq.write_table(pa.table(table), path, compression="zstd")
    return path


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "lists"])
def test_vectors_beyond_every_collection_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool
) -> None:
    size = 70_000
    numbers = pa.array(np.zeros(2 * size, np.float32))
    ends = [0, size, 2 * size]
    lists = pa.FixedSizeListArray.from_arrays(numbers, size) if fixed else pa.ListArray.from_arrays(ends, numbers)
    path = write(tmp_path / "f.parquet", 2, vector=lists)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    with pytest.raises(DataError, match=r"its vectors have 70000 numbers.*1 to 65536"):
        CollectionFile(path)


def test_a_header_with_a_dimension_beyond_every_collection_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f.parquet", vector=pa.array([[1.0, 0.0]] * 3, pa.list_(pa.float32())))
    header = {"format": 1, "collection": "c", "fingerprint": "external", "encoder_name": "", "dimension": 1 << 40}
    header |= {"keep": "none", "filter_keys": [], "index": "auto", "target_recall": 0.95}
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"embedserve": json.dumps(header)}), path)
    with pytest.raises(DataError, match=f"its vectors have {1 << 40} numbers"):
        CollectionFile(path)


@pytest.mark.parametrize("column", ["id", "metadata", "fingerprint"])
def test_a_row_group_of_huge_values_is_refused_by_group_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    monkeypatch.setattr(parquet_bounds, "_SMALL_BYTES", 1 << 20)
    values = [f"{number}" * (8 << 20) for number in range(3)]
    columns: dict[str, Any] = {column: values}
    path = write(tmp_path / "f.parquet", **columns)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    with pytest.raises(DataError, match=f"row group 0: the column '{column}' holds 83[0-9]+ bytes a row on average"):
        CollectionFile(path)


def test_the_limits_of_the_server_are_those_that_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_bounds, "_SMALL_BYTES", 1 << 16)
    texts = [json.dumps({"a": f"{number}" * 150_000}) for number in range(3)]
    path = write(tmp_path / "f.parquet", metadata=texts)
    with CollectionFile(path) as file:
        assert list(file.check(Limits(max_metadata_bytes=1 << 18))) == [1, 2, 3]
        with pytest.raises(DataError, match="row group 0: the column 'metadata' holds 150"):
            list(file.check(Limits()))


MEASURE = """
import resource, sys
from pathlib import Path
from embedserve.cli.collection.parquet_file import CollectionFile
from embedserve.errors import DataError
from embedserve.types import Limits
import numpy, pyarrow.compute
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    with CollectionFile(Path(sys.argv[1])) as file:
        print(sum(1 for _ in file.check(Limits())))
except DataError as error:
    print(error.message)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def measured(path: Path) -> tuple[str, int]:
    """What a check of the file says, and by how many MiB the peak of the process grew."""
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    said, grown = done.stdout.splitlines()
    return said, int(grown)


def test_many_rows_that_share_one_huge_value_do_not_take_its_size_many_times(tmp_path: Path) -> None:
    rows = 1000
    shared = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * (1 << 20)]))
    path = tmp_path / "f.parquet"
    vectors = pa.array([[1.0, 0.0]] * rows, pa.list_(pa.float32(), 2))
    table = pa.table({"id": pa.array(map(str, range(rows))), "vector": vectors, "metadata": shared})
    pq.write_table(table, path, dictionary_pagesize_limit=1 << 22)
    assert path.stat().st_size < 1 << 21
    said, grown = measured(path)
    assert said == f"{path}: the column 'metadata' holds a value of 1048576 bytes; at most 98304 can be taken"
    assert grown < 200, "rows × value are 1 GB"


def test_a_large_row_group_is_read_in_batches(tmp_path: Path) -> None:
    rows, dimension = 60_000, 512
    numbers = np.random.default_rng(0).standard_normal(rows * dimension).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers), dimension)
    path = tmp_path / "f.parquet"
    table = pa.table({"id": pa.array(map(str, range(rows))), "vector": vectors})
    pq.write_table(table, path, row_group_size=rows, compression="none", use_dictionary=False)
    said, grown = measured(path)
    assert said == str(rows)
    assert grown < 90, f"the group has {path.stat().st_size >> 20} MiB"
