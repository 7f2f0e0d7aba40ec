"""Runs on GPUs through preallocated buffers: each slot has its own, and does one run at a time.

While one run computes, the images of another are copied to the GPU, so each GPU has two slots. Batches are padded to a
few fixed sizes, for which CUDA has its memory and its fastest algorithms ready before the first image arrives.

Shapes: N images, S side in pixels, C channels, D numbers per embedding.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from embedserve.encoder.encoder_file import INPUT, OUTPUT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger("embedserve.server")

PER_GPU = 2
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA
    "Failed to allocate memory",  # onnxruntime's arena, also at its gpu_mem_limit
    "is smaller than requested bytes",  # the same
    "ALLOC_FAILED",  # cuBLAS and cuDNN
)


class RunSlots:
    """Slots over one or more sessions of the same encoder.

    Args:
        sessions: one for each GPU.
        image_shape: (S, S, C).
        dimension: D.
        max_batch: most images in a run.
        memory: allocates bytes that the GPUs copy from and to.
    """

    def __init__(
        self,
        sessions: Sequence[Any],
        *,
        image_shape: tuple[int, int, int],
        dimension: int,
        max_batch: int,
        memory: Callable[[int], NDArray[np.uint8]],
    ) -> None:
        self.largest_batch = max_batch
        """Most images in a run; halved whenever a GPU runs out of memory."""
        # The second slot of a GPU comes after the first slots of all GPUs, which spreads the runs.
        self._slots = [
            _Slot(session, image_shape, dimension, max_batch, memory) for _ in range(PER_GPU) for session in sessions
        ]
        self._image_shape = image_shape
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Number of slots, which is the number of parallel runs."""
        return len(self._slots)

    def warm_up(self) -> None:
        """Run every batch size in all slots at once; sizes that exceed the memory are not used afterwards."""
        import numpy as np

        with ThreadPoolExecutor(len(self._slots)) as pool:
            for size in sizes(self.largest_batch):
                if size <= self.largest_batch:
                    images = np.zeros((size, *self._image_shape), np.uint8)
                    list(pool.map(self.encode, [images] * len(self._slots)))

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, S, S, C] → float32 [N, D]; waits for a slot. More than ``largest_batch`` take several runs."""
        import numpy as np

        parts: list[NDArray[np.float32]] = []
        begun = 0
        while begun < len(images):
            part = images[begun : begun + self.largest_batch]
            try:
                parts.append(self._run(part))
            except Exception as error:  # onnxruntime's exceptions have no common base of their own
                if len(part) == 1 or not any(text in str(error) for text in _OUT_OF_MEMORY):
                    raise
                self._halve(len(part))
                continue
            begun += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        slot = self._free.get()
        try:
            return slot.run(images)
        finally:
            self._free.put(slot)

    def _halve(self, too_large: int) -> None:
        with self._lock:
            if self.largest_batch < too_large:  # another run has halved it already
                return
            self.largest_batch = max(self.largest_batch // 2, 1)
        fields = {"images": too_large, "largest_batch": self.largest_batch}
        _log.warning("the GPU has no memory for a batch; batches are smaller from now on", extra={"fields": fields})


class _Slot:
    """The buffers of one run at a time, and for each batch size the binding that makes the session use them."""

    def __init__(
        self,
        session: Any,
        image_shape: tuple[int, int, int],
        dimension: int,
        max_batch: int,
        memory: Callable[[int], NDArray[np.uint8]],
    ) -> None:
        import numpy as np

        pixels = int(np.prod(image_shape))
        self._session = session
        self._images = memory(max_batch * pixels).reshape(max_batch, *image_shape)
        self._vectors = memory(max_batch * dimension * 4).view(np.float32).reshape(max_batch, dimension)
        # Both are CPU memory to onnxruntime, which copies with CUDA; CUDA recognises pinned memory by its address.
        self._bindings = {size: self._bind(size) for size in sizes(max_batch)}

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, S, S, C] → float32 [N, D], N at most ``max_batch``."""
        count = len(images)
        self._images[:count] = images
        # The rest of the buffer holds images of earlier runs; their vectors are computed and not read.
        size = next(size for size in self._bindings if size >= count)
        self._session.run_with_iobinding(self._bindings[size])
        return self._vectors[:count].copy()

    def _bind(self, size: int) -> Any:
        binding = self._session.io_binding()
        for bind, name, buffer in (
            (binding.bind_input, INPUT, self._images[:size]),
            (binding.bind_output, OUTPUT, self._vectors[:size]),
        ):
            bind(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
        return binding


def sizes(max_batch: int) -> list[int]:
    """The sizes to which batches are padded: powers of two, and the largest."""
    return [1 << power for power in range((max_batch - 1).bit_length())] + [max_batch]
