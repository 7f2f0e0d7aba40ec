"""Copies among the images of an evaluation: one picture on both sides would make any encoder look good.

Shapes: N images to search in, M queries, A = all, S side in pixels, C = 3 channels, P values of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve.errors import DataError
from embedserve_training.data.copies import Copies, pixel_digest
from embedserve_training.evaluate.baselines import flat_pixels
from embedserve_training.evaluate.images import ImageSplit, LoadedSplit, hold_out
from embedserve_training.evaluate.neighbours import by_block
from embedserve_training.evaluate.self_retrieval import QUERIES, evenly_spaced

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAR = 0.99
"""Cosine of the pixels at 32 × 32 at most, each image around its own mean, from which two are near-copies."""
_FLAT = 1 / 255
"""An image that varies less than this, on 0–1, has no cosine that says anything."""


@dataclass(frozen=True, kw_only=True)
class SplitCopies:
    """Copies among the images of an evaluation."""

    copies: Copies
    """On both sides together."""
    regrouped: bool = False
    """Whether images were held out otherwise, so that copies of one picture stay on one side."""
    left_out: int = 0
    """Queries of another folder that are left out because they are among the images to search in."""
    near: int = 0
    """Queries with a near-copy among the images to search in; without labels, images with a near-copy."""
    near_of: int = 0
    """Images that were looked at for it."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self.copies), **{name: value for name, value in asdict(self).items() if name != "copies"}}

    def lines(self, labels: bool) -> list[str]:
        """What a person should know, in sentences."""
        lines = self.copies.lines()
        if self.regrouped:
            lines.append("copies of one picture stay on one side: either searched in, or queries")
        if self.left_out:
            what = (
                "1 query is a copy of an image"
                if self.left_out == 1
                else f"{self.left_out:,} queries are copies of images"
            )
            lines.append(f"{what} to search in, and left out")
        if self.near:
            what = "queries have a near-copy among the images to search in" if labels else "images have a near-copy"
            lines.append(f"{self.near:,} of {self.near_of:,} {what} (re-encoded, resized): figures flatter")
        return lines


def separate(chosen: ImageSplit, loaded: LoadedSplit) -> tuple[ImageSplit, LoadedSplit, SplitCopies]:
    """The same images with the copies of each picture on one side, and their counts.

    Without copies on both sides nothing changes.

    Raises:
        DataError: no query is left.
    """
    train = [pixel_digest(image_SSC) for image_SSC in loaded.train_NSSC]
    test = [pixel_digest(image_SSC) for image_SSC in loaded.test_MSSC]
    found = SplitCopies(copies=Copies.of(train + test))
    if chosen.test is not None and set(train) & set(test):
        if chosen.held_out:
            chosen, loaded = _regrouped(chosen, loaded, train + test)
            found = replace(found, regrouped=True)
        else:
            chosen, loaded = _without_copies(chosen, loaded, set(train), test)
            found = replace(found, left_out=len(test) - len(loaded.test_MSSC))
    near, near_of = near_copies(loaded.train_NSSC, loaded.test_MSSC if chosen.test else None)
    return chosen, loaded, replace(found, near=near, near_of=near_of)


def _regrouped(chosen: ImageSplit, loaded: LoadedSplit, digests: Sequence[bytes]) -> tuple[ImageSplit, LoadedSplit]:
    assert chosen.test is not None, "there are queries"
    whole = replace(
        chosen.train,
        paths=chosen.train.paths + chosen.test.paths,
        files=tuple(side.file(i) for side in (chosen.train, chosen.test) for i in range(len(side.paths))),
    )
    order = sorted(range(len(whole.paths)), key=whole.paths.__getitem__)
    unreadable = whole.unreadable
    whole = replace(whole.subset(order), unreadable=unreadable)
    all_paths = loaded.train_paths + loaded.test_paths
    number: dict[bytes, int] = {}
    picture = {path: number.setdefault(digest, len(number)) for path, digest in zip(all_paths, digests, strict=True)}
    # A file that cannot be read is a picture of its own.
    kept, held_out = hold_out(whole, [picture.get(path, -1 - i) for i, path in enumerate(whole.paths)])
    row = {path: i for i, path in enumerate(all_paths)}
    all_ASSC = loaded.all_ASSC
    labels_A = loaded.all_of(loaded.train_labels_N, loaded.test_labels_M)
    train_paths = tuple(path for path in kept.paths if path in row)
    test_paths = tuple(path for path in held_out.paths if path in row)
    train_N = np.array([row[path] for path in train_paths], np.int64)
    test_M = np.array([row[path] for path in test_paths], np.int64)
    moved = replace(
        loaded,
        train_NSSC=all_ASSC[train_N],
        train_labels_N=labels_A[train_N],
        test_MSSC=all_ASSC[test_M],
        test_labels_M=labels_A[test_M],
        train_paths=train_paths,
        test_paths=test_paths,
    )
    return replace(chosen, train=kept, test=held_out), moved


def _without_copies(
    chosen: ImageSplit, loaded: LoadedSplit, searched: set[bytes], test: Sequence[bytes]
) -> tuple[ImageSplit, LoadedSplit]:
    assert chosen.test is not None, "there are queries"
    keep = [i for i, digest in enumerate(test) if digest not in searched]
    if not keep:
        raise DataError(
            f"every query in {chosen.test.name} is also an image of {chosen.train.name}, pixel by pixel",
            hint="leave out --test, or give it a folder with other images",
        )
    dropped = set(loaded.test_paths) - {loaded.test_paths[i] for i in keep}
    positions = [i for i, path in enumerate(chosen.test.paths) if path not in dropped]
    left = replace(chosen.test.subset(positions), unreadable=chosen.test.unreadable)
    rest = replace(
        loaded,
        test_MSSC=loaded.test_MSSC[keep],
        test_labels_M=loaded.test_labels_M[keep],
        test_paths=tuple(loaded.test_paths[i] for i in keep),
    )
    return replace(chosen, test=left), rest


def near_copies(train_NSSC: NDArray[np.uint8], test_MSSC: NDArray[np.uint8] | None) -> tuple[int, int]:
    """How many images have a near-copy, which is not equal to them, and how many were looked at.

    Args:
        train_NSSC: images to search in.
        test_MSSC: queries, of which up to 2,000 are looked up; None: as many of the images to search in.
    """
    own = evenly_spaced(len(train_NSSC), QUERIES)
    train_NP = _centred(train_NSSC)
    test_MP = train_NP[own] if test_MSSC is None else _centred(test_MSSC[evenly_spaced(len(test_MSSC), QUERIES)])

    def near(rows: slice, cosine_BN: NDArray[np.float32]) -> int:
        near_BN = cosine_BN >= NEAR
        if test_MSSC is None:
            for row, position in enumerate(own[rows]):
                for other in np.flatnonzero(near_BN[row]):
                    near_BN[row, other] = not np.array_equal(train_NSSC[other], train_NSSC[position])
        return int(near_BN.any(axis=1).sum())

    return sum(by_block(train_NP, test_MP, near)), len(test_MP)


def _centred(pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The pixels around the mean of each image, zero for an image of one colour: [N, P]."""
    flat_NP = flat_pixels(pixels_NSSC)
    flat_NP -= flat_NP.mean(axis=1, keepdims=True)
    flat_NP[flat_NP.std(axis=1) < _FLAT] = 0
    return flat_NP
