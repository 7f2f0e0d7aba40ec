"""Tables on standard output: no column is cut, and only the widest text is folded, at words."""

from __future__ import annotations

from collections.abc import Sequence

import click

_WIDEST_FOLDED = 16
_GAP = 3  # between columns: their padding and the line of the box


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print a table on stdout; the columns with indices in ``right`` are aligned to the right.

    On a terminal that is too narrow the widest column of text after the first is folded at words; ids, names and
    numbers stay whole, since they are copied. Where that is not enough, lines are longer than the terminal. Without a
    terminal nothing is folded.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from embedserve.cli.terminal.output import printable

    cells = [[printable(cell) for cell in row] for row in rows]
    widths = _widths(headers, cells)
    console = Console(highlight=False, markup=False, emoji=False)
    whole = sum(widths) + _GAP * (len(widths) + 1)
    folded = _folded(cells, widths, right) if console.is_terminal and whole > console.width else None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, highlight=False)
    for number, header in enumerate(headers):
        justify, whole_column = "right" if number in right else "left", number != folded
        table.add_column(
            header,
            justify="right" if justify == "right" else "left",
            overflow="fold",
            no_wrap=whole_column,
            min_width=widths[number] if whole_column else _WIDEST_FOLDED,
        )
    for row in cells:
        table.add_row(*row)
    if folded is None:
        console.width = max(console.width, whole) if console.is_terminal else whole
    else:
        console.width = max(console.width, whole - widths[folded] + max(_WIDEST_FOLDED, _longest_word(cells, folded)))
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip(" ") for line in captured.get().split("\n")), nl=False)


def _widths(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    """The cells of the terminal that each column needs; wide characters count twice."""
    from rich.cells import cell_len

    columns = [[*header.split("\n"), *(row[number] for row in cells)] for number, header in enumerate(headers)]
    return [max(map(cell_len, column)) for column in columns]


def _folded(cells: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[int]) -> int | None:
    """The index of the column to fold: the widest after the first that has spaces to fold at."""
    able = [
        number
        for number in range(1, len(widths))
        if number not in right and widths[number] > _WIDEST_FOLDED and any(" " in row[number] for row in cells)
    ]
    return max(able, key=lambda number: widths[number], default=None)


def _longest_word(cells: Sequence[Sequence[str]], number: int) -> int:
    from rich.cells import cell_len

    return max((cell_len(word) for row in cells for word in row[number].split()), default=0)
