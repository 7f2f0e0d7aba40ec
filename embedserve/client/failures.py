"""Which embedserve error a failed gRPC call stands for, and whether another attempt makes sense."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from embedserve import wire
from embedserve.client import hints
from embedserve.client.proxies import CUT, is_cut, proxy_failure
from embedserve.errors import (
    AlreadyExists,
    DeadlineExceeded,
    EmbedserveError,
    FailedPrecondition,
    InvalidInput,
    LimitExceeded,
    NotFound,
    Overloaded,
    PermissionDenied,
    ProtocolError,
    Unauthenticated,
    Unavailable,
)

_UNAVAILABLE_PAUSE_S = 0.1
_NO_NAME = ("errors resolving ", "DNS resolution failed")
_NO_CONNECTION = ("failed to connect to all addresses", "connections to all backends failing", "DNS resolution failed")
_LOST_STATUS = "Internal error from Core"
"""What grpc.aio reports where the server ended a stream that was being written to: the server's status is lost."""
_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that failed."""

    error: EmbedserveError
    retry_after_s: float | None
    """Shortest pause before another attempt; None: another attempt makes no sense."""
    is_cut: bool = False
    """Something between client and server has cut the call, as a proxy does at its limits."""
    is_unsent: bool = False
    """No server has seen the call, so that even one that must not be made twice may be made again."""


def failure_of(call: Any, target: str, timeout_s: float) -> Failure:
    """What a failed call means.

    Args:
        call: the grpc.RpcError, sync or async: it has ``code()``, ``details()`` and ``trailing_metadata()``.
        target: of the channel, for the message.
        timeout_s: of the call, for the message.
    """
    code, text = call.code(), call.details() or ""
    if code == grpc.StatusCode.UNAVAILABLE and (failure := _handshake_failure(text, target)) is not None:
        return failure
    if code == grpc.StatusCode.INTERNAL and text == _LOST_STATUS:
        lost = Unavailable(f"the connection to {target} was cut in the middle of a call", hint=CUT)
        return Failure(lost, _UNAVAILABLE_PAUSE_S, is_cut=True)
    error, retry_after_s = _from_details(call.trailing_metadata() or ())
    if error is None:
        if (by_proxy := proxy_failure(code, text, target)) is not None:
            return Failure(by_proxy[0], _UNAVAILABLE_PAUSE_S if by_proxy[1] else None, is_cut(text))
        error = _from_code(code, text, target, timeout_s, retry_after_s)
    elif isinstance(error, Unauthenticated) and "authorization:" in error.hint:
        error.hint = hints.TOKEN  # the server does not know how its caller is written
    if code == grpc.StatusCode.UNAVAILABLE:
        is_unsent = text.startswith(_NO_CONNECTION)
        return Failure(error, retry_after_s or _UNAVAILABLE_PAUSE_S, is_unsent=is_unsent)
    # Without a RetryInfo the message is too large or the disk is full; another attempt would end the same way.
    return Failure(error, retry_after_s if code == grpc.StatusCode.RESOURCE_EXHAUSTED else None)


def closed_client() -> Unavailable:
    """The error for a call that was cancelled because its client was closed."""
    return Unavailable("the call was cancelled: the client was closed")


def connection_lost(target: str) -> Failure:
    """A call that broke without a status."""
    return Failure(Unavailable(f"the connection to {target} was lost"), _UNAVAILABLE_PAUSE_S)


def _from_details(metadata: Iterable[tuple[str, Any]]) -> tuple[EmbedserveError | None, float | None]:
    """The error that the server described in the status details, and the pause that it asked for."""
    from google.rpc import status_pb2

    for key, value in metadata:
        if key != _DETAILS_KEY:
            continue
        try:
            return _described(status_pb2.Status.FromString(value))
        except (DecodeError, ValueError):  # not written by our server
            return None, None
    return None, None


def _described(status: Any) -> tuple[EmbedserveError | None, float | None]:
    from google.rpc import error_details_pb2

    retry_after_s, ours = None, False
    for detail in status.details:
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = max(0.0, retry.retry_delay.ToMilliseconds() / 1000)
        elif detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            ours = ours or info.domain == wire.ERROR_DOMAIN
    return (wire.error_from_status(status) if ours else None), retry_after_s


def _from_code(
    code: grpc.StatusCode, text: str, target: str, timeout_s: float, retry_after_s: float | None
) -> EmbedserveError:
    """The error for a call that failed without our details: in gRPC itself, or in a proxy in between."""
    match code:
        case grpc.StatusCode.UNAVAILABLE if any(text.startswith(start) for start in _NO_NAME):
            why = text.rstrip("]").rsplit(": ", 1)[-1]
            return Unavailable(f"the name of {target} leads to no machine: {why}", hint=hints.NO_NAME)
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(f"no server answers at {target}: {_reason(text)}", hint=hints.START)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"the server at {target} did not answer within {timeout_s:g} s", hint=hints.LATE)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if retry_after_s is None:
            return LimitExceeded(text or "the message is larger than the server takes")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(text or "the server is busy", retry_after_ms=int((retry_after_s or 0) * 1000))
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return InvalidInput(text)
        case grpc.StatusCode.NOT_FOUND:
            return NotFound(text)
        case grpc.StatusCode.ALREADY_EXISTS:
            return AlreadyExists(text)
        case grpc.StatusCode.FAILED_PRECONDITION | grpc.StatusCode.ABORTED:
            return FailedPrecondition(text)
        case grpc.StatusCode.UNIMPLEMENTED:
            return FailedPrecondition(
                f"the server at {target} does not know this call: {text}",
                hint="it is another program, or of another version than this client",
            )
        case grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(
                f"the server at {target} does not know this client: {text}",
                hint=hints.TOKEN,
            )
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDenied(f"the server at {target} does not allow this client the call: {text}")
        case grpc.StatusCode.CANCELLED:
            return Unavailable("the call was cancelled")
        case _:
            # Not even a bug of our server ends like this: it would be described in the details.
            return ProtocolError(
                f"what answers at {target} failed with {code.name}: {text or 'it does not say why'}",
                hint="it may be a proxy, or another program than embedserve serve",
            )


def _handshake_failure(text: str, target: str) -> Failure | None:
    """What gRPC's text says about a failed TLS handshake; None for any other failure."""
    if not text.startswith(_NO_CONNECTION):
        return None
    if text.endswith(("Socket closed", "Connection reset by peer", "Broken pipe")):
        error = Unavailable(
            f"the server at {target} ends the connection before it is used",
            hint=hints.TLS_ONLY,
        )
        return Failure(error, _UNAVAILABLE_PAUSE_S)  # or the server is restarting
    if "certificate has expired" in text:
        error = Unavailable(
            f"the certificate of the server at {target} has expired",
            hint="the operator of the server has to renew it; if it is new, set the clock of this machine",
        )
    elif "certificate is not yet valid" in text:
        error = Unavailable(
            f"the certificate of the server at {target} is not valid yet", hint="set the clock of this machine"
        )
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        why = text.rpartition("CERTIFICATE_VERIFY_FAILED: ")[2].removesuffix(": OK")
        why = why.removeprefix("certificate verify failed: ")
        error = Unavailable(
            f"the certificate of the server at {target} is not trusted: {why}",
            hint=hints.CA,
        )
    elif "Hostname Verification" in text:
        error = Unavailable(
            f"the certificate of the server at {target} was issued for another name",
            hint="connect by a name or an address listed in the certificate, or have one issued for this name",
        )
    elif "WRONG_VERSION_NUMBER" in text:
        error = Unavailable(
            f"the server at {target} does not speak TLS",
            hint=hints.NO_TLS,
        )
    else:
        return None
    return Failure(error, None)


def _reason(text: str) -> str:
    """gRPC's reason for a connection that cannot be made, without the addresses that it tried."""
    is_chain = text.startswith(_NO_CONNECTION)
    return text.rsplit(": ", 1)[-1] if is_chain else text


def not_ready_reason(call: Any, target: str, before: str) -> str:
    """Why a health check failed, in words; ``before`` where it only ran out of time.

    Raises:
        Unavailable: the TLS handshake fails, which waiting does not change.
    """
    code, text = call.code(), str(call.details() or call.code().name)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return before
    failure = _handshake_failure(text, target)
    if failure is not None and failure.retry_after_s is None:
        raise failure.error from call
    if failure is not None:
        return failure.error.message
    if (by_proxy := proxy_failure(code, text, target)) is not None:
        return by_proxy[0].message  # it may be starting, too
    return "nothing answers there" if text.startswith(_NO_CONNECTION[:2]) else text
