"""How many images the server holds at once, over all calls: the bound on its memory and on the time in its queue."""

from __future__ import annotations

import asyncio

from embedserve.errors import Overloaded
from embedserve.types import Limits


class Admission:
    """Counts images and bytes from the moment they are let in until they are answered.

    Whoever enters has to leave, with the same numbers, whatever happens in between.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = asyncio.Event()
        self.images = 0
        self.bytes = 0

    def enter(self, images: int, size_bytes: int, *, retry_after_ms: int) -> None:
        """Let a call in, or refuse it at once.

        Raises:
            Overloaded: there is no room now; carries ``retry_after_ms``.
            LimitExceeded: there never would be.
        """
        self._check_possible(images, size_bytes)
        if not self._fits(images, size_bytes):
            raise Overloaded(
                f"the server is busy: {self.images} images of at most {self._limits.max_queue_images} are in work",
                hint=f"try again in {retry_after_ms} ms",
                retry_after_ms=retry_after_ms,
            )
        self.images += images
        self.bytes += size_bytes

    async def enter_when_free(self, images: int, size_bytes: int) -> None:
        """Wait for room, as a stream does: until then it is read no further.

        Raises:
            LimitExceeded: there never would be room.
        """
        self._check_possible(images, size_bytes)
        while not self._fits(images, size_bytes):
            self._left.clear()
            await self._left.wait()
        self.images += images
        self.bytes += size_bytes

    def leave(self, images: int, size_bytes: int) -> None:
        """Give the room free."""
        self.images -= images
        self.bytes -= size_bytes
        self._left.set()

    def _fits(self, images: int, size_bytes: int) -> bool:
        return (
            self.images + images <= self._limits.max_queue_images
            and self.bytes + size_bytes <= self._limits.max_queue_bytes
        )

    def _check_possible(self, images: int, size_bytes: int) -> None:
        self._limits.check("max_queue_images", images, "images at once")
        self._limits.check("max_queue_bytes", size_bytes, "bytes of images at once")
