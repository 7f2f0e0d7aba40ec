"""Every way of writing a TIFF: decoded to what was written, or refused by its name, and nothing else."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve.errors import ImageFormatError
from embedserve.images import codec
from embedserve.images.pixel_rule import PixelRule
from tests.images import tiff_table
from tests.images.tiff_table import KINDS, Kind

Outcome = tuple[dict[str, Any], str]

WITH_A_RANGE = PixelRule(value_range=(-0.25, 1.25))


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Outcome]]:
    """Each kind with the ways that it was written in: "right", "refused: …" or what went wrong."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    found: dict[str, list[Outcome]] = {name: [] for name in KINDS}
    pictures = {name: tiff_table.expected(kind) for name, kind in KINDS.items()}
    for kind, way in tiff_table.every_way():
        data = tiff_table.written(kind, **way)
        if data is not None:
            name = f"{kind.name}, {kind.photometric}"
            found[name].append((way, _outcome(data, kind, way, pictures[name])))
    return found


def _outcome(data: bytes, kind: Kind, way: dict[str, Any], picture: Any) -> str:
    try:
        decoded = codec.decode(data)
    except ImageFormatError as error:
        return f"refused: {error.message}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if picture is None:
        return "decoded, though nothing says what is black and what is white"
    # Transparency is composed, and inks are mixed, in whole numbers: of premultiplied colours twice.
    tolerance = 2 if "assocalpha" in kind.extra else 1
    if way["compression"] == "jpeg":
        picture, tolerance = tiff_table.read_back(kind, data), 8
    if decoded.shape != picture.shape:
        return f"its shape is {decoded.shape}"
    difference = int(np.abs(decoded.astype(int) - picture).max())
    return "right" if difference <= tolerance else f"differs by {difference}"


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_right_or_refused_by_its_name(kind: str, outcomes: dict[str, list[Outcome]]) -> None:
    assert outcomes[kind], "it was not written in any way"
    wrong = [(way, said) for way, said in outcomes[kind] if said != "right" and not _is_named(KINDS[kind], way, said)]
    assert not wrong


def _is_named(kind: Kind, way: dict[str, Any], said: str) -> bool:
    """Whether a refusal says what it is about: the compression, or the bits and the kind of the numbers."""
    names = {
        "jpeg": "JPEG", "webp": "WebP", "jpeg2000": "JPEG 2000", "jpegxl": "JPEG XL", "png": "PNG", "lerc": "LERC",
        "jpegxr": "JPEG XR",
    }  # fmt: skip
    if not said.startswith("refused: the image is a TIFF with "):
        return False
    if way["compression"] in names:
        return f"{names[way['compression']]} compression" in said
    number = {"u": "unsigned", "i": "signed", "f": "floating-point"}[np.dtype(kind.dtype).kind]
    return f"{8 * np.dtype(kind.dtype).itemsize}-bit {number}" in said and "black and white are not known" in said


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.dtype in ("u1", "u2", "?")])
def test_unsigned_samples_of_up_to_16_bits_are_right_in_every_layout(
    kind: str, outcomes: dict[str, list[Outcome]]
) -> None:
    of_bytes = {said for way, said in outcomes[kind] if way["compression"] in tiff_table.BYTES}
    assert of_bytes == {"right"}


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.dtype in ("f2", "f4", "f8")])
@pytest.mark.parametrize("order", tiff_table.ORDERS)
@pytest.mark.parametrize("compression", ["none", "zlib"])
def test_numbers_without_a_range_of_their_own_are_read_with_one(kind: str, order: str, compression: str) -> None:
    this = KINDS[kind]
    picture = tiff_table.expected(this, -0.25, 1.25)
    for separate in (False, True) if this.bands > 1 else (False,):
        for predictor in (False, True) if compression != "none" and not separate else (False,):
            data = tiff_table.written(
                this, compression=compression, order=order, layout="tiles", separate=separate, predictor=predictor
            )
            if data is None:
                continue
            difference = np.abs(codec.decode(data, rule=WITH_A_RANGE).astype(int) - picture)
            assert difference.max() <= (4 if "assocalpha" in this.extra else 1)


def test_the_guide_counts_them(outcomes: dict[str, list[Outcome]]) -> None:
    counts = Counter("right" if said == "right" else "refused" for ways in outcomes.values() for _, said in ways)
    guide = " ".join((Path(__file__).parents[2] / "docs" / "images.md").read_text().split())
    sentence = r"Of ([\d,]+) ways of writing a TIFF, ([\d,]+) are decoded and ([\d,]+) are refused"
    [stated] = re.findall(sentence, guide)
    assert [int(number.replace(",", "")) for number in stated] == [
        counts.total(),
        counts["right"],
        counts["refused"],
    ]
