"""What a proxy between client and server has answered or broken, from the text that gRPC makes of it.

gRPC reports an answer that is not gRPC by its HTTP status, and a stream that was cut by its HTTP/2 error. Our servers
cause neither: their errors carry details. So a proxy's failures are never taken for the server's.
"""

from __future__ import annotations

import re

import grpc

from embedserve.client import hints
from embedserve.errors import (
    EmbedserveError,
    FailedPrecondition,
    LimitExceeded,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)

_HTTP_STATUS = re.compile(r"http2 header with status: (\d{3})")
_HTTP2_ERROR = re.compile(r"RST_STREAM with error code (\d+)")
_HTTP1 = re.compile(r"http1\.x server(?: \(HTTP status (\d{3})\))?")
_NOT_HTTP2 = ("Failed parsing HTTP/2", "missing selected ALPN property")
_BARE = "Data frame with END_STREAM flag received"
"""A response that ends without a gRPC status: a web page, or a proxy that lost the server in the middle."""

_AGAIN = (408, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529, 530)
"""Statuses of proxies that do not reach the server, or not at the moment. The last ones are Cloudflare's."""

CUT = (
    "a proxy in between may limit the size of a stream or the time without data on it: nginx has client_max_body_size"
    " (1 MiB by default, 0 for no limit), grpc_read_timeout and grpc_send_timeout (60 s by default)"
)
_TOO_LARGE = (
    "raise the proxy's limit to the server's max_message_bytes (32 MiB by default), and have it not limit streams: in"
    " nginx client_max_body_size 0"
)


def is_cut(text: str) -> bool:
    """Whether gRPC's text says that a stream was cut, rather than ended with a status."""
    return _HTTP2_ERROR.search(text) is not None


def proxy_failure(code: grpc.StatusCode, text: str, target: str) -> tuple[EmbedserveError, bool] | None:
    """The error of what a proxy caused, and whether another attempt makes sense.

    Args:
        code: the gRPC status, which gRPC has made up.
        text: its text.
        target: of the channel, for the message.

    Returns:
        None where no proxy is known to have caused it.
    """
    if found := _HTTP_STATUS.search(text):
        return _answered(int(found[1]), target)
    if found := _HTTP2_ERROR.search(text):
        return Unavailable(
            f"the connection to {target} was cut in the middle of a call (HTTP/2 error {found[1]})", hint=CUT
        ), True
    if code is grpc.StatusCode.UNKNOWN and _BARE in text:
        return Unavailable(f"what answers at {target} ended a call without a gRPC status", hint=hints.NOT_GRPC), True
    if found := _HTTP1.search(text):
        status = f" (it answers HTTP {found[1]})" if found[1] else ""
        return Unavailable(f"what listens at {target} speaks HTTP/1.1, not gRPC{status}", hint=hints.NOT_GRPC), False
    if any(sign in text for sign in _NOT_HTTP2):
        return Unavailable(f"what listens at {target} does not speak gRPC", hint=hints.NOT_GRPC), False
    return None


def _answered(status: int, target: str) -> tuple[EmbedserveError, bool]:
    said = f"(HTTP {status})"
    match status:
        case 413:
            return LimitExceeded(
                f"a proxy at {target} limits the size of requests, and refuses this one {said}", hint=_TOO_LARGE
            ), False
        case 429:
            return Overloaded(f"a proxy at {target} limits the rate of calls {said}"), True
        case 401 | 407:
            return Unauthenticated(f"a proxy at {target} asks who is calling {said}", hint=hints.TOKEN), False
        case 403:
            return PermissionDenied(f"a proxy at {target} does not allow the call {said}"), False
        case 404 | 405:
            return FailedPrecondition(
                f"what answers at {target} knows no embedserve {said}",
                hint="it may be another program, or a proxy that passes /embedserve.v1 and /grpc.health.v1 to no server"
                " (nginx: location / with grpc_pass)",
            ), False
        case 504:
            return Unavailable(
                f"a proxy at {target} got no answer from the server in time {said}",
                hint="is the server running and not overloaded? A call may take longer than the proxy waits: in nginx"
                " grpc_read_timeout and grpc_send_timeout, 60 s by default",
            ), True
        case _ if status in _AGAIN:
            return Unavailable(
                f"a proxy at {target} does not reach the server {said}",
                hint="is the server running where the proxy looks for it, without TLS or with it as the proxy expects"
                " (nginx: grpc_pass grpc://… or grpcs://…)?",
            ), True
        case 301 | 302 | 303 | 307 | 308:
            return Unavailable(
                f"what answers at {target} redirects to another address {said}", hint=hints.NOT_GRPC
            ), False
        case _:
            return Unavailable(f"a proxy at {target} refuses the call {said}", hint=hints.NOT_GRPC), False
