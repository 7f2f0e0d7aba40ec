"""What a Parquet file says about its size, before anything in it is read: a row of gigabytes is refused by name.

The footer states for each column of each row group how many numbers and bytes it holds uncompressed. Row groups of any
size are read in batches; no footer tells of one huge cell among many small ones, for which pyarrow takes memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedserve.errors import DataError
from embedserve.types import Limits

MAX_DIMENSION = 1 << 16
"""Most numbers in a vector of a collection."""
BUFFER_BYTES = 1 << 20
"""Bytes of a column that are read at a time; by default pyarrow reads its whole part of a row group."""
_SMALL_BYTES = 64 << 20
"""What takes less memory needs no look."""
_ESCAPED = 6
"""Bytes of a character in JSON with escapes, at most, for one byte."""
_UNKNOWN = Limits(max_metadata_bytes=1 << 20)
"""Taken for those of the server until it has said them."""


def dictionary_columns(metadata: Any, names: Sequence[str]) -> list[str]:
    """The columns of text among ``names``, to be read as dictionaries where they are written so.

    Otherwise a million rows that share one text would take its size a million times.
    """
    columns = (metadata.schema.column(place) for place in range(metadata.num_columns))
    return [column.path for column in columns if column.path in names and column.physical_type == "BYTE_ARRAY"]


def most_bytes(name: str, limits: Limits | None) -> int:
    """Most bytes of a value of a column; all but ids and fingerprints become metadata."""
    limits = limits or _UNKNOWN
    return limits.max_id_bytes if name in ("id", "fingerprint") else _ESCAPED * limits.max_metadata_bytes


def check_dimension(path: Path, numbers: int) -> None:
    """Check how many numbers the vectors of a file have.

    Raises:
        DataError: no collection takes vectors of so many, or of none.
    """
    if not 1 <= numbers <= MAX_DIMENSION:
        raise DataError(f"{path}: its vectors have {numbers} numbers; a collection takes 1 to {MAX_DIMENSION}")


def check_groups(path: Path, metadata: Any, columns: Sequence[str], limits: Limits | None = None) -> None:
    """Check the size of the rows in each row group.

    Args:
        path: of the file, for messages.
        metadata: its ``pyarrow.parquet.FileMetaData``.
        columns: names of the columns that will be read, of which "vector" holds lists of numbers.
        limits: those of the server that the rows are sent to; the default ones where it is not known yet.

    Raises:
        DataError: the rows of a group are so large that no server takes them; names group and column.
    """
    for group in range(metadata.num_row_groups):
        stated = metadata.row_group(group)
        for place in range(stated.num_columns):
            part = stated.column(place)
            name, _, inner = part.path_in_schema.partition(".")
            if name not in columns:
                continue
            rows = max(stated.num_rows, 1)
            if name == "vector" and inner and part.num_values > rows * MAX_DIMENSION:
                raise DataError(
                    f"{path}, row group {group}: its vectors have {part.num_values // rows} numbers on average; a"
                    f" collection takes 1 to {MAX_DIMENSION}"
                )
            most, size = most_bytes(name, limits), part.total_uncompressed_size
            if name != "vector" and size > _SMALL_BYTES and size > rows * most:
                raise DataError(
                    f"{path}, row group {group}: the column {name!r} holds {size // rows} bytes a row on average; at"
                    f" most {most} can be taken",
                    hint="write smaller values, or leave the column out",
                )


def check_cells(path: Path, name: str, column: Any, limits: Limits | None = None) -> None:
    """Check the texts of a batch before each becomes a value of its own.

    Args:
        path: of the file, for messages.
        name: of the column.
        column: its ``pyarrow.Array``; anything but text passes.
        limits: as in ``check_groups``.

    Raises:
        DataError: a text is longer than the server takes, and all of them together would take much memory.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = column.dictionary if pa.types.is_dictionary(column.type) else column
    if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
        longest, most = pc.max(pc.binary_length(texts)).as_py() or 0, most_bytes(name, limits)
        # A little too long is the matter of its row.
        if longest > most and longest * len(column) > _SMALL_BYTES:
            raise DataError(
                f"{path}: the column {name!r} holds a value of {longest} bytes; at most {most} can be taken",
                hint="write smaller values, or leave the column out",
            )
