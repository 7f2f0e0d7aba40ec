"""Encoded images → vectors: admitted, decoded alone, batched through the encoder.

Bounded by images and bytes over all calls. Every image is decoded and prepared by itself, so that a bad one costs
nobody else. What blocks runs in threads; the caller's event loop does not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedserve import images, preprocess, reference
from embedserve.admission import Admission
from embedserve.batcher import Batcher
from embedserve.encoder import ImageEncoder, usable_cores
from embedserve.errors import DeadlineExceeded, EmbedserveError, InternalError
from embedserve.types import Keep, Limits, Media

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger("embedserve.server")

_LEAST_RETRY_MS = 50
"""Whoever is refused before the encoder's speed is known, or with little in front of him, shall not spin."""


@dataclass(kw_only=True, slots=True)
class Timings:
    """Where the time of a call went, in milliseconds. Of several images the longest counts: they run side by side."""

    decode_ms: float = 0.0
    queue_ms: float = 0.0
    inference_ms: float = 0.0
    store_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of a good image."""

    vector: NDArray[np.float32]
    """float32 [D], unit norm."""
    media: Media | None
    """What is kept of the image, if anything was asked for."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    square: NDArray[np.uint8]
    media: Media | None


class Embedder:
    """One encoder and the threads that feed it. Make it with ``start``."""

    def __init__(self, encoder: ImageEncoder, *, limits: Limits, decode_threads: int, max_batch: int) -> None:
        self.encoder = encoder
        self.admission = Admission(limits)
        self._limits = limits
        self._batcher = Batcher(encoder.encode, workers=encoder.parallel_runs, max_batch=max_batch)
        self._decode_pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")

    @classmethod
    async def start(
        cls, encoder: ImageEncoder, *, limits: Limits, decode_threads: int = 0, max_batch: int = 0
    ) -> Embedder:
        """An embedder whose encoder has run once with its smallest and its largest batch.

        Args:
            encoder: what embeds images.
            limits: limits on an image, and on all that are in work.
            decode_threads: threads that decode; 0 for one for each core.
            max_batch: images in a batch at most; 0 for 4 on the CPU, where larger ones gain nothing, and 32 elsewhere.
        """
        max_batch = max_batch or (4 if encoder.provider == "CPUExecutionProvider" else 32)
        square = reference.draw(encoder.metadata.preprocess.size_px)[:1]
        for size in (1, max_batch):
            await asyncio.to_thread(encoder.encode, square.repeat(size, axis=0))
        return cls(encoder, limits=limits, decode_threads=decode_threads or usable_cores(), max_batch=max_batch)

    async def close(self) -> None:
        """Finish what was admitted, then give the threads free."""
        await self._batcher.close()
        self._decode_pool.shutdown()

    async def embed(
        self,
        encoded: Sequence[bytes],
        *,
        keep: Keep,
        deadline: float | None,
        timings: Timings,
        stream: object = None,
    ) -> list[Embedded | EmbedserveError]:
        """The vector of each image, or why there is none.

        Args:
            encoded: bytes of image files.
            keep: what to make of the images beside their vectors.
            deadline: when the answer is no longer wanted, on ``time.monotonic``'s clock; None for never.
            timings: where to note the time.
            stream: stands for the stream that the images are part of. Its images take turns with other calls as one,
                and have been admitted by whoever reads it.

        Raises:
            Overloaded: as many images are in work as may be.
            LimitExceeded: these are more than ever may be.
        """
        if not encoded:
            return []
        if stream is not None:
            return await self._embed_all(encoded, keep, stream, deadline, timings)
        size_bytes = sum(map(len, encoded))
        wait_ms = self.admission.images * self._batcher.ms_per_image
        self.admission.enter(len(encoded), size_bytes, retry_after_ms=max(int(wait_ms), _LEAST_RETRY_MS))
        try:
            return await self._embed_all(encoded, keep, object(), deadline, timings)
        finally:
            self.admission.leave(len(encoded), size_bytes)

    async def _embed_all(
        self, encoded: Sequence[bytes], keep: Keep, call: object, deadline: float | None, timings: Timings
    ) -> list[Embedded | EmbedserveError]:
        if len(encoded) == 1:  # the usual call, without the cost of a group
            return [await self._embed(encoded[0], keep, call, deadline, timings)]
        # A group, so that a caller who goes away takes all his images with him.
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._embed(data, keep, call, deadline, timings)) for data in encoded]
        return [task.result() for task in tasks]

    async def _embed(
        self, data: bytes, keep: Keep, call: object, deadline: float | None, timings: Timings
    ) -> Embedded | EmbedserveError:
        begun = time.monotonic()
        try:
            prepared = await asyncio.get_running_loop().run_in_executor(
                self._decode_pool, self._prepare, data, keep, deadline
            )
            timings.decode_ms = max(timings.decode_ms, (time.monotonic() - begun) * 1000)
            encoded = await self._batcher.submit(prepared.square, call=call, deadline=deadline)
        except EmbedserveError as error:
            return error
        except Exception:  # such as MemoryError: it concerns this image, and the others go on
            _log.exception("an image could not be embedded")
            return InternalError("this image could not be embedded", hint="the server's log has the details")
        timings.queue_ms = max(timings.queue_ms, encoded.queue_ms)
        timings.inference_ms = max(timings.inference_ms, encoded.inference_ms)
        return Embedded(encoded.vector, prepared.media)

    def _prepare(self, data: bytes, keep: Keep, deadline: float | None) -> _Prepared:
        """Runs in a decode thread."""
        if deadline is not None and deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline passed before the image was decoded")
        spec = self.encoder.metadata.preprocess
        pixels = images.decode(data, self._limits, min_side_px=spec.min_decoded_side_px)
        media = None
        if keep is Keep.THUMBNAILS:
            media = Media(data=images.thumbnail(pixels), media_type="image/jpeg")
        elif keep is Keep.ORIGINALS:
            media = Media(data=data, media_type=images.media_type(data))
        return _Prepared(preprocess.apply(spec, pixels), media)
