"""Calls of the NVIDIA driver: the number of GPUs, and pinned memory that they copy from directly.

The driver's library has had the same name and interface since CUDA 4, whatever CUDA version onnxruntime is built with.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LIBRARY = "libcuda.so.1"
_SUCCESS = 0
_PORTABLE = 1
"""CU_MEMHOSTALLOC_PORTABLE: pinned for every GPU, not only for the current one."""


def gpu_count() -> int:
    """How many NVIDIA GPUs this process may use, given CUDA_VISIBLE_DEVICES."""
    driver = _driver()
    count = ctypes.c_int()
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != _SUCCESS:
        return 0
    return count.value


def pinned(size_bytes: int, gpu: int) -> NDArray[np.uint8]:
    """Zeroed memory that a GPU reads and writes without a copy by the CPU; ordinary memory if pinning fails.

    It is freed with the last array over it.

    Args:
        size_bytes: size of the memory.
        gpu: a GPU that is already in use; all others can use the memory as well.
    """
    import numpy as np

    driver = _driver()
    context = None if driver is None else _primary_context(gpu)
    pointer = ctypes.c_void_p()
    if driver is None or context is None or not _in_context(driver, context, _allocate(driver, pointer, size_bytes)):
        return np.zeros(size_bytes, np.uint8)
    memory = (ctypes.c_uint8 * size_bytes).from_address(pointer.value or 0)
    # Not at the exit of the process, when the driver shuts down and frees everything itself.
    weakref.finalize(memory, _free, driver, context, pointer).atexit = False
    ctypes.memset(pointer, 0, size_bytes)
    array: NDArray[np.uint8] = np.ctypeslib.as_array(memory)
    return array


@cache
def _driver() -> Any:
    """The library, initialised; None without the library or without a GPU."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    return driver if driver.cuInit(0) == _SUCCESS else None


@cache
def _primary_context(gpu: int) -> Any:
    """The context that onnxruntime uses, too. Never released, as that could destroy it while onnxruntime uses it."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if _driver().cuDeviceGet(ctypes.byref(device), ctypes.c_int(gpu)) != _SUCCESS:
        return None
    if _driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device) != _SUCCESS:
        return None
    return context


def _in_context(driver: Any, context: Any, call: Any) -> bool:
    if driver.cuCtxPushCurrent_v2(context) != _SUCCESS:
        return False
    try:
        return bool(call() == _SUCCESS)
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def _allocate(driver: Any, pointer: Any, size_bytes: int) -> Any:
    return lambda: driver.cuMemHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(size_bytes), ctypes.c_uint(_PORTABLE))


def _free(driver: Any, context: Any, pointer: Any) -> None:
    _in_context(driver, context, lambda: driver.cuMemFreeHost(pointer))
