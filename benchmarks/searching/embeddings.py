"""Fashion-MNIST through an encoder that the project trained and exported: real embeddings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedserve.encoder.session import Encoder
from embedserve.images import preprocess
from searching.data import DataSet, kept, unit

REPOSITORY = Path(__file__).resolve().parents[2]
MINUTES = 1.0
"""Of training: enough that images of one label lie together, which makes embeddings easier than noise."""

_BATCH = 256


def fashion(work: Path, *, searched: int, asked: int, encoder: Path | None = None) -> DataSet | str:
    """The first training images, with the first test images as queries; or why there are none.

    Args:
        work: folder that keeps it.
        searched: training images, at most 60,000.
        asked: test images, at most 10,000.
        encoder: an encoder file; None: one is trained for ``MINUTES``.
    """
    from scripts.fashion_mnist import DEBIAN

    if not DEBIAN.is_dir():
        return f"Fashion-MNIST is not in {DEBIAN} (Debian's package dataset-fashion-mnist)"
    file = encoder or trained(work)
    opened = Encoder.open(file, device="cpu")
    how = f"trained for {MINUTES:g} minute" if encoder is None else file.name
    metadata = opened.metadata
    about = (
        f"Fashion-MNIST, training images searched with test images, embedded by {metadata.backbone or metadata.name}"
        f" ({metadata.method + ', ' if metadata.method else ''}{how})"
    )
    folder = work / "data" / f"fashion-{opened.fingerprint[:12]}-{searched}-{asked}"
    return kept(
        folder,
        f"fashion-mnist-{searched}x{metadata.dimension}",
        about,
        lambda path: np.save(path, embedded(opened, DEBIAN, "train", searched)),
        lambda: embedded(opened, DEBIAN, "test", asked),
    )


def embedded(encoder: Encoder, source: Path, part: str, count: int) -> NDArray[np.float32]:
    """Unit vectors of the first images of a part, with the preprocessing of the server."""
    from scripts.fashion_mnist import png, read_part

    spec = encoder.metadata.preprocess
    images, _ = read_part(source, part)
    found = []
    for start in range(0, min(count, len(images)), _BATCH):
        squares = [preprocess.load(spec, png(pixels)) for pixels in images[start : min(start + _BATCH, count)]]
        found.append(encoder.encode(np.stack(squares)))
    return unit(np.concatenate(found))


def trained(work: Path) -> Path:
    """An encoder trained on the training images by the commands of a user; kept below ``work``."""
    file = work / "encoder" / f"fashion-{MINUTES:g}.onnx"
    if file.exists():
        return file
    images, run = work / "encoder/images", work / "encoder/run"
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "training")])
    for command in (
        [str(REPOSITORY / "scripts/fashion_mnist.py"), str(images)],
        ["-m", "embedserve", "train", str(images / "train"), "-o", str(run), "--minutes", f"{MINUTES:g}", "--fresh"],
        ["-m", "embedserve", "export", str(run), "-o", str(file)],
    ):
        print(f"making the encoder: {' '.join(command)}", flush=True)
        done = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return file
