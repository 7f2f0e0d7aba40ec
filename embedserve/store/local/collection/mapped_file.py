"""A file in memory that holds no descriptor.

``mmap`` of Python before 3.13 keeps a duplicate of the descriptor for as long as the mapping exists: three or four for
each segment, of which a process has a thousand.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FAILED = ctypes.c_void_p(-1).value


def mapped_bytes(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, read-only: uint8 [N]. Unmapped with the last array over them.

    Raises:
        OSError: the file cannot be opened or mapped.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return np.empty(0, np.uint8)
        address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    memory = (ctypes.c_uint8 * size).from_address(address)
    # Not at the exit of the process, which unmaps everything itself.
    weakref.finalize(memory, _libc().munmap, address, size).atexit = False
    array: NDArray[np.uint8] = np.frombuffer(memoryview(memory), np.uint8)
    array.flags.writeable = False
    return array


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_ssize_t),
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
