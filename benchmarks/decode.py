"""The cost of turning a photograph into the encoder's square, and how far cheaper ways move its embedding.

    python benchmarks/decode.py PHOTOS --encoder encoder.onnx --json out.json

PHOTOS is a folder of real photographs: drawn images have no detail to lose. Each is used as it is (JPEG) or as a JPEG
of quality 90, and again enlarged to 8 megapixels, as from a camera. CPU time of the thread is measured, which other
work on the machine hardly changes; the ways take turns. simplejpeg and OpenCV must be installed.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measuring.document import document, write
from measuring.rounds import in_turns
from numpy.typing import NDArray
from PIL import Image

from embedserve.encoder.session import Encoder
from embedserve.images import preprocess
from embedserve.images.preprocess import PreprocessSpec

CAMERA_PIXELS = 8_000_000
THREADS = (1, 2, 4)
Way = Callable[[PreprocessSpec, bytes], NDArray[np.uint8]]


def main() -> None:
    """Parse, measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description="Decode and resize: CPU time beside drift of the embedding.")
    parser.add_argument("photos", type=Path, help="folder of real photographs")
    parser.add_argument(
        "--encoder", type=Path, required=True, help="encoder file, whose preprocessing and embeddings are used"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each way (5)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything that was measured to this file")
    arguments = parser.parse_args()
    files = [path for path in sorted(arguments.photos.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if not files:
        parser.error(f"{arguments.photos} has no JPEGs and PNGs")
    encoder = Encoder.open(arguments.encoder, device="cpu", threads=1)
    spec = encoder.metadata.preprocess
    sizes = {
        "as it is": [as_jpeg(Image.open(path), path) for path in files],
        "8 megapixels": [as_jpeg(enlarged(Image.open(path)), None) for path in files],
    }
    results = document(
        "decode.py",
        versions={name: version(name) for name in ("pillow", "simplejpeg", "opencv-python-headless", "numpy")},
        photos=[path.name for path in files],
        encoder=f"{encoder.metadata.backbone or encoder.metadata.name}, {spec.size_px} px",
        sizes={},
    )
    for size, photos in sizes.items():
        ways = measure(spec, photos, encoder, arguments.rounds)
        scaling = side_by_side(spec, photos)
        print(f"\n{size}: {len(photos)} JPEGs, {statistics.mean(map(len, photos)) / 1000:.0f} kB on average")
        print(f"  {'':44}CPU ms   1 - cosine to the full decode: mean      worst")
        for way in ways:
            print(f"  {way.name:44}{way.cpu_ms:6.1f}{statistics.mean(way.drift):33.1e}{max(way.drift):11.1e}")
        print("  images/s with threads: " + ", ".join(f"{n}: {rate:.0f}" for n, rate in scaling.items()))
        results["sizes"][size] = {
            "mean_bytes": round(statistics.mean(map(len, photos))),
            "ways": [way.to_json() for way in ways],
            "images_per_s_by_threads": {str(n): round(rate, 1) for n, rate in scaling.items()},
        }
    write(results, arguments.json)


# --- Ways -----------------------------------------------------------------------------------------------------------


def pillow_full(spec: PreprocessSpec, data: bytes) -> NDArray[np.uint8]:
    """All pixels decoded, then one antialiased resampling: the reference for the others."""
    return preprocess.apply(spec, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def pillow_scaled(at: int, spec: PreprocessSpec, data: bytes) -> NDArray[np.uint8]:
    """Decoded at a fraction that keeps ``at`` times the target."""
    image = Image.open(io.BytesIO(data))
    side = at * (spec.resize_px or spec.size_px)
    image.draft("RGB", (side, side))
    return preprocess.apply(spec, np.asarray(image.convert("RGB")))


def simplejpeg_full(spec: PreprocessSpec, data: bytes) -> NDArray[np.uint8]:
    """As ``pillow_full`` without Pillow's decoder."""
    import simplejpeg

    return preprocess.apply(spec, simplejpeg.decode_jpeg(data))


def ours(spec: PreprocessSpec, data: bytes) -> NDArray[np.uint8]:
    """The way of embedserve."""
    return preprocess.load(spec, data)


def opencv(interpolation: str, spec: PreprocessSpec, data: bytes) -> NDArray[np.uint8]:
    """OpenCV's decoder and one of its filters, on the same part of the image."""
    import cv2

    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    height, width = pixels.shape[:2]
    if spec.resize_px:
        side = round(min(height, width) * spec.size_px / spec.resize_px)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    square = cv2.resize(pixels, (spec.size_px, spec.size_px), interpolation=getattr(cv2, interpolation))
    return np.asarray(square, dtype=np.uint8)


WAYS: dict[str, Way] = {
    "Pillow, full decode": pillow_full,
    "Pillow, scaled decode to twice the target": partial(pillow_scaled, 2),
    "Pillow, scaled decode to the target": partial(pillow_scaled, 1),
    "simplejpeg, full decode": simplejpeg_full,
    "embedserve (simplejpeg, twice the target)": ours,
    "OpenCV, INTER_AREA": partial(opencv, "INTER_AREA"),
    "OpenCV, INTER_LINEAR (no antialiasing)": partial(opencv, "INTER_LINEAR"),
}


# --- Measuring ------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """One way: CPU milliseconds for an image, and how far it moves each embedding."""

    name: str
    rounds_ms: list[float] = field(default_factory=list)
    drift: list[float] = field(default_factory=list)
    """1 − cosine to the full decode, for each photograph."""

    @property
    def cpu_ms(self) -> float:
        """Median over the rounds of the mean over the photographs."""
        return statistics.median(self.rounds_ms)

    def to_json(self) -> dict[str, Any]:
        """The figures, rounded."""
        return {
            "way": self.name,
            "cpu_ms": round(self.cpu_ms, 2),
            "drift_mean": float(f"{statistics.mean(self.drift):.2g}"),
            "drift_worst": float(f"{max(self.drift):.2g}"),
        }


def measure(spec: PreprocessSpec, photos: list[bytes], encoder: Encoder, rounds: int) -> list[Measured]:
    """Every way on every photograph, in turns."""
    measured = [Measured(name) for name in WAYS]
    expected = encoder.encode(np.stack([pillow_full(spec, data) for data in photos])).astype(np.float64)
    for way in measured:
        got = encoder.encode(np.stack([WAYS[way.name](spec, data) for data in photos])).astype(np.float64)
        way.drift = [max(float(1 - cosine), 0.0) for cosine in (expected * got).sum(axis=1)]
    for _, way in in_turns(measured, rounds):
        begun = time.thread_time()
        for data in photos:
            WAYS[way.name](spec, data)
        way.rounds_ms.append((time.thread_time() - begun) * 1000 / len(photos))
    return measured


def side_by_side(spec: PreprocessSpec, photos: list[bytes]) -> dict[int, float]:
    """Threads → images/s of embedserve's way."""
    rates = {}
    for threads in THREADS:
        with ThreadPoolExecutor(threads) as pool:
            begun = time.perf_counter()
            count = sum(1 for _ in pool.map(partial(ours, spec), photos * 4))
            rates[threads] = count / (time.perf_counter() - begun)
    return rates


def as_jpeg(image: Image.Image, path: Path | None) -> bytes:
    """The file itself if it is a JPEG, else a JPEG of quality 90."""
    if path is not None and path.suffix.lower() in (".jpg", ".jpeg"):
        return path.read_bytes()
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=90)
    return out.getvalue()


def enlarged(image: Image.Image) -> Image.Image:
    """The same picture with as many pixels as a camera's."""
    factor = (CAMERA_PIXELS / (image.width * image.height)) ** 0.5
    return image.convert("RGB").resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC
    )


if __name__ == "__main__":
    main()
