"""Health that means something: an encoder that fails on everything is found, told, and tried again until it works."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from embedserve.encoder import reference
from embedserve.errors import Unavailable
from embedserve.server.lifecycle.state import ServerState

if TYPE_CHECKING:
    from embedserve.engine.embedder import Embedder

_log = logging.getLogger("embedserve.server")

EVERY_S = 1.0
SUSPICIOUS = 3
"""So many images in a row that the encoder fails on are no accident; one may be the image's fault."""


async def watch(state: ServerState, changed: Callable[[], Awaitable[None]]) -> None:
    """Keep ``state.failing`` true to the encoder; runs until it is cancelled.

    An encoder under suspicion is given one of its reference images, again and again, until it can do that.

    Args:
        state: of the server.
        changed: called when ``state.failing`` has changed.
    """
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            embedder = state.engine.embedder
        except Unavailable:
            continue
        failing = embedder.batcher.failures_in_a_row >= SUSPICIOUS and not await asyncio.to_thread(_works, embedder)
        if failing != state.failing:
            state.failing = failing
            if failing:
                _log.error("the encoder fails on every image: health is NOT_SERVING until it recovers")
            else:
                _log.warning("the encoder works again: health is SERVING")
            await changed()


def _works(embedder: Embedder) -> bool:
    """Whether the encoder can embed anything."""
    encoder = embedder.encoder
    try:
        encoder.encode(reference.draw(encoder.metadata.preprocess.size_px)[:1])
    except Exception as error:
        _log.info("the encoder fails on a reference image", exc_info=error)
        return False
    embedder.batcher.failures_in_a_row = 0
    return True
