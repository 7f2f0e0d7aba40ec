"""Every error that embedserve raises on purpose, in one tree and one table.

    EmbedserveError
    ├── InvalidInput                INVALID_ARGUMENT     a value, filter or message breaks a stated rule
    │   ├── LimitExceeded           LIMIT_EXCEEDED       more of something than the configured limit
    │   ├── DimensionMismatch       DIMENSION_MISMATCH   a vector of the wrong length
    │   └── ImageError              (never raised itself; one of the three below)
    │       ├── ImageUndecodable    IMAGE_UNDECODABLE    empty, truncated or damaged image bytes
    │       ├── ImageFormatError    IMAGE_FORMAT         not one of the image formats or pixel types we read
    │       └── ImageTooLarge       IMAGE_TOO_LARGE      more bytes or pixels than the limit
    ├── NotFound                    NOT_FOUND
    │   ├── CollectionNotFound      COLLECTION_NOT_FOUND
    │   └── ItemNotFound            ITEM_NOT_FOUND
    ├── AlreadyExists               ALREADY_EXISTS
    ├── FailedPrecondition          FAILED_PRECONDITION
    │   └── EncoderMismatch         ENCODER_MISMATCH     vectors of two encoders would have been mixed
    ├── Unauthenticated             UNAUTHENTICATED      the call has no token that the server knows
    ├── PermissionDenied            PERMISSION_DENIED    the caller's role is too low for the call
    ├── Overloaded                  OVERLOADED           the queue is full; carries a time to retry after
    ├── DiskFull                    DISK_FULL
    ├── Unavailable                 UNAVAILABLE          starting, draining or unreachable
    ├── DeadlineExceeded            DEADLINE_EXCEEDED    the caller's deadline passed before the work was done
    ├── ProtocolError               PROTOCOL             what answers breaks the protocol: another program, or a proxy
    ├── InternalError               INTERNAL             our own bug; says how to report it
    ├── ItemsFailed                 ITEMS_FAILED         some items of an add were not written; carries all results
    ├── EncoderFileError            ENCODER_FILE         the file is not an encoder, or contradicts itself
    │   └── NotAnEncoder            (as its parent)      the file is something else than an encoder
    ├── StoreError                  STORE                the data directory is locked, damaged or not writable
    ├── DataError                   DATA                 the image folder is missing, empty or unusable
    ├── TrainingError               TRAINING             a run cannot start, resume or continue
    ├── ExportError                 EXPORT               the ONNX graph does not match PyTorch
    └── SetupError                  SETUP                this machine lacks something: an extra, a free port

A class fixes four things for good: the stable ``code`` that programs compare, the gRPC status, the HTTP status and
the exit code of the command line. A message says what happened with the offending value; ``hint`` says what to type
or change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class EmbedserveError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: one sentence that says what happened, with the offending value.
        hint: what to type or change, without the word "hint"; empty if there is nothing to say.
    """

    code: ClassVar[str] = "INTERNAL"
    grpc_status: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # a traceback shows it

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive pickling by default, and worker processes send errors this way.
        return _rebuild, (type(self), self.__dict__.copy())

    def at(self, position: str) -> EmbedserveError:
        """The same error with its position before the message, as in "image 3 of 8: …"."""
        return _rebuild(type(self), {**self.__dict__, "message": f"{position}: {self.message}"})


def _rebuild(kind: type[EmbedserveError], state: dict[str, object]) -> EmbedserveError:
    error = kind.__new__(kind)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    if "__notes__" in state:
        error.__notes__ = list(error.__notes__)  # a note on the one is none on the other
    return error


class InvalidInput(EmbedserveError):
    """A value breaks a stated rule."""

    code = "INVALID_ARGUMENT"
    grpc_status = "INVALID_ARGUMENT"
    http_status = 400
    exit_code = 2


class LimitExceeded(InvalidInput):
    """More of something than the configured limit, which the message names."""

    code = "LIMIT_EXCEEDED"


class DimensionMismatch(InvalidInput):
    """A vector whose length is not the collection's."""

    code = "DIMENSION_MISMATCH"


class ImageError(InvalidInput):
    """An image that cannot be used; concerns that image alone."""

    exit_code = 1


class ImageUndecodable(ImageError):
    """Empty, truncated or damaged image bytes."""

    code = "IMAGE_UNDECODABLE"


class ImageFormatError(ImageError):
    """Not one of the image formats or pixel types that are read."""

    code = "IMAGE_FORMAT"
    http_status = 415


class ImageTooLarge(ImageError):
    """More bytes or pixels than the limit; found before anything is decoded."""

    code = "IMAGE_TOO_LARGE"
    http_status = 413


class NotFound(EmbedserveError):
    """Something that was asked for by name does not exist."""

    code = "NOT_FOUND"
    grpc_status = "NOT_FOUND"
    http_status = 404


