"""What commands print: talk and progress on stderr, results on stdout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click


class Progress(Protocol):
    """A progress bar under way."""

    def advance(self, steps: int = 1) -> None:
        """Some more is done."""

    def note(self, text: str) -> None:
        """Show a short text beside the bar, as in "96 img/s"."""


def say(text: str = "") -> None:
    """One line for the person, on stderr."""
    click.echo(text, err=True)


def print_json(document: Any) -> None:
    """One JSON document for a program, on stdout."""
    click.echo(json.dumps(document, ensure_ascii=False))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """A table for the person, on stdout; columns whose numbers are in ``right`` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, highlight=False)
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200  # what a log or a pipe gets is not folded
    console.print(table)


@contextmanager
def progress(label: str, total: int) -> Iterator[Progress]:
    """A bar on stderr while something long runs; where stderr is no terminal, one line at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total, note="")
        running = _RichProgress(bar, task)
        yield running
    if not console.is_terminal:
        say(f"{label}: {running.done} of {total} {running.last_note}".rstrip())


class _RichProgress:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task
        self.done = 0
        self.last_note = ""

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        self._bar.advance(self._task, steps)

    def note(self, text: str) -> None:
        self.last_note = text
        self._bar.update(self._task, note=text)
