"""Files that are read again while the server runs: tokens and certificates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

_log = logging.getLogger("embedserve.server")

EVERY_S = 1.0
"""How often the files are looked at."""


class Watched(Protocol):
    """Something made of files."""

    def refresh(self) -> None:
        """Read the files again if they changed; what cannot be used changes nothing and is logged, once."""


def state_of(*paths: Path) -> tuple[object, ...]:
    """Changes whenever a file is written or replaced, or a link in its path points elsewhere."""
    found: list[object] = []
    for path in paths:
        try:
            state = path.stat()
        except OSError as error:
            found.append(error.errno)
        else:
            found.append((state.st_mtime_ns, state.st_size, state.st_ino))
    return tuple(found)


async def watch(things: Sequence[Watched]) -> None:
    """Refresh all of them again and again, in a thread: a disk may take its time. Runs until it is cancelled."""
    while True:
        await asyncio.sleep(EVERY_S)
        for thing in things:
            try:
                await asyncio.to_thread(thing.refresh)
            except Exception:
                _log.exception("bug while files were read again")
