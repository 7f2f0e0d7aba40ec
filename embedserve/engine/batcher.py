"""Dynamic batching: images of many calls are prepared one by one and go through the encoder together.

Flows take turns, image by image, so that a call of 64 does not hold back a call of one. A worker takes what waits at
the moment it is free and does not wait for more: batches grow by themselves while the encoder is busy, and an idle
server adds no delay. Every image is prepared alone before it joins a batch, so a bad one costs the others nothing; a
batch that fails is halved until the failing image is isolated. Images of a call that is cancelled or past its deadline
are dropped before they are prepared, and again when a batch is formed.

On the CPU each worker prepares a few images and then encodes them itself: as many workers as cores are busy all the
time and never more, and no image changes threads on its way. Where the encoder runs on a device, some threads prepare
and others hand over whole batches, with the next ones assembled meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from embedserve.engine.timings import Timings
from embedserve.engine.turn_queue import QueuedCall, TurnQueue
from embedserve.errors import DeadlineExceeded, EmbedserveError, ImageError, InternalError, Unavailable
from embedserve.observer import Observer, Outcome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger("embedserve.server")

SourceT = TypeVar("SourceT")
ExtraT = TypeVar("ExtraT")

_SMOOTHING = 0.1
"""Weight of the newest batch in the running mean of the time per image."""
_GATHERING_S = 0.01
"""A worker that encodes what it prepared prepares no more images after this time: a batch of large photographs would
take long to fill, and its first image would wait for all of them."""


@dataclass(frozen=True, slots=True)
class Encoded(Generic[ExtraT]):
    """One image's embedding."""

    vector: NDArray[np.float32]
    """float32 [D]."""
    extra: ExtraT
    """What preparing the image returned besides its pixels."""


@dataclass(slots=True, eq=False)
class EmbedCall(QueuedCall, Generic[SourceT, ExtraT]):
    """Images that are answered together."""

    sources: Sequence[SourceT]
    arrived: float
    deadline: float
    """Both on time.monotonic's clock; infinity for no deadline."""
    timings: Timings
    future: asyncio.Future[list[Encoded[ExtraT] | EmbedserveError]]
    results: list[Encoded[ExtraT] | EmbedserveError | None]


@dataclass(slots=True, eq=False)
class _Image(Generic[SourceT, ExtraT]):
    """An image that was prepared."""

    call: EmbedCall[SourceT, ExtraT]
    position: int
    row: NDArray[np.uint8]
    extra: ExtraT
    decode_s: float


_Rows: TypeAlias = "NDArray[np.uint8] | list[NDArray[np.uint8]]"
_Settled: TypeAlias = tuple[EmbedCall[SourceT, ExtraT], int, Encoded[ExtraT] | EmbedserveError]
"""A call, the position of one of its images, and what became of it."""


