"""How one gRPC call is made: channel options, which error a failure stands for, and when to try again."""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from embedserve import wire
from embedserve.errors import (
    AlreadyExists,
    DeadlineExceeded,
    EmbedserveError,
    FailedPrecondition,
    InternalError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)

DEFAULT_PORT = 50051
START_HINT = (
    "start one: embedserve serve encoder.onnx --data data/; if one runs there, it may speak TLS: Client(…, ca=…), or"
    " tls=True; on the command line --ca FILE or --tls"
)

CALLS_IN_FLIGHT = 4
"""Calls that one method keeps under way: the server works on some while the next ones are read and sent."""

_UNAVAILABLE_ATTEMPTS = 5
_UNAVAILABLE_PAUSE_S = 0.1
_NO_CONNECTION = "failed to connect to all addresses"
_LOST_STATUS = "Internal error from Core"
"""What grpc.aio says where a stream was ended while it wrote to it: the status that the server gave is lost."""
_DETAILS_KEY = "grpc-status-details-bin"


def address(target: str) -> str:
    """The target with our port where it names none; gRPC itself would take 443."""
    has_port = ":" in target.rpartition("]")[2]  # behind the brackets of an IPv6 address
    return target if has_port else f"{target}:{DEFAULT_PORT}"


def is_this_machine(target: str) -> bool:
    """Whether what is sent to the target never leaves this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    addresses = re.sub(r"^(ipv4|ipv6|dns):(//[^/]*/)?", "", target).split(",")
    return all(_is_loopback(re.sub(r":\d+$", "", one).strip("[]")) for one in addresses)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def channel_options(target: str) -> list[tuple[str, int]]:
    """Options of a channel to the target."""
    options = [
        # The server's limits decide: requests are cut to them, and its answers are never refused.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # gRPC servers end a connection that is pinged more often than every 5 minutes, unless told otherwise.
        ("grpc.keepalive_time_ms", 310_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # A restarted server is found again within our own retries; the default waits a second and then longer.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if is_this_machine(target):
        # With http_proxy set and no_proxy not, gRPC would ask the proxy for this very machine.
        options.append(("grpc.enable_http_proxy", 0))
    return options


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that failed."""

    error: EmbedserveError
    retry_after_s: float | None
    """Shortest pause after which trying again makes sense; None: never."""


def failure_of(call: Any, target: str, timeout_s: float) -> Failure:
    """What a failed call means.

    Args:
        call: the grpc.RpcError, sync or async: it has ``code()``, ``details()`` and ``trailing_metadata()``.
        target: where the server was looked for.
        timeout_s: how long the call was allowed to take.
    """
    code, text = call.code(), call.details() or ""
    if code == grpc.StatusCode.UNAVAILABLE and (failure := _handshake_failure(text, target)) is not None:
        return failure
    if code == grpc.StatusCode.INTERNAL and text == _LOST_STATUS:
        return Failure(Unavailable(f"the server at {target} ended the stream"), _UNAVAILABLE_PAUSE_S)
    error, retry_after_s = _from_details(call.trailing_metadata() or ())
    if error is None:
        error = _from_code(code, text, target, timeout_s, retry_after_s)
    if code == grpc.StatusCode.UNAVAILABLE:
        return Failure(error, retry_after_s or _UNAVAILABLE_PAUSE_S)
    # Without a RetryInfo it is a message too large, or a full disk, and would be so again.
    return Failure(error, retry_after_s if code == grpc.StatusCode.RESOURCE_EXHAUSTED else None)


def connection_lost(target: str) -> Failure:
    """A call that broke without a word."""
    return Failure(Unavailable(f"the connection to {target} was lost"), _UNAVAILABLE_PAUSE_S)


def pause_before_retry_s(
    failure: Failure,
    attempt: int,
    remaining_s: float,
    jitter: Callable[[], float] = random.random,
    *,
    patient: bool = False,
) -> float | None:
    """How long to wait before trying again, in seconds; None: give up.

    The pause doubles with each attempt up to 16 times what the server asked for, plus up to half at random, so that
    clients that were refused together do not come back together.

    Args:
        failure: of the last attempt.
        attempt: its number, from 1.
        remaining_s: what is left until the deadline of the call.
        jitter: gives a random number in [0, 1).
        patient: wait as long as time remains for a server that is not there.
    """
    if failure.retry_after_s is None:
        return None
    if isinstance(failure.error, Unavailable) and attempt >= _UNAVAILABLE_ATTEMPTS and not patient:
        # About two seconds bridge a restart; a server that is not there should be reported, not waited for.
        return None
    pause_s = failure.retry_after_s * 2 ** min(attempt - 1, 4) * (1 + jitter() / 2)
    return pause_s if pause_s < remaining_s else None


