"""The calls of a run, each a row of columns, and the figures derived from them."""

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
"""Code of a call that was due while the limit on calls in flight was reached."""
UNANSWERED = "UNANSWERED"
"""Code of a call that was given up after the end of the run."""
STOPPED = "stopped"
"""Why a run was cut short that the user ended."""

PARTS = ("decode", "queue", "inference", "store", "total")
"""Parts of a call's time on the server, as named in its response."""


class CallFailed(Exception):
    """Raised by a ``send`` whose call failed, for example over HTTP: ``CallFailed("HTTP_503", "busy")``.

    Args:
        code: the failure is counted under it.
        message: shown once for each code.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a call."""

    images: int = 1
    """Images that were answered."""
    failed: Mapping[str, int] = field(default_factory=dict)
    """Images of the same call that failed, by code."""
    server_ms: tuple[float, float, float, float, float] | None = None
    """Time on the server, in the order of PARTS; None if the server does not report it."""


_UNKNOWN = (math.nan,) * len(PARTS)
_NOTHING = Reply(images=0)


def code_of(error: BaseException) -> str:
    """The code of a failure: of an embedserve error, a gRPC status or ``CallFailed``; else the name of its class."""
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

    Latency counts from when a call was due, not from when it could be sent. Figures are of the calls that were due in
    the window, which begins after the warm-up; throughput is of the answers that came in the window.
    """

    def __init__(self, *, warmup_s: float, seconds: float) -> None:
        self.warmup_s = warmup_s
        self.seconds = seconds
        """Length of the window; shorter than requested if the run was cut short."""
        self.cut_short = ""
        """Why the run ended early; empty if it did not."""
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
        """Record a finished call: its reply, its error, NOT_SENT or UNANSWERED."""
        reply = _NOTHING
        if isinstance(outcome, Reply):
            reply = outcome
            # One failed image is enough for the call to count as failed.
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
        """Calls, including those of the warm-up."""
        return len(self._due_s)

    # --- Derived ---

    @property
    def calls_per_s(self) -> float:
        """Fully answered calls per second, by the answers within the window."""
        return int((self._came_in_window() & self._has(OK)).sum()) / self.seconds if self.seconds else 0

    @property
    def images_per_s(self) -> float:
        """Images per second that were answered within the window: the goodput."""
        return int(_view(self._images)[self._came_in_window()].sum()) / self.seconds if self.seconds else 0

    @property
    def steady_images(self) -> float:
        """Images answered in the window, each call spread evenly over the time from its sending to its answer.

        In a closed loop with a steady load this is exact in the mean; unlike a count of answers it does not jump if
        calls are long.
        """
        sent_s, done_s = _view(self._sent_s), _view(self._done_s)
        overlap_s = np.minimum(done_s, self.warmup_s + self.seconds) - np.maximum(sent_s, self.warmup_s)
        inside = overlap_s > 0
        return float((_view(self._images)[inside] * overlap_s[inside] / (done_s - sent_s)[inside]).sum())

    @property
    def steady_images_per_s(self) -> float:
        """``steady_images`` per second."""
        return self.steady_images / self.seconds if self.seconds else 0

    @property
    def all_images(self) -> int:
        """Images answered in the whole run, including the warm-up."""
        return int(_view(self._images).sum())

    @property
    def due_calls_per_s(self) -> float:
        """Calls per second that were due: the offered load of an open loop."""
        return int(self._due_in_window().sum()) / self.seconds if self.seconds else 0

    def codes(self) -> dict[str, int]:
        """Calls by code, including OK, most frequent first."""
        counts = np.bincount(_view(self._code)[self._due_in_window()].astype(int), minlength=len(self._codes))
        found = {code: int(count) for code, count in zip(self._codes, counts, strict=True) if count}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def failed_images(self) -> dict[str, int]:
        """Failed images of answered calls, by code."""
        counts: Counter[str] = Counter()
        for due_s, code, count in self._failed_images:
            if 0 <= due_s - self.warmup_s < self.seconds:
                counts[code] += count
        return dict(counts.most_common())

    def latencies_ms(self, code: str = OK, *, from_sent: bool = False, whole_run: bool = False) -> NDArray[np.float64]:
        """Milliseconds from when a call was due until it was over, of calls with this code, in order of their ends.

        Args:
            code: of the calls.
            from_sent: count from when the call was sent: without the time that this process was late.
            whole_run: of all calls, also those that were not due in the window.
        """
        taken_s = _view(self._done_s) - _view(self._sent_s if from_sent else self._due_s)
        return taken_s[self._has(code) if whole_run else self._rows(code)] * 1000

    def late_ms(self) -> NDArray[np.float64]:
        """Milliseconds by which this process sent calls too late: a measure of the client, not of the server."""
        sent = self._due_in_window() & ~self._has(NOT_SENT)
        late_s = _view(self._sent_s) - _view(self._due_s)
        return late_s[sent] * 1000

    def server_ms(self) -> dict[str, float]:
        """Medians of the parts of the time on the server, in milliseconds, of answered calls; empty if unknown."""
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
    # A copy: an array cannot grow while NumPy has a view of it.
    return np.array(column)