class Batcher(Generic[SourceT, ExtraT]):
    """Prepares and encodes what is submitted, in its own threads. Belongs to the event loop it is made on.

    Args:
        prepare: writes an image's pixels into a row, uint8 [S, S, C], and returns what else to keep of it. Its errors
            concern this image alone. Called in several threads at a time.
        encode: uint8 [N, S, S, C] → float32 [N, D]; called in several threads at a time.
        shape: [S, S, C] of a row.
        runs: calls of ``encode`` side by side.
        decode_threads: threads that prepare images; 0 if each run prepares its own.
        max_batch: images in a batch at most.
        observer: notified of the outcome of every image.
        ms_per_image: the first value of ``ms_per_image``, if it is known.
    """

    def __init__(
        self,
        prepare: Callable[[SourceT, NDArray[np.uint8]], ExtraT],
        encode: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        *,
        shape: tuple[int, int, int],
        runs: int,
        decode_threads: int,
        max_batch: int,
        observer: Observer,
        ms_per_image: float = 0.0,
    ) -> None:
        self.max_batch = max_batch
        self.queue: TurnQueue[EmbedCall[SourceT, ExtraT]] = TurnQueue()
        """Images that wait, and how many are in flight."""
        self.failures_in_a_row = 0
        """Images that the encoder failed on since it last succeeded."""
        self.ms_per_image = ms_per_image
        """Running mean of the time from one image to the next while there is work, over all workers."""
        self._prepare, self._encode, self._shape, self._observer = prepare, encode, shape, observer
        self._runs, self._decode_threads = runs, decode_threads
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._prepared = threading.Condition(self._lock)
        self._ready: deque[_Image[SourceT, ExtraT]] = deque()
        self._assembling = 0
        self._stopping = False
        roles: list[tuple[Callable[[], None], int, str]] = [(self._work_alone, runs, "embed")]
        if decode_threads:
            roles = [(self._prepare_ahead, decode_threads, "decode"), (self._encode_ready, runs, "encode")]
        self._threads = [
            threading.Thread(target=target, name=f"{name}-{number}", daemon=True)
            for target, count, name in roles
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    # --- On the event loop ---

    def submit(
        self, sources: Sequence[SourceT], *, flow: Hashable, deadline: float | None, timings: Timings
    ) -> asyncio.Future[list[Encoded[ExtraT] | EmbedserveError]]:
        """Embed images; cancelling the future takes back the images that no worker has taken.

        Args:
            sources: the images, as ``prepare`` takes them.
            flow: calls of one flow share its turns.
            deadline: when the caller stops waiting, on ``time.monotonic``'s clock.
            timings: where to note the time.

        Returns:
            For each image its embedding or the error that concerns it alone: what ``prepare`` raised,
            DeadlineExceeded, or InternalError where the encoder failed.

        Raises:
            Unavailable: the batcher has been closed.
        """
        call = EmbedCall(
            flow,
            len(sources),
            sources,
            time.monotonic(),
            math.inf if deadline is None else deadline,
            timings,
            self._loop.create_future(),
            [None] * len(sources),
        )
        if not sources:
            call.future.set_result([])
            return call.future
        with self._lock:
            if self._stopping:
                raise Unavailable("the server is shutting down")
            self.queue.add(call)
            self._arrived.notify(len(sources))
        call.future.add_done_callback(lambda future: self._take_back(call) if future.cancelled() else None)
        return call.future

    def expected_ms(self, images: int, flow: Hashable) -> float:
        """About how long it takes until this many images are answered, if they are submitted now."""
        with self._lock:
            ahead = self.queue.waiting
            if ahead > self.max_batch:
                ahead = self.queue.ahead(flow, images)
            ahead += self.queue.in_flight
        return (ahead + images - 1 + self._runs) * self.ms_per_image

    async def close(self) -> None:
        """Finish what was submitted, then stop."""
        with self._lock:
            self._stopping = True
            self._arrived.notify_all()
            self._prepared.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._deliver()
        # Both refer to the encoder, and back to us: a cycle that would keep it in memory until the collector runs.
        self._prepare = self._encode = _closed

    def _take_back(self, call: EmbedCall[SourceT, ExtraT]) -> None:
        with self._lock:
            self.queue.take_back(call)
            if self._stopping:
                self._arrived.notify_all()
                self._prepared.notify_all()
        for _ in range(call.pieces - call.settled):
            self._observer.on_image("cancelled")

    def _deliver(self) -> None:
        with self._lock:
            answered, self.queue.answered = self.queue.answered, []
        for call in answered:
            if not call.future.done():
                call.future.set_result(call.results)  # type: ignore[arg-type]  # none is left without a result

    # --- In the workers ---

    def _work_alone(self) -> None:
        """Prepare images until nothing waits or a batch is full, encode them, and so on."""
        import numpy as np

        rows = np.empty((self.max_batch, *self._shape), dtype=np.uint8)
        batch: list[_Image[SourceT, ExtraT]] = []
        until = 0.0
        while True:
            with self._lock:
                while not (work := self.queue.take()) and not batch and not self._stopping:
                    self._arrived.wait()
            if work:
                if not batch:
                    until = time.monotonic() + _GATHERING_S
                if (image := self._prepared_image(*work, rows[len(batch)])) is not None:
                    batch.append(image)
                del image  # or an idle worker keeps the last request in memory
                if len(batch) < self.max_batch and time.monotonic() < until:
                    continue
            if batch:
                self._encode_batch(batch, rows)
                batch = []
            elif not work:
                return
            work = None

    def _prepare_ahead(self) -> None:
        """Prepare images for the batches to come, and no more than those need."""
        while True:
            with self._lock:
                while self._assembling >= 2 * self._runs * self.max_batch or not (work := self.queue.take()):
                    if self._stopping and not self.queue.waiting:
                        self._arrived.notify_all()
                        self._prepared.notify_all()
                        return
                    self._arrived.wait()
                self._assembling += 1
            image = self._prepared_image(*work, None)
            with self._lock:
                if image is None:
                    self._assembling -= 1
                    self._arrived.notify()
                else:
                    self._ready.append(image)
                self._prepared.notify()
            del image, work  # or an idle worker keeps the last request in memory

    def _encode_ready(self) -> None:
        """Encode what is ready, as much of it as fits a batch."""
        while True:
            with self._lock:
                while not self._ready:
                    if self._stopping and not self.queue.waiting and not self._assembling:
                        self._prepared.notify_all()
                        return
                    self._prepared.wait()
                batch = [self._ready.popleft() for _ in range(min(len(self._ready), self.max_batch))]
                self._assembling -= len(batch)
                if self._stopping:
                    self._arrived.notify_all()
                else:
                    self._arrived.notify(len(batch))
            self._encode_batch(batch, [image.row for image in batch])
            del batch

    def _prepared_image(
        self, call: EmbedCall[SourceT, ExtraT], position: int, row: NDArray[np.uint8] | None
    ) -> _Image[SourceT, ExtraT] | None:
        """The image with its pixels in the row, or in a new one; None if it is not wanted or is bad."""
        import numpy as np

        begun = time.monotonic()
        if not self._is_wanted(call, position, begun):
            return None
        error: EmbedserveError
        try:
            if row is None:
                row = np.empty(self._shape, dtype=np.uint8)
            extra = self._prepare(call.sources[position], row)
        except EmbedserveError as refused:
            error = refused
        except Exception:  # such as MemoryError: it concerns this image alone
            _log.exception("an image could not be prepared")
            error = InternalError("this image could not be prepared", hint="the server's log has the details")
        else:
            seconds = time.monotonic() - begun
            self._observer.on_decoded(seconds)
            return _Image(call, position, row, extra, seconds)
        self._observer.on_decoded(time.monotonic() - begun)
        self._settle([(call, position, error)])
        return None

    def _is_wanted(self, call: EmbedCall[SourceT, ExtraT], position: int, now: float) -> bool:
        if call.gone:
            return False
        if call.deadline <= now:
            self._settle([(call, position, DeadlineExceeded("the deadline passed while the image waited"))])
            return False
        return True

    def _encode_batch(self, batch: list[_Image[SourceT, ExtraT]], rows: _Rows) -> None:
        """Encode the images, whose pixels are in the first rows, and settle them."""
        begun = time.monotonic()
        wanted = [number for number, image in enumerate(batch) if self._is_wanted(image.call, image.position, begun)]
        if len(wanted) < len(batch):
            batch, rows = [batch[number] for number in wanted], [rows[number] for number in wanted]
        if not batch:
            return
        results = self._encode_each(rows[: len(batch)])
        inference_s = time.monotonic() - begun
        decode_s, waits_s = 0.0, []
        settled: list[_Settled[SourceT, ExtraT]] = []
        for image, result in zip(batch, results, strict=True):
            call, timings = image.call, image.call.timings
            decode_s += image.decode_s
            waits_s.append(max(begun - call.arrived - image.decode_s, 0.0))
            timings.decode_ms = max(timings.decode_ms, image.decode_s * 1000)
            timings.queue_ms = max(timings.queue_ms, waits_s[-1] * 1000)
            timings.inference_ms = max(timings.inference_ms, inference_s * 1000)
            done = result if isinstance(result, EmbedserveError) else Encoded(result, image.extra)
            settled.append((call, image.position, done))
        if self._decode_threads:
            work_s = max(decode_s / self._decode_threads, inference_s / self._runs)
        else:
            work_s = (decode_s + inference_s) / self._runs
        mean = work_s * 1000 / len(batch)
        self.ms_per_image += (mean - self.ms_per_image) * (_SMOOTHING if self.ms_per_image else 1)
        self._observer.on_batch(waits_s, inference_s)
        self._settle(settled)

    def _encode_each(self, rows: _Rows) -> list[NDArray[np.float32] | EmbedserveError]:
        """A vector or an error for each row."""
        import numpy as np

        try:
            vectors = list(self._encode(np.asarray(rows)))
            if len(vectors) != len(rows):
                raise ValueError(f"the encoder gave {len(vectors)} vectors for {len(rows)} images")
            self.failures_in_a_row = 0
            return vectors
        except Exception as error:
            if len(rows) > 1:
                middle = len(rows) // 2
                return self._encode_each(rows[:middle]) + self._encode_each(rows[middle:])
            self.failures_in_a_row += 1
            _log.error("the encoder failed on an image", exc_info=error)
            if isinstance(error, EmbedserveError):
                return [error]
            return [InternalError("the encoder failed on this image", hint="the server's log has the details")]

    def _settle(self, settled: Sequence[_Settled[SourceT, ExtraT]]) -> None:
        """Note results, and wake the event loop, once, if calls are answered with them."""
        outcomes: list[Outcome] = []
        wake = False
        with self._lock:
            for call, position, result in settled:
                if call.gone:
                    continue
                if isinstance(result, EmbedserveError):
                    # Its frames hold the call, which holds the result: a cycle with all bytes of the request in it.
                    result.__traceback__ = result.__context__ = result.__cause__ = None
                call.results[position] = result
                wake |= self.queue.settle(call)
                outcomes.append(_outcome(result))
        for outcome in outcomes:
            self._observer.on_image(outcome)
        if wake:
            self._loop.call_soon_threadsafe(self._deliver)


def _outcome(result: object) -> Outcome:
    if isinstance(result, Encoded):
        return "embedded"
    if isinstance(result, ImageError):
        return "refused"
    return "expired" if isinstance(result, DeadlineExceeded) else "failed"


def _closed(*_: object) -> Any:
    raise Unavailable("the batcher has been closed")
