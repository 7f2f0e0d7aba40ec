"""Statements of SQLite that end when nobody waits for them any more."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STEPS = 10_000
"""Instructions of SQLite's virtual machine between two checks, about a millisecond."""


@contextmanager
def interruptible(connection: sqlite3.Connection, check: Callable[[], None]) -> Iterator[None]:
    """Call ``check`` while a statement runs; an exception from it ends the statement and is raised here.

    SQLite before 3.41 makes no calls while it checks the structure of pages, a third of its integrity check.
    """
    raised: list[BaseException] = []

    def stops() -> bool:
        try:
            check()
        except BaseException as error:
            raised.append(error)
        return bool(raised)

    connection.set_progress_handler(stops, _STEPS)
    try:
        yield
    except sqlite3.OperationalError:
        if raised:
            raise raised[0] from None
        raise
    finally:
        connection.set_progress_handler(None, 0)
