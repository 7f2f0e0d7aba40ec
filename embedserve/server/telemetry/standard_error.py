"""Standard error of a server: what Python and C code write there becomes lines of the log.

With JSON, descriptor 2 is a pipe that a thread reads, so that the lines of gRPC's C core, ONNX Runtime or an allocator
are JSON, too. With text they go where they went, but never wait for a pipe that is full. A crash is written by
faulthandler to the true standard error in either format.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

_LEVELS = {
    "V": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ABSEIL = re.compile(r"([IWEF])\d{4} [\d:.]+\s+\d+ (\S+:\d+)\] (.*)")  # gRPC's C core
_ONNX_RUNTIME = re.compile(r"\S+ [\d:.]+ \[([VIWEF]):onnxruntime:[^,\]]*,? ?([^\]]*)\] (.*)")
_MAX_LINE_BYTES = 16 << 10


class StandardError:
    """Standard error, taken over until ``restore``.

    Args:
        as_json: lines become records.
    """

    def __init__(self, *, as_json: bool) -> None:
        try:
            self.true_descriptor = os.dup(2)
            """Where standard error led before."""
        except OSError:  # it is closed
            self.true_descriptor = os.open(os.devnull, os.O_WRONLY)
        self._before = (sys.stderr, sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning)
        self._as_json = as_json
        self._reader: threading.Thread | None = None

    def take_over(self, put: Callable[[str], None]) -> None:
        """Redirect it. Lines that are not JSON go to ``put`` as they are."""
        faulthandler.enable(self.true_descriptor)
        if self._as_json:
            reading, writing = os.pipe()
            os.dup2(writing, 2)
            os.close(writing)
            self._reader = threading.Thread(target=_read, args=(reading,), name="standard error", daemon=True)
            self._reader.start()
            sys.stderr = _Lines(_log_line, self._before[0])
        else:
            _never_wait_for_a_pipe(2)
            sys.stderr = _Lines(put, self._before[0])
        sys.excepthook = _uncaught
        threading.excepthook = lambda args: _uncaught(
            args.exc_type, args.exc_value, args.exc_traceback, thread=getattr(args.thread, "name", "")
        )
        sys.unraisablehook = lambda args: _uncaught(
            args.exc_type, args.exc_value, args.exc_traceback, where=f"{args.err_msg or 'ignored in'} {args.object!r}"
        )
        warnings.showwarning = _warn

    def restore(self) -> None:
        """Lead it where it led before; what is in the pipe is logged first."""
        sys.stderr, sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = self._before
        os.dup2(self.true_descriptor, 2)
        if self._reader is not None:
            self._reader.join(1)  # a child process may hold the pipe


class _Lines(io.TextIOBase):
    """What Python code prints on standard error, line by line."""

    def __init__(self, put: Callable[[str], None], before: TextIO) -> None:
        self._put = put
        self._before = before
        self._rest = threading.local()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return self._put is not _log_line and self._before.isatty()

    def write(self, text: str) -> int:
        *lines, rest = (getattr(self._rest, "text", "") + text).split("\n")
        for line in lines:
            self._put(line)
        if len(rest) > _MAX_LINE_BYTES:
            self._put(rest)
            rest = ""
        self._rest.text = rest
        return len(text)


def _log_line(line: str) -> None:
    """Log a line that some code wrote to standard error, with the level that it names."""
    text = _COLOUR.sub("", line).rstrip()
    if not text:
        return
    name, level, fields = "stderr", logging.WARNING, {}
    for source, pattern in (("grpc", _ABSEIL), ("onnxruntime", _ONNX_RUNTIME)):
        if found := pattern.fullmatch(text):
            name, level, text, fields = source, _LEVELS[found[1]], found[3], {"source": found[2]}
    log = logging.getLogger(name)
    log.handle(log.makeRecord(name, level, "", 0, "%s", (text,), None, extra={"fields": fields}))


def _read(pipe: int) -> None:
    rest = b""
    with suppress(OSError):
        while data := os.read(pipe, 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                _log_line(line.decode("utf-8", "backslashreplace"))
    if rest:
        _log_line(rest.decode("utf-8", "backslashreplace"))
    os.close(pipe)


def _never_wait_for_a_pipe(descriptor: int) -> None:
    """Make C code that writes there lose a line rather than wait, if it is a pipe and the system has /proc."""
    with suppress(OSError):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            # An open file of our own: others that write to the same pipe do not see the flag.
            again = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
            os.dup2(again, descriptor)
            os.close(again)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: Any, **fields: str) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    found = (kind, error or kind(), trace)
    logging.getLogger("embedserve.server").critical("uncaught exception", exc_info=found, extra={"fields": fields})


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    fields = {"category": category.__name__, "file": filename, "line": lineno}
    logging.getLogger("py.warnings").warning("%s", message, extra={"fields": fields})
