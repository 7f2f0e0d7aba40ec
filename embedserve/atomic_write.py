"""Files that appear under their name only once they are complete and on disk."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from embedserve.errors import DataError


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = False) -> Iterator[IO[bytes]]:
    """A file to write, which gets its name at the end of the block; if the block raises, nothing is left of it.

    Args:
        path: where the file will be; for a link, the file that it leads to.
        overwrite: whether it may replace an existing file, whose permissions it then gets.

    Raises:
        DataError: the path exists, or is not a regular file, or cannot be written.
    """
    part: Path | None = None
    try:
        target = Path(os.path.realpath(path))
        before = target.stat() if target.exists() else None
        if before is not None and not stat.S_ISREG(before.st_mode):
            raise DataError(f"{path} already exists, and is not a regular file", hint="choose another name")
        if before is not None and not overwrite:
            raise DataError(
                f"{path} already exists",
                hint="choose another name, or overwrite it: --overwrite, in Python overwrite=True",
            )
        # Not with tempfile, whose files only their owner may read: only the system itself applies the umask.
        name = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        with name.open("xb") as file:
            part = name
            if before is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        part = None
        sync(target.parent)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="choose a path in a folder that exists, is writable, and has room",
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a small text file; after a power cut the path holds the old text or the new one.

    Raises:
        OSError: it cannot be written; the old text stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on disk: a rename alone does not survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
