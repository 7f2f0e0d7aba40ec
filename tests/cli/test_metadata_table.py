"""The types of a CSV table's columns: what pandas, spreadsheets and people write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedserve.cli.metadata_table import Table, read_table
from embedserve.errors import InvalidInput


def read(path: Path, *cells: str, column: str = "x") -> Table:
    """A table with one column of these cells, for the paths 0, 1, …"""
    path.write_text("".join([f"path,{column}\n", *(f'{n},"{cell}"\n' for n, cell in enumerate(cells))]))
    return read_table(path)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        # Booleans, as Python, JSON and spreadsheets write them
        (["True", "False"], [True, False]),
        (["true", "FALSE", ""], [True, False, None]),
        # Integers
        (["0", "-3", "12"], [0, -3, 12]),
        (["-0", " 7 "], [0, 7]),
        (["4111111111111111111", "9007199254740993"], [4111111111111111111, 9007199254740993]),
        (["9223372036854775807", "-9223372036854775808"], [2**63 - 1, -(2**63)]),
        # Decimal numbers; a column is of floats if one cell is
        (["1e-05", ".5", "5.", "1E+16", "-1.25"], [1e-05, 0.5, 5.0, 1e16, -1.25]),
        (["12", "0.5"], [12.0, 0.5]),
        (["0", "-0.0"], [0.0, -0.0]),
        (["4111111111111111111", "0.5"], [4111111111111111111, 0.5]),
        # Missing cells
        (["1.0", "NaN", "", "nan"], [1.0, None, None, None]),
        (["cat", "NaN", ""], ["cat", None, None]),
        (["3", "<NA>", "NA", "NULL"], [3, None, None, None]),
        (["nan", "NaN"], [None, None]),
        (["True", "", "None"], [True, None, None]),
        # Text, as a whole column
        (["01234", "90210"], ["01234", "90210"]),
        (["-01", "5"], ["-01", "5"]),
        (["NA", "DE"], ["NA", "DE"]),
        (["+491701234567", "+4930123"], ["+491701234567", "+4930123"]),
        (["2024-01-01", "2024-01-02"], ["2024-01-01", "2024-01-02"]),
        (["1", "x", "True"], ["1", "x", "True"]),
        (["1", "True"], ["1", "True"]),
        (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
        (["inf", "Influx"], ["inf", "Influx"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["٣", "0x10"], ["٣", "0x10"]),
        ([" cat", "'dog'"], [" cat", "'dog'"]),
    ],
    ids=str,
)
def test_a_column_has_one_type(tmp_path: Path, cells: list[str], values: list[Any]) -> None:
    rows = read(tmp_path / "t.csv", *cells).rows
    found = [rows[str(number)].get("x") for number in range(len(cells))]
    assert [(type(value), repr(value)) for value in found] == [(type(value), repr(value)) for value in values]


@pytest.mark.parametrize("text", ["inf", "-inf", "Infinity", "1e400"])
def test_a_number_that_is_not_finite_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput, match=rf"t\.csv, line 3: 'x' is '{text}'; only finite numbers") as refused:
        read(tmp_path / "t.csv", "1.5", text)
    assert refused.value.hint == "leave the cell empty"


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        (
            ["12", "True", "x", "13"],
            "mixes 1 boolean ('True' in line 3), 2 numbers ('12' in line 2), 1 text ('x' in line 4): all of it is kept"
            " as text",
        ),
        (
            ["90210", "01234"],
            "mixes 1 number ('90210' in line 2), 1 cell with a leading zero ('01234' in line 3): all of it is kept as"
            " text",
        ),
        (
            ["1" * 20, "2" * 20],
            f"has 2 integers that do not fit 64 bits ('{'1' * 20}' in line 2): all of it is kept as text",
        ),
        (["1", "NA"], "1 of its cells, such as 'NA' in line 3, are taken as missing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_was_chosen_for_a_column_of_several_kinds_is_said(tmp_path: Path, cells: list[str], note: str) -> None:
    [said] = read(tmp_path / "t.csv", *cells).notes
    assert said.startswith("column 'x'")
    assert note in said


@pytest.mark.parametrize("cells", [["1", "2"], ["a", "b"], ["True"], ["1", ""], ["2024-01-01", ""]], ids=str)
def test_a_plain_column_needs_no_word(tmp_path: Path, cells: list[str]) -> None:
    assert read(tmp_path / "t.csv", *cells).notes == []


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (b"path;price\na.png;1,5\n", "has no column 'path'", "separated by semicolons; save it with commas"),
        (b"\xef\xbb\xbfpath;price\na.png;1,5\n", "has no column 'path'", "separated by semicolons"),
        (b"sep=;\npath;price\na.png;1,5\n", "has no column 'path'", "the first line is Excel's sep=;"),
        (b"path\tprice\na.png\t1\n", "has no column 'path'", "separated by tabs"),
        ("path,price\na.png,1\n".encode("utf-16"), "is not a CSV file in UTF-8", 'save it as "CSV UTF-8"'),
        (b",path,price\n0,a.png,1\n", "column 1 of", "to_csv(…, index=False)"),
        (b"path,price,price\na.png,1,2\n", "has 2 columns 'price'", "rename or remove one"),
        (b"path,path\na.png,b.png\n", "has 2 columns 'path'", "rename or remove one"),
        (b"path,price\na.png,1,5\n", "line 2: the number of cells differs", "in double quotes"),
    ],
    ids=["semicolons", "bom-semicolons", "sep", "tabs", "utf-16", "pandas-index", "twice", "path-twice", "comma"],
)
def test_a_table_that_cannot_be_read_is_explained(tmp_path: Path, text: bytes, message: str, hint: str) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(InvalidInput) as refused:
        read_table(tmp_path / "t.csv")
    assert message in refused.value.message
    assert hint in refused.value.hint


def test_a_byte_order_mark_and_spaces_around_names_are_no_part_of_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfpath, price\r\n./a.png, 12\r\n\r\n")
    assert read_table(tmp_path / "t.csv").rows == {"a.png": {"price": 12}}
