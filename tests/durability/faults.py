"""A disk that fails at the n-th write, sync, truncation, opening or removal of a file of SQLite."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import apsw
import pytest

from tests.durability.adapter import Connection, path_of

Operation = Literal["write", "sync", "truncate", "open", "delete"]

CHECKPOINT_PAGES = 20


class Fault:
    """Which operation fails, when, and with what result for SQLite.

    Args:
        operation: the kind of operation.
        nth: number of the first one that fails, from 1; 0 for none.
        code: extended error code of SQLite.
        lasting: whether all later ones fail too, until ``end``.
    """

    def __init__(self, operation: Operation, nth: int, code: int, *, lasting: bool = False) -> None:
        self.operation = operation
        self.code = code
        self.lasting = lasting
        self.counts: dict[str, int] = {}
        self.hits = 0
        self._nth = nth
        self._ended = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """From now on all operations of this kind fail."""
        self._nth, self.lasting = 1, True

    def end(self) -> None:
        """The disk works again."""
        self._ended = True

    def meets(self, operation: Operation) -> bool:
        """Count an operation; whether it fails."""
        with self._lock:
            self.counts[operation] = number = self.counts.get(operation, 0) + 1
            if operation != self.operation or not self._nth or self._ended:
                return False
            failing = number >= self._nth if self.lasting else number == self._nth
            self.hits += failing
            return failing

    def check(self, operation: Operation) -> None:
        if self.meets(operation):
            raise self.error()

    def error(self) -> Exception:
        made: Exception = apsw.exception_for(self.code)
        return made


class FailingFiles(apsw.VFS):
    def __init__(self, name: str, fault: Fault) -> None:
        self._fault = fault
        super().__init__(name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        self._fault.check("open")
        opened = _FailingFile("", name, flags)
        opened.attach(self._fault)
        return opened

    def xDelete(self, name: str, sync_directory: bool) -> None:
        self._fault.check("delete")
        super().xDelete(name, sync_directory)


class _FailingFile(apsw.VFSFile):
    def attach(self, fault: Fault) -> None:
        self._fault = fault

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._fault.meets("write"):
            # As on a real disk a part may have been written.
            super().xWrite(data[: len(data) // 2], offset)
            raise self._fault.error()
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._fault.check("sync")
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:
        self._fault.check("truncate")
        super().xTruncate(size)


@contextmanager
def failing(root: Path, fault: Fault) -> Iterator[None]:
    """Databases below ``root`` are on such a disk."""
    name = f"failing-{id(fault)}"
    files = FailingFiles(name, fault)
    real, report = sqlite3.connect, sys.unraisablehook

    def connect(database: str, **more: Any) -> Any:
        path = Path(path_of(database))
        if not path.is_relative_to(root):
            return real(database, **more)
        return Connection(path, name, checkpoint_pages=CHECKPOINT_PAGES)

    def unraisable(problem: sys.UnraisableHookArgs) -> None:
        # SQLite continues after some failures, such as of a checkpoint; then APSW cannot raise our error.
        if not isinstance(problem.exc_value, apsw.Error):
            report(problem)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)
        patch.setattr(sys, "unraisablehook", unraisable)
        yield
    files.unregister()
