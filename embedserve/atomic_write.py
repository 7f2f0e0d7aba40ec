"""Files that appear under their name only once they are complete and on disk, and that only their owner may read."""

from __future__ import annotations

import errno
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
        overwrite: whether it may replace an existing file, whose permissions it then gets. A new file can be read and
            written by its owner only, whatever the umask.

    Raises:
        DataError: the path exists, or is not a regular file, or cannot be written.
    """
    part: Path | None = None
    try:
        target, before = _checked(path, overwrite)
        name = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        with open(name, "xb", opener=private) as file:
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
        raise _cannot_write(path, error) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def check_writable(path: Path, *, overwrite: bool = False) -> None:
    """Check that ``atomic_write`` will take a path, before the work whose result it will hold.

    Raises:
        DataError: as ``atomic_write``, except for what only writing shows, such as a full disk.
    """
    try:
        target, _ = _checked(path, overwrite)
        if not os.access(os.fspath(target.parent), os.W_OK | os.X_OK):
            target.parent.stat()  # a folder that is not there is named as such
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _cannot_write(path, error) from error


def _checked(path: Path, overwrite: bool) -> tuple[Path, os.stat_result | None]:
    """Where a file will be, and the status of the one that it replaces."""
    target = Path(os.path.realpath(path))
    check_outside_data(target)
    before = target.stat() if target.exists() else None
    if before is not None and not stat.S_ISREG(before.st_mode):
        raise DataError(f"{path} already exists, and is not a regular file", hint="choose another name")
    if before is not None and not overwrite:
        raise DataError(
            f"{path} already exists",
            hint="choose another name, or overwrite it: --overwrite, in Python overwrite=True",
        )
    return target, before


def check_outside_data(path: Path) -> None:
    """Check that a path is not in the data directory of a server, whose files only the server may write.

    Raises:
        DataError: it is.
    """
    for folder in Path(os.path.realpath(path)).parents:
        if os.path.lexists(folder / "catalog.sqlite"):
            raise DataError(f"{path} is in {folder}, the data directory of a server", hint="choose another path")


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} cannot be written: {error.strerror or error}",
        hint="choose a path in a folder that exists, is writable, and has room",
    )


def write_text(path: Path, text: str) -> None:
    """Replace a small text file; after a power cut the path holds the old text or the new one.

    A link is replaced too, and not followed. Undecodable bytes of file names are written as they are.

    Raises:
        OSError: it cannot be written; the old text stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", opener=private, encoding="utf-8", errors="surrogateescape") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)


def private(path: str, flags: int) -> int:
    """An ``opener`` for ``open``: a file that it creates can be read and written by its owner only."""
    return os.open(path, flags, 0o600)


def create_private(path: Path) -> None:
    """Create an empty file for its owner only, unless the path exists; for libraries that open files by name."""
    if not path.exists():
        os.close(private(os.fspath(path), os.O_WRONLY | os.O_CREAT))


def make_private_directory(path: Path) -> None:
    """Create a directory, and those above it, unless the path exists; only its owner may enter it.

    Raises:
        OSError: it cannot be created.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on disk: a rename alone does not survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
