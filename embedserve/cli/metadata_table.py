"""Metadata of images as a CSV table: a row for each path, and a type for each column.

A column has one type in the whole file, so that a filter on its key means the same for every item: boolean, number or
text. It is text unless every cell is a boolean, or every cell a number.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from embedserve.cli.terminal import spelling
from embedserve.errors import DataError, InvalidInput
from embedserve.regular_file import regular
from embedserve.types import MetadataValue, check_metadata_key

_MISSING_NUMBERS = {"nan", "-nan", "NA", "N/A", "<NA>", "NaT", "None", "null", "NULL"}
"""What other programs write for a missing number. In a column of text they are text: NA is Namibia."""
_NEVER_TEXT = {"nan", "-nan", "<na>", "nat"}
"""Those of a column that has nothing else."""
_EXACT_UP_TO = 2**53
"""Every integer up to here is also a float64."""


@dataclass
class Table:
    """The metadata of a table, and what its reader should know about it."""

    rows: dict[str, dict[str, MetadataValue]]
    """Path → metadata; a missing cell sets no key."""
    notes: list[str] = field(default_factory=list)
    """Columns whose type needs an explanation, one sentence each."""


@dataclass(frozen=True)
class _Cell:
    """A cell that is not missing."""

    path: str
    line: int
    text: str


def read_table(path: Path) -> Table:
    """The metadata in a CSV file with a column ``path``.

    Args:
        path: CSV in UTF-8, with or without a byte order mark, whose first line names the columns.

    Raises:
        DataError: it cannot be read.
        InvalidInput: it is malformed, or a cell has a number that no item can have; the message has the line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="", opener=regular) as file:
            columns, lines = _parse(path, file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path} is not a CSV file in UTF-8: {error}", hint='save it as "CSV UTF-8", or convert it with iconv'
        ) from error
    except csv.Error as error:
        raise InvalidInput(f"{path} is not a CSV file in UTF-8: {error}") from error
    table = Table({name: {} for name in lines})
    for number, column in enumerate(columns):
        # NaN is missing in any column: pandas writes it, where it writes anything, for what it does not know.
        cells = [
            _Cell(name, line, texts[number])
            for name, (line, texts) in lines.items()
            if texts[number].strip() not in ("", "NaN")
        ]
        for cell, value in zip(cells, _typed(path, column, cells, table.notes), strict=True):
            if value is not None:
                table.rows[cell.path][column] = value
    return table


# --- Rows ---


def _parse(path: Path, file: Iterator[str]) -> tuple[list[str], dict[str, tuple[int, list[str]]]]:
    """The names of the columns but ``path``, and for each path the line and the cells of its row."""
    reader = csv.reader(file, strict=True)
    header = [name.strip() for name in next(reader, [])]
    _check_header(path, header)
    position = header.index("path")
    rows: dict[str, tuple[int, list[str]]] = {}
    for cells in reader:
        if not cells:
            continue
        where = f"{path}, line {reader.line_num}"
        if len(cells) != len(header):
            raise InvalidInput(
                f"{where}: the number of cells differs from that of the columns: {len(cells)}, not {len(header)}",
                hint="a cell that has a comma goes in double quotes",
            )
        name = PurePosixPath(cells.pop(position)).as_posix()
        if name in rows:
            raise InvalidInput(f"{where}: {name!r} already has a row")
        rows[name] = reader.line_num, cells
    return header[:position] + header[position + 1 :], rows


def _check_header(path: Path, header: Sequence[str]) -> None:
    hint = "the first line names the columns, as in: path,price,brand"
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if header and separator in header[0] and "path" not in header:
            hint = f"its cells seem to be separated by {name}; save it with commas, and with points in numbers"
    if header and header[0].lower().startswith("sep="):
        hint = "the first line is Excel's sep=; remove it, and separate the cells by commas"
    if "path" not in header:
        names = ", ".join(map(repr, header)) or "none"
        raise InvalidInput(f"{path} has no column 'path'; its columns are {names}", hint=hint)
    for number, column in enumerate(header, start=1):
        if not column:
            raise InvalidInput(
                f"column {number} of {path} has no name",
                hint="pandas writes its index there: to_csv(…, index=False)" if number == 1 else "name or remove it",
            )
        check_metadata_key(column)
        if header.count(column) > 1:
            raise InvalidInput(f"{path} has {header.count(column)} columns {column!r}", hint="rename or remove one")


