"""An encoder and images for tests that need no training: fast, exact and deterministic."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedserve.encoder.encoder_file import EncoderMetadata
from embedserve.images.preprocess import PreprocessSpec

SIZE_PX, DIMENSION = 32, 16


class FakeEncoder:
    """Projects the mean colours of an 8 × 8 grid with fixed weights: similar pictures get similar vectors.

    ``on_batch`` is called with each batch before it is encoded; a test can record, block or fail there.
    """

    provider = "CPUExecutionProvider"

    def __init__(
        self,
        *,
        fingerprint: str = "fa" * 32,
        name: str = "fake",
        parallel_runs: int = 2,
        on_batch: Callable[[NDArray[np.uint8]], None] | None = None,
    ) -> None:
        self.metadata = EncoderMetadata(name=name, dimension=DIMENSION, preprocess=PreprocessSpec(size_px=SIZE_PX))
        self.fingerprint = fingerprint
        self.parallel_runs = parallel_runs
        self.batch_sizes: list[int] = []
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._projection = np.random.default_rng(0).standard_normal((8 * 8 * 3, DIMENSION)).astype(np.float32)

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (SIZE_PX, SIZE_PX, 3)
        with self._lock:
            self.batch_sizes.append(len(images))
        if self._on_batch is not None:
            self._on_batch(images)
        cells = images.reshape(len(images), 8, 4, 8, 4, 3).mean(axis=(2, 4), dtype=np.float32)
        # One row at a time: a vector must not depend on the rest of its batch.
        vectors = np.stack([(row.ravel() - 127.5) / 127.5 @ self._projection + 0.01 for row in cells])
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def picture(seed: int, *, format: str = "PNG", size: tuple[int, int] = (40, 40)) -> bytes:
    """An image file with coarse coloured patches, different for each seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize(size, Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, format, **({"quality": 95} if format == "JPEG" else {}))
    return out.getvalue()
