"""Checks, backups and restores: what is received and sent piece by piece, as the sync and the async class share it."""

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
from embedserve.client import calls
from embedserve.errors import DataError, DeadlineExceeded, InternalError, Unavailable
from embedserve.types import CheckProgress, CheckReport, CollectionInfo
from embedserve.v1 import collection_service_pb2 as collection_pb

_CHUNK_BYTES = 1 << 20
_PACE_S = 0.5
"""How often a restore looks whether the server still takes something."""
_LEAST_SILENCE_S = 30.0
"""A server that works promises to say something every 10 seconds; less than that is no sign that it does not."""


def silence_s(timeout_s: float) -> float:
    """How long a server may say nothing while it works, in seconds, for a client with this ``timeout_s``."""
    return max(timeout_s, _LEAST_SILENCE_S)


class CheckReader:
    """Reads the messages of a check.

    Args:
        on_progress: is told how far it is, if given.
    """

    def __init__(self, on_progress: Callable[[CheckProgress], None] | None) -> None:
        self._on_progress = on_progress
        self._report: CheckReport | None = None

    def read(self, response: collection_pb.CheckCollectionResponse) -> None:
        """One more message."""
        step = wire.check_step_from_proto(response)
        if isinstance(step, CheckReport):
            self._report = step
        elif self._on_progress is not None:
            self._on_progress(step)

    def report(self) -> CheckReport:
        """What the check found, once all messages have been read.

        Raises:
            InternalError: the server ended the check without a report.
        """
        if self._report is None:
            raise InternalError("the server ended the check without a report")
        return self._report


class BackupReader:
    """Writes the messages of a backup into a file.

    Args:
        file: where to.
        on_progress: is told how many bytes there are, if given.
    """

    def __init__(self, file: IO[bytes], on_progress: Callable[[int], None] | None) -> None:
        self._file = file
        self._on_progress = on_progress
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._last: collection_pb.BackupCollectionResponse | None = None

    def read(self, response: collection_pb.BackupCollectionResponse) -> None:
        """One more message."""
        self._file.write(response.chunk)
        self._digest.update(response.chunk)
        self._size_bytes += len(response.chunk)
        if response.sha256:
            self._last = response
        if self._on_progress is not None:
            self._on_progress(self._size_bytes)

    def sha256(self) -> str:
        """Of the whole file, once all messages have been read; 64 hexadecimal digits.

        Raises:
            DataError: what came is not what was sent.
        """
        if self._last is None:
            raise DataError("the backup is cut: the server ended it early", hint="make it again")
        if (self._digest.digest(), self._size_bytes) != (self._last.sha256, self._last.size_bytes):
            raise DataError("the backup was damaged on its way", hint="make it again")
        return self._digest.hexdigest()


class RestoreSender:
    """Sends a backup, reading it as the server takes it.

    Args:
        name: of the new collection.
        path: of the backup.
        target: where the server is, for what is said of it.
        timeout_s: how long the server may take nothing, from when the restore's turn has come. Once it has all, it
            may take its time.
        on_progress: is told now and then how many bytes have been sent, None until its turn has come, if given.
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
        threading.Thread(target=self._await_turn, args=(future,), daemon=True).start()
        try:
            while True:
                try:
                    return wire.collection_from_proto(future.result(timeout=_PACE_S).collection)
                except grpc.FutureTimeoutError:
                    self._tell()
                    self._check_pace()
                    if is_closed():
                        raise Unavailable("the call was cancelled: the client was closed") from None
        except grpc.RpcError as error:
            if self._failure is not None:
                raise unreadable(self._path, self._failure) from error
            if is_closed():
                raise Unavailable("the call was cancelled: the client was closed") from error
            raise calls.failure_of(error, self._target, self._timeout_s).error from error
        except grpc.FutureCancelledError as error:
            raise Unavailable("the call was cancelled: the client was closed") from error
        finally:
            future.cancel()

    def _await_turn(self, call: Any) -> None:
        """Until the server answers with its header, which it does when it begins, or the call ends."""
        with suppress(grpc.RpcError, grpc.FutureCancelledError):
            call.initial_metadata()
        self._taken_s = time.monotonic()
        self._begun.set()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._sent_bytes if self._begun.is_set() else None)

    def _requests(self) -> Iterator[collection_pb.RestoreCollectionRequest]:
        """gRPC asks for the next one when there is room for it.

        A file that cannot be read ends them early: without the sha256 the server makes nothing.
        """
        digest = hashlib.sha256()
        yield collection_pb.RestoreCollectionRequest(name=self._name)
        try:
            with self._path.open("rb") as file:
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

    def _check_pace(self) -> None:
        is_taking = self._begun.is_set() and not self._is_sent
        if is_taking and time.monotonic() - self._taken_s > self._timeout_s:
            raise DeadlineExceeded(
                f"the server at {self._target} has taken nothing of the backup for {self._timeout_s:g} s",
                hint="allow more: Client(timeout_s=…)",
            )


def unreadable(path: Path, error: OSError) -> DataError:
    """What to raise for a backup that cannot be read."""
    return DataError(f"{path} cannot be read: {error.strerror or error}")


def check_readable(path: Path) -> None:
    """Refuse a backup that cannot be read, before the server is asked for anything.

    Raises:
        DataError: with the reason.
    """
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise unreadable(path, error) from error


def silent(target: str, timeout_s: float) -> DeadlineExceeded:
    """What to raise where the server says nothing any more, for a client with this ``timeout_s``."""
    return DeadlineExceeded(
        f"the server at {target} has said nothing for {silence_s(timeout_s):g} s",
        hint="it may be overloaded, or the network is broken",
    )
