"""TIFF: its samples as a picture of 8 bits, decoded rightly or refused by the name of what it is.

The header is read before anything is decoded. What compresses bytes is unpacked in ``tiff_unpack``, whatever the
samples are; what compresses pictures (JPEG, CCITT) is left to Pillow, in the cases that it decodes rightly.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from embedserve.errors import ImageFormatError, ImageUndecodable
from embedserve.images import tiff_header as tags
from embedserve.images.opening import upright
from embedserve.images.pixel_rule import PixelRule
from embedserve.images.samples import to_uint8
from embedserve.images.tiff_header import Directory, full_image, rewritten
from embedserve.images.tiff_layout import BYTE_COMPRESSIONS, PICTURE_COMPRESSIONS, Layout, layout_of, refuse
from embedserve.images.tiff_unpack import rows_of
from embedserve.types import Limits

if TYPE_CHECKING:
    from PIL import Image

_COPIED: tuple[int, ...] = (
    tags.WIDTH,
    tags.LENGTH,
    tags.BITS,
    tags.COMPRESSION,
    tags.PHOTOMETRIC,
    tags.FILL_ORDER,
    tags.SAMPLES,
)
_COPIED += (tags.ROWS_PER_STRIP, tags.STRIP_OFFSETS, tags.STRIP_COUNTS, tags.PLANAR, tags.TILE_WIDTH, tags.TILE_LENGTH)
_COPIED += (
    tags.TILE_OFFSETS,
    tags.TILE_COUNTS,
    tags.SUBSAMPLING,
    tags.EXTRA_SAMPLES,
    292,
    293,
)  # the last two: options of CCITT
_LISTS = (tags.STRIP_OFFSETS, tags.STRIP_COUNTS, tags.TILE_OFFSETS, tags.TILE_COUNTS, tags.SUBSAMPLING)
_LOSSLESS_FRAMES = (b"\xff\xc3", b"\xff\xc5", b"\xff\xc6", b"\xff\xc7", b"\xff\xcb", b"\xff\xf7")


def is_tiff(data: bytes) -> bool:
    """Whether the data begin as a TIFF or BigTIFF does."""
    return data.startswith(tags.SIGNATURES)


def decode_tiff(data: bytes, limits: Limits, rule: PixelRule, notes: list[str] | None = None) -> Image.Image:
    """The picture, upright, in a mode of 8 bits: L, LA, RGB, RGBA or CMYK, with its profile in ``info``.

    Args:
        data: the bytes of the file.
        limits: of the size, checked before anything is decoded.
        rule: which bands are taken, and what becomes black and white.
        notes: receives a sentence for each decision.

    Raises:
        ImageUndecodable: it is damaged.
        ImageFormatError: it is a kind of TIFF that is not read; the message names it.
        ImageTooLarge: it has more pixels or bytes than the limits allow.
    """
    from PIL import Image

    directory = full_image(data, notes)
    layout = layout_of(directory, limits, rule)
    if not rule.bands and _is_plain(directory, layout):
        # The usual ones as a whole: the same pixels in half the time.
        whole = Image.open(io.BytesIO(data), formats=("TIFF",))
        whole.load()  # and turns it upright
        if layout.extras:
            _note(notes, "band 4 of the TIFF was taken for transparency, as the file says", 3)
        return whole
    if layout.compression in PICTURE_COMPRESSIONS or layout.photometric == 6:
        image = _by_pillow(directory, layout)
        if rule.bands:
            image = _chosen(image, rule.bands)
        elif layout.extras:
            colours = layout.samples - 1
            _note(notes, f"band {colours + 1} of the TIFF was taken for transparency, as the file says", colours)
    else:
        image = _by_samples(directory, layout, rule, notes)
    if not rule.bands and (profile := directory.bytes_of(tags.ICC_PROFILE)):
        image.info["icc_profile"] = profile
    return upright(image, directory.number(tags.ORIENTATION, 1))


def _is_plain(directory: Directory, layout: Layout) -> bool:
    """Whether Pillow decodes the file rightly by itself: 8 bits, bands beside each other, compressed as bytes."""
    if (layout.bits, layout.kind) != (8, 1) or layout.planar or layout.compression not in BYTE_COMPRESSIONS:
        return False
    if not directory.is_first or directory.number(tags.FILL_ORDER, 1) != 1 or directory.data[:4] == b"MM\0+":
        return False
    if layout.compression == 1 and sum(layout.counts) < layout.width * layout.height * layout.samples:
        return False  # Pillow would go on with whatever follows
    bands = {0: 1, 1: 1, 2: 3, 5: 4}.get(layout.photometric, 0)
    is_transparent = layout.photometric == 2 and layout.samples == 4 and layout.extras[0] in (1, 2)
    return layout.samples == bands or is_transparent


def _chosen(image: Image.Image, bands: tuple[int, ...]) -> Image.Image:
    from PIL import Image

    channels = image.convert("L" if image.mode == "1" else image.mode).split()
    _check_bands(bands, len(channels))
    return Image.merge("RGB" if len(bands) == 3 else "L", [channels[band - 1] for band in bands])


def _check_bands(bands: tuple[int, ...], there: int) -> None:
    if max(bands) > there:
        raise ImageFormatError(
            f"the image has {there} band{'s' if there > 1 else ''}, and the rule takes band {max(bands)}",
            hint="leave such images out, or train with --set bands=… of bands that all images have",
        )


def _by_pillow(directory: Directory, layout: Layout) -> Image.Image:
    from PIL import Image

    if layout.compression == 7:
        for offset, count in zip(layout.offsets, layout.counts, strict=False):
            if _has_lossless_frame(directory.data[offset : offset + count]):
                refuse("lossless JPEG compression", "save it without compression, or with deflate or LZW")
    fields: dict[int, tuple[int, ...] | bytes] = {
        tag: values if tag in _LISTS else values[:1]
        for tag in _COPIED
        if (values := directory.integers(tag)) and max(values) < 2**32
    }
    fields[tags.BITS] = (layout.bits,) * layout.samples
    if tables := directory.bytes_of(tags.JPEG_TABLES):
        fields[tags.JPEG_TABLES] = tables
    with Image.open(io.BytesIO(rewritten(directory.data, fields)), formats=("TIFF",)) as image:
        image.load()
    return image.convert("RGB") if image.mode == "YCbCr" else image


def _has_lossless_frame(stream: bytes) -> bool:
    """Whether the first frame of a JPEG stream is neither baseline, extended nor progressive."""
    position = 2
    while position + 4 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position : position + 2]
        if marker in _LOSSLESS_FRAMES:
            return True
        if marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2", b"\xff\xda"):
            return False
        position += 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
    return False


def _by_samples(directory: Directory, layout: Layout, rule: PixelRule, notes: list[str] | None) -> Image.Image:
    import numpy as np
    from PIL import Image

    chosen = rule.bands
    colours = {2: 3, 5: 4, 8: 3}.get(layout.photometric, 1)
    bands, mode = tuple(range(colours)), {2: "RGB", 5: "CMYK", 8: "RGB"}.get(layout.photometric, "L")
    palette: Any = None
    if layout.photometric == 3:
        palette = _palette(directory, layout)
    if chosen and layout.photometric in (0, 1, 2):
        _check_bands(chosen, layout.samples)
        bands, mode = tuple(band - 1 for band in chosen), "RGB" if len(chosen) == 3 else "L"
    elif layout.extras and layout.extras[0] in (1, 2) and palette is None and mode != "CMYK":
        bands, mode = (*bands, colours), mode + ("a" if layout.extras[0] == 1 else "A")
        _note(notes, f"band {colours + 1} of the TIFF was taken for transparency, as the file says", colours)
    elif layout.extras:
        _note(notes, f"of the {layout.samples} bands of the TIFF the first {colours} were taken", colours)
    high_bytes = rule.high_bytes and layout.bits == 16 and layout.kind == 1 and layout.photometric in (2, 5)
    pixels = np.empty((layout.height, layout.width, 3 if palette is not None else len(bands)), np.uint8)
    for top, samples in rows_of(directory, layout, bands):
        if palette is not None:
            block = palette[samples[..., 0]]
        elif high_bytes and not layout.planar:
            block = samples >> 8
        elif layout.value_range is None:
            block = _few_bits(samples, layout.bits, layout.photometric == 0)
            if mode[-1] in "aA" and layout.photometric == 0:  # transparency is no colour that is turned round
                block[..., -1] = _few_bits(samples[..., -1], layout.bits, False)
        else:
            block = to_uint8(samples, layout.value_range, white_is_zero=layout.photometric == 0)
            if mode[-1] in "aA":  # the range is that of the colours; transparency keeps its own
                block[..., -1] = _alpha(samples[..., -1], layout)
        pixels[top : top + len(block)] = block
    if palette is not None:
        image = Image.fromarray(pixels)
        return _chosen(image, chosen) if chosen else image
    image = Image.frombytes(mode, (layout.width, layout.height), pixels.tobytes())
    if layout.photometric == 8 and not chosen:
        # a* and b* are signed in a TIFF, and 128 more in Pillow.
        lightness, *others = image.split()
        return Image.merge("LAB", [lightness, *(band.point(lambda value: value ^ 128) for band in others)])
    if mode == "CMYK" and chosen:
        return _chosen(image, chosen)
    return image.convert({"La": "LA", "RGBa": "RGBA"}[mode]) if mode in ("La", "RGBa") else image


def _few_bits(samples: Any, bits: int, white_is_zero: bool) -> Any:
    import numpy as np

    if bits == 8:
        return 255 - samples if white_is_zero else samples
    return to_uint8(samples.astype(np.uint8), (0, 2**bits - 1), white_is_zero=white_is_zero)


def _alpha(samples: Any, layout: Layout) -> Any:
    if layout.kind == 3:
        return to_uint8(samples, (0, 1))
    top = 2**layout.bits - 1 if layout.kind == 1 else 2 ** (layout.bits - 1) - 1
    return to_uint8(samples, (0, top))


def _palette(directory: Directory, layout: Layout) -> Any:
    import numpy as np

    if layout.bits > 16 or layout.kind != 1:
        refuse(f"a palette for {layout.bits}-bit samples")
    colours = directory.integers(tags.COLOR_MAP)
    if len(colours) != 3 * 2**layout.bits:
        raise ImageUndecodable(f"the image is damaged: its palette has {len(colours)} values")
    table = np.array(colours, np.uint16).reshape(3, -1).T
    # Some writers fill the 16 bits of a palette with 8, as libtiff knows.
    return table.astype(np.uint8) if table.max() < 256 else to_uint8(table, (0, 65_535))


def _note(notes: list[str] | None, sentence: str, colours: int) -> None:
    if notes is not None:
        notes.append(f"{sentence} (bands {'1,2,3' if colours == 3 else '1'} leaves the others out)")
