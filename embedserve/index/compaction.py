"""Which parts of a snapshot become one segment next.

Sizes of segments fall by more than half from each to the next, so N rows lie in O(log N) segments and each is built
into a structure O(log N) times. Rows that wait are taken with all older segments that would have to be merged with them
right after, so that no structure is built in vain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedserve.index.rows import Rows
from embedserve.index.segment import Segment

_MANY_BYTES = 64 << 20
"""Vectors that wait at most before they are sealed: compared in about 5 ms."""
_SOME_BYTES = 4 << 20
"""And when some time has passed since the last build."""
_FEW_BYTES = 1 << 20
"""And when nothing is written at the moment. Fewer are read from the records at a start."""


@dataclass(frozen=True, slots=True)
class Step:
    """Make one segment of the live rows of some neighbouring parts."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class WriteActivity:
    """What has happened lately."""

    idle: bool
    """Nothing was written for a moment."""
    due: bool
    """The last build was a while ago."""


def next_step(parts: Sequence[Rows], dimension: int, pace: WriteActivity) -> Step | None:
    """What to build next of a snapshot's parts, oldest first; None if nothing.

    Args:
        parts: the fixed ones and, last, the delta.
    """
    for number, part in enumerate(parts):
        if isinstance(part, Segment) and part.dead > part.live:
            return Step(number, 1)
    first = len(parts)
    while first and not isinstance(parts[first - 1], Segment):
        first -= 1
    # Dead rows count: where the same items are written over and over, they are nearly all that memory holds.
    waiting = sum(len(part) for part in parts[first:])
    between = next((n for n, part in enumerate(parts[:first]) if not isinstance(part, Segment)), None)
    if between is not None:
        # A segment was lost, and its rows lie between others.
        return _with_smaller(parts, between, 1)
    if waiting and waiting * dimension * 4 >= _threshold(pace):
        return _with_smaller(parts, first, len(parts) - first)
    # Deletions may have made a segment smaller than its size was when the rule was last looked at.
    for older in range(first - 2, -1, -1):
        if parts[older].live <= 2 * parts[older + 1].live:
            return _with_smaller(parts, older + 1, 1)
    return None


def _threshold(pace: WriteActivity) -> int:
    if pace.idle:
        return _FEW_BYTES
    return _SOME_BYTES if pace.due else _MANY_BYTES


def _with_smaller(parts: Sequence[Rows], first: int, count: int) -> Step:
    """With all segments before that are at most twice as large as what comes after them."""
    size = sum(part.live for part in parts[first : first + count])
    while first and parts[first - 1].live <= 2 * size:
        first -= 1
        count += 1
        size += parts[first].live
    return Step(first, count)
