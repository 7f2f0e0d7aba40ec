"""The server's log: text for people or JSON for programs, each line with the request id of its call.

Payloads and credentials are never logged; of a call's metadata only the request id is.
"""

from __future__ import annotations

import itertools
import json
import logging
import secrets
import sys
import time
from contextvars import ContextVar
from typing import Any, Literal

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


def configure(format: Format, level: Level) -> None:
    """Log to standard error: our own lines from ``level`` up, those of libraries from WARNING up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("embedserve").setLevel(level.upper())
    _life.setLevel(logging.INFO)


def say(line: str) -> None:
    """Log a line for the operator who started the server; at every log level."""
    _life.info(" ".join(line.split()))


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return {**fields, **(call_fields.get() or {})}


def _time_of(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """``2026-03-01T12:00:00.000Z INFO embedserve.access: call  method=Embed code=OK request_id=…``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, followed by the traceback if there is one."""
        line = f"{_time_of(record)} {record.levelname} {record.name}: {record.getMessage()}"
        fields = [f"{key}={_text(value)}" for key, value in _fields_of(record).items()]
        if fields:
            line = f"{line}  {' '.join(fields)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line, including the fields of the call."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        document: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode("utf-8")


def _text(value: Any) -> str:
    """A value, quoted where it could be mistaken for several values or lines."""
    text = str(value)
    if text and text.isprintable() and not any(character in text for character in ' "='):
        return text
    return json.dumps(text)
