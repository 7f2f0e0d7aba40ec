"""Another encoder for a server that runs: read, verified and warmed up beside the old one, then switched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from embedserve.encoder import reference
from embedserve.encoder.session import ImageEncoder, same_vector_cosine
from embedserve.errors import EncoderFileError, EncoderMismatch
from embedserve.server.lifecycle.state import ServerState

_log = logging.getLogger("embedserve.server")


class EncoderReplacer:
    """Replaces the encoder of a server by what its file holds now.

    Args:
        open_encoder: reads the file and makes the encoder ready to run; called in a thread.
        state: where the engine is.
    """

    def __init__(self, open_encoder: Callable[[], ImageEncoder], state: ServerState) -> None:
        self._open = open_encoder
        self._state = state
        self._lock = asyncio.Lock()  # two at a time would hold three encoders in memory

    async def replace(self, fingerprint: str = "") -> tuple[ImageEncoder, ImageEncoder]:
        """Read the file again; the encoder before, and the one that new calls get.

        Nothing changes if the file holds the encoder that runs, and nothing if it cannot be used.

        Args:
            fingerprint: what the file is expected to hold; empty for anything.

        Raises:
            EncoderFileError: the file cannot be read, or does not compute what it promises.
            EncoderMismatch: it holds another encoder than expected.
            Unavailable: the server is starting or stopping.
        """
        # In a task of its own: a thread that loads cannot be stopped, so if a caller who goes away gave the lock free,
        # the next one would load beside it.
        return await asyncio.shield(asyncio.create_task(self._replace(fingerprint)))

    async def _replace(self, fingerprint: str) -> tuple[ImageEncoder, ImageEncoder]:
        async with self._lock:
            before = self._state.engine.encoder
            encoder = await asyncio.to_thread(self._open)
            if fingerprint and encoder.fingerprint != fingerprint:
                raise EncoderMismatch(
                    f"the file holds encoder {encoder.metadata.name} ({encoder.fingerprint[:12]}), not"
                    f" {fingerprint[:12]}",
                    hint="copy the right file to where the server reads it, then ask again",
                )
            if encoder.fingerprint == before.fingerprint:
                _log.warning("encoder kept: the file holds the one that runs (%s)", before.fingerprint[:12])
                return before, before
            if encoder.provider != before.provider:
                raise EncoderFileError(
                    f"encoder {encoder.metadata.name} would run on {encoder.provider}; the one that runs is on"
                    f" {before.provider}",
                    hint="is there memory for both on the GPU? the server's log says more; otherwise start it anew",
                )
            await asyncio.to_thread(_verify, encoder)
            await self._state.engine.replace_encoder(encoder)
            _log.warning(
                "encoder replaced: %s (%s) by %s (%s)",
                before.metadata.name,
                before.fingerprint[:12],
                encoder.metadata.name,
                encoder.fingerprint[:12],
            )
            if self._state.engine.has_collections:
                for info in await self._state.engine.collections.list_all():
                    if not info.external and info.fingerprint != encoder.fingerprint:
                        _log.warning("collection %r is bound to another encoder: it takes no images now", info.name)
            return before, encoder


def _verify(encoder: ImageEncoder) -> None:
    """Refuse an encoder that does not compute here what its file promises.

    Raises:
        EncoderFileError: it drifts from its reference vectors.
    """
    metadata = encoder.metadata
    if metadata.reference is None:
        return  # made without our export; a server starts with such a file as well
    cosine = reference.lowest_cosine(encoder.encode(reference.draw(metadata.preprocess.size_px)), metadata.reference)
    if cosine < same_vector_cosine(metadata):
        raise EncoderFileError(
            f"encoder {metadata.name} does not give the vectors that its file promises: cosine {cosine:.6f}",
            hint="embedserve doctor FILE says more; export it again",
        )
