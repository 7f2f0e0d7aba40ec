"""What commands print: messages and progress on stderr, results on stdout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Progress(Protocol):
    """A progress bar on screen."""

    def advance(self, steps: int = 1) -> None:
        """Count finished steps."""

    def note(self, text: str) -> None:
        """Show a short text beside the bar, as in "96 images/s"."""


def say(text: str = "") -> None:
    """Print a message on stderr."""
    click.echo(text, err=True)


def say_failed(what: str, why: str) -> None:
    """Name an input that failed, on stderr."""
    click.echo(f"{click.style('failed', fg='red')}  {printable(what)}: {printable(why)}", err=True)


def counted(count: float, noun: str) -> str:
    """A count with its noun, as in "1 item", "1,204 items" and "2.5 minutes"."""
    count = int(count) if count == int(count) else count
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"


def rate_text(images: int, seconds: float) -> str:
    """How long it took, as in "in 2.5 s (96.1 images/s)"; without the rate if no image was sent."""
    rate = f" ({images / seconds:.1f} images/s)" if images and seconds > 0 else ""
    return f"in {seconds:.1f} s{rate}"


def printable(text: str) -> str:
    """The text with control characters and undecodable bytes of file names escaped, as in ``\\x1b``.

    Ids and metadata are untrusted: they must neither move the cursor nor stop the program.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def print_line(text: str) -> None:
    """Print a line of results on stdout."""
    click.echo(printable(text))


def print_json(document: Any) -> None:
    """Print a JSON document on stdout."""
    text = json.dumps(document, ensure_ascii=False)
    # Surrogates, of undecodable file names, become JSON escapes: the same to a parser.
    click.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def shortest(vector: NDArray[np.float32]) -> list[float]:
    """The numbers of a vector, each with the fewest digits that give the same float32."""
    return [float(str(number)) for number in vector]


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Metadata on one line, as in "label=cat  year=1999", in the order of its keys."""

    def text_of(value: Any) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value) if isinstance(value, (str, int, float)) else ", ".join(value)

    return "  ".join(f"{key}={text_of(value)}" for key, value in sorted(metadata.items()))


@contextmanager
def progress(label: str, total: int) -> Iterator[Progress]:
    """A progress bar on stderr; if stderr is not a terminal, one line at the end."""
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


@contextmanager
def byte_progress(label: str, total: int | None) -> Iterator[Progress]:
    """A progress bar of bytes on stderr, of ``total`` if that is known; nothing if stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        yield _RichProgress(bar, bar.add_task(label, total=total, note=""))


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
