"""Files that are there under their name only once they are complete and on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from embedserve.errors import DataError


@contextmanager
def whole_file(path: Path, *, overwrite: bool = False) -> Iterator[IO[bytes]]:
    """A file to write, which takes its name at the end of the block; if the block raises, nothing is left of it.

    Args:
        path: where it will be.
        overwrite: whether it may take the place of another one.

    Raises:
        DataError: there is a file with this name already, or it cannot be written.
    """
    if path.exists() and not overwrite:
        raise DataError(f"{path} is there already", hint="choose another name, or say that it may be overwritten")
    part: Path | None = None
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            part = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())  # a temporary file is for its owner alone
        part.replace(path)
        part = None
        _sync(path.parent)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="choose a path in a folder that exists, is writable, and has room",
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync(directory: Path) -> None:
    """So that the name outlasts a power cut too."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