class CollectionNotFound(NotFound):
    """No collection or alias has this name."""

    code = "COLLECTION_NOT_FOUND"


class ItemNotFound(NotFound):
    """The collection holds no item with this id."""

    code = "ITEM_NOT_FOUND"


class AlreadyExists(EmbedserveError):
    """The name is taken."""

    code = "ALREADY_EXISTS"
    grpc_status = "ALREADY_EXISTS"
    http_status = 409


class FailedPrecondition(EmbedserveError):
    """The system is not in the state that the call needs."""

    code = "FAILED_PRECONDITION"
    grpc_status = "FAILED_PRECONDITION"
    http_status = 412


class EncoderMismatch(FailedPrecondition):
    """The collection is bound to another encoder, so the vectors cannot be compared."""

    code = "ENCODER_MISMATCH"


class Unauthenticated(EmbedserveError):
    """The caller has shown no token, or none that the server knows."""

    code = "UNAUTHENTICATED"
    grpc_status = "UNAUTHENTICATED"
    http_status = 401


class PermissionDenied(EmbedserveError):
    """The caller is known, but its role is too low for this call; the message names the one that the call needs."""

    code = "PERMISSION_DENIED"
    grpc_status = "PERMISSION_DENIED"
    http_status = 403


class Overloaded(EmbedserveError):
    """The queue is full.

    Args:
        retry_after_ms: how long to wait before a retry, in milliseconds.
    """

    code = "OVERLOADED"
    grpc_status = "RESOURCE_EXHAUSTED"
    http_status = 429

    def __init__(self, message: str, *, hint: str = "", retry_after_ms: int = 100) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_ms = retry_after_ms


class DiskFull(EmbedserveError):
    """A write was refused because the disk is full; nothing was changed."""

    code = "DISK_FULL"
    grpc_status = "RESOURCE_EXHAUSTED"
    http_status = 507


class Unavailable(EmbedserveError):
    """The server is starting, draining or cannot be reached."""

    code = "UNAVAILABLE"
    grpc_status = "UNAVAILABLE"
    http_status = 503


class DeadlineExceeded(EmbedserveError):
    """The caller's deadline passed before the work was done."""

    code = "DEADLINE_EXCEEDED"
    grpc_status = "DEADLINE_EXCEEDED"
    http_status = 504


class ProtocolError(EmbedserveError):
    """What answers is no embedserve server, or one that gives wrong answers: too many hits, a score that is no number.

    Raised by the client alone; the message says what was wrong.
    """

    code = "PROTOCOL"
    grpc_status = "INTERNAL"
    http_status = 502


class InternalError(EmbedserveError):
    """A bug of ours."""

    code = "INTERNAL"


class ItemsFailed(EmbedserveError):
    """Some items of an ``add`` were not written; all others are on the server's disk.

    Args:
        results: the outcome for each item (``AddResult``), in order, as ``add(…, errors="keep")`` returns them.
    """

    code = "ITEMS_FAILED"

    def __init__(self, message: str, *, hint: str = "", results: Sequence[Any] = ()) -> None:
        super().__init__(message, hint=hint)
        self.results = tuple(results)

    @property
    def failures(self) -> tuple[Any, ...]:
        """Those of the results that have an error."""
        return tuple(result for result in self.results if result.error is not None)


class EncoderFileError(EmbedserveError):
    """The file is no embedserve encoder, or its content does not agree with what it says of itself."""

    code = "ENCODER_FILE"
    grpc_status = "FAILED_PRECONDITION"
    http_status = 412


class NotAnEncoder(EncoderFileError):
    """The file is something else than an embedserve encoder: wrong usage, unlike an encoder that fails its checks."""

    exit_code = 2


class StoreError(EmbedserveError):
    """The data directory is locked by another process, damaged or not writable."""

    code = "STORE"


class DataError(EmbedserveError):
    """The folder of images is missing, empty or cannot be used."""

    code = "DATA"


class TrainingError(EmbedserveError):
    """A training run cannot start, resume or continue."""

    code = "TRAINING"


class ExportError(EmbedserveError):
    """The exported graph does not compute what the PyTorch model computes."""

    code = "EXPORT"


class SetupError(EmbedserveError):
    """This machine lacks something: an optional dependency, a free port, a device."""

    code = "SETUP"


def all_errors() -> list[type[EmbedserveError]]:
    """Every class of the tree, parents before children."""
    found: list[type[EmbedserveError]] = []
    waiting: list[type[EmbedserveError]] = [EmbedserveError]
    while waiting:
        kind = waiting.pop(0)
        found.append(kind)
        waiting.extend(kind.__subclasses__())
    return found


def from_code(code: str, message: str, *, hint: str = "") -> EmbedserveError:
    """The error that a code received over the wire stands for; InternalError for an unknown code."""
    for kind in reversed(all_errors()):
        if "code" in kind.__dict__ and kind.code == code:
            return kind(message, hint=hint)
    return InternalError(message, hint=hint)