def _from_details(metadata: Iterable[tuple[str, Any]]) -> tuple[EmbedserveError | None, float | None]:
    """The error that the server described, and the pause it asked for."""
    from google.rpc import error_details_pb2, status_pb2

    for key, value in metadata:
        if key != _DETAILS_KEY:
            continue
        try:
            status = status_pb2.Status.FromString(value)
        except DecodeError:
            return None, None  # not written by a gRPC server of ours
        retry_after_s, ours = None, False
        for detail in status.details:
            if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                detail.Unpack(retry)
                retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
            elif detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo()
                detail.Unpack(info)
                ours = ours or info.domain == wire.ERROR_DOMAIN
        return (wire.error_from_status(status) if ours else None), retry_after_s
    return None, None


def _from_code(
    code: grpc.StatusCode, text: str, target: str, timeout_s: float, retry_after_s: float | None
) -> EmbedserveError:
    """The error for a call that failed without a description of ours: in gRPC itself, or in something in between."""
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(f"no server answers at {target}: {_reason(text)}", hint=START_HINT)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"the server at {target} did not answer within {timeout_s:g} s", hint="allow more: Client(timeout_s=…)"
            )
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
                hint="Client(…, token=…), or on the command line --token-file FILE",
            )
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDenied(f"the server at {target} does not allow this client the call: {text}")
        case grpc.StatusCode.CANCELLED:
            return Unavailable("the call was cancelled")
        case _:
            return InternalError(f"the server at {target} failed: {text}")


def _handshake_failure(text: str, target: str) -> Failure | None:
    """What gRPC's text says of a connection that was made and then given up; None for any other failure."""
    if not text.startswith(_NO_CONNECTION):
        return None
    if text.endswith(("Socket closed", "Connection reset by peer", "Broken pipe")):
        error = Unavailable(
            f"the server at {target} ends the connection before it is used",
            hint="it may speak TLS only (Client(…, ca='ca.pem') or --ca ca.pem), or ask for a client certificate that"
            " it trusts (client_cert and client_key, or --client-cert and --client-key)",
        )
        return Failure(error, _UNAVAILABLE_PAUSE_S)  # or it is being stopped, and another one comes
    if "certificate has expired" in text:
        error = Unavailable(
            f"the certificate of the server at {target} has expired",
            hint="whoever runs the server has to renew it; if it is new, set the clock of this machine",
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
            hint="give the CA that signed it: Client(…, ca='ca.pem'), on the command line --ca ca.pem",
        )
    elif "Hostname Verification" in text:
        error = Unavailable(
            f"the certificate of the server at {target} is made out to another name",
            hint="connect by a name or an address that stands in the certificate, or have one made for this name",
        )
    elif "WRONG_VERSION_NUMBER" in text:
        error = Unavailable(
            f"the server at {target} does not speak TLS",
            hint="start it with --tls-cert and --tls-key, or connect without TLS: no tls, ca or client_cert",
        )
    else:
        return None
    return Failure(error, None)


def _reason(text: str) -> str:
    """What gRPC says of a connection that cannot be made, without the addresses that it tried."""
    is_chain = text.startswith((_NO_CONNECTION, "DNS resolution failed"))
    return text.rsplit(": ", 1)[-1] if is_chain else text


def not_ready_because(call: Any, target: str, before: str) -> str:
    """Why a health check failed, in words; ``before`` where the failure is only that time ran out.

    Raises:
        Unavailable: there is no trust between client and server, which waiting does not change.
    """
    code, text = call.code(), str(call.details() or call.code().name)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return before
    failure = _handshake_failure(text, target)
    if failure is None:
        return "nothing answers there" if text.startswith(_NO_CONNECTION) else text
    if failure.retry_after_s is None:
        raise failure.error from call
    return failure.error.message
