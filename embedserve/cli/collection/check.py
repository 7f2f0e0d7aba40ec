"""`embedserve collection check`: whether everything that the server keeps of a collection is intact."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.options import CollectionName, json_option, server_option

if TYPE_CHECKING:
    from embedserve.cli.terminal.output import Progress
    from embedserve.types import CheckProgress

WAITING = "waiting: the limit on checks, backups and restores running at a time is reached"


@click.command("check")
@click.argument("name", type=CollectionName())
@server_option
@json_option("One JSON document: what was checked, the recall, and the problems.")
def check(name: str, server: str, as_json: bool) -> None:
    """Check everything that the server keeps of a collection, while it is in use. NAME may be an alias.

    Every item is read and compared with its checksum, and every file of the index with its hash; every item is searched
    for by its own vector; and recall is measured. Damaged parts of the index are rebuilt from the items. Exits with 1
    if there are problems.

    \b
    embedserve collection check photos
    """
    from dataclasses import asdict

    from embedserve.cli.collection.text import measured_text
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import print_json, print_line

    with connect(server) as client, _StageProgress() as stages:
        report = client.check_collection(name, stages.show)
    if as_json:
        print_json({"collection": name, **asdict(report)})
    else:
        print_line(f"items        {report.items:,} read and compared with their checksums")
        print_line(f"segments     {report.segments:,} compared with their hashes")
        print_line(f"searched     {report.searched:,} items by their own vectors")
        print_line(f"recall@10    {measured_text(report.recall) if report.recall else 'every search is exact'}")
        print_line(f"problems     {len(report.problems) or 'none'}")
        for problem in report.problems:
            print_line(f"             {problem}")
    if report.problems:
        sys.exit(1)


COMMANDS = (check,)


class _StageProgress:
    """A progress bar for each stage of a check."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._bar: Progress | None = None
        self._last: CheckProgress | None = None

    def __enter__(self) -> _StageProgress:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._fill()
        self._open.__exit__(*error)

    def show(self, step: CheckProgress) -> None:
        """Show how far the check is."""
        from embedserve.cli.terminal.output import progress, say

        last = self._last
        if last is None or last.stage != step.stage:
            self._fill()
            self._open.close()
            self._bar, last = None, None
            if step.stage == "waiting":
                say(WAITING)
            else:
                self._bar = self._open.enter_context(progress(f"checking {step.stage}", step.total))
        if self._bar is not None:
            self._bar.advance(step.done - (0 if last is None else last.done))
        self._last = step

    def _fill(self) -> None:
        """Bring the bar to its end: the server does not report the last step of every stage."""
        if self._bar is not None and self._last is not None:
            self._bar.advance(self._last.total - self._last.done)
