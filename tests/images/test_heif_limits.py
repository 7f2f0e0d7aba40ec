"""AVIF and HEIC: all sizes in a file are held to the limits, and walking through it is bounded."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import features

from embedserve.errors import ImageError, ImageFormatError, ImageTooLarge, ImageUndecodable
from embedserve.images import boxes, codec
from embedserve.images.coded_size import av1_sizes, hevc_sizes
from embedserve.types import Limits
from tests.images.boxed_files import PICTURE, avif, box, heic

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
WRITERS = pytest.mark.parametrize("write", [avif, heic])


def decoders_stay_unreached(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object) -> None:
        raise AssertionError("a decoder was reached")

    monkeypatch.setattr("embedserve.images.codec.open_image", reached)


@WRITERS
def test_too_many_pixels_are_refused_before_a_decoder_is_reached(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write()
    decoders_stay_unreached(monkeypatch)
    with pytest.raises(ImageTooLarge, match="120 × 80 = 9600"):
        codec.decode(data, Limits(max_image_pixels=9599))


@WRITERS
def test_a_picture_larger_than_its_file_says_is_refused_too(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write()
    small = data.replace(b"ispe" + struct.pack(">III", 0, 120, 80), b"ispe" + struct.pack(">III", 0, 16, 16))
    assert small != data
    decoders_stay_unreached(monkeypatch)
    with pytest.raises(ImageTooLarge, match="120 × 80"):
        codec.decode(small, Limits(max_image_pixels=9599))


def test_a_transparency_larger_than_its_picture_is_refused_too() -> None:
    data = avif(np.dstack([PICTURE, PICTURE[..., 0]]))
    at = data.index(b"mdat")
    with pytest.raises(ImageError):
        codec.decode(data[:at].replace(struct.pack(">II", 120, 80), struct.pack(">II", 60000, 60000)) + data[at:])


@WRITERS
def test_exactly_the_allowed_pixels_are_read(write: Any) -> None:
    assert codec.decode(write(), Limits(max_image_pixels=9600)).shape == PICTURE.shape


def derived(refer: dict[int, list[int]], kind: bytes = b"iovl") -> bytes:
    """A HEIC file whose items, each a derivation, refer to others."""
    canvas = struct.pack(">BB4HII", 0, 1, 0, 0, 0, 0, 64, 64)
    entries = [box(b"infe", struct.pack(">IHH", 2 << 24, number, 0), kind, b"\0") for number in refer]
    places = [struct.pack(">HHHHII", number, 1, 0, 1, 0, len(canvas)) for number in refer]
    references = [
        box(b"dimg", struct.pack(">HH", number, len(others)), *(struct.pack(">H", other) for other in others))
        for number, others in refer.items()
    ]
    meta = box(
        b"meta",
        bytes(4),
        box(b"pitm", struct.pack(">IH", 0, 1)),
        box(b"iinf", struct.pack(">IH", 0, len(refer)), *entries),
        box(b"iloc", struct.pack(">IHH", 1 << 24, 0x4400, len(refer)), *places),
        box(b"iref", bytes(4), *references),
        box(b"idat", canvas),
    )
    return box(b"ftyp", b"heic", bytes(4), b"mif1heic") + meta


@pytest.mark.parametrize(
    "refer",
    [
        {1: [1]},
        {1: [2], 2: [1]},
        {1: [2] * 60_000, 2: []},
        {1: [2] * 50, 2: [3] * 50, 3: [4] * 50, 4: [5] * 50, 5: []},
        {1: [7]},
    ],
    ids=["itself", "a circle", "one item often", "often, often", "nothing"],
)
def test_items_that_refer_to_each_other_without_end_are_refused(refer: dict[int, list[int]]) -> None:
    pytest.importorskip("pillow_heif")
    with pytest.raises(ImageUndecodable, match="damaged"):
        codec.decode(derived(refer))


def places(count: int, parts: int, sizes: int) -> bytes:
    """A box with the places of items, each in so many parts, which take no bytes at all."""
    return box(b"iloc", struct.pack(">IHI", 2 << 24, sizes, count), *[struct.pack(">IHHH", 1, 0, 0, parts)] * count)


def described(number: int) -> bytes:
    return box(b"infe", struct.pack(">IHH", 2 << 24, number, 0), b"hvc1", b"\0")


def with_boxes(*content: bytes, mdat: bytes = b"") -> bytes:
    pitm = box(b"pitm", struct.pack(">IH", 0, 1))
    return box(b"ftyp", b"heic", bytes(4), b"mif1heic") + box(b"meta", bytes(4), pitm, *content) + box(b"mdat", mdat)


IINF = box(b"iinf", struct.pack(">IH", 0, 1), described(1))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (with_boxes(IINF, places(60_000, 60_000, 0)), "too many parts"),
        (with_boxes(IINF, places(1, 0, 0), *[box(b"free")] * 110_000), "too many boxes"),
        (with_boxes(IINF, places(1, 0, 0), box(b"iprp", box(b"ipma", struct.pack(">II", 0, 1 << 31)))), "properties"),
        (
            with_boxes(
                IINF,
                places(1, 0, 0),
                box(b"iref", bytes(4), *[box(b"dimg", struct.pack(">HH", 1, 60_000), bytes(120_000))] * 2),
            ),
            "too many others",
        ),
    ],
    ids=["parts without bytes", "boxes", "properties", "references"],
)
def test_what_would_take_minutes_to_walk_through_is_refused(data: bytes, named: str) -> None:
    pytest.importorskip("pillow_heif")
    with pytest.raises(ImageUndecodable, match=named):
        codec.decode(data)


def test_a_picture_of_parts_without_end_is_refused() -> None:
    with pytest.raises(ImageUndecodable, match="20000 parts"):
        av1_sizes(b"\x12\0" * 30_000)
    with pytest.raises(ImageUndecodable, match="20000 parts"):
        hevc_sizes(bytes(23), bytes(30_000))


def test_items_that_share_their_bytes_are_refused() -> None:
    """Each of 500 items has all bytes of the file; together they would be 500 files."""
    pytest.importorskip("pillow_heif")
    numbers = range(2, 502)
    entries = [box(b"infe", struct.pack(">IHH", 2 << 24, 1, 0), b"iovl", b"\0"), *map(described, numbers)]
    canvas = struct.pack(">BB4HII", 0, 1, 0, 0, 0, 0, 64, 64)
    content = [
        box(b"iinf", struct.pack(">IH", 0, 501), *entries),
        box(
            b"iloc",
            struct.pack(">IHH", 1 << 24, 0x4400, 501),
            struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(canvas)),
            *(struct.pack(">HHHHII", number, 0, 0, 1, 0, 0) for number in numbers),
        ),
        box(b"iref", bytes(4), box(b"dimg", struct.pack(">HH", 1, 500), *(struct.pack(">H", n) for n in numbers))),
        box(b"idat", canvas),
        box(
            b"iprp",
            box(b"ipco", box(b"hvcC", bytes(23))),
            box(b"ipma", struct.pack(">II", 0, 500), *(struct.pack(">HBB", number, 1, 1) for number in numbers)),
        ),
    ]
    with pytest.raises(ImageUndecodable, match="more bytes than the file"):
        codec.decode(with_boxes(*content))


def test_items_of_a_kind_that_is_not_read_are_named() -> None:
    pytest.importorskip("pillow_heif")
    with pytest.raises(ImageFormatError, match="'unci'"):
        codec.decode(derived({1: []}, kind=b"unci"))


@pytest.mark.parametrize("name", [b"pitm", b"iloc", b"iinf"])
def test_what_two_readers_could_understand_in_two_ways_is_refused(name: bytes) -> None:
    data = avif()
    at = data.index(name) - 4
    size = int.from_bytes(data[at : at + 4], "big")
    meta = data.index(b"meta") - 4
    twice = bytearray(data[: at + size] + data[at : at + size] + data[at + size :])
    twice[meta : meta + 4] = (int.from_bytes(data[meta : meta + 4], "big") + size).to_bytes(4, "big")
    with pytest.raises(ImageUndecodable, match="two boxes"):
        codec.decode(bytes(twice))


def test_the_items_of_a_file_are_found() -> None:
    found = boxes.read_items(avif(np.dstack([PICTURE, PICTURE[..., 0]])))
    assert found is not None
    primary = found.by_number[found.primary]
    assert primary.kind == "av01"
    assert [found.by_number[number].kind for number in primary.auxiliaries] == ["av01"]
    assert ("ispe", struct.pack(">III", 0, 120, 80)) in primary.properties
