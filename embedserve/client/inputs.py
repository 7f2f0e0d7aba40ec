"""A caller's inputs as they are sent: images as bytes, vectors as messages."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from embedserve import wire
from embedserve.client.values import ImageInput
from embedserve.errors import DataError, ImageTooLarge, InvalidInput
from embedserve.regular_file import regular
from embedserve.types import Limits
from embedserve.v1 import common_pb2 as common_pb

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

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


def read_image(image: ImageInput, limits: Limits) -> bytes:
    """The encoded bytes of an image.

    Raises:
        DataError: the file cannot be read.
        ImageTooLarge: it has more than ``max_image_bytes``.
        InvalidInput: it is neither bytes nor a path.
    """
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        try:
            with open(path, "rb", opener=regular) as file:
                # The size first, so that a film in the folder is not read.
                size_bytes = os.fstat(file.fileno()).st_size
                data = file.read() if size_bytes <= limits.max_image_bytes else b""
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        size_bytes = max(size_bytes, len(data))
    elif isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        size_bytes = len(data)
    else:
        raise InvalidInput(f"an image is bytes or a path, not a {type(image).__name__}")
    if size_bytes > limits.max_image_bytes:
        raise ImageTooLarge(f"the image has {size_bytes} bytes; max_image_bytes is {limits.max_image_bytes}")
    return data


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


def is_path(image: object) -> bool:
    """Whether an image is given as the path of a file."""
    return isinstance(image, (str, os.PathLike))


def vector_to_proto(values: ArrayLike) -> common_pb.Vector:
    """A vector of D numbers as a message. The server checks D, and that all numbers are finite.

    Raises:
        InvalidInput: it is not a row of numbers.
    """
    try:
        with np.errstate(over="ignore"):
            vector = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the vector is not a row of numbers: {error}") from error
    if vector.ndim != 1 or not vector.size:
        raise InvalidInput(f"the vector has shape {vector.shape}; it is one row of D numbers")
    return wire.vector_to_proto(vector, wire.PACKED_F32)
