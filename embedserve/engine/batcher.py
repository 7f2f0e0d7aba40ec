"""Dynamic batching: images of many calls are prepared one by one and go through the encoder together.

The only queue in the project, and all threads that work on it. Calls take turns, image by image, so that a call of 64
does not hold back a call of one. A worker takes what is there at the moment it is free, without waiting for more:
batches grow by themselves while the encoder is busy, and an idle server adds no delay. Every image is prepared by
itself before it joins a batch, so a bad one costs nobody else; a batch that fails is halved until the failing image
stands alone. Work whose caller is gone or out of time is dropped before it is prepared, after that, and when the batch
is formed.

On the CPU each worker prepares a few images and then encodes them itself: as many workers as cores are busy all the
time and never more, and no image changes threads on its way. Where the encoder runs on a device of its own, some
threads prepare, and others hand over whole batches, with the next ones assembled meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

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
"""A worker that encodes what it prepared itself prepares no more images after this time: of large photographs a batch
would otherwise take long to fill, and whoever comes first would wait for all of them."""


@dataclass(frozen=True, slots=True)
class Encoded(Generic[ExtraT]):
    """One image's embedding."""

    vector: NDArray[np.float32]
    """float32 [D]."""
    extra: ExtraT
    """What preparing the image gave beside its pixels."""


@dataclass(kw_only=True, slots=True)
class Stages:
    """Where the time of a call went, in milliseconds. Of several images the longest counts: they run side by side."""

    decode_ms: float = 0.0
    queue_ms: float = 0.0
    """From the arrival until the encoder began, without the time for decoding."""
    inference_ms: float = 0.0


@dataclass(slots=True, eq=False)
class _Call(Generic[SourceT, ExtraT]):
    """Images that are answered together."""

    sources: Sequence[SourceT]
    turn: object
    deadline: float
    """On time.monotonic's clock; infinity for none."""
    stages: Stages
    future: asyncio.Future[list[Encoded[ExtraT] | EmbedserveError]]
    results: list[Encoded[ExtraT] | EmbedserveError | None]
    left: int
    """Images without a result."""
    taken: int = 0
    """Images that a worker has taken; this is the next one's position."""
    gone: bool = False
    """Its caller is."""
    arrived: float = field(default_factory=time.monotonic)


@dataclass(slots=True, eq=False)
class _Image(Generic[SourceT, ExtraT]):
    """An image that was prepared."""

    call: _Call[SourceT, ExtraT]
    position: int
    row: NDArray[np.uint8]
    extra: ExtraT
    decode_s: float


@dataclass(slots=True, eq=False)
class _Turn(Generic[SourceT, ExtraT]):
    """The calls that share a turn, and how many of their images wait."""

    calls: deque[_Call[SourceT, ExtraT]] = field(default_factory=deque)
    waiting: int = 0


