"""A collection as a Parquet file, for other programs and from them.

    id           string
    vector       fixed_size_list<float32, D>, unit norm
    metadata     string: a JSON object; 1 stays an integer and 1.0 a float
    fingerprint  dictionary<string>: of the encoder that made the vector, or "external"

The settings of the collection are a JSON object in the file's own metadata, under the key "embedserve". Files of other
programs need only an id and a vector in each row; the caller says which encoder made the vectors, and which other
columns become metadata.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING

from embedserve.cli.collection import parquet_values
from embedserve.cli.collection.parquet_bounds import (
    BUFFER_BYTES,
    check_cells,
    check_dimension,
    check_groups,
    dictionary_columns,
)
from embedserve.cli.collection.parquet_metadata import Document, MetadataColumns
from embedserve.cli.collection.parquet_metadata import flat as flattened
from embedserve.errors import DataError, EmbedserveError, InvalidInput, SetupError
from embedserve.regular_file import regular
from embedserve.types import CollectionInfo, Item, Keep, Limits, check_metadata, metadata_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KEY = b"embedserve"
_FORMAT = 1
_GROUP_ROWS = 4096
"""Rows of a group at most; one group is in memory at a time."""
_GROUP_BYTES = 32 << 20
"""Bytes of the vectors of a group at most."""
_COLUMNS = ("id", "vector", "metadata", "fingerprint")


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The settings of the collection that the file was written from."""

    format: int
    collection: str
    fingerprint: str
    encoder_name: str
    dimension: int
    keep: str
    filter_keys: Sequence[str]
    index: str
    target_recall: float

    @classmethod
    def of(cls, info: CollectionInfo) -> Header:
        """The header of a file of this collection."""
        return cls(
            format=_FORMAT,
            collection=info.name,
            fingerprint=info.fingerprint,
            encoder_name=info.encoder_name,
            dimension=info.dimension,
            keep=info.keep.value,
            filter_keys=list(info.filter_keys),
            index=info.index_spec,
            target_recall=info.target_recall,
        )


def rows_per_group(dimension: int) -> int:
    """Rows of a group with vectors of ``dimension`` numbers."""
    return max(1, min(_GROUP_ROWS, _GROUP_BYTES // (4 * dimension)))


class CollectionWriter:
    """Writes items to a Parquet file; ``close`` completes it.

    Args:
        file: to write to.
        info: the collection of the items.

    Raises:
        SetupError: pyarrow is not installed.
    """

    def __init__(self, file: IO[bytes], info: CollectionInfo) -> None:
        pa, pq = _pyarrow()
        self._pa = pa
        self._info = info
        self._schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("vector", pa.list_(pa.field("element", pa.float32(), nullable=False), info.dimension), False),
                pa.field("metadata", pa.string(), nullable=False),
                pa.field("fingerprint", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            ],
            metadata={_KEY: json.dumps(asdict(Header.of(info)))},
        )
        self._writer = pq.ParquetWriter(
            file,
            self._schema,
            # The numbers of vectors look random: neither compression nor dictionaries make them smaller.
            compression={"id": "zstd", "metadata": "zstd", "fingerprint": "zstd", "vector.list.element": "none"},
            use_dictionary=["fingerprint", "metadata"],
            write_statistics=["id", "fingerprint"],
        )
        self._buffered: list[Item] = []

    def write(self, item: Item) -> None:
        """Add a row; the item has its vector and its metadata."""
        self._buffered.append(item)
        if len(self._buffered) >= rows_per_group(self._info.dimension):
            self._write_group()

    def close(self) -> None:
        """Write the last group and Parquet's footer."""
        if self._buffered:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        import numpy as np

        pa, items, self._buffered = self._pa, self._buffered, []
        vectors = np.stack([item.vector for item in items if item.vector is not None])
        rows = len(items)
        columns = [
            pa.array([item.id for item in items], pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=self._schema.field("vector").type),
            pa.array([json.dumps(dict(item.metadata), ensure_ascii=False) for item in items], pa.string()),
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([self._info.fingerprint])),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))


