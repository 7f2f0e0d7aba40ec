"""Opens files that callers name, and refuses a pipe, a device or a socket at once instead of waiting for its writer."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def regular(path: str | os.PathLike[str], flags: int) -> int:
    """An ``opener`` for ``open``: the descriptor of a regular file.

    Raises:
        OSError: it cannot be opened, or is something else; ``strerror`` says what.
    """
    # Without O_NONBLOCK, opening a pipe waits for its other end. On a regular file the flag changes nothing.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "something else")
            raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", os.fspath(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as ``regular``.
    """
    with open(path, "rb", opener=regular) as file:
        return file.read()


def read_text(path: Path) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        OSError: as ``regular``.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open(path, encoding="utf-8", opener=regular) as file:
        return file.read()
