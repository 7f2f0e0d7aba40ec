"""The lock of a data directory, which one process owns."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from embedserve.atomic_write import private
from embedserve.errors import StoreError


class DirectoryLock:
    """Held from construction to ``release``; the system releases it if the process dies.

    Args:
        directory: an existing directory, possibly new; its file LOCK names the process and host of the holder. Its name
            and those of its parents are on disk when the lock is held.

    Raises:
        StoreError: another process holds it.
        OSError: the file cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        # Without a buffer: what a full disk does not take would be written again when the file is closed.
        self._file: IO[bytes] = open(directory / "LOCK", "a+b", buffering=0, opener=private)  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            process, _, host = self._file.read().decode().strip().partition(" ")
            self._file.close()
            raise StoreError(
                f"{directory} is in use by process {process or 'unknown'}" + (f" on {host}" if host else ""),
                hint="stop that process, or use another data directory",
            ) from None
        except BaseException:
            self._file.close()
            raise
        try:
            self._file.truncate(0)
            try:
                self._file.write(f"{os.getpid()} {socket.gethostname()}\n".encode())
            except OSError as error:
                # Only people read it; the lock is held without it.
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            _sync_names(directory)
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Release the lock. The file stays: if it were removed, two processes could lock two files."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


def _sync_names(directory: Path) -> None:
    """Sync the entries of a directory and its parents; without its entry, all content of a new directory is lost."""
    for parent in directory.resolve().parents:
        try:
            handle = os.open(parent, os.O_RDONLY)
        except PermissionError:
            # Not created by this process, so none of its parents is new.
            return
        try:
            os.fsync(handle)
        except OSError as error:
            # The file system is read-only or cannot sync directories.
            if error.errno not in (errno.EROFS, errno.EINVAL):
                raise
        finally:
            os.close(handle)
