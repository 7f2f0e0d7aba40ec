"""Whether somebody still waits for the result of some work: asked by everything that may take long."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from embedserve.errors import DeadlineExceeded


class Unwanted(Exception):
    """Raised where the caller of some work has left; nobody is told."""


class Wanted:
    """Passed down with the work, from the call to the loops over rows. Safe to use from several threads.

    A loop calls ``check`` before every piece of its work, a piece being what takes a few milliseconds: see
    ``embedserve.index.kernels.STEP_NUMBERS`` for how that is counted. What cannot be cut into pieces gives a function
    that interrupts it.

    Args:
        deadline: when nobody waits any more, on ``time.monotonic``'s clock; infinity for never.
    """

    __slots__ = ("_deadline", "_interrupts", "_is_cancelled", "_lock")

    def __init__(self, deadline: float = math.inf) -> None:
        self._deadline = deadline
        self._is_cancelled = False
        self._interrupts: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Nobody waits any more: the next ``check`` raises, and what can be interrupted is."""
        with self._lock:
            self._is_cancelled = True
            for interrupt in self._interrupts:
                interrupt()

    def check(self) -> None:
        """Return while somebody waits.

        Raises:
            Unwanted: the caller has left.
            DeadlineExceeded: the deadline has passed.
        """
        if self._is_cancelled:
            raise Unwanted
        if self._deadline < time.monotonic():
            raise DeadlineExceeded("the deadline passed while the collection was read")

    def is_over(self) -> bool:
        """Whether ``check`` would raise."""
        return self._is_cancelled or self._deadline < time.monotonic()

    def begin(self, interrupt: Callable[[], None]) -> None:
        """From now until ``end``, ``cancel`` calls this function, in its own thread.

        Raises:
            Unwanted, DeadlineExceeded: as ``check``.
        """
        with self._lock:
            self.check()
            self._interrupts.append(interrupt)

    def end(self, interrupt: Callable[[], None]) -> None:
        """Once this returns, the function is not called any more, nor running."""
        with self._lock:
            self._interrupts.remove(interrupt)


class Asking(Wanted):
    """Wanted for as long as a function that is called at every check does not raise."""

    __slots__ = ("_ask",)

    def __init__(self, ask: Callable[[], None]) -> None:
        super().__init__()
        self._ask = ask

    def check(self) -> None:
        """Call the function."""
        self._ask()

    def is_over(self) -> bool:
        """Whether the function raises."""
        try:
            self._ask()
        except Exception:  # the next check raises it where it is understood
            return True
        return False


class _Always(Wanted):
    """Keeps no list, since it is shared by all threads."""

    __slots__ = ()

    def cancel(self) -> None:
        raise ValueError("this is wanted for ever")

    def begin(self, interrupt: Callable[[], None]) -> None:
        pass

    def end(self, interrupt: Callable[[], None]) -> None:
        pass


ALWAYS: Wanted = _Always()
"""For work that nobody gives up."""
