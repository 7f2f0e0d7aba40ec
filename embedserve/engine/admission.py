"""Bounds the images in flight over all calls, and so the server's memory and the time that images wait."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from embedserve.errors import Overloaded
from embedserve.types import Limits

_SURE_ENOUGH = 0.8
"""A call is admitted if its answer is expected within this share of its time: the expected time is a mean, and an
admitted call should be answered before its deadline."""

_LEAST_RETRY_MS = 50
"""Keeps a client from retrying in a tight loop before the encoder's speed is known, or while little is in flight."""


@dataclass(eq=False, slots=True)
class _Waiter:
    images: int
    size_bytes: int
    admitted: asyncio.Future[None]


class Admission:
    """Counts images and bytes from admission until they are answered.

    Calls are admitted or refused at once. Streams wait, in the order in which they came, and together get at most half
    of the room, so that calls find some however many streams there are. Room that becomes free goes to waiting streams
    first, so that calls cannot keep them out. Each ``enter`` needs a ``leave`` with the same numbers, whatever happens
    in between; so do ``enter_stream`` and ``leave_stream``.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.images = 0
        self.bytes = 0
        self._stream_images = 0
        self._stream_bytes = 0
        self._waiting: deque[_Waiter] = deque()

    def enter(self, images: int, size_bytes: int, *, expected_ms: float, remaining_ms: float | None) -> None:
        """Admit a call, or refuse it.

        Args:
            images: images in the call.
            size_bytes: their bytes.
            expected_ms: about how long it takes to answer the call.
            remaining_ms: how long its caller waits; None for no deadline.

        Raises:
            Overloaded: there is no room now, or too much ahead of the call; says when to try again.
            LimitExceeded: the call alone is over the limit.
        """
        self._check_possible(images, size_bytes)
        if not self._fits_call(images, size_bytes):
            full = f"{self.images} images are in flight; max_queue_images is {self.limits.max_queue_images}"
            if self.images + images <= self.limits.max_queue_images:
                full = f"{self.bytes} bytes of images are in flight; max_queue_bytes is {self.limits.max_queue_bytes}"
            raise _overloaded(full, expected_ms / 2)
        # With nothing in flight the call is tried: the expected time is then the encoder's alone, not the queue's.
        if self.images and remaining_ms is not None and expected_ms > _SURE_ENOUGH * remaining_ms:
            raise _overloaded(
                f"an answer would take about {expected_ms:.0f} ms; the deadline is in {max(remaining_ms, 0):.0f} ms",
                expected_ms - _SURE_ENOUGH * remaining_ms,
            )
        self.images += images
        self.bytes += size_bytes

    def leave(self, images: int, size_bytes: int) -> None:
        """Give back the room of a call that is answered."""
        self.images -= images
        self.bytes -= size_bytes
        if self._waiting:
            self._admit_streams()

    async def enter_stream(self, images: int, size_bytes: int) -> None:
        """Wait for room for a stream's next message; meanwhile the stream is not read.

        Raises:
            LimitExceeded: the message alone is over the limit.
        """
        self._check_possible(images, size_bytes)
        if not self._waiting and self._fits_stream(images, size_bytes):
            self._add_stream(images, size_bytes)
            return
        waiter = _Waiter(images, size_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.cancelled():
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                self._admit_streams()
            else:  # it was admitted at the same moment
                self.leave_stream(images, size_bytes)
            raise

    def leave_stream(self, images: int, size_bytes: int) -> None:
        """Give back the room of a stream's message that is answered."""
        self._stream_images -= images
        self._stream_bytes -= size_bytes
        self.leave(images, size_bytes)

    def _admit_streams(self) -> None:
        while self._waiting:
            waiter = self._waiting[0]
            if not waiter.admitted.done():  # else it was cancelled, and its task has not run since
                if not self._fits_stream(waiter.images, waiter.size_bytes):
                    return
                self._add_stream(waiter.images, waiter.size_bytes)
                waiter.admitted.set_result(None)
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
        """Whether there is room for a call. Room that becomes free is kept for the stream that has waited longest:
        calls are smaller than its messages, and would take the room piece by piece."""
        if self._waiting and self._fits_half((first := self._waiting[0]).images, first.size_bytes):
            images, size_bytes = images + first.images, size_bytes + first.size_bytes
        return self._fits(images, size_bytes)

    def _fits_stream(self, images: int, size_bytes: int) -> bool:
        return self._fits(images, size_bytes) and self._fits_half(images, size_bytes)

    def _fits_half(self, images: int, size_bytes: int) -> bool:
        """Whether all streams together stay within half of the room; a single one may have more."""
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
