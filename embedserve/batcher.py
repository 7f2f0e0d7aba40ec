"""Dynamic batching: single images from many calls go through the encoder together. The only queue in the project.

Images arrive decoded, one entry each. A worker takes what is ready at the moment it is free, without waiting for more:
batches grow by themselves while the encoder is busy, and an idle server adds no delay. Calls are served in turns, so
that a call of 64 images does not hold back a call of one. Work whose caller is gone or out of time is dropped when a
batch is formed. A batch that fails is halved until the failing image stands alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedserve.errors import DeadlineExceeded, EmbedserveError, InternalError, Unavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger("embedserve.server")

_SMOOTHING = 0.1
"""Weight of the newest batch in the running mean of the time per image."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image's embedding and where its time went."""

    vector: NDArray[np.float32]
    """float32 [D]."""
    queue_ms: float
    inference_ms: float


@dataclass(slots=True, eq=False)
class _Entry:
    image: NDArray[np.uint8]
    deadline: float | None
    """On time.monotonic's clock."""
    answer: asyncio.Future[Encoded]
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Runs ``encode`` on batches of what was submitted.

    Args:
        encode: uint8 [N, S, S, C] → float32 [N, D]; called in worker threads, several at a time.
        workers: how many batches run side by side.
        max_batch: images in a batch at most.
    """

    def __init__(
        self, encode: Callable[[NDArray[np.uint8]], NDArray[np.float32]], *, workers: int, max_batch: int
    ) -> None:
        self._encode = encode
        self._max_batch = max_batch
        self._workers = workers
        # Entries by call, in the order in which the calls get their turn.
        self._calls: OrderedDict[object, deque[_Entry]] = OrderedDict()
        self._work = asyncio.Event()
        self._stopping = False
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
        self._tasks = [asyncio.create_task(self._run(), name=f"batcher-{number}") for number in range(workers)]
        self.ms_per_image = 0.0
        """Running mean of the encoder's time for one image, over all workers together."""

    async def submit(self, image: NDArray[np.uint8], *, call: object, deadline: float | None = None) -> Encoded:
        """Embed one image, uint8 [S, S, C].

        Args:
            image: the square for the encoder.
            call: what the image belongs to; calls get their turns one after the other.
            deadline: when the answer is no longer wanted, on ``time.monotonic``'s clock.

        Raises:
            DeadlineExceeded: the deadline passed while it waited.
            InternalError: the encoder failed on this image.
            Unavailable: the batcher has been closed.
        """
        if self._stopping:
            raise Unavailable("the server is shutting down")
        entry = _Entry(image, deadline, asyncio.get_running_loop().create_future())
        self._calls.setdefault(call, deque()).append(entry)
        self._work.set()
        return await entry.answer

    async def close(self) -> None:
        """Finish what was submitted, then stop."""
        self._stopping = True
        self._work.set()
        await asyncio.gather(*self._tasks)
        self._pool.shutdown()

    def _next_batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        now = time.monotonic()
        while self._calls and len(batch) < self._max_batch:
            call, entries = self._calls.popitem(last=False)
            entry = entries.popleft()
            if entries:
                self._calls[call] = entries  # to the end: the others come first
            if entry.answer.done():  # its caller has gone
                continue
            if entry.deadline is not None and entry.deadline <= now:
                entry.answer.set_exception(DeadlineExceeded("the deadline passed while the image waited"))
                continue
            batch.append(entry)
        if not self._calls and not self._stopping:  # once stopping, every worker has to come by and see it
            self._work.clear()
        return batch

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            batch = self._next_batch()
            if batch:
                begun = time.monotonic()
                results = await loop.run_in_executor(self._pool, self._encode_each, [entry.image for entry in batch])
                self._answer(batch, results, begun)
            elif self._stopping:
                return

    def _answer(self, batch: list[_Entry], results: list[NDArray[np.float32] | EmbedserveError], begun: float) -> None:
        inference_ms = (time.monotonic() - begun) * 1000
        mean = inference_ms / len(batch) / self._workers
        self.ms_per_image += (mean - self.ms_per_image) * (_SMOOTHING if self.ms_per_image else 1)
        for entry, result in zip(batch, results, strict=True):
            if entry.answer.done():
                continue
            if isinstance(result, EmbedserveError):
                entry.answer.set_exception(result)
            else:
                entry.answer.set_result(Encoded(result, (begun - entry.arrived) * 1000, inference_ms))

    def _encode_each(self, images: list[NDArray[np.uint8]]) -> list[NDArray[np.float32] | EmbedserveError]:
        """Runs in a worker thread: a vector or an error for each image."""
        import numpy as np

        try:
            vectors = list(self._encode(np.stack(images)))
            if len(vectors) != len(images):
                raise ValueError(f"the encoder gave {len(vectors)} vectors for {len(images)} images")
            return vectors
        except Exception as error:
            if len(images) > 1:
                middle = len(images) // 2
                return self._encode_each(images[:middle]) + self._encode_each(images[middle:])
            _log.error("the encoder failed on an image", exc_info=error)
            if isinstance(error, EmbedserveError):
                return [error]
            return [InternalError("the encoder failed on this image", hint="the server's log has the details")]
