"""The images of a run, decoded once into one memory-mapped uint8 file in the run folder.

Decoding limits training long before a GPU does (about 700 photos per second and core), and augmentations on the device
need only pixels. The file can be recreated at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.atomic_write import write_text
from embedserve.errors import DataError
from embedserve.images.preprocess import PreprocessSpec
from embedserve_training.data.copies import Copies, pixel_digest
from embedserve_training.data.folders import ImageFolder, Noted, Skipped, load_all, nothing_readable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MARGIN = 1.15
"""Side of a cached image over side of a view, so that crops are rarely enlarged more than the recipe asks for."""
_RULE = 1
"""Increased whenever the same files would give other pixels."""


@dataclass(frozen=True, kw_only=True)
class DecodedImages:
    """The pixels of a run's images."""

    pixels_NTTC: NDArray[np.uint8]
    """uint8 [N, T, T, 3], memory-mapped, read-only."""
    positions: tuple[int, ...]
    """Position of each image in the folder's ``paths``."""
    skipped: tuple[Skipped, ...]
    fingerprint: str
    """sha256 over names and contents of the images that are used."""
    notes: tuple[Noted, ...] = ()
    """What was decided for single images."""
    digests: tuple[str, ...] = ()
    """sha256 of each image's bytes in hex digits; empty in a cache of an older version."""
    copies: Copies | None = None
    """Pictures that are there more than once; None in a cache of an older version."""


def cached_side_px(size_px: int, median_side_px: int) -> int:
    """T for views of S pixels: 1.15 · S, but no more than the images have."""
    return max(min(round(size_px * MARGIN), median_side_px), 8)


def cached_spec(encoder: PreprocessSpec, side_px: int) -> PreprocessSpec:
    """How the images are cached of which an encoder with this rule learns: alike, but at T pixels, without a margin."""
    return replace(encoder, size_px=side_px, resize_px=side_px if encoder.fit == "crop" else 0)


def open_cache(
    folder: ImageFolder,
    spec: PreprocessSpec,
    where: Path,
    *,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DecodedImages:
    """The decoded images of a folder, from the cache in ``where`` unless a file has changed since.

    Args:
        folder: the files.
        spec: how an image becomes a square of T pixels; see ``cached_spec``.
        where: folder of the cache; created if missing.
        workers: number of decoding threads.
        progress: called with the number of files done and their total.

    Raises:
        DataError: no file can be read, or the disk is too small.
    """
    where.mkdir(parents=True, exist_ok=True)
    key = _key(folder, spec)
    pixels_path, index_path = where / f"{key}.u8", where / f"{key}.json"
    cached = _open(pixels_path, index_path, spec)
    if cached is None:
        _decode(folder, spec, pixels_path, index_path, workers, progress)
        cached = _open(pixels_path, index_path, spec)
    if cached is None:
        raise DataError(f"the decoded images in {where} cannot be read back", hint="check the disk")
    return cached


def find_cache(where: Path, spec: PreprocessSpec, fingerprint: str) -> DecodedImages | None:
    """The images with this fingerprint, decoded by this rule, which another process has made; None without them."""
    for index_path in sorted(where.glob("*.json")):
        cached = _open(index_path.with_suffix(".u8"), index_path, spec)
        if cached and cached.fingerprint == fingerprint:
            return cached
    return None


def _key(folder: ImageFolder, spec: PreprocessSpec) -> str:
    """A key of all names, sizes and times of modification; resuming then need not read every file."""
    digest = hashlib.sha256(json.dumps([_RULE, spec.to_json()]).encode())
    for position, path in enumerate(folder.paths):
        try:
            status = folder.file(position).stat()
            digest.update(os.fsencode(f"\0{path}\0{status.st_size}\0{status.st_mtime_ns}"))
        except OSError:
            digest.update(os.fsencode(f"\0{path}\0"))
    return digest.hexdigest()[:16]


def _decode(
    folder: ImageFolder,
    spec: PreprocessSpec,
    pixels_path: Path,
    index_path: Path,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    needed = len(folder.paths) * spec.size_px**2 * 3
    free = shutil.disk_usage(pixels_path.parent).free
    if needed > free:
        raise DataError(
            f"decoded, the images take {needed >> 20} MiB; {pixels_path.parent} has {free >> 20} MiB left",
            hint="put the run on a larger disk: -o FOLDER",
        )
    positions: list[int] = []
    digests: list[str] = []
    skipped = list(folder.unreadable)
    notes: list[Noted] = []
    fingerprint = hashlib.sha256()
    pictures: list[bytes] = []
    partial = pixels_path.with_suffix(".partial")
    complete = False
    try:
        with partial.open("wb") as out:
            for position, digest, outcome in load_all(folder, spec, workers=workers, progress=progress, notes=notes):
                if isinstance(outcome, Skipped):
                    skipped.append(outcome)
                    continue
                out.write(outcome.tobytes())
                positions.append(position)
                digests.append(digest.hex())
                pictures.append(pixel_digest(outcome))
                fingerprint.update(os.fsencode(folder.paths[position]) + b"\0" + digest)
            out.flush()
            os.fsync(out.fileno())
        complete = True
    except OSError as error:
        raise DataError(f"the decoded images cannot be written to {pixels_path.parent}: {error.strerror}") from error
    finally:
        if not complete:
            partial.unlink(missing_ok=True)
    if not positions:
        partial.unlink()
        raise nothing_readable(folder, skipped)
    partial.replace(pixels_path)
    index = {
        "positions": positions,
        "skipped": [asdict(entry) for entry in skipped],
        "fingerprint": fingerprint.hexdigest(),
        "notes": [asdict(entry) for entry in notes],
        "rule": spec.to_json(),
        "digests": digests,
        "copies": asdict(Copies.of(pictures)),
    }
    write_text(index_path, json.dumps(index))


def _open(pixels_path: Path, index_path: Path, spec: PreprocessSpec) -> DecodedImages | None:
    """The content of the cache; None if it is missing, incomplete or of another rule."""
    import numpy as np

    try:
        side_px = spec.size_px
        index = json.loads(index_path.read_text())
        # Before the index said its rule there was but one.
        before = {"size_px": side_px, "resize_px": side_px, "filter": "bicubic"}
        if index.get("rule", before) != spec.to_json():
            return None
        shape = (len(index["positions"]), side_px, side_px, 3)
        if pixels_path.stat().st_size != math.prod(shape):
            return None
        pixels = np.memmap(pixels_path, np.uint8, mode="c", shape=shape)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return DecodedImages(
        pixels_NTTC=pixels,
        positions=tuple(index["positions"]),
        skipped=tuple(Skipped(**entry) for entry in index["skipped"]),
        fingerprint=index["fingerprint"],
        notes=tuple(Noted(**entry) for entry in index.get("notes", ())),
        digests=tuple(index.get("digests", ())),
        copies=Copies(**index["copies"]) if "copies" in index else None,
    )