class Batcher(Generic[SourceT, ExtraT]):
    """Prepares and encodes what is submitted, in threads of its own. Belongs to the event loop that it is made on.

    Args:
        prepare: writes an image's pixels into a row, uint8 [S, S, C], and returns what else is to be kept of it. Its
            errors concern this image alone. Called in several threads at a time.
        encode: uint8 [N, S, S, C] → float32 [N, D]; called in several threads at a time.
        shape: [S, S, C] of a row.
        runs: calls of ``encode`` side by side.
        decode_threads: threads that prepare images; 0 where each run is to prepare its own.
        max_batch: images in a batch at most.
        observer: is told what becomes of every image.
        ms_per_image: what ``ms_per_image`` begins with, if it is known.
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
        self.waiting = 0
        """Images that no worker has taken."""
        self.in_work = 0
        """Images that a worker has taken and that have no result."""
        self.failures_in_a_row = 0
        """Images that the encoder failed on since it last did not."""
        self.ms_per_image = ms_per_image
        """Running mean of the time from one image to the next while there is work, over all workers together."""
        self._prepare, self._encode, self._shape, self._observer = prepare, encode, shape, observer
        self._runs, self._decode_threads = runs, decode_threads
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._prepared = threading.Condition(self._lock)
        self._turns: OrderedDict[object, _Turn[SourceT, ExtraT]] = OrderedDict()  # the next one first
        self._ready: deque[_Image[SourceT, ExtraT]] = deque()
        self._assembling = 0
        self._answered: list[_Call[SourceT, ExtraT]] = []
        self._stopping = False
        work: list[tuple[Callable[[], None], int, str]] = [(self._work_alone, runs, "embed")]
        if decode_threads:
            work = [(self._prepare_ahead, decode_threads, "decode"), (self._encode_ready, runs, "encode")]
        self._threads = [
            threading.Thread(target=target, name=f"{name}-{number}", daemon=True)
            for target, count, name in work
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    # --- On the event loop ---

    def submit(
        self, sources: Sequence[SourceT], *, turn: object, deadline: float | None, stages: Stages
    ) -> asyncio.Future[list[Encoded[ExtraT] | EmbedserveError]]:
        """Embed images; cancelling the future takes back whatever no worker has begun.

        Args:
            sources: the images, as ``prepare`` takes them.
            turn: whose turn they take; turns come one after the other.
            deadline: when the answer is no longer wanted, on ``time.monotonic``'s clock.
            stages: where to note the time.

        Returns:
            For each image its embedding or the error that concerns it alone: what ``prepare`` raised,
            DeadlineExceeded, or InternalError where the encoder failed.

        Raises:
            Unavailable: the batcher has been closed.
        """
        call = _Call(
            sources,
            turn,
            math.inf if deadline is None else deadline,
            stages,
            self._loop.create_future(),
            [None] * len(sources),
            len(sources),
        )
        if not sources:
            call.future.set_result([])
            return call.future
        with self._lock:
            if self._stopping:
                raise Unavailable("the server is shutting down")
            entry = self._turns.get(turn)
            if entry is None:
                entry = self._turns[turn] = _Turn()
            entry.calls.append(call)
            entry.waiting += len(sources)
            self.waiting += len(sources)
            self._arrived.notify(len(sources))
        call.future.add_done_callback(lambda future: self._take_back(call) if future.cancelled() else None)
        return call.future

    def expected_ms(self, images: int, turn: object) -> float:
        """About how long it would take until so many images were answered, were they submitted now."""
        with self._lock:
            ahead = self.waiting
            if ahead > self.max_batch:  # of every other turn no more than this one has itself comes before its last
                ahead = sum(min(entry.waiting, images) for entry in self._turns.values())
                if (own := self._turns.get(turn)) is not None:
                    ahead += max(own.waiting - images, 0)
            ahead += self.in_work
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
        # Both lead to the encoder, and back to us: a cycle that would keep it in memory until it is found.
        self._prepare = self._encode = _closed

    def _take_back(self, call: _Call[SourceT, ExtraT]) -> None:
        with self._lock:
            call.gone = True
            left = call.left
            untaken = len(call.sources) - call.taken
            if untaken and (entry := self._turns.get(call.turn)) is not None:
                entry.calls.remove(call)
                entry.waiting -= untaken
                self.waiting -= untaken
                if not entry.calls:
                    del self._turns[call.turn]
            self.in_work -= left - untaken
            if self._stopping:
                self._arrived.notify_all()
                self._prepared.notify_all()
        for _ in range(left):
            self._observer.on_image("cancelled")

    def _deliver(self) -> None:
        with self._lock:
            answered, self._answered = self._answered, []
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
                while not (work := self._next()) and not batch and not self._stopping:
                    self._arrived.wait()
            if work:
                if not batch:
                    until = time.monotonic() + _GATHERING_S
                if (image := self._prepared_image(*work, rows[len(batch)])) is not None:
                    batch.append(image)
                del image  # an idle worker shall not keep the last request in memory
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
                while self._assembling >= 2 * self._runs * self.max_batch or not (work := self._next()):
                    if self._stopping and not self._turns:
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
            del image, work  # an idle worker shall not keep the last request in memory

    def _encode_ready(self) -> None:
        """Encode what is ready, as much of it as fits a batch."""
        while True:
            with self._lock:
                while not self._ready:
                    if self._stopping and not self._turns and not self._assembling:
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

    def _next(self) -> tuple[_Call[SourceT, ExtraT], int] | None:
        """The image whose turn it is. Needs the lock."""
        if not self._turns:
            return None
        turn, entry = next(iter(self._turns.items()))
        call = entry.calls[0]
        position = call.taken
        call.taken += 1
        entry.waiting -= 1
        self.waiting -= 1
        self.in_work += 1
        if call.taken == len(call.sources):
            entry.calls.popleft()
        if entry.calls:
            self._turns.move_to_end(turn)
        else:
            del self._turns[turn]
        return call, position

    def _prepared_image(
        self, call: _Call[SourceT, ExtraT], position: int, row: NDArray[np.uint8] | None
    ) -> _Image[SourceT, ExtraT] | None:
        """The image with its pixels in the row, or in one of its own; None if it is not wanted or is bad."""
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
        except Exception:  # such as MemoryError: it concerns this image, and the others go on
            _log.exception("an image could not be prepared")
            error = InternalError("this image could not be prepared", hint="the server's log has the details")
        else:
            seconds = time.monotonic() - begun
            self._observer.on_decoded(seconds)
            return _Image(call, position, row, extra, seconds)
        self._observer.on_decoded(time.monotonic() - begun)
        self._settle([(call, position, error)])
        return None

    def _is_wanted(self, call: _Call[SourceT, ExtraT], position: int, now: float) -> bool:
        if call.gone:
            return False
        if call.deadline <= now:
            self._settle([(call, position, DeadlineExceeded("the deadline passed while the image waited"))])
            return False
        return True

    def _encode_batch(
        self, batch: list[_Image[SourceT, ExtraT]], rows: NDArray[np.uint8] | list[NDArray[np.uint8]]
    ) -> None:
        """Encode the images, whose pixels are the first rows, and answer them."""
        begun = time.monotonic()
        wanted = [number for number, image in enumerate(batch) if self._is_wanted(image.call, image.position, begun)]
        if not wanted:
            return
        if len(wanted) < len(batch):
            batch, rows = [batch[number] for number in wanted], [rows[number] for number in wanted]
        results = self._encode_each(rows[: len(batch)])
        inference_s = time.monotonic() - begun
        decode_s = sum(image.decode_s for image in batch)
        if self._decode_threads:
            work_s = max(decode_s / self._decode_threads, inference_s / self._runs)
        else:
            work_s = (decode_s + inference_s) / self._runs
        mean = work_s * 1000 / len(batch)
        self.ms_per_image += (mean - self.ms_per_image) * (_SMOOTHING if self.ms_per_image else 1)
        waits_s = []
        settled: list[tuple[_Call[SourceT, ExtraT], int, Encoded[ExtraT] | EmbedserveError]] = []
        for image, result in zip(batch, results, strict=True):
            call, stages = image.call, image.call.stages
            waits_s.append(max(begun - call.arrived - image.decode_s, 0.0))
            stages.decode_ms = max(stages.decode_ms, image.decode_s * 1000)
            stages.queue_ms = max(stages.queue_ms, waits_s[-1] * 1000)
            stages.inference_ms = max(stages.inference_ms, inference_s * 1000)
            done = result if isinstance(result, EmbedserveError) else Encoded(result, image.extra)
            settled.append((call, image.position, done))
        self._observer.on_batch(waits_s, inference_s)
        self._settle(settled)

    def _encode_each(
        self, rows: NDArray[np.uint8] | list[NDArray[np.uint8]]
    ) -> list[NDArray[np.float32] | EmbedserveError]:
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

    def _settle(self, settled: Sequence[tuple[_Call[SourceT, ExtraT], int, Encoded[ExtraT] | EmbedserveError]]) -> None:
        """Note results, and wake the event loop, once, if calls are complete with them."""
        outcomes: list[Outcome] = []
        with self._lock:
            wake = not self._answered
            for call, position, result in settled:
                if call.gone:
                    continue
                if isinstance(result, EmbedserveError):
                    # Its frames hold the call, which holds the result: a cycle with all bytes of the request in it.
                    result.__traceback__ = result.__context__ = result.__cause__ = None
                call.results[position] = result
                call.left -= 1
                self.in_work -= 1
                outcomes.append(_outcome(result))
                if not call.left:
                    self._answered.append(call)
            wake = wake and bool(self._answered)
        for outcome in outcomes:
            self._observer.on_image(outcome)
        if wake:
            self._loop.call_soon_threadsafe(self._deliver)


def _outcome(result: object) -> Outcome:
    match result:
        case Encoded():
            return "embedded"
        case ImageError():
            return "refused"
        case DeadlineExceeded():
            return "expired"
        case _:
            return "failed"


def _closed(*_: object) -> Any:
    raise Unavailable("the batcher has been closed")
