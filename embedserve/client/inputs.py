"""What a caller gives, as it goes over the wire: images as bytes, vectors as messages."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedserve import wire
from embedserve.client.values import ImageInput
from embedserve.errors import DataError, ImageTooLarge, InvalidInput
from embedserve.types import Limits
from embedserve.v1 import common_pb2 as common_pb

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@contextmanager
def writing() -> Iterator[None]:
    """What protobuf refuses (a number out of range, text that is no UTF-8) as an error of ours."""
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
            # The size first: nobody wants to read a film that happens to be in the folder.
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path} is no regular file")
            size_bytes = status.st_size
            data = path.read_bytes() if size_bytes <= limits.max_image_bytes else b""
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


def vector_to_proto(values: ArrayLike) -> common_pb.Vector:
    """A vector of D numbers as a message. Whether D is right and all are finite is for the server to say.

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
