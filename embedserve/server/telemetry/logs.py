"""The server's log: text for people or JSON for programs, each line with the request id of its call.

Code that logs never waits: a thread writes the lines, see ``log_lines``. Payloads and credentials are never logged; of
a call's metadata only the request id is.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import secrets
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from embedserve.errors import EmbedserveError
from embedserve.server.telemetry.log_lines import LogLines
from embedserve.server.telemetry.repeats import Repeats, message_of
from embedserve.server.telemetry.standard_error import StandardError

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

REQUEST_ID = "x-request-id"
"""Metadata key with which a client may choose the request id, and of the trailer with the one that was used."""

call_fields: ContextVar[dict[str, str] | None] = ContextVar("call_fields", default=None)
"""Fields of every line that is logged within a call, such as its request id."""

access = logging.getLogger("embedserve.access")
"""One line per call: at INFO if it failed, at DEBUG otherwise."""

_life = logging.getLogger("embedserve.life")

_MAX_REQUEST_ID_CHARS = 128
_MAX_TEXT_CHARS = 32 << 10
_FLUSH_S = 2.0
_PREFIX = secrets.token_hex(6)
_numbers = itertools.count(1)


def new_request_id() -> str:
    """An id that no other call has, in this process or another."""
    return f"{_PREFIX}-{next(_numbers):x}"


def is_valid_request_id(request_id: str | bytes) -> bool:
    """Whether a client's request id is safe to log: 1–128 printable ASCII characters without spaces."""
    return (
        isinstance(request_id, str)
        and 0 < len(request_id) <= _MAX_REQUEST_ID_CHARS
        and request_id.isascii()
        and request_id.isprintable()
        and " " not in request_id
    )


class LogHandler(logging.Handler):
    """Formats records where they are made, and queues the lines.

    Messages that repeat within a second are folded, except those that this server's operator asked for one by one: the
    lines about calls, and about its life.

    Args:
        lines: the queue.
        formatter: for records.
    """

    def __init__(self, lines: LogLines, formatter: logging.Formatter) -> None:
        super().__init__()
        self._lines = lines
        self._repeats = Repeats()
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record; never waits."""
        try:
            self.fold()
            if record.name in (access.name, _life.name) or not self._repeats.is_folded(record):
                self._lines.put(self.format(record))
            else:
                self._lines.call_after(1, self.fold)
        except Exception:
            self.handleError(record)

    def fold(self, *, now: bool = False) -> None:
        """Queue a line about each message that was folded in a second that is over."""
        self.acquire()
        try:
            for record in self._repeats.ended(now=now):
                self._lines.put(self.format(record))
        finally:
            self.release()

    def handleError(self, record: logging.LogRecord) -> None:
        """Log that a record cannot be written, instead of a traceback."""
        fields = {"from": record.name, "error": repr(sys.exception())}
        broken = logging.makeLogRecord({"name": "embedserve.server", "levelno": logging.ERROR, "levelname": "ERROR"})
        broken.msg, broken.fields = "a record cannot be logged", fields
        self._lines.put(self.format(broken))


@dataclass(frozen=True, slots=True)
class Notice:
    """What a server tells the operator who started it."""

    text: str
    """The line, for people."""
    message: str
    """The same for programs: constant, with the values in ``fields``."""
    fields: Mapping[str, object] = field(default_factory=dict)
    is_warning: bool = False


class Log:
    """The log of a server, from ``start`` to ``close``: everything that goes to standard error goes through it.

    Args:
        format: of its lines.
        level: of our own lines, from which up they are logged; those of libraries are from WARNING up.
    """

    def __init__(self, format: Format, level: Level) -> None:
        self._as_json = format == "json"
        self._level = level
        self._standard_error = StandardError(as_json=self._as_json)
        formatter: logging.Formatter = JsonFormatter() if self._as_json else TextFormatter()
        self._lines = LogLines(self._standard_error.true_descriptor, lambda count: formatter.format(_dropped(count)))
        self._handler = LogHandler(self._lines, formatter)

    def start(self) -> None:
        """Take over standard error, warnings and uncaught exceptions."""
        logging.basicConfig(handlers=[self._handler], level=logging.WARNING, force=True)
        logging.getLogger("embedserve").setLevel(self._level.upper())
        _life.setLevel(logging.INFO)
        self._standard_error.take_over(self._lines.put)

    def say(self, notice: Notice) -> None:
        """Log a line for the operator who started the server; at every log level."""
        if self._as_json:
            level = logging.WARNING if notice.is_warning else logging.INFO
            _life.log(level, notice.message, extra={"fields": notice.fields})
        else:
            self._lines.put(notice.text)

    def fail(self, error: Exception) -> int:
        """Log why the server ends, and give its exit code."""
        if not isinstance(error, EmbedserveError):
            _life.critical("this is a bug in embedserve", exc_info=error, extra={"fields": {"error": "INTERNAL"}})
            return 1
        fields = {"error": error.code, **({"hint": error.hint} if error.hint else {})}
        _life.error("%s", error.message, extra={"fields": fields})
        return error.exit_code

    def close(self) -> None:
        """Give standard error back and write what is queued, for at most ``_FLUSH_S`` if nobody reads it."""
        self._standard_error.restore()
        self._handler.fold(now=True)
        self._lines.close(_FLUSH_S)
        last = logging.StreamHandler(sys.stderr)  # for what is logged while Python ends
        last.setFormatter(self._handler.formatter)
        logging.basicConfig(handlers=[last], force=True)


def _dropped(count: int) -> logging.LogRecord:
    record = logging.makeLogRecord({"name": "embedserve.server", "levelno": logging.WARNING, "levelname": "WARNING"})
    record.msg = "lines of the log were dropped: standard error is not read fast enough"
    record.fields = {"lines": count}
    return record


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return {**fields, **(call_fields.get() or {})}


def _time_of(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """``2026-03-01T12:00:00.000Z INFO embedserve.access: call  method=Embed code=OK request_id=…``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, followed by the traceback if there is one."""
        line = f"{_time_of(record)} {record.levelname} {record.name}: {message_of(record)}"
        fields = [f"{key}={_text(value)}" for key, value in _fields_of(record).items()]
        if fields:
            line = f"{line}  {' '.join(fields)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line, including the fields of the call."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        document: dict[str, Any] = {
            **{str(key): value for key, value in _fields_of(record).items()},
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message_of(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        first = ("time", "level", "logger", "message")
        document = {key: _json(document[key]) for key in (*first, *(key for key in document if key not in first))}
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, default=str)
        return text.translate(_LINE_ENDS).encode("utf-8", "backslashreplace").decode("utf-8")


_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Characters that end a line for some readers, and that JSON leaves as they are."""


def _json(value: Any) -> Any:
    """A value of a field as JSON has it: no NaN and no infinity, and of text no more than ``_MAX_TEXT_CHARS``."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str) and len(value) > _MAX_TEXT_CHARS:
        return f"{value[:_MAX_TEXT_CHARS]}…"
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _text(value: Any) -> str:
    """A value, quoted where it could be mistaken for several values or lines."""
    text = str(value)
    if text and text.isprintable() and not any(character in text for character in ' "='):
        return text
    return json.dumps(text)
