"""Folds messages that repeat: a few are logged each second, and then how many there were."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

MOST_PER_S = 10
"""How often the same message is logged in a second, numbers in it aside."""

_MAX_MESSAGES = 1000
"""Different messages that are counted in a second; those beyond share one count."""

_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")
_Key = tuple[str, int, str]


class Repeats:
    """Counts messages in windows of one second.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun_s = clock()
        self._counts: dict[_Key, int] = {}
        self._folded: dict[_Key, logging.LogRecord] = {}

    @property
    def has_folded(self) -> bool:
        """Whether something was folded that ``ended`` has not given yet."""
        return bool(self._folded)

    def is_folded(self, record: logging.LogRecord) -> bool:
        """Count a record, and tell whether it is only counted."""
        key: _Key = (record.name, record.levelno, _NUMBERS.sub("#", message_of(record)[:200]))
        if key not in self._counts and len(self._counts) >= _MAX_MESSAGES:
            key = ("", 0, "")
        count = self._counts[key] = self._counts.get(key, 0) + 1
        if count <= MOST_PER_S:
            return False
        self._folded[key] = record
        return True

    def ended(self, *, now: bool = False) -> list[logging.LogRecord]:
        """Once a second is over, or now: for each message that was folded in it, its last record with the count."""
        if not now and self._clock() - self._begun_s < 1:
            return []
        records = []
        for key, record in self._folded.items():
            fields = {**getattr(record, "fields", {}), "repeated": self._counts[key] - MOST_PER_S}
            last = logging.makeLogRecord({**vars(record), "fields": fields, "exc_info": None, "exc_text": None})
            records.append(last)
        self._counts, self._folded, self._begun_s = {}, {}, self._clock()
        return records


def message_of(record: logging.LogRecord) -> str:
    """The message, even if its arguments do not fit it."""
    try:
        return record.getMessage()
    except Exception:
        return f"{record.msg} {record.args!r}"
