"""Which parts of a snapshot become one segment next.

The size of segments falls by more than half from each to the next, so N rows lie in O(log N) segments and each row is
built into a structure O(log N) times. Waiting rows are sealed together with all older segments that would have to be
merged with them right after, so that no structure is built in vain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedserve.index.rows import Rows
from embedserve.index.segment import Segment

_MANY_BYTES = 64 << 20
"""Maximum size of the vectors that wait: compared in about 5 ms."""
_SOME_BYTES = 4 << 20
"""The same once some time has passed since the last build."""
_FEW_BYTES = 1 << 20
"""The same while nothing is written. A start reads fewer than this from the records."""


@dataclass(frozen=True, slots=True)
class Step:
    """Make one segment of the live rows of ``count`` neighbouring parts, from the number ``first`` on."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class WriteActivity:
    """Whether writes pause, so that sealing may begin."""

    idle: bool
    """Nothing was written for a moment."""
    due: bool
    """The last build was a while ago."""


def next_step(parts: Sequence[Rows], dimension: int, activity: WriteActivity) -> Step | None:
    """What to build next from a snapshot's parts, oldest first; None if nothing.

    Args:
        parts: the immutable ones and, last, the delta.
        dimension: D.
        activity: the busier the writes, the more rows may wait.
    """
    for number, part in enumerate(parts):
        if isinstance(part, Segment) and part.deleted > part.live:
            return Step(number, 1)
    first = len(parts)
    while first and not isinstance(parts[first - 1], Segment):
        first -= 1
    # Deleted rows count: where the same items are written over and over, they are nearly all that memory holds.
    waiting = sum(len(part) for part in parts[first:])
    between = next((n for n, part in enumerate(parts[:first]) if not isinstance(part, Segment)), None)
    if between is not None:
        # A segment was lost, and its rows lie between others.
        return _with_smaller(parts, between, 1)
    if waiting and waiting * dimension * 4 >= _threshold(activity):
        return _with_smaller(parts, first, len(parts) - first)
    # Deletions may have made a segment smaller since the rule was last applied.
    for older in range(first - 2, -1, -1):
        if parts[older].live <= 2 * parts[older + 1].live:
            return _with_smaller(parts, older + 1, 1)
    return None


def _threshold(activity: WriteActivity) -> int:
    if activity.idle:
        return _FEW_BYTES
    return _SOME_BYTES if activity.due else _MANY_BYTES


def _with_smaller(parts: Sequence[Rows], first: int, count: int) -> Step:
    """With all segments before that are at most twice as large as what comes after them."""
    size = sum(part.live for part in parts[first : first + count])
    while first and parts[first - 1].live <= 2 * size:
        first -= 1
        count += 1
        size += parts[first].live
    return Step(first, count)
