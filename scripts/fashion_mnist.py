"""Fashion-MNIST as class folders of PNGs: all of it, or the sample in the repository.

    python scripts/fashion_mnist.py data/fashion-mnist   60,000 training and 10,000 test images
    python scripts/fashion_mnist.py --sample             write examples/fashion-mnist-sample.zip again

Layout of both: train/CLASS/00001.png and test/CLASS/00001.png, numbered within the class in the original order. The
images are read from Debian's package dataset-fashion-mnist if it is installed, else downloaded by torchvision
(30 MB). Licence of the images: MIT, see examples/NOTICE.
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
"""Folder names by label, 0 to 9."""

PARTS = {"train": "train", "test": "t10k"}
"""Our name of a part → the prefix of its files."""

SAMPLE_PER_CLASS = {"train": 300, "test": 100}
SAMPLE = Path(__file__).resolve().parents[1] / "examples/fashion-mnist-sample.zip"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def main() -> None:
    """Parse the arguments and write."""
    parser = argparse.ArgumentParser(description="Write Fashion-MNIST as class folders of PNGs.")
    parser.add_argument("folder", type=Path, nargs="?", help="folder to write; created if it does not exist")
    parser.add_argument("--sample", action="store_true", help="write the sample archive in examples/ instead")
    parser.add_argument("--source", type=Path, help="folder with the four .gz files in IDX format")
    arguments = parser.parse_args()
    if arguments.sample == (arguments.folder is not None):
        parser.error("give either a folder or --sample")
    with tempfile.TemporaryDirectory() as scratch:
        source = arguments.source or find_source(Path(scratch))
        if arguments.sample:
            write_sample(source, SAMPLE)
        else:
            write_folders(source, arguments.folder)


def find_source(scratch: Path) -> Path:
    """Folder with the original files: Debian's, or a download into ``scratch``."""
    if DEBIAN.is_dir():
        return DEBIAN
    try:
        from torchvision.datasets import FashionMNIST
    except ImportError:
        sys.exit("error: Fashion-MNIST is not on this machine\nhint:  pip install -e '.[train]', which can download it")
    print("Downloading Fashion-MNIST: 30 MB")
    FashionMNIST(str(scratch), download=True)
    return scratch / "FashionMNIST/raw"


def write_folders(source: Path, folder: Path) -> None:
    """Write every image as a PNG below ``folder``; existing files are overwritten with the same bytes."""
    for part in PARTS:
        count = 0
        for name, pixels in numbered(source, part):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels))
            count += 1
        print(f"{folder / part}: {count} images in {len(CLASSES)} folders")


def write_sample(source: Path, archive: Path) -> None:
    """Write the first images of each class as one archive; its bytes depend only on the images and on zlib."""
    entries: dict[str, bytes] = {}
    for part, per_class in SAMPLE_PER_CLASS.items():
        for name, pixels in numbered(source, part, per_class):
            entries[name] = png(pixels)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:  # PNGs are compressed already
        for name in sorted(entries):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = 0o100644 << 16
            out.writestr(entry, entries[name])
    print(f"{archive}: {len(entries)} images, {archive.stat().st_size / 1e6:.1f} MB")


def numbered(source: Path, part: str, per_class: int | None = None) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Name in the layout and pixels (uint8 [28, 28]) of every image, or of the first ``per_class`` of each class."""
    images, labels = read_part(source, part)
    seen = [0] * len(CLASSES)
    for pixels, label in zip(images, labels, strict=True):
        seen[label] += 1
        if per_class is None or seen[label] <= per_class:
            yield f"{part}/{CLASSES[label]}/{seen[label]:05}.png", pixels


def read_part(source: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (uint8 [N, 28, 28]) and labels (uint8 [N]) of the training or the test part."""
    prefix = PARTS[part]
    images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
    return images, labels


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of bytes: two zeros, type 8, number of axes, big-endian sizes, data."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        sys.exit(f"error: {path} is not an IDX file of bytes")
    axes = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=axes, offset=4)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape.astype(np.int64))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """The pixels as a PNG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    main()
