"""Long calls: check, backup and restore, whose messages both clients read and send here, one by one."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import grpc

from embedserve import wire
from embedserve.client import answers, failures, hints
from embedserve.errors import DataError, DeadlineExceeded, ProtocolError
from embedserve.regular_file import regular
from embedserve.types import CheckProgress, CheckReport, CollectionInfo
from embedserve.v1 import collection_service_pb2 as collection_pb

_CHUNK_BYTES = 1 << 20
_POLL_S = 0.5
"""How often a restore checks whether the server still takes something."""
_MIN_SILENCE_S = 30.0
"""Shortest silence that counts as a failure; a working server sends something every 10 seconds."""


def silence_s(timeout_s: float) -> float:
    """How long a working server may send nothing, in seconds, for a client with this ``timeout_s``."""
    return max(timeout_s, _MIN_SILENCE_S)


class CheckReader:
    """Reads the responses of a check.

    Args:
        on_progress: called with the progress, if given.
    """

    def __init__(self, on_progress: Callable[[CheckProgress], None] | None) -> None:
        self._on_progress = on_progress
        self._report: CheckReport | None = None

    def read(self, response: collection_pb.CheckCollectionResponse) -> None:
        """Read the next response."""
        if response.WhichOneof("step") is None:
            raise ProtocolError("the server gave an empty step of the check")
        with answers.reading():
            step = wire.check_step_from_proto(response)
        if isinstance(step, CheckReport):
            self._report = step
        elif self._on_progress is not None:
            self._on_progress(step)

    def report(self) -> CheckReport:
        """What the check found, once all responses have been read.

        Raises:
            ProtocolError: the server ended the check without a report.
        """
        if self._report is None:
            raise ProtocolError("the server ended the check without a report")
        return self._report


class BackupWriter:
    """Writes the responses of a backup into a file.

    Args:
        file: open for writing.
        on_progress: called with the number of bytes written so far, if given.
    """

    def __init__(self, file: IO[bytes], on_progress: Callable[[int], None] | None) -> None:
        self._file = file
        self._on_progress = on_progress
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._last: collection_pb.BackupCollectionResponse | None = None

    def write(self, response: collection_pb.BackupCollectionResponse) -> None:
        """Write the next response."""
        self._file.write(response.chunk)
        self._digest.update(response.chunk)
        self._size_bytes += len(response.chunk)
        if response.sha256:
            self._last = response
        if self._on_progress is not None:
            self._on_progress(self._size_bytes)

    def sha256(self) -> str:
        """The sha256 of the file once all responses have been read, as 64 hexadecimal digits.

        Raises:
            DataError: the file is not what the server sent.
        """
        if self._last is None:
            raise DataError("the backup is incomplete: the server ended it early", hint="make it again")
        if (self._digest.digest(), self._size_bytes) != (self._last.sha256, self._last.size_bytes):
            raise DataError("the backup was damaged in transit", hint="make it again")
        return self._digest.hexdigest()


class RestoreSender:
    """Sends a backup, reading it as the server takes it.

    Args:
        name: of the new collection.
        path: of the backup.
        target: of the channel, for messages.
        timeout_s: how long the server may take nothing once it has begun. There is no limit while the call waits for
            its turn, or after everything has been sent.
        on_progress: called about twice a second with the number of bytes sent, or None before the server has begun, if
            given.
    """

    def __init__(
        self, name: str, path: Path, target: str, timeout_s: float, on_progress: Callable[[int | None], None] | None
    ) -> None:
        self._name, self._path, self._target, self._timeout_s = name, path, target, timeout_s
        self._on_progress = on_progress
        self._begun = threading.Event()
        self._sent_bytes = 0
        self._taken_s = 0.0
        self._is_sent = False
        self._failure: OSError | None = None

    def send(self, method: Any, is_closed: Callable[[], bool]) -> CollectionInfo:
        """Make the collection. Blocks; closing the channel ends it.

        Args:
            method: RestoreCollection of a stub that blocks.
            is_closed: whether the client has been closed.

        Raises:
            EmbedserveError: nothing was made, and why.
        """
        future = method.future(self._requests())
        threading.Thread(target=self._await_begin, args=(future,), daemon=True).start()
        try:
            while True:
                try:
                    return answers.collection(future.result(timeout=_POLL_S))
                except grpc.FutureTimeoutError:
                    self._report_progress()
                    self._check_taking()
                    if is_closed():
                        raise failures.closed_client() from None
        except grpc.RpcError as error:
            if self._failure is not None:
                raise unreadable(self._path, self._failure) from error
            if is_closed():
                raise failures.closed_client() from error
            raise failures.failure_of(error, self._target, self._timeout_s).error from error
        except grpc.FutureCancelledError as error:
            raise failures.closed_client() from error
        finally:
            future.cancel()

    def _await_begin(self, call: Any) -> None:
        """Wait until the server sends its headers, which it does when it begins, or the call ends."""
        with suppress(grpc.RpcError, grpc.FutureCancelledError):
            call.initial_metadata()
        self._taken_s = time.monotonic()
        self._begun.set()

    def _report_progress(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._sent_bytes if self._begun.is_set() else None)

    def _requests(self) -> Iterator[collection_pb.RestoreCollectionRequest]:
        """The requests; gRPC takes the next one when it has room for it.

        If the file cannot be read, they end early: without the sha256 the server makes nothing.
        """
        digest = hashlib.sha256()
        yield collection_pb.RestoreCollectionRequest(name=self._name)
        try:
            with open(self._path, "rb", opener=regular) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    self._taken_s = time.monotonic()
                    digest.update(chunk)
                    yield collection_pb.RestoreCollectionRequest(chunk=chunk)
                    self._sent_bytes += len(chunk)
        except OSError as error:
            self._failure = error
            return
        self._is_sent = True
        yield collection_pb.RestoreCollectionRequest(sha256=digest.digest())

    def _check_taking(self) -> None:
        is_taking = self._begun.is_set() and not self._is_sent
        if is_taking and time.monotonic() - self._taken_s > self._timeout_s:
            raise DeadlineExceeded(
                f"the server at {self._target} has taken nothing of the backup for {self._timeout_s:g} s",
                hint=hints.LATE,
            )


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a backup that cannot be read."""
    return DataError(f"{path} cannot be read: {error.strerror or error}")


def check_readable(path: Path) -> None:
    """Refuse a backup that cannot be read before anything is sent.

    Raises:
        DataError: with the reason.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            file.read(1)
    except OSError as error:
        raise unreadable(path, error) from error


def silence_error(target: str, timeout_s: float) -> DeadlineExceeded:
    """The error for a server that has stopped sending, for a client with this ``timeout_s``."""
    return DeadlineExceeded(
        f"the server at {target} has sent nothing for {silence_s(timeout_s):g} s",
        hint="it may be overloaded, or the network is broken",
    )
