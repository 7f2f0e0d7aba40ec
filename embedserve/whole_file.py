"""Files that are there under their name only once they are complete and on disk."""

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
def whole_file(path: Path, *, overwrite: bool = False) -> Iterator[IO[bytes]]:
    """A file to write, which takes its name at the end of the block; if the block raises, nothing is left of it.

    Args:
        path: where it will be; of a link, the file that it leads to.
        overwrite: whether it may take the place of another one, whose permissions it gets.

    Raises:
        DataError: there is a file with this name already, or something else than a file, or it cannot be written.
    """
    part: Path | None = None
    try:
        target = Path(os.path.realpath(path))
        before = target.stat() if target.exists() else None
        if before is not None and not stat.S_ISREG(before.st_mode):
            raise DataError(f"{path} is there already, and is no regular file", hint="choose another name")
        if before is not None and not overwrite:
            raise DataError(f"{path} is there already", hint="choose another name, or say that it may be overwritten")
        # Not one of tempfile, which is for its owner alone: what the umask allows, only the system knows for sure.
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
        _sync(target.parent)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="choose a path in a folder that exists, is writable, and has room",
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """So that the name outlasts a power cut too."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
