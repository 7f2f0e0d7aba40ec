"""Whether the encoder still works: one that fails on every image is detected, reported, and tried until it recovers."""

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
SUSPICIOUS_FAILURES = 3
"""Failures in a row after which the encoder is suspected; a single one may be the image's fault."""


async def watch_encoder_health(state: ServerState, on_change: Callable[[], Awaitable[None]]) -> None:
    """Keep ``state.failing`` up to date; runs until it is cancelled.

    A suspected encoder gets one of its reference images every ``EVERY_S``; it fails until it can embed that.

    Args:
        state: of the server.
        on_change: called when ``state.failing`` has changed.
    """
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            embedder = state.engine.embedder
        except Unavailable:
            continue
        suspected = embedder.batcher.failures_in_a_row >= SUSPICIOUS_FAILURES
        failing = suspected and not await asyncio.to_thread(_works, embedder)
        if failing != state.failing:
            state.failing = failing
            if failing:
                _log.error("the encoder fails on every image: health is NOT_SERVING until it recovers")
            else:
                _log.warning("the encoder works again: health is SERVING")
            await on_change()


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
