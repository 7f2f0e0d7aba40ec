"""A caller's inputs as they are sent: files read ahead, vectors as messages."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from embedserve import wire
from embedserve.errors import InvalidInput
from embedserve.metadata import shown
from embedserve.v1 import common_pb2 as common_pb

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

InputT = TypeVar("InputT")
ResultT = TypeVar("ResultT")

_READERS = 4
"""Threads that read files ahead of what is sent, so that a disk or network drive serves several requests at once."""

_SLOW_READ_S = 0.001
"""If reading a file takes longer than this on average, threads do it. For files in the page cache threads cost more
than reading: 0.07 instead of 0.03 ms of CPU for 10 kB."""


@contextmanager
def writing() -> Iterator[None]:
    """Turns what protobuf refuses (a number out of range, text that is not valid UTF-8) into InvalidInput."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the request cannot be written: {error}") from error


def read_ahead(
    inputs: Iterable[InputT], is_file: Callable[[InputT], bool], read: Callable[[InputT], ResultT]
) -> Iterator[ResultT]:
    """The result of ``read`` for each input, in order; slow files are read by a few threads, a few files ahead."""
    waiting: deque[Future[ResultT] | ResultT] = deque()
    spent_s, count = 0.0, 5  # 5 ms are tolerated at the start

    def first() -> ResultT:
        result = waiting.popleft()
        return result.result() if isinstance(result, Future) else result

    with ThreadPoolExecutor(_READERS, thread_name_prefix="embedserve-read") as pool:
        try:
            for input in inputs:
                if not is_file(input):
                    waiting.append(read(input))
                elif spent_s > _SLOW_READ_S * count:
                    waiting.append(pool.submit(read, input))
                else:
                    begun = time.monotonic()
                    waiting.append(read(input))
                    spent_s, count = spent_s + time.monotonic() - begun, count + 1
                while waiting and (len(waiting) > _READERS or _is_ready(waiting[0])):
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _is_ready(result: object) -> bool:
    return not isinstance(result, Future) or result.done()


def vector_of(values: ArrayLike) -> NDArray[np.float32]:
    """A vector, float32 [D]. The server checks D.

    Raises:
        InvalidInput: it is not one row of numbers, or one of them is not finite as float32; says which.
    """
    hint = "write one row of D numbers, as in vector=embeddings[0]"
    if isinstance(values, np.ma.MaskedArray):
        raise InvalidInput("vector is an array with a mask", hint="fill what is masked: vector.filled(0)")
    try:
        given = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; arrays on a GPU
        raise InvalidInput(f"vector is {shown(values)}, not a row of numbers: {error}", hint=hint) from error
    if given.dtype.kind not in "fiu":
        raise InvalidInput(f"vector is {shown(values)} with values of {given.dtype}, not a row of numbers", hint=hint)
    if given.ndim != 1 or not given.size:
        raise InvalidInput(f"the vector has shape {given.shape}; it is one row of D numbers", hint=hint)
    with np.errstate(over="ignore"):
        vector = given.astype(np.float32, copy=False)
    finite = np.isfinite(vector)
    if not finite.all():
        position = int(finite.argmin())
        raise InvalidInput(
            f"number {position} of the vector is {given[position]}, not a finite float32",
            hint="a row of NaN in embeddings stands for an image that could not be used: see its errors",
        )
    return vector


def vector_to_proto(values: ArrayLike) -> common_pb.Vector:
    """A vector as a message; ``vector_of`` says what it may be."""
    return wire.vector_to_proto(vector_of(values), wire.PACKED_F32)