class CollectionFile:
    """A Parquet file whose rows become items.

    Args:
        path: the file.
        metadata_columns: columns that become metadata beside that in ``metadata``; ``ALL`` for all that can.

    Raises:
        SetupError: pyarrow is not installed.
        DataError: it cannot be read, is not a Parquet file, has no ids and vectors, or lacks a column for metadata.
    """

    def __init__(self, path: Path, metadata_columns: Sequence[str] = ()) -> None:
        self._pa, pq = _pyarrow()
        self._path = path
        with self._reading():
            # Without memory mapping: if the file were truncated meanwhile, the process would be killed.
            with open(path, "rb", opener=regular):  # a pipe is refused instead of waited for
                pass
            texts = dictionary_columns(pq.read_metadata(path), _COLUMNS)
            self._file = pq.ParquetFile(
                path, memory_map=False, pre_buffer=False, buffer_size=BUFFER_BYTES, read_dictionary=texts
            )
            self._schema = self._file.schema_arrow
            leaves = map(self._file.schema.column, range(len(self._file.schema)))
            declared = {leaf.path: str(leaf.logical_type.type) for leaf in leaves}
        self.header = self._read_header()
        """None if another program wrote the file."""
        self.rows: int = self._file.metadata.num_rows
        self._limits: Limits | None = None
        self.duplicates = 0
        """Rows whose id a later row has too; known once ``check`` has passed."""
        self._check_columns()
        try:
            self.metadata = MetadataColumns(self._pa, self._schema, metadata_columns, _COLUMNS, declared)
            """The columns that become metadata."""
        except DataError as error:
            raise DataError(f"{path}: {error.message}", hint=error.hint) from None
        self.ignored: list[str] = [
            name for name in self._schema.names if name not in _COLUMNS and name not in self.metadata.names
        ]
        """Columns that are not read."""
        self._check_bounds()

    def __enter__(self) -> CollectionFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def dimension(self) -> int:
        """D: numbers in the first vector, and in all others if ``check`` passes; 0 if there are no rows."""
        if self.header is not None:
            return self.header.dimension
        vector_type = parquet_values.storage_type(self._schema.field("vector").type)
        if self._pa.types.is_fixed_size_list(vector_type):
            return int(vector_type.list_size)
        for _, vector, _ in self._batches(1):
            if vector is not None:
                return len(vector)
        return 0

    def fingerprint(self) -> str:
        """Fingerprint of the encoder that made the vectors, or EXTERNAL; empty if the file does not say.

        Raises:
            DataError: the vectors are of several encoders.
        """
        found = {"" if self.header is None else self.header.fingerprint} - {""}
        if "fingerprint" in self._schema.names:
            with self._reading():
                for batch in self._file.iter_batches(columns=["fingerprint"]):
                    check_cells(self._path, "fingerprint", batch.column(0))
                    found.update(batch.column(0).unique().to_pylist())
        if None in found:
            raise DataError(f"{self._path} has rows without a fingerprint, and others with one")
        if len(found) > 1:
            raise DataError(
                f"{self._path} holds vectors of several encoders: {', '.join(sorted(name[:12] for name in found))}",
                hint="make one file for each; vectors of different encoders cannot be compared",
            )
        return next(iter(found), "")

    def check(self, limits: Limits | None = None) -> Iterator[int]:
        """Check every row before any is written; gives the number of each checked row.

        Args:
            limits: those of the server that the rows are sent to.

        Raises:
            DataError: a row cannot be used; the message has its number, from 1, and the reason.
        """
        self._limits = limits
        self._check_bounds()
        dimension, limits = self.dimension, limits or Limits()
        hashes = array("q")  # 8 bytes a row; among ten million ids, two have the same hash in one file of 400,000
        for number, (id, vector, metadata) in enumerate(self._batches(rows_per_group(dimension or 1)), start=1):
            try:
                _check_row(id, vector, metadata, dimension, limits)
            except EmbedserveError as error:
                raise DataError(f"{self._path}, row {number}: {error.message}", hint=error.hint) from None
            hashes.append(hash(id))
            yield number
        import numpy as np

        self.duplicates = len(hashes) - len(np.unique(np.frombuffer(hashes, np.int64)))

    def items(self) -> Iterator[Item]:
        """All rows as items, in order; ``check`` has passed."""
        for id, vector, metadata in self._batches(rows_per_group(self.dimension or 1)):
            yield Item(id=str(id), vector=vector, metadata=flattened(metadata))

    def _batches(self, rows: int) -> Iterator[tuple[str | None, NDArray[np.float32] | None, Document]]:
        """Id, vector and metadata of each row, as they are in the file; the metadata may be nested."""
        import numpy as np
        import pyarrow.compute as pc

        columns = ["id", "vector", *self.metadata.names]
        batches = self._file.iter_batches(batch_size=rows, columns=columns)
        while True:
            with self._reading():
                batch = next(batches, None)
                if batch is None:
                    return
                for name in set(columns) - {"vector"}:
                    check_cells(self._path, name, batch.column(name), self._limits)
                ids = parquet_values.id_texts(self._pa, batch.column("id"))
                lists = parquet_values.storage(batch.column("vector"))
                numbers = parquet_values.floats(self._pa, lists.flatten())
                # A missing number becomes NaN, which the check refuses.
                flat = np.asarray(numbers.fill_null(float("nan")), dtype=np.float32)
                lengths = pc.list_value_length(lists).to_pylist()  # None where there is no list
                documents = self.metadata.read(batch)
            start = 0
            for id, length, document in zip(ids, lengths, documents, strict=True):
                yield id, None if length is None else flat[start : start + length], document
                start += length or 0

    def _check_bounds(self) -> None:
        columns = ("id", "vector", "fingerprint", *self.metadata.names)
        check_groups(self._path, self._file.metadata, columns, self._limits)
        vector_type = parquet_values.storage_type(self._schema.field("vector").type)
        if self._pa.types.is_fixed_size_list(vector_type):
            check_dimension(self._path, vector_type.list_size)
        if self.header is not None:
            check_dimension(self._path, self.header.dimension)

    def _check_columns(self) -> None:
        names = self._schema.names
        for name in ("id", "vector"):
            if names.count(name) != 1:
                raise DataError(
                    f"{self._path} has no column {name!r}; its columns are {', '.join(map(repr, names))}",
                    hint="a file to import has the columns id and vector, and may have metadata and fingerprint",
                )
        id_type, vector_type = self._schema.field("id").type, self._schema.field("vector").type
        if not parquet_values.is_id(self._pa, id_type):
            raise DataError(f"{self._path}: the column 'id' holds {id_type}, neither text, integers nor UUIDs")
        if reason := parquet_values.why_no_vectors(self._pa, vector_type):
            raise DataError(f"{self._path}: the column 'vector' holds {reason}")
        vector_type = parquet_values.storage_type(vector_type)
        if "fingerprint" in names and not parquet_values.is_text(self._pa, self._schema.field("fingerprint").type):
            raise DataError(
                f"{self._path}: the column 'fingerprint' holds {self._schema.field('fingerprint').type}, not text"
            )
        has_one_size = self._pa.types.is_fixed_size_list(vector_type)
        if self.header is not None and has_one_size and vector_type.list_size != self.header.dimension:
            raise DataError(
                f"{self._path} says that its vectors have {self.header.dimension} numbers; they have"
                f" {vector_type.list_size}"
            )

    def _read_header(self) -> Header | None:
        text = (self._schema.metadata or {}).get(_KEY)
        if text is None:
            return None
        try:
            document = json.loads(text)
            if document["format"] > _FORMAT:
                raise DataError(
                    f"{self._path} has the format {document['format']}; this embedserve reads formats up to {_FORMAT}",
                    hint="use a newer embedserve",
                )
            header = Header(**{name: document[name] for name in Header.__dataclass_fields__})
            if header.keep not in list(Keep):
                raise ValueError(header.keep)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self._path}: its header cannot be read: {error}") from error
        return header

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # pyarrow reports damaged pages this way too, at length.
            why = error.strerror or str(error).partition("\n")[0]
            raise DataError(f"{self._path} cannot be read: {why}") from error
        except self._pa.ArrowException as error:
            raise DataError(f"{self._path} is not a readable Parquet file: {error}") from error


def _check_row(
    id: str | None, vector: NDArray[np.float32] | None, metadata: Document, dimension: int, limits: Limits
) -> None:
    import numpy as np

    if not id:
        raise InvalidInput("the id is missing")
    limits.check("max_id_bytes", len(id.encode()), "bytes in the id")
    if vector is None:
        raise InvalidInput("the vector is missing")
    if len(vector) != dimension:
        raise InvalidInput(f"the vector has {len(vector)} numbers, others have {dimension}")
    if not np.isfinite(vector).all():
        raise InvalidInput(f"number {int(np.argmin(np.isfinite(vector)))} of the vector is not finite, or missing")
    if not vector.any():
        raise InvalidInput("the vector is zero, which has no direction")
    parsed = flattened(metadata)
    check_metadata(parsed)
    limits.check("max_metadata_bytes", metadata_bytes(parsed), "bytes of metadata")


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SetupError(
            "Parquet files are read and written with pyarrow, which is not installed",
            hint="pip install 'embedserve[parquet]'",
        ) from error
    return pyarrow, pyarrow.parquet
