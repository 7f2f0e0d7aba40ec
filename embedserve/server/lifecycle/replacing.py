"""Replaces the encoder of a running server: the new one is read, verified and warmed up beside the old one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from embedserve.encoder.session import ImageEncoder, check_reference
from embedserve.errors import EncoderFileError, EncoderMismatch
from embedserve.server.lifecycle.state import ServerState

_log = logging.getLogger("embedserve.server")


class EncoderReplacer:
    """Replaces the encoder of a server by the one that its file holds now.

    Args:
        open_encoder: reads the file and makes the encoder ready to run; called in a thread.
        state: gives access to the engine.
    """

    def __init__(self, open_encoder: Callable[[], ImageEncoder], state: ServerState) -> None:
        self._open = open_encoder
        self._state = state
        self._lock = asyncio.Lock()  # two replacements at a time would hold three encoders in memory

    async def replace(self, fingerprint: str = "") -> tuple[ImageEncoder, ImageEncoder]:
        """Read the file again; the previous encoder, and the one that new calls get.

        Nothing changes if the file holds the encoder in use, or one that cannot be used.

        Args:
            fingerprint: of the encoder that the file is expected to hold; empty for any.

        Raises:
            EncoderFileError: the file cannot be read, or does not reproduce its reference vectors.
            EncoderMismatch: it holds another encoder than expected.
            Unavailable: the server is starting or stopping.
        """
        # In its own task: a thread that loads cannot be stopped, so if a cancelled call released the lock, the next
        # call would load another encoder beside it.
        return await asyncio.shield(asyncio.create_task(self._replace(fingerprint)))

    async def _replace(self, fingerprint: str) -> tuple[ImageEncoder, ImageEncoder]:
        async with self._lock:
            before = self._state.engine.encoder
            encoder = await asyncio.to_thread(self._open)
            if fingerprint and encoder.fingerprint != fingerprint:
                raise EncoderMismatch(
                    f"the file holds encoder {encoder.metadata.name} ({encoder.fingerprint[:12]}), not"
                    f" {fingerprint[:12]}",
                    hint="copy the right file to where the server reads it, then try again",
                )
            if encoder.fingerprint == before.fingerprint:
                _log.warning("encoder kept: the file holds the one in use", extra={"fields": _named("encoder", before)})
                return before, before
            if encoder.provider != before.provider:
                raise EncoderFileError(
                    f"encoder {encoder.metadata.name} would run on {encoder.provider}; the one in use runs on"
                    f" {before.provider}",
                    hint="does the GPU have memory for both? the server's log says more; otherwise restart the server",
                )
            await asyncio.to_thread(check_reference, encoder)
            await self._state.engine.replace_encoder(encoder)
            fields = _named("before", before) | _named("encoder", encoder)
            _log.warning("encoder replaced", extra={"fields": fields})
            if self._state.engine.has_collections:
                for info in await self._state.engine.collections.list_all():
                    if not info.external and info.fingerprint != encoder.fingerprint:
                        _log.warning(
                            "a collection is bound to another encoder: it takes no images now",
                            extra={"fields": {"collection": info.name}},
                        )
            return before, encoder


def _named(field: str, encoder: ImageEncoder) -> dict[str, str]:
    return {field: encoder.metadata.name, f"{field}_fingerprint": encoder.fingerprint}
