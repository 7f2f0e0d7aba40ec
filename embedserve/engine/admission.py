"""How many images the server holds at once, over all calls: the bound on its memory and on the time in its queue."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from embedserve.errors import Overloaded
from embedserve.types import Limits

_SURE_ENOUGH = 0.8
"""A call is let in if its answer is expected within this share of its time. The expectation is a mean, and whoever is
let in shall be answered in time."""

_LEAST_RETRY_MS = 50
"""Whoever is refused before the encoder's speed is known, or with little in front of him, shall not spin."""


@dataclass(eq=False, slots=True)
class _Waiter:
    images: int
    size_bytes: int
    let_in: asyncio.Future[None]


class Admission:
    """Counts images and bytes from the moment they are let in until they are answered.

    Calls are let in or refused at once. Streams wait, in the order in which they came, and all of them together get no
    more than half of the room, so that calls find some however many streams there are; of the room that comes free,
    waiting streams get theirs first, so that calls cannot keep them out. Whoever enters has to leave, with the same
    numbers, whatever happens in between.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.images = 0
        self.bytes = 0
        self._stream_images = 0
        self._stream_bytes = 0
        self._waiting: deque[_Waiter] = deque()

    def enter(self, images: int, size_bytes: int, *, expected_ms: float, remaining_ms: float | None) -> None:
        """Let a call in, or refuse it.

        Args:
            images: images in the call.
            size_bytes: their bytes.
            expected_ms: about how long until the call would be answered.
            remaining_ms: how long its caller waits; None for as long as it takes.

        Raises:
            Overloaded: there is no room now, or too much in front of the call; carries when to try again.
            LimitExceeded: there never would be room.
        """
        self._check_possible(images, size_bytes)
        if not self._fits_call(images, size_bytes):
            full = f"{self.images} images are in work; max_queue_images is {self.limits.max_queue_images}"
            if self.images + images <= self.limits.max_queue_images:
                full = f"{self.bytes} bytes of images are in work; max_queue_bytes is {self.limits.max_queue_bytes}"
            raise _overloaded(full, expected_ms / 2)
        # With nothing in work the call is tried: what is expected then is about the encoder, and no queue.
        if self.images and remaining_ms is not None and expected_ms > _SURE_ENOUGH * remaining_ms:
            raise _overloaded(
                f"an answer would take about {expected_ms:.0f} ms; the deadline is in {max(remaining_ms, 0):.0f} ms",
                expected_ms - _SURE_ENOUGH * remaining_ms,
            )
        self.images += images
        self.bytes += size_bytes

    def leave(self, images: int, size_bytes: int) -> None:
        """A call is answered."""
        self.images -= images
        self.bytes -= size_bytes
        self._let_streams_in()

    async def enter_stream(self, images: int, size_bytes: int) -> None:
        """Wait for room for a stream's next message; until then the stream is read no further.

        Raises:
            LimitExceeded: there never would be room.
        """
        self._check_possible(images, size_bytes)
        if not self._waiting and self._fits_stream(images, size_bytes):
            self._add_stream(images, size_bytes)
            return
        waiter = _Waiter(images, size_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.let_in
        except asyncio.CancelledError:
            if waiter.let_in.cancelled():
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                self._let_streams_in()
            else:  # it was let in at this very moment
                self.leave_stream(images, size_bytes)
            raise

    def leave_stream(self, images: int, size_bytes: int) -> None:
        """A stream's message is answered."""
        self._stream_images -= images
        self._stream_bytes -= size_bytes
        self.leave(images, size_bytes)

    def _let_streams_in(self) -> None:
        while self._waiting:
            waiter = self._waiting[0]
            if not waiter.let_in.done():  # else it was cancelled, and its task has not run since
                if not self._fits_stream(waiter.images, waiter.size_bytes):
                    return
                self._add_stream(waiter.images, waiter.size_bytes)
                waiter.let_in.set_result(None)
            self._waiting.popleft()

    def _add_stream(self, images: int, size_bytes: int) -> None:
        self._stream_images += images
        self._stream_bytes += size_bytes
        self.images += images
        self.bytes += size_bytes

    def _fits(self, images: int, size_bytes: int) -> bool:
        return (
            self.images + images <= self.limits.max_queue_images
            and self.bytes + size_bytes <= self.limits.max_queue_bytes
        )

    def _fits_call(self, images: int, size_bytes: int) -> bool:
        """Whether there is room for a call. What comes free is kept for the stream that has waited longest: calls
        are smaller than its messages, and would take it away piece by piece."""
        if self._waiting and self._fits_half((first := self._waiting[0]).images, first.size_bytes):
            images, size_bytes = images + first.images, size_bytes + first.size_bytes
        return self._fits(images, size_bytes)

    def _fits_stream(self, images: int, size_bytes: int) -> bool:
        return self._fits(images, size_bytes) and self._fits_half(images, size_bytes)

    def _fits_half(self, images: int, size_bytes: int) -> bool:
        """Whether all streams would have no more than half of the room; the first one may."""
        within_half = (
            2 * (self._stream_images + images) <= self.limits.max_queue_images
            and 2 * (self._stream_bytes + size_bytes) <= self.limits.max_queue_bytes
        )
        return within_half or not (self._stream_images or self._stream_bytes)

    def _check_possible(self, images: int, size_bytes: int) -> None:
        self.limits.check("max_queue_images", images, "images at once")
        self.limits.check("max_queue_bytes", size_bytes, "bytes of images at once")


def _overloaded(why: str, retry_after_ms: float) -> Overloaded:
    retry_after = max(int(retry_after_ms), _LEAST_RETRY_MS)
    return Overloaded(f"the server is busy: {why}", hint=f"try again in {retry_after} ms", retry_after_ms=retry_after)
