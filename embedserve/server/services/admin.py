"""AdminService: what an operator may change while the server runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from embedserve.errors import FailedPrecondition
from embedserve.server.calls.responses import encoder_ref_of
from embedserve.server.lifecycle.replacing import EncoderReplacer
from embedserve.v1 import admin_service_pb2 as pb
from embedserve.v1 import admin_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(pb_grpc.AdminServiceServicer):
    """ReplaceEncoder.

    Args:
        replacer: replaces the encoder.
        has_tokens: whether the server checks callers. Otherwise anyone who reaches the port could make it load files
            again and again.
    """

    def __init__(self, replacer: EncoderReplacer, *, has_tokens: bool) -> None:
        self._replacer = replacer
        self._has_tokens = has_tokens

    async def ReplaceEncoder(self, request: pb.ReplaceEncoderRequest, context: Context) -> pb.ReplaceEncoderResponse:
        """Serve the encoder that the file holds now."""
        if not self._has_tokens:
            raise FailedPrecondition(
                "this server has no tokens, so it does not replace its encoder on request",
                hint="start it with --tokens FILE, or send it SIGHUP on its own machine",
            )
        before, current = await self._replacer.replace(request.fingerprint)
        return pb.ReplaceEncoderResponse(previous=encoder_ref_of(before), current=encoder_ref_of(current))
