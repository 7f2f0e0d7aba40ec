"""The ceiling: decoding and onnxruntime in a loop on all cores, with the encoders and JPEGs of the benchmarks."""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from embedserve.cores import usable_cores
from embedserve.encoder import encoder_file
from embedserve.encoder.session import Encoder
from embedserve.images import preprocess

BUILT_IN = {"light": ("small-cnn", 28, (160, 120)), "heavy": ("resnet18", 224, (640, 480))}
"""Encoder → backbone with random weights, its side in pixels, and the size of the JPEGs sent to it."""

PICTURES = 64
BARE_BATCHES = (1, 4, 16)
"""Batches of the bare loop; the best one is the ceiling."""


@dataclass(frozen=True)
class BareLoop:
    """Decoding and encoding on all cores, without a server."""

    encoder: Encoder
    pictures: list[bytes]
    batch: int

    def run(self, count: int) -> float:
        """Embed ``count`` images; returns the seconds."""
        starts, lock = iter(range(0, count, self.batch)), threading.Lock()
        spec = self.encoder.metadata.preprocess

        def work() -> None:
            while True:
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                numbers = range(start, min(start + self.batch, count))
                images = [preprocess.load(spec, self.pictures[number % len(self.pictures)]) for number in numbers]
                self.encoder.encode(np.stack(images))

        begun = time.perf_counter()
        with ThreadPoolExecutor(usable_cores()) as pool:
            for future in [pool.submit(work) for _ in range(usable_cores())]:
                future.result()
        return time.perf_counter() - begun


def best_bare(encoder: Encoder, pictures: list[bytes]) -> tuple[BareLoop, float]:
    """The bare loop with the batch that takes the least CPU time, and its images/s.

    By CPU time, which other work on the machine changes less than elapsed time. A larger batch must save 3 %: at the
    end of a measurement some cores wait for the last batch of others.
    """
    best: tuple[float, BareLoop, float] | None = None
    for batch in BARE_BATCHES:
        loop = BareLoop(encoder, pictures, batch)
        count = 2 * batch * usable_cores()
        loop.run(count)
        while True:
            cpu, seconds = time.process_time(), loop.run(count)
            cpu = time.process_time() - cpu
            if seconds >= 0.5:
                break
            count *= 2
        if best is None or cpu / count < 0.97 * best[0]:
            best = cpu / count, loop, count / seconds
    assert best is not None
    return best[1:]


def encoder_of(name: str) -> tuple[Path, tuple[int, int]]:
    """The encoder file, created if it is a built-in one, and the size of the JPEGs for it."""
    if name not in BUILT_IN:
        return Path(name), (640, 480)
    backbone, size_px, picture_px = BUILT_IN[name]
    try:
        from embedserve_training.export import export
        from embedserve_training.networks import backbones
    except ModuleNotFoundError:
        raise SystemExit(f"the {name} encoder is created with PyTorch: pip install 'embedserve[train]'") from None
    # Created again if the network or the exported graph would differ.
    sources = b"".join(Path(inspect.getfile(module)).read_bytes() for module in (backbones, export))
    key = hashlib.sha256(sources + version("torch").encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"embedserve-benchmarks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{backbone}-{size_px}-{key}.onnx"
    if not path.exists():
        print(f"creating {path}", flush=True)
        make_encoder(backbone, size_px, path)
    return path, picture_px


def make_encoder(backbone: str, size_px: int, path: Path, *, seed: int = 0) -> None:
    """Write an encoder with random weights, as fast as a trained one."""
    import torch

    from embedserve_training.export.export import to_onnx
    from embedserve_training.networks import backbones
    from embedserve_training.run.served import ServedEncoder

    torch.manual_seed(seed)
    network = ServedEncoder(backbones.build(backbone, size_px)).eval()
    metadata = encoder_file.EncoderMetadata(
        name=backbone,
        dimension=network.backbone.dimension,
        preprocess=preprocess.PreprocessSpec(size_px=size_px, resize_px=round(size_px * 8 / 7), filter="bicubic"),
        backbone=backbone,
    )
    encoder_file.write(encoder_file.pack(to_onnx(network, size_px), metadata), path)


def jpeg(width: int, height: int, seed: int) -> bytes:
    """A JPEG of waves in three colours and some noise, about as large as a photograph of that size."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(x * a + y * b + c) for a, b, c in random.uniform(-40, 40, size=(3, 3))]
    pixels = (np.stack(waves, axis=-1) + 1) * 110 + random.normal(0, 12, (height, width, 1))
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=88)
    return out.getvalue()
