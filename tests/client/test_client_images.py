"""Images as callers have them: paths, bytes, open files, PIL images and arrays; and embeddings as they use them."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedserve import ItemInput, Query
from embedserve.client.images import read_image
from embedserve.errors import DataError, ImageFormatError, ImageTooLarge, ImageUndecodable, InvalidInput
from embedserve.images.codec import decode
from embedserve.types import Limits
from tests.client.fake_server import DIMENSION, Connect, FakeServer
from tests.client.test_client_methods import finding

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
ORIENTATION = 0x0112


def pixels_sent(image: Any) -> Any:
    """The pixels that a server reads of what the client sends."""
    return decode(read_image(image, Limits()))


def as_file(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


# --- Pixels ---


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PIXELS[:, :, :3], PIXELS[:, :, :3]),
        (PIXELS[:, :, 0], np.repeat(PIXELS[:, :, :1], 3, axis=2)),
        (PIXELS[:, :, :1], np.repeat(PIXELS[:, :, :1], 3, axis=2)),
        (PIXELS[::-1, ::2, 2::-1], PIXELS[::-1, ::2, 2::-1]),
        (np.dstack([PIXELS[:, :, :3], np.full((5, 7), 255, np.uint8)]), PIXELS[:, :, :3]),
        (np.dstack([PIXELS[:, :, :3], np.zeros((5, 7), np.uint8)]), np.full((5, 7, 3), 255)),
    ],
    ids=["rgb", "grey", "one-channel", "strided", "opaque", "transparent"],
)
def test_the_server_reads_the_pixels_of_an_array(array: Any, expected: Any) -> None:
    assert np.array_equal(pixels_sent(array), expected)


def test_an_array_of_32_bit_numbers_is_answered_with_how_to_convert_it() -> None:
    with pytest.raises(InvalidInput, match=r"image is an array of float32 \[5, 7, 3\]") as caught:
        read_image(PIXELS[:, :, :3].astype(np.float32), Limits())
    assert "astype(numpy.uint8)" in caught.value.hint


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


@pytest.mark.parametrize("mode", MODES)
def test_a_pil_image_of_any_mode_is_sent_as_it_looks(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert("RGBA" if mode in ("RGBa", "La", "LA", "PA") else "RGB")
    image = image.convert({"La": "LA"}.get(mode, mode)).convert(mode)
    looks = image.convert("LA" if mode == "La" else "RGBA" if image.has_transparency_data else "RGB")
    assert np.array_equal(pixels_sent(image), decode(as_file(looks, "PNG")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_pil_image_is_sent_upright_as_its_file_is_read(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = as_file(Image.fromarray(PIXELS[:, :, :3]), format, exif=exif)
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(pixels_sent(opened), decode(data))
    if format != "TIFF":  # Pillow itself turns these when it loads them
        assert opened.getexif().get(ORIENTATION, 1) == orientation  # the caller's image is not changed


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257), "PNG"),
        (Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257), "TIFF"),
        (Image.fromarray(PIXELS[:, :, :3]).convert("P"), "GIF"),
        (Image.fromarray(PIXELS[:, :, :3]).convert("CMYK"), "TIFF"),
        (Image.fromarray(PIXELS[:, :, :3]).convert("CMYK"), "JPEG"),
    ],
    ids=["16-bit-png", "16-bit-tiff", "palette", "cmyk-tiff", "cmyk-jpeg"],
)
def test_a_pil_image_of_a_file_is_read_as_the_file(image: Image.Image, format: str) -> None:
    data = as_file(image, format)
    assert np.array_equal(pixels_sent(Image.open(io.BytesIO(data))), decode(data))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_sixteen_bit_pixels_are_sent_in_any_byte_order(mode: str) -> None:
    values = PIXELS[:, :, 0].astype(np.uint16) * 257
    order = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (7, 5), values.astype(order).tobytes())
    assert np.array_equal(pixels_sent(image), np.repeat(PIXELS[:, :, :1], 3, axis=2))


def test_a_pil_image_that_png_cannot_hold_fails_alone(connect: Connect, server: FakeServer) -> None:
    odd = Image.fromarray(PIXELS[:, :, :3])
    odd.info["transparency"] = b"of a palette"
    images = [Image.new("RGB", (0, 5)), odd, Image.fromarray(PIXELS[:, :, :3])]
    results = connect(server.target).add("photos", [ItemInput(image=image) for image in images], errors="keep")
    assert [type(result.error) for result in results] == [ImageUndecodable, ImageUndecodable, type(None)]


def test_a_palette_keeps_its_transparent_colour() -> None:
    data = as_file(Image.fromarray(PIXELS[:, :, :3]).convert("P"), "PNG", transparency=3)
    assert np.array_equal(pixels_sent(Image.open(io.BytesIO(data))), decode(data))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_range_are_refused_as_in_a_file(mode: str) -> None:
    with pytest.raises(ImageFormatError, match="32-bit pixels, whose range is not defined"):
        read_image(Image.new(mode, (4, 4)), Limits())


def test_a_pil_image_whose_file_is_cut_is_damaged() -> None:
    data = as_file(Image.fromarray(np.tile(PIXELS[:, :, :3], (20, 20, 1))), "JPEG")
    with pytest.raises(ImageUndecodable, match="the PIL image cannot be read"):
        read_image(Image.open(io.BytesIO(data[: len(data) // 2])), Limits())


@pytest.mark.parametrize("image", [PIXELS[:, :, :3], Image.fromarray(PIXELS)], ids=["array", "pil"])
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_image_pixels=34), "7 × 5 pixels"),
        (Limits(max_image_side_px=6), "7 × 5 pixels"),
        (Limits(max_image_bytes=50), "as PNG has .* bytes; max_image_bytes is 50"),
    ],
)
def test_pixels_beyond_the_limits_are_refused(image: Any, limits: Limits, message: str) -> None:
    with pytest.raises(ImageTooLarge, match=message):
        read_image(image, limits)


# --- Files ---


class Trickle(io.RawIOBase):
    """A file that gives three bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part, self._rest = self._rest[:3], self._rest[3:]
        buffer[: len(part)] = part
        return len(part)


