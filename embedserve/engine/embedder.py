"""Encoded images → vectors: admitted, prepared one by one, batched through the encoder.

Images and their bytes in flight are bounded over all calls. What blocks runs in threads, never on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from embedserve.cores import usable_cores
from embedserve.encoder import reference
from embedserve.encoder.session import ImageEncoder
from embedserve.engine.admission import Admission
from embedserve.engine.batcher import Batcher, Encoded
from embedserve.engine.timings import Timings
from embedserve.errors import EmbedserveError, Overloaded
from embedserve.images import codec, preprocess
from embedserve.observer import Observer
from embedserve.types import Keep, Media

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Embedded: TypeAlias = Encoded[Media | None]
"""The vector of an image, float32 [D] with unit norm; its ``extra`` is what a collection keeps of the image."""

Results: TypeAlias = "asyncio.Future[list[Embedded | EmbedserveError]]"
"""A future with, for each image, its embedding or the error that concerns it alone."""

_LARGEST_BATCH = 64
_SHORT_BATCH_MS = 5.0
"""A batch this short delays no call noticeably: it may grow, for fewer hand-overs between threads."""
_WORTH_WAITING = 0.9
"""A larger batch that takes longer must lower the time per image to this share."""


@dataclass(frozen=True, slots=True)
class _Source:
    """One of several images. Its bytes are read when its turn comes: reading them from a message makes a copy."""

    encoded: Sequence[bytes]
    position: int
    keep: Keep


class Embedder:
    """One encoder and the threads that feed it. Make it with ``start``."""

    def __init__(
        self,
        encoder: ImageEncoder,
        admission: Admission,
        *,
        decode_threads: int,
        max_batch: int,
        observer: Observer,
        ms_per_image: float,
    ) -> None:
        self.encoder = encoder
        self.admission = admission
        self._limits = admission.limits
        spec, on_cpu = encoder.metadata.preprocess, encoder.provider == "CPUExecutionProvider"
        self._observer = observer
        self.batcher: Batcher[_Source, Media | None] = Batcher(
            self._prepare,
            encoder.encode,
            shape=(spec.size_px, spec.size_px, encoder.metadata.channels),
            runs=encoder.parallel_runs,
            decode_threads=0 if on_cpu else decode_threads or usable_cores(),
            max_batch=max_batch,
            observer=observer,
            ms_per_image=ms_per_image,
        )

    @classmethod
    async def start(
        cls,
        encoder: ImageEncoder,
        *,
        admission: Admission,
        decode_threads: int = 0,
        max_batch: int = 0,
        observer: Observer | None = None,
    ) -> Embedder:
        """An embedder whose encoder is warm: it has run with batches of every size it will get.

        Args:
            encoder: embeds the images.
            admission: counts the images in flight, over all embedders of a server.
            decode_threads: threads that decode for a GPU; 0 for one per core. On the CPU the encoder's threads decode.
            max_batch: images in a batch at most; 0 for the size that ``best_batch`` finds.
            observer: notified of the outcome of every image.
        """
        max_batch, ms_per_image = await asyncio.to_thread(_warm_up, encoder, max_batch)
        return cls(
            encoder,
            admission,
            decode_threads=decode_threads,
            max_batch=max_batch,
            observer=observer or Observer(),
            ms_per_image=ms_per_image,
        )

    async def close(self) -> None:
        """Finish what was admitted, then end the threads."""
        await self.batcher.close()

    async def embed(
        self, encoded: Sequence[bytes], *, keep: Keep, deadline: float | None, timings: Timings
    ) -> list[Embedded | EmbedserveError]:
        """The vector of each image of a call, or why there is none.

        Args:
            encoded: bytes of image files.
            keep: what to keep of the images besides their vectors.
            deadline: when the caller stops waiting, on ``time.monotonic``'s clock; None for never.
            timings: where to note the time.

        Raises:
            Overloaded: the limit on images in flight is reached, or those in flight leave no time to answer this call
                before its deadline.
            LimitExceeded: the call alone is over the limit.
        """
        if not encoded:
            return []
        flow, size_bytes = object(), sum(map(len, encoded))
        expected_ms = self.batcher.expected_ms(len(encoded), flow)
        remaining_ms = None if deadline is None else (deadline - time.monotonic()) * 1000
        try:
            self.admission.enter(len(encoded), size_bytes, expected_ms=expected_ms, remaining_ms=remaining_ms)
        except Overloaded:
            self._observer.on_rejected(len(encoded))
            raise
        try:
            return await self.submit(encoded, keep=keep, deadline=deadline, timings=timings, flow=flow)
        finally:
            self.admission.leave(len(encoded), size_bytes)

    def submit(
        self, encoded: Sequence[bytes], *, keep: Keep, deadline: float | None, timings: Timings, flow: Hashable
    ) -> Results:
        """Embed images that have been admitted; the reader of a stream admits those of its messages.

        Args:
            flow: stands for the call or stream that the images are part of; flows take turns.

        The other arguments are those of ``embed``; see also ``Batcher.submit``.
        """
        return self.batcher.submit(
            [_Source(encoded, position, keep) for position in range(len(encoded))],
            flow=flow,
            deadline=deadline,
            timings=timings,
        )

    def _prepare(self, source: _Source, row: NDArray[np.uint8]) -> Media | None:
        """Runs in a worker thread."""
        spec, data = self.encoder.metadata.preprocess, source.encoded[source.position]
        pixels = codec.decode(data, self._limits, rule=spec.pixels, min_side_px=spec.min_decoded_side_px)
        row[:] = preprocess.apply(spec, pixels)
        match source.keep:
            case Keep.THUMBNAILS:
                return Media(data=codec.thumbnail(pixels), media_type="image/jpeg")
            case Keep.ORIGINALS:
                return Media(data=data, media_type=codec.media_type(data))
            case Keep.NONE:
                return None


def _warm_up(encoder: ImageEncoder, max_batch: int) -> tuple[int, float]:
    """Run the encoder with batches of every size it will get.

    Returns:
        The largest size, and about how many milliseconds pass from one image to the next under load.
    """
    spec = encoder.metadata.preprocess
    square = reference.draw(spec.size_px)[:1]
    preprocess.load(spec, codec.thumbnail(square[0]))  # else the first image would wait for the decoder to load
    taken_s: dict[int, float] = {}

    def seconds(size: int) -> float:
        batch = square.repeat(size, axis=0)
        begun = time.perf_counter()
        encoder.encode(batch)
        return time.perf_counter() - begun

    def fastest(size: int) -> float:
        taken_s[size] = min(seconds(size) for _ in range(3))
        return taken_s[size]

    seconds(1)  # the first run also sets up
    if max_batch:
        for size in {1, max_batch}:
            fastest(size)
    else:
        max_batch = best_batch(fastest)
    return max_batch, taken_s[max_batch] * 1000 / max_batch / encoder.parallel_runs


def best_batch(seconds: Callable[[int], float]) -> int:
    """The largest batch size worth having: a power of two up to 64.

    A batch may grow while it stays short, and beyond that only if it lowers the time per image noticeably. On a CPU it
    hardly does, and every call in a batch waits for all of it.

    Args:
        seconds: how long a batch of this size takes.
    """
    size, taken_s = 1, seconds(1)
    while size < _LARGEST_BATCH:
        larger_s = seconds(2 * size)
        if larger_s * 1000 > _SHORT_BATCH_MS and larger_s / 2 > _WORTH_WAITING * taken_s:
            break
        size, taken_s = 2 * size, larger_s
    return size
