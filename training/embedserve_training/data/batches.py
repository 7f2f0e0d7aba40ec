"""Batches of pixels on the training device, in an order that is a function of seed and step.

Every epoch is a new permutation without its last, incomplete batch (batch-norm and the contrastive loss depend on the
batch size). Each permutation drops other images, so training loses none. Several processes use the batches of a single
one, each its own rows of them.

Shapes: N images, G in a batch of all processes, B of them in this one, T side of the cached image.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embedserve_training.seeds import seed_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_AHEAD = 2
"""Batches fetched ahead if the images are not resident on the device."""


class Batches:
    """The batches of a run.

    Args:
        pixels_NTTC: uint8 [N, T, T, 3], usually memory-mapped.
        batch_size: G, at most N.
        seed: seed of the order.
        device: device of the batches. All pixels are copied there at once if they fit in half of its free memory.
        rows_B: the rows of each batch that this process uses; all of them by default.
    """

    def __init__(
        self,
        pixels_NTTC: NDArray[np.uint8],
        batch_size: int,
        seed: int,
        device: torch.device,
        *,
        rows_B: Tensor | None = None,
    ) -> None:
        self._pixels_NTTC = torch.from_numpy(pixels_NTTC)
        self.batch_size = batch_size
        self._rows_B = torch.arange(batch_size) if rows_B is None else rows_B
        self.per_epoch = len(pixels_NTTC) // batch_size
        self._seed = seed
        self._device = device
        self.resident = _fits(pixels_NTTC.nbytes, device)
        if self.resident:
            self._pixels_NTTC = self._pixels_NTTC.to(device)

    def start_at(self, step: int) -> Generator[tuple[Tensor, Tensor]]:
        """Endless batches from this step on: indices int64 [B] and pixels uint8 [B, T, T, 3], both on the device."""
        if self.resident:
            for indices_B in self._indices(step):
                # From pinned memory: otherwise the copy waits for all queued work of the GPU.
                pinned_B = indices_B.pin_memory() if self._device.type == "cuda" else indices_B
                there_B = pinned_B.to(self._device, non_blocking=True)
                yield there_B, self._pixels_NTTC[there_B]
        else:
            yield from self._fetched_ahead(step)

    def _indices(self, step: int) -> Iterator[Tensor]:
        count = len(self._pixels_NTTC)
        while True:
            epoch, first = divmod(step, self.per_epoch)
            generator = torch.Generator().manual_seed(seed_of(self._seed, "order", epoch))
            order_N = torch.randperm(count, generator=generator)
            for position in range(first, self.per_epoch):
                yield order_N[position * self.batch_size + self._rows_B]
                step += 1

    def _fetched_ahead(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        def fetch(indices_B: Tensor) -> tuple[Tensor, Tensor]:
            pixels_BTTC = self._pixels_NTTC[indices_B]
            return indices_B, pixels_BTTC.pin_memory() if self._device.type == "cuda" else pixels_BTTC

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            waiting: list[Future[tuple[Tensor, Tensor]]] = []
            for indices_B in self._indices(step):
                waiting.append(pool.submit(fetch, indices_B))
                if len(waiting) > _AHEAD:
                    ready_B, pixels_BTTC = waiting.pop(0).result()
                    yield (
                        ready_B.to(self._device, non_blocking=True),
                        pixels_BTTC.to(self._device, non_blocking=True),
                    )


def _fits(size_bytes: int, device: torch.device) -> bool:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return size_bytes < free / 2
    # On the CPU the memory map itself is indexed, and the page cache holds as much of it as fits.
    return device.type == "cpu"
