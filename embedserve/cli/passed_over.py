"""What commands say about files that a scan did not take for images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedserve.folder.exclude import Exclude
    from embedserve.folder.find import Images

_NAMED = 5
"""Broken links that are named."""


def say_left_out(found: Images, exclude: Exclude) -> None:
    """Say what was passed over, what was left out on request, and which patterns matched nothing."""
    from embedserve.cli.terminal.output import printable, say
    from embedserve.folder.kinds import passed_over_lines

    for line in passed_over_lines(found.passed_over):
        say(line)
    for path in found.broken[:_NAMED]:
        say(f"broken link  {printable(str(path))}")
    if found.excluded:
        count = len(found.excluded)
        what = "1 file or folder" if count == 1 else f"{count:,} files and folders"
        say(f"--exclude leaves out {what}, such as {printable(str(found.excluded[0]))}")
    for pattern in exclude.unused:
        say(f"--exclude {printable(pattern)} matches nothing")
