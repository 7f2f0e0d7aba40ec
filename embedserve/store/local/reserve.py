"""Space that is set aside so that something can be removed from a disk that is full.

    DATA/RESERVE    zeros; given up when a removal finds no space, and made again once there is some

Removing a collection or items is a transaction of SQLite, which needs a few pages for its log.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from embedserve.atomic_write import private
from embedserve.errors import DiskFull

_log = logging.getLogger("embedserve.store")

_T = TypeVar("_T")

_MOST_BYTES = 16 << 20
"""Twice what the log of a collection holds when SQLite moves it into the database: room to move it, and to write again
where it was."""
_LEAST_BYTES = 64 << 10
_SHARE = 64
"""Of the whole disk at most this part is set aside."""
_FREE = 2
"""The reserve is made if the disk has this many times its size."""
_AGAIN_S = 10.0


class Reserve:
    """The reserve of one data directory.

    Args:
        directory: of the data.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "RESERVE"
        self._lock = threading.Lock()
        self._missing = True
        self._not_before = 0.0

    def keep(self, *, at_once: bool = False) -> None:
        """Make the reserve if it is missing and the disk has room; costs next to nothing while it is there.

        Args:
            at_once: also within seconds of the last attempt, since something was removed.
        """
        if not self._missing or (time.monotonic() < self._not_before and not at_once):
            return
        with self._lock:
            self._not_before = time.monotonic() + _AGAIN_S
            try:
                self._missing = not self._make()
            except OSError:
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)

    def used_if_full(self, remove: Callable[[], _T], first: Callable[[], None] | None = None) -> _T:
        """What ``remove`` returns; if the disk is full, the reserve is given up and ``remove`` called again.

        Args:
            remove: called up to three times.
            first: makes room in another way, which is tried before the reserve is given up, and again with its space.

        Raises:
            DiskFull: it needs more than the reserve, or there is none.
        """
        try:
            return remove()
        except DiskFull as error:
            full = error
        if first is not None:
            first()
            try:
                return remove()
            except DiskFull as error:
                full = error
        if not self._give_up():
            raise full
        if first is not None:
            first()
        return remove()

    def _give_up(self) -> bool:
        with self._lock:
            try:
                self._path.unlink()
            except OSError:  # it was never made
                return False
            self._missing = True
            self._not_before = time.monotonic() + _AGAIN_S
        fields = {"path": str(self._path)}
        _log.warning("the disk is full: its reserve is given up for removals", extra={"fields": fields})
        return True

    def _make(self) -> bool:
        disk = os.statvfs(self._path.parent)
        size = max(_LEAST_BYTES, min(_MOST_BYTES, disk.f_blocks * disk.f_frsize // _SHARE))
        if self._path.exists() and self._path.stat().st_size >= size:
            return True
        if disk.f_bavail * disk.f_frsize < _FREE * size:
            return False
        with open(self._path, "wb", opener=private) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))
        return True