# --- Types ---


def _typed(path: Path, column: str, cells: Sequence[_Cell], notes: list[str]) -> list[MetadataValue | None]:
    """The values of the cells, all of one type; None for those that are missing. ``notes`` receives what was chosen.

    Raises:
        InvalidInput: a number is infinite or too large in a column of numbers.
    """
    kinds: dict[str, list[_Cell]] = {}
    for cell in cells:
        kinds.setdefault(_kind(cell.text.strip()), []).append(cell)
    missing = kinds.pop("missing", [])
    beyond = kinds.pop("infinite", [])
    if not kinds.keys() - {"number"} and beyond:
        cell = beyond[0]
        raise InvalidInput(
            f"{path}, line {cell.line}: {column!r} is {cell.text.strip()[:40]!r}; only finite numbers can be kept",
            hint="leave the cell empty",
        )
    if not kinds and all(cell.text.strip().lower() in _NEVER_TEXT for cell in missing):
        _note_missing(column, missing, notes)
        return [None] * len(cells)
    if kinds and not kinds.keys() - {"boolean"}:
        _note_missing(column, missing, notes)
        return [spelling.boolean(cell.text.strip()) for cell in cells]
    if kinds and not kinds.keys() - {"number"}:
        _note_missing(column, missing, notes)
        return _numbers(cells)
    if beyond:
        kinds["number"] = [*kinds.get("number", []), *beyond]
    if missing:
        kinds["text"] = [*kinds.get("text", []), *missing]
    if kinds.keys() - {"text"}:
        notes.append(_mixed(path, column, kinds))
    return [cell.text for cell in cells]


def _kind(text: str) -> str:
    if spelling.boolean(text) is not None:
        return "boolean"
    if text in _MISSING_NUMBERS:
        return "missing"
    if spelling.is_infinite(text):
        return "infinite"
    try:
        if spelling.number(text) is not None:
            return "number"
    except InvalidInput:
        return "infinite" if any(sign in text for sign in ".eE") else "long"
    return "padded" if spelling.is_padded(text) else "text"


def _numbers(cells: Sequence[_Cell]) -> list[MetadataValue | None]:
    """Integers if all are, otherwise floats; an integer that no float equals stays one."""
    values = [None if _kind(text := cell.text.strip()) == "missing" else spelling.number(text) for cell in cells]
    if all(value is None or isinstance(value, int) for value in values):
        return list(values)
    return [float(value) if value is not None and abs(value) <= _EXACT_UP_TO else value for value in values]


_NAMES = {
    "boolean": ("boolean", "booleans"),
    "number": ("number", "numbers"),
    "padded": ("cell with a leading zero", "cells with leading zeros"),
    "long": ("integer that does not fit 64 bits", "integers that do not fit 64 bits"),
    "text": ("text", "texts"),
}


def _mixed(path: Path, column: str, kinds: Mapping[str, Sequence[_Cell]]) -> str:
    """What a column has that is not a plain text, and what was chosen."""
    parts = []
    for kind, names in _NAMES.items():
        if found := kinds.get(kind):
            example = found[0].text.strip()
            example = repr(example if len(example) <= 30 else f"{example[:30]}…")
            parts.append(f"{len(found):,} {names[len(found) > 1]} ({example} in line {found[0].line})")
    what = "has" if len(parts) == 1 else "mixes"
    return f"column {column!r} of {path} {what} {', '.join(parts)}: all of it is kept as text"


def _note_missing(column: str, missing: Sequence[_Cell], notes: list[str]) -> None:
    if missing:
        cell = missing[0]
        notes.append(
            f"column {column!r}: {len(missing):,} of its cells, such as {cell.text.strip()!r} in line {cell.line}, are"
            " taken as missing"
        )
