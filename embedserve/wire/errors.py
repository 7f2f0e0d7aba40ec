"""Errors ↔ ``google.rpc.Status``."""

from __future__ import annotations

from typing import Any

from embedserve.errors import EmbedserveError, Overloaded, from_code

ERROR_DOMAIN = "embedserve"
_MAX_TEXT_CHARS = 500
"""A status travels in HTTP/2 headers, of which gRPC accepts 8 KiB; a message may quote a name of any length."""


def error_to_status(error: EmbedserveError) -> Any:
    """A google.rpc.Status with an ErrorInfo (reason: the code; metadata: the hint) and, on overload, a RetryInfo."""
    from google.protobuf import any_pb2, duration_pb2
    from google.rpc import code_pb2, error_details_pb2, status_pb2

    info = error_details_pb2.ErrorInfo(reason=error.code, domain=ERROR_DOMAIN)
    if error.hint:
        info.metadata["hint"] = _shortened(error.hint)
    details: list[Any] = [info]
    if isinstance(error, Overloaded):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        holder = any_pb2.Any()
        holder.Pack(detail)
        packed.append(holder)
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.grpc_status), message=_shortened(error.message), details=packed
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_CHARS else f"{text[:_MAX_TEXT_CHARS]}…"


def error_from_status(status: Any) -> EmbedserveError:
    """The error that a google.rpc.Status describes, by its ErrorInfo or, without one, by its gRPC code."""
    from google.rpc import code_pb2, error_details_pb2

    code, hint, retry_after_ms = code_pb2.Code.Name(status.code), "", None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            if info.domain == ERROR_DOMAIN:
                code, hint = info.reason, info.metadata.get("hint", "")
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_ms = retry.retry_delay.ToMilliseconds()
    error = from_code(code, status.message, hint=hint)
    if isinstance(error, Overloaded) and retry_after_ms is not None:
        error.retry_after_ms = retry_after_ms
    return error
