"""How many images the server holds at once, over all calls: the bound on its memory and on the time in its queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from embedserve.errors import Overloaded
from embedserve.types import Limits


class Admission:
    """Counts images and bytes from the moment a call is let in until it is answered."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = asyncio.Condition()
        self.images = 0
        self.bytes = 0

    @asynccontextmanager
    async def enter(self, images: int, size_bytes: int, *, retry_after_ms: int) -> AsyncIterator[None]:
        """Let a call in, or refuse it at once.

        Raises:
            Overloaded: there is no room; carries ``retry_after_ms``.
        """
        if not self._fits(images, size_bytes):
            raise Overloaded(
                f"the server is busy: {self.images} images of at most {self._limits.max_queue_images} are in work",
                hint=f"try again in {retry_after_ms} ms",
                retry_after_ms=retry_after_ms,
            )
        self._take(images, size_bytes)
        try:
            yield
        finally:
            await self._leave(images, size_bytes)

    @asynccontextmanager
    async def wait(self, images: int, size_bytes: int) -> AsyncIterator[None]:
        """Let a stream's next image in as soon as there is room; until then the stream is not read."""
        async with self._left:
            await self._left.wait_for(lambda: self._fits(images, size_bytes))
            self._take(images, size_bytes)
        try:
            yield
        finally:
            await self._leave(images, size_bytes)

    def _fits(self, images: int, size_bytes: int) -> bool:
        return (
            self.images + images <= self._limits.max_queue_images
            and self.bytes + size_bytes <= self._limits.max_queue_bytes
        )

    def _take(self, images: int, size_bytes: int) -> None:
        self.images += images
        self.bytes += size_bytes

    async def _leave(self, images: int, size_bytes: int) -> None:
        # Counted before anything is awaited: a cancelled caller must not keep his place.
        self.images -= images
        self.bytes -= size_bytes
        async with self._left:
            self._left.notify_all()
