"""Files that are reloaded while the server runs: tokens and certificates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

_log = logging.getLogger("embedserve.server")

EVERY_S = 1.0
"""How often the files are checked for changes."""


class Reloadable(Protocol):
    """Something that is read from files."""

    def refresh(self) -> None:
        """Read the files again if they changed; what cannot be used is logged, once."""


def file_state(*paths: Path) -> tuple[object, ...]:
    """A value that changes when a file is written or replaced, or a link in its path points elsewhere."""
    found: list[object] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            found.append(error.errno)
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


async def reload_when_changed(reloadable: Sequence[Reloadable]) -> None:
    """Refresh all of them every ``EVERY_S``, in a thread, as a disk may be slow. Runs until it is cancelled."""
    while True:
        await asyncio.sleep(EVERY_S)
        for part in reloadable:
            try:
                await asyncio.to_thread(part.refresh)
            except Exception:
                _log.exception("bug while files were reloaded")
