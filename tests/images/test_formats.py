"""What bytes are called that are no image, and what to do with them."""

from __future__ import annotations

import base64
import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from embedserve.errors import ImageFormatError, ImageUndecodable
from embedserve.images import codec, foreign, formats, kind
from embedserve.images.formats import kind_of
from embedserve.images.kind import Kind
from tests.images.quarters import QUARTERS, encoded, quarters

JPEG, PNG = quarters("JPEG"), quarters("PNG")


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.png", PNG)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("a.png")
        entry.size = len(PNG)
        archive.addfile(entry, io.BytesIO(PNG))
    return out.getvalue()


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, QUARTERS)
    return out.getvalue()


def boxes(brand: bytes, *others: bytes) -> bytes:
    content = b"ftyp" + brand + bytes(4) + b"".join(others)
    return (len(content) + 4).to_bytes(4, "big") + content + bytes(100)


FOREIGN = {
    "PDF": quarters("PDF"),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>",
    "SVG ": b'<?xml version="1.0"?>\n<!-- drawn by hand -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PSD": b"8BPS\0\1" + bytes(200),
    "EPS": quarters("EPS"),
    "JPEG XL": b"\xff\x0a" + bytes(100),
    "JPEG XL ": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
    "JPEG 2000": quarters("JPEG2000"),
    "JPEG 2000 ": b"\xff\x4f\xff\x51" + bytes(100),
    "JPEG-LS": b"\xff\xd8\xff\xf7\0\x0b\x08\0\x20\0\x30\1\1\x11\0" + bytes(100),
    "raw (Canon CR3)": boxes(b"crx ", b"isom"),
    "raw (Fujifilm)": b"FUJIFILMCCD-RAW 0201" + bytes(100),
    "raw (Olympus)": b"IIRO\x08\0\0\0" + bytes(100),
    "raw (Panasonic)": b"IIU\0\x18\0\0\0" + bytes(100),
    "icon": quarters("ICO"),
    "PNM": quarters("PPM"),
    "PNM ": b"P2\n2 2\n255\n0 1 2 3\n",
    "TGA": quarters("TGA"),
    "TGA ": quarters("TGA", compression="tga_rle"),
    "PCX": quarters("PCX"),
    "SGI": quarters("SGI"),
    "ICNS": encoded(Image.fromarray(QUARTERS).resize((32, 32)), "ICNS"),
    "OpenEXR": b"v/1\x01\2\0\0\0" + bytes(100),
    "Radiance HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n",
    "DDS": quarters("DDS"),
    "KTX": b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(100),
    "FITS": b"SIMPLE  =                    T" + b" " * 200,
    "NIfTI": b"\x5c\1\0\0" + bytes(340) + b"n+1\0" + bytes(20),
    "DICOM without its preamble": b"\x08\0\5\0CS\x0a\0ISO_IR 100" + bytes(100),
    "NRRD": b"NRRD0004\ntype: short\n",
    "NumPy array": npy(),
    "Parquet": b"PAR1" + bytes(100),
    "ZIP": zipped(),
    "tar": tarred(),
    "gzip": gzip.compress(PNG),
    "MP4 video": boxes(b"isom", b"mp42"),
    "MP4 video ": boxes(b"qt  "),
    "WebM video": b"\x1aE\xdf\xa3\x01" + bytes(100),
    "AVI video": b"RIFF\x10\0\0\0AVI LIST" + bytes(100),
    "WAV": b"RIFF\x10\0\0\0WAVEfmt " + bytes(100),
    "HTML": b"<!DOCTYPE html>\n<html><head><title>403 Forbidden</title>",
    "HTML ": b"\n\n  <html lang=en><body>Not found</body></html>",
    "JSON": b'{"error": {"code": 404}}',
    "XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "base64 text": base64.b64encode(JPEG),
    "base64 text ": base64.encodebytes(PNG),
    "base64 text  ": base64.urlsafe_b64encode(quarters("WEBP")),
    "hex text": JPEG.hex().encode(),
    "data URL": b"data:image/png;base64," + base64.b64encode(PNG),
    "URL": b"https://example.org/photos/1.jpg?size=large",
    "file path": b"photos/holidays 2024/IMG_0001.jpg",
    "file path ": rb"C:\photos\1.png",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "git-annex pointer": b"/annex/objects/SHA256E-s12345--4d7a.jpg\n",
    "HTTP response": b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n",
    "bytes in Python's notation": str(PNG).encode(),
    "AppleDouble": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60),
    "HEIF": boxes(b"mif1", b"mif1", b"avci"),
    "XCF": b"gimp xcf v011\0" + bytes(100),
    "text": b"hello, this is not an image",
    "text ": "Grüße aus Köln".encode("utf-16"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_read_is_named_with_what_to_do(name: str) -> None:
    data = FOREIGN[name]
    found = kind_of(data[: formats.HEAD_BYTES])
    assert found is not None
    assert found.name == name.strip()
    assert not found.readable
    with pytest.raises(ImageFormatError) as caught:
        codec.decode(data)
    assert (found.phrase or found.name) in str(caught.value)
    assert "damaged" not in str(caught.value)
    assert caught.value.hint == found.remedy
    assert found.remedy


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (bytes(5000), "zero bytes"),
        (PNG.replace(b"\r\n", b"\n"), "line ends"),
        (PNG.replace(b"\n", b"\r\n"), "line ends"),
        (JPEG.decode("utf-8", "replace").encode(), "read as text"),
    ],
    ids=["zeros", "to unix", "to dos", "as text"],
)
def test_what_was_damaged_on_its_way_is_called_damaged_with_the_reason(data: bytes, what: str) -> None:
    with pytest.raises(ImageUndecodable, match=f"damaged: it is .*{what}") as caught:
        codec.decode(data)
    assert caught.value.hint