def test_open_files_are_read_from_where_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        file.seek(4)
        assert read_image(file, Limits()) == b"456789"
    assert read_image(io.BytesIO(b"0123456789"), Limits()) == b"0123456789"
    assert read_image(Trickle(b"0123456789"), Limits()) == b"0123456789"
    assert read_image(os.fsencode(path).decode(), Limits()) == b"0123456789"
    [entry] = os.scandir(os.fsencode(tmp_path))
    assert read_image(entry, Limits()) == b"0123456789"


def test_an_open_file_without_an_end_is_not_read_for_ever() -> None:
    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size: int = -1) -> bytes:
            self.taken += size
            return b"x" * size

    endless = Endless()
    with pytest.raises(ImageTooLarge, match="max_image_bytes is 1000"):
        read_image(endless, Limits(max_image_bytes=1000))
    assert endless.taken == 1001


def test_an_open_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"0123456789")
    with path.open(encoding="ascii") as text, pytest.raises(InvalidInput, match="open as text"):
        read_image(text, Limits())
    with path.open("rb") as file:
        file.read()
        with pytest.raises(DataError, match=r"a\.jpg has been read to its end") as caught:
            read_image(file, Limits())
    assert "seek(0)" in caught.value.hint
    with pytest.raises(DataError, match="closed file"):
        read_image(file, Limits())

    class Late(io.BytesIO):
        async def read(self, size: int = -1) -> bytes:  # type: ignore[override]
            return b""

    with pytest.raises(InvalidInput, match="coroutine instead of bytes"):
        read_image(Late(), Limits())


class BrokenPath:
    def __fspath__(self) -> Any:
        return 5


