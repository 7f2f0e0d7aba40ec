"""What a run of calls gave: each call as a row of columns, and what follows from them."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedserve.errors import EmbedserveError

OK = "OK"
"""Code of a call whose images were all answered."""
NOT_SENT = "NOT_SENT"
"""Code of a call that was due while as many calls as allowed were under way."""
UNANSWERED = "UNANSWERED"
"""Code of a call that was given up when the run had long ended."""
STOPPED = "stopped"
"""Why a run was cut short that a person ended."""

PARTS = ("decode", "queue", "inference", "store", "total")
"""Parts of a call's time on the server, as its response names them."""


class CallFailed(Exception):
    """Raised by a ``send`` whose call failed, as an HTTP client may do: ``CallFailed("HTTP_503", "busy")``.

    Args:
        code: what the failure is counted as.
        message: shown once for each code.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Reply:
    """What an answered call gave."""

    images: int = 1
    """Images that were answered."""
    failed: Mapping[str, int] = field(default_factory=dict)
    """Images of the same call that failed, by code."""
    server_ms: tuple[float, float, float, float, float] | None = None
    """Where the time went on the server, in the order of PARTS; None if it does not say."""


_UNKNOWN = (math.nan,) * len(PARTS)
_NOTHING = Reply(images=0)


def code_of(error: BaseException) -> str:
    """What a failure is counted as: the code of ours, of a gRPC status or of ``CallFailed``; else its class name."""
    if isinstance(error, (EmbedserveError, CallFailed)):
        return error.code
    if isinstance(error, TimeoutError):
        return "DEADLINE_EXCEEDED"
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED"
    status = getattr(error, "code", None)
    name = getattr(status(), "name", None) if callable(status) else None
    return str(name or type(error).__name__)


class Measurements:
    """The calls of one run. Times are seconds from its start.

    Latency is counted from the moment a call was due, not from when it could be sent. What is derived looks at the
    calls that were due in the window, which begins after the warm-up; throughput, at the answers that came in it.
    """

    def __init__(self, *, warmup_s: float, seconds: float) -> None:
        self.warmup_s = warmup_s
        self.seconds = seconds
        """Length of the window; less than was asked for if the run was cut short."""
        self.cut_short = ""
        """Why the run ended before its time; empty if it did not."""
        self.client_cpu_s = 0.0
        """CPU time of this process within the window."""
        self.messages: dict[str, str] = {}
        """The first message of each code."""
        self._codes = [OK]
        self._due_s, self._sent_s, self._done_s = array("d"), array("d"), array("d")
        self._code, self._images = array("H"), array("I")
        self._server_ms = tuple(array("f") for _ in PARTS)
        self._failed_images: list[tuple[float, str, int]] = []

    def add(self, *, due_s: float, sent_s: float, done_s: float, outcome: Reply | BaseException | str) -> None:
        """One call that is over: its reply, the error that it failed with, or NOT_SENT or UNANSWERED."""
        reply = _NOTHING
        if isinstance(outcome, Reply):
            reply = outcome
            # One image is enough to make it a call that was not fully answered.
            code = next(iter(reply.failed), OK)
            self._failed_images += [(due_s, failure, count) for failure, count in reply.failed.items()]
        elif isinstance(outcome, BaseException):
            code = code_of(outcome)
            self.messages.setdefault(code, str(outcome))
        else:
            code = outcome
        if code not in self._codes:
            self._codes.append(code)
        self._due_s.append(due_s)
        self._sent_s.append(sent_s)
        self._done_s.append(done_s)
        self._code.append(self._codes.index(code))
        self._images.append(reply.images)
        for column, part in zip(self._server_ms, reply.server_ms or _UNKNOWN, strict=True):
            column.append(part)

    def __len__(self) -> int:
        """Calls, those of the warm-up too."""
        return len(self._due_s)

    # --- Derived ---

    @property
    def calls_per_s(self) -> float:
        """Calls a second whose images were all answered, by the answers within the window."""
        return int((self._came_in_window() & self._has(OK)).sum()) / self.seconds if self.seconds else 0

    @property
    def images_per_s(self) -> float:
        """Images a second that were answered within the window: the goodput."""
        return int(_view(self._images)[self._came_in_window()].sum()) / self.seconds if self.seconds else 0

    @property
    def due_calls_per_s(self) -> float:
        """Calls a second that were due: what an open loop offered."""
        return int(self._due_in_window().sum()) / self.seconds if self.seconds else 0

    def codes(self) -> dict[str, int]:
        """Calls by code, OK among them, most frequent first."""
        counts = np.bincount(_view(self._code)[self._due_in_window()].astype(int), minlength=len(self._codes))
        found = {code: int(count) for code, count in zip(self._codes, counts, strict=True) if count}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def failed_images(self) -> dict[str, int]:
        """Images that failed in calls that were answered, by code."""
        counts: Counter[str] = Counter()
        for due_s, code, count in self._failed_images:
            if 0 <= due_s - self.warmup_s < self.seconds:
                counts[code] += count
        return dict(counts.most_common())

    def latencies_ms(self, code: str = OK) -> NDArray[np.float64]:
        """Milliseconds from when a call was due until it was over, of calls with this code, in order of their ends."""
        taken_s = _view(self._done_s) - _view(self._due_s)
        return taken_s[self._rows(code)] * 1000

    def late_ms(self) -> NDArray[np.float64]:
        """Milliseconds by which this process sent the calls too late: a measure of the client, not of the server."""
        sent = self._due_in_window() & ~self._has(NOT_SENT)
        late_s = _view(self._sent_s) - _view(self._due_s)
        return late_s[sent] * 1000

    def server_ms(self) -> dict[str, float]:
        """Median of each part of the time on the server, in milliseconds, of answered calls; empty if unknown."""
        rows = self._rows(OK) & ~np.isnan(_view(self._server_ms[-1]))
        if not rows.any():
            return {}
        return {
            part: float(np.median(_view(column)[rows])) for part, column in zip(PARTS, self._server_ms, strict=True)
        }

    @property
    def client_cpu_share(self) -> float:
        """CPU time of this process as a share of one core."""
        return self.client_cpu_s / self.seconds if self.seconds else 0

    def _rows(self, code: str) -> NDArray[np.bool_]:
        return self._due_in_window() & self._has(code)

    def _has(self, code: str) -> NDArray[np.bool_]:
        number = self._codes.index(code) if code in self._codes else -1
        found: NDArray[np.bool_] = np.equal(_view(self._code), number)
        return found

    def _due_in_window(self) -> NDArray[np.bool_]:
        return self._in_window(_view(self._due_s))

    def _came_in_window(self) -> NDArray[np.bool_]:
        return self._in_window(_view(self._done_s))

    def _in_window(self, times_s: NDArray[np.float64]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.logical_and(times_s >= self.warmup_s, times_s < self.warmup_s + self.seconds)
        return found


def _view(column: array[float] | array[int]) -> NDArray[np.float64]:
    # A copy: an array that NumPy looks into cannot grow.
    return np.array(column)