@pytest.mark.parametrize("data", [b"", b"\0", b"GIF", b"ab", b"\1\2\3\4\5\6\7\x08", b"\xff", bytes(63)])
def test_bytes_that_say_nothing_have_no_name(data: bytes) -> None:
    assert kind_of(data) is None


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_what_is_read_is_known_by_its_content(format: str) -> None:
    found = kind_of(quarters(format)[: formats.HEAD_BYTES])
    assert found is not None
    assert found.name.upper() == format
    assert found.readable
    assert found.media_type == f"image/{format.lower()}"
    assert set(found.suffixes) <= set(formats.SUFFIXES)


def test_tiff_of_either_byte_order_and_size_is_known() -> None:
    assert {kind_of(head + bytes(20)) for head in (b"II*\0", b"MM\0*", b"II+\0\x08\0", b"MM\0+\0\x08")} == {
        formats.TIFF
    }


def test_a_slide_that_is_tiff_and_dicom_is_tiff() -> None:
    assert kind_of(b"II*\0" + bytes(124) + b"DICM" + bytes(100)) is formats.TIFF
    assert kind_of(bytes(128) + b"DICM" + bytes(100)) is formats.DICOM


@pytest.mark.parametrize(
    ("brands", "name"),
    [
        ((b"heic", b"mif1", b"heic"), "HEIC"),
        ((b"mif1", b"mif1", b"heic"), "HEIC"),
        ((b"msf1", b"hevc"), "HEIC"),
        ((b"mif1", b"miaf", b"avif"), "AVIF"),
        ((b"avis", b"avif"), "AVIF"),
        ((b"mif1", b"miaf\0\0\0\x18hvcC"), "HEIC"),
        ((b"mif1", b"miaf\0\0\0\x18av1C"), "AVIF"),
    ],
)
def test_a_file_of_boxes_is_known_by_all_of_its_brands(brands: tuple[bytes, ...], name: str) -> None:
    found = kind_of(boxes(*brands))
    assert found is not None
    assert found.name == name


def test_names_remedies_and_suffixes_are_complete() -> None:
    others = [found for _, found in foreign.BEGINNINGS] + [found for _, found in foreign.TESTS]
    for found in [*others, *foreign.TEXTS.values(), foreign.PNM, foreign.HEIF, foreign.VIDEO, foreign.CANON_RAW]:
        assert found.remedy, found.name
        assert not set(found.suffixes) & set(formats.SUFFIXES) - {".heif"}, found.name
        assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in found.suffixes)


@pytest.mark.parametrize(
    ("found", "data"),
    [(formats.HEIC, boxes(b"heic", b"mif1")), (formats.DICOM, bytes(128) + b"DICM" + bytes(100))],
    ids=["heic", "medical"],
)
def test_without_its_extra_a_format_is_named_with_what_to_install(
    found: Kind, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "installed", lambda package: False)
    assert found is kind_of(data)
    assert not found.readable
    with pytest.raises(ImageFormatError, match=f"the image is {found.name}, which takes one more package") as caught:
        codec.decode(data)
    assert f"pip install 'embedserve[{found.extra}]'" in caught.value.hint


def test_without_libavif_an_avif_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "installed", lambda package: False)
    with pytest.raises(ImageFormatError, match="AVIF") as caught:
        codec.decode(quarters("AVIF"))
    assert "pip install --upgrade pillow" in caught.value.hint