class BrokenFile:
    """Raises what readers of archives and networks raise, which is no OSError."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self, size: int) -> bytes:
        raise self.error


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (BrokenFile(zipfile.BadZipFile("Bad CRC-32 for file 'a.jpg'")), DataError, "cannot be read: Bad CRC-32"),
        (BrokenFile(EOFError()), DataError, "cannot be read: EOFError"),
        (BrokenPath(), InvalidInput, "image is .*BrokenPath, which is no path"),
    ],
    ids=["archive", "without-text", "path"],
)
def test_what_a_foreign_class_raises_fails_its_image_alone(
    connect: Connect, server: FakeServer, image: Any, kind: type[Exception], message: str
) -> None:
    client = connect(server.target)
    items = [ItemInput(id="a", image=b"1"), ItemInput(id="b", image=image), ItemInput(id="c", image=b"1")]
    results = client.add("photos", items, errors="keep")
    embeddings = client.embed([b"1", image, b"1"], errors="keep")
    assert [result.error is None for result in results] == [True, False, True]
    for error in (results[1].error, embeddings.errors[1]):
        assert isinstance(error, kind)
        assert re.search(message, str(error))


def test_a_folder_is_answered_with_how_to_list_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder") as caught:
        read_image(tmp_path, Limits())
    assert "glob" in caught.value.hint


def test_every_method_takes_every_kind_of_image(connect: Connect, server: FakeServer, tmp_path: Path) -> None:
    server.on("Search", finding)
    array = PIXELS[:, :, :3]
    data = as_file(Image.fromarray(array), "PNG", compress_level=1)
    (tmp_path / "a.png").write_bytes(data)
    client = connect(server.target)

    def kinds() -> list[Any]:
        path = tmp_path / "a.png"
        return [
            data,
            bytearray(data),
            memoryview(data),
            str(path),
            path,
            io.BytesIO(data),
            array,
            Image.fromarray(array),
        ]

    client.embed(kinds())
    list(client.embed_each(kinds()))
    client.embed(np.stack([array, array]))
    client.add("photos", [ItemInput(id=str(n), image=image) for n, image in enumerate(kinds())])
    for image in kinds():
        client.search("photos", image=image)
    client.search_many("photos", [Query(image=image) for image in kinds()])
    sent = [image for request in server.asked("Embed") for image in request.images]
    sent += [item.image for request in server.asked("Upsert") for item in request.items]
    sent += [query.image for request in server.asked("Search") for query in request.queries]
    assert [np.array_equal(decode(image), array) for image in sent] == [True] * (2 + 5 * len(kinds()))


# --- Embeddings ---


def test_embeddings_are_used_as_their_array(connect: Connect, server: FakeServer) -> None:
    embeddings = connect(server.target).embed([b"1", b"22", b"333"])
    assert np.asarray(embeddings).shape == (3, DIMENSION)
    assert np.asarray(embeddings) is embeddings.vectors
    assert np.asarray(embeddings, dtype=np.float64).dtype == np.float64
    assert np.array(embeddings) is not embeddings.vectors
    assert len(embeddings) == 3
    assert embeddings[0].tolist() == [1, 49, 0, 0]
    assert embeddings[-1].tolist() == [3, 51, 0, 0]
    assert embeddings[1:].shape == (2, DIMENSION)
    assert embeddings[[0, 2]].shape == (2, DIMENSION)
    assert [row[0] for row in embeddings] == [1, 2, 3]
    with pytest.raises(IndexError):
        embeddings[3]


def test_one_row_of_embeddings_is_a_query_and_all_of_them_are_not(connect: Connect, server: FakeServer) -> None:
    server.on("Search", finding)
    client = connect(server.target)
    embeddings = client.embed([b"1"])
    client.search("photos", vector=embeddings[0])
    with pytest.raises(InvalidInput, match=r"the vector has shape \(1, 4\)") as caught:
        client.search("photos", vector=embeddings)
    assert "embeddings[0]" in caught.value.hint
