"""TIFF: which pictures Pillow decodes rightly, and the others from their samples, or a refusal that names them.

A TIFF says how many bands of how many bits there are, in which order, and what they mean; Pillow 13 knows a list of
combinations, and takes some others for what they are not. What has 8 bits or fewer and no surprises is left to it. All
else is put together here from strips and tiles, whatever their compression.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from embedserve.errors import ImageFormatError, ImageUndecodable
from embedserve.images import samples, tiff_file
from embedserve.images.pixel_rule import PixelRule
from embedserve.images.tiff_file import Directory
from embedserve.images.tiff_layout import (
    BLACK_IS_ZERO,
    LAB,
    PALETTE,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    Layout,
    compression_name,
    find_picture,
    is_simple,
    read_layout,
    refused,
    words,
)
from embedserve.types import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

_BLOCK = 1 << 21
"""Samples that are worked on at a time."""


def decode(data: bytes, limits: Limits, rule: PixelRule, notes: list[str]) -> Image.Image:
    """The picture of a TIFF, decoded and upright, in one of Pillow's modes of 8 bits.

    Args:
        data: of the file.
        limits: of its size.
        rule: which bands and which range of values are taken.
        notes: receives what was decided.

    Raises:
        ImageUndecodable: it is damaged.
        ImageFormatError: it is something that is not read; the message names it.
        ImageTooLarge: it exceeds the limits.
    """
    directory = find_picture(data, notes)
    layout = read_layout(directory, limits)
    if not rule.bands and is_simple(layout) and not (directory.big and directory.order == ">"):
        return _by_pillow(data, layout, notes)
    if layout.compression not in tiff_file.BYTES:
        if layout.bits == 8 and not layout.planar and layout.number == "u":
            image = _by_pillow(data, layout, notes)
            return _chosen(image, rule) if rule.bands else image
        raise refused(f"{words(layout)} and {compression_name(layout.compression)} compression")
    image = _put_together(data, layout, rule, notes)
    profile = directory.tags.get(34675, ())
    if profile and not rule.bands and all(isinstance(byte, int) and 0 <= byte < 256 for byte in profile):
        image.info["icc_profile"] = bytes(profile)
    return image


# --- By Pillow -----------------------------------------------------------------------------------------------------


def _by_pillow(data: bytes, layout: Layout, notes: list[str]) -> Image.Image:
    import io

    from PIL import Image, ImageFile, UnidentifiedImageError

    directory = layout.directory
    try:
        image = Image.open(io.BytesIO(tiff_file.beginning_with(data, directory)), formats=("TIFF",))
    except UnidentifiedImageError:
        raise refused(f"{layout.bands} bands of {words(layout)}") from None
    if layout.photometric == YCBCR and layout.compression != tiff_file.JPEG:
        # Pillow unpacks uncompressed ones as if each pixel had its own colour; libtiff knows how many share one.
        image.use_load_libtiff = True  # type: ignore[attr-defined]
        image._mode = "RGB"
        whole = (0, 0, layout.width, layout.height)
        image.tile = [ImageFile._Tile("libtiff", whole, 0, ("RGBX", False, directory.offset))]
    image.load()  # and turns it upright
    if layout.photometric == RGB and layout.bands == 4:
        _note_fourth(layout, notes)
    return image


def _chosen(image: Image.Image, rule: PixelRule) -> Image.Image:
    """The bands that the rule names of a picture that Pillow has decoded."""
    from PIL import Image

    bands = image.split()
    if max(rule.bands) > len(bands):
        raise _too_few(rule, len(bands))
    chosen = [bands[number - 1] for number in rule.bands]
    return chosen[0] if len(chosen) == 1 else Image.merge("RGB", chosen)


def _too_few(rule: PixelRule, bands: int) -> ImageFormatError:
    has = "1 band" if bands == 1 else f"{bands} bands"
    return ImageFormatError(
        f"the image has {has}, and the encoder takes band{'s' if len(rule.bands) > 1 else ''}"
        f" {', '.join(map(str, rule.bands))}",
        hint="give images with as many bands as those that the encoder was trained on",
    )


def _note_fourth(layout: Layout, notes: list[str]) -> None:
    if layout.alpha is None:
        notes.append("the fourth band, which the file does not name, was left out; the setting bands chooses others")
    else:
        notes.append("the fourth band was taken for transparency, as the file says; bands=1,2,3 leaves it out")


# --- From strips and tiles -----------------------------------------------------------------------------------------


def _put_together(data: bytes, layout: Layout, rule: PixelRule, notes: list[str]) -> Image.Image:
    """The picture from its samples."""
    import numpy as np
    from PIL import Image

    if layout.photometric in (YCBCR, LAB) and not rule.bands:
        raise refused(f"{'YCbCr' if layout.photometric == YCBCR else 'L*a*b*'} colours in {words(layout)}")
    taken, alpha = _taken(layout, rule, notes)
    value_range = _value_range(layout, rule)
    places = [*taken, *([alpha] if alpha is not None else [])]
    shape = (layout.height, layout.width)
    if layout.photometric == PALETTE and not rule.bands:
        return _upright(_coloured(_indices(data, layout), layout), layout)
    planes = [np.empty(shape, np.uint8) for _ in places]
    full = _full_range(layout)
    for top, left, block_HWB, plane in _blocks(data, layout, frozenset(places)):
        rows = slice(top, top + block_HWB.shape[0])
        columns = slice(left, left + block_HWB.shape[1])
        for out, place in zip(planes, places, strict=True):
            if layout.planar and place != plane:
                continue
            band = block_HWB[..., 0 if layout.planar else place]
            # Transparency is a share, and has nothing to do with the range of the colours.
            out[rows, columns] = samples.to_uint8(band, full or value_range if place == alpha else value_range)
    if layout.photometric == WHITE_IS_ZERO and len(taken) == 1:
        np.subtract(255, planes[0], out=planes[0])
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[len(taken)] + ("A" if alpha is not None else "")
    image = Image.merge(mode, [Image.fromarray(plane) for plane in planes])
    if alpha is not None and layout.extra[alpha - layout.colours] == 1:
        image = _not_premultiplied(image)
    return _upright(image, layout)


def _taken(layout: Layout, rule: PixelRule, notes: list[str]) -> tuple[list[int], int | None]:
    """Positions of the bands that become grey, or red, green and blue (or inks), and of the transparency."""
    if rule.bands:
        if max(rule.bands) > layout.bands:
            raise _too_few(rule, layout.bands)
        return [number - 1 for number in rule.bands], None
    taken = list(range(layout.colours))
    # CMYK with transparency is printed without it.
    alpha = layout.alpha if layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) else None
    left_out = layout.bands - len(taken) - (alpha is not None)
    if layout.photometric == RGB and layout.bands == 4:
        _note_fourth(layout, notes)
    elif left_out:
        several = f"the first {len(taken)} were" if len(taken) > 1 else "the first was"
        notes.append(f"of {layout.bands} bands {several} taken; the setting bands chooses others")
    return taken, alpha


def _full_range(layout: Layout) -> samples.Range | None:
    """What the bits of unsigned samples can hold; of others nobody knows what is black and what is white."""
    return (0, (1 << layout.bits) - 1) if layout.number == "u" and layout.bits <= 16 else None


def _value_range(layout: Layout, rule: PixelRule) -> samples.Range:
    full = _full_range(layout)
    if full is not None and layout.bits <= 8:
        return full
    found = samples.range_of(rule.value_range, full, _stated_range(layout.directory))
    if found is None:
        raise refused(
            f"{words(layout)}, whose black and white are not known",
            "save it with 8 or 16 bits per band, or train with the range: --set value_range=MIN,MAX",
        )
    return found


def _stated_range(directory: Directory) -> samples.Range | None:
    """MinSampleValue and MaxSampleValue, or SMinSampleValue and SMaxSampleValue, over all bands."""
    for low_tag, high_tag in ((340, 341), (280, 281)):
        low, high = directory.tags.get(low_tag, (0,)), directory.tags.get(high_tag)
        if high and low and all(isinstance(end, (int, float)) for end in (*low, *high)) and min(low) < max(high):
            return float(min(low)), float(max(high))
    return None


def _blocks(data: bytes, layout: Layout, wanted: frozenset[int]) -> Iterator[tuple[int, int, NDArray[Any], int]]:
    """Parts of the image: the row and the column where each begins, its samples [H, W, B], and its plane.

    B is 1 if bands are stored separately, else their number.
    """
    bands = 1 if layout.planar else layout.bands
    planes = layout.bands if layout.planar else 1
    for segment in tiff_file.segments(layout.directory, layout.width, layout.height, planes, len(data)):
        if layout.planar and segment.plane not in wanted:
            continue
        row_bytes = (segment.width * bands * layout.bits + 7) // 8
        raw = tiff_file.unpacked(data, layout.directory, segment, row_bytes)
        step = max(_BLOCK // (segment.width * bands), 1)
        height = min(segment.height, layout.height - segment.top)
        for row in range(0, height, step):
            block = _samples(raw[row : min(row + step, height)], layout, segment.width, bands)
            yield segment.top + row, segment.left, block[:, : layout.width - segment.left], segment.plane


def _samples(raw: NDArray[np.uint8], layout: Layout, width: int, bands: int) -> NDArray[Any]:
    """Rows of bytes → samples [H, W, B], after the predictor."""
    import numpy as np

    rows, size = len(raw), layout.bits // 8
    predictor = layout.directory.number(317, 1)
    if predictor not in (1, 2, 3):
        raise refused(f"an unknown predictor ({predictor})")
    if layout.bits not in (8, 16, 32, 64):
        if predictor != 1:
            raise refused(f"a predictor on {words(layout)}")
        if layout.number == "f":
            raise refused(words(layout))
        return _from_bits(raw, layout.bits, width * bands).reshape(rows, width, bands)
    if predictor == 3:
        if layout.number != "f":
            raise refused(f"a predictor for floating point on {words(layout)}")
        return _from_differing_bytes(raw, size, width, bands)
    kind = np.dtype(f"{layout.directory.order}{layout.number}{size}")
    stored = np.ascontiguousarray(raw).view(kind).reshape(rows, width, bands)
    if predictor == 2:
        if layout.number == "f":
            whole = np.ascontiguousarray(raw).view(f"{layout.directory.order}u{size}").reshape(rows, width, bands)
            return np.cumsum(whole, axis=1, dtype=f"u{size}").view(f"f{size}")
        return np.cumsum(stored, axis=1, dtype=f"{layout.number}{size}")
    return stored.astype(kind.newbyteorder("="), copy=False)


def _from_bits(raw: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint16]:
    """Samples that do not fill bytes, the highest bit first: uint16 [H, count]."""
    import numpy as np

    flat = np.unpackbits(raw, axis=1, count=count * bits).reshape(len(raw), count, bits)
    values = np.zeros((len(raw), count), np.uint16)
    for bit in range(bits):
        values <<= np.uint16(1)
        values |= flat[..., bit]
    return values


def _from_differing_bytes(raw: NDArray[np.uint8], size: int, width: int, bands: int) -> NDArray[Any]:
    """Floating-point samples after predictor 3: bytes by significance, each the difference to that before it."""
    import numpy as np

    rows = len(raw)
    summed = np.cumsum(raw.reshape(rows, size * width, bands), axis=1, dtype=np.uint8)
    by_byte = summed.reshape(rows, size, width * bands)
    return np.ascontiguousarray(by_byte.transpose(0, 2, 1)).view(f">f{size}").reshape(rows, width, bands)


# --- Palettes, transparency, the way up ----------------------------------------------------------------------------


def _indices(data: bytes, layout: Layout) -> NDArray[np.uint16]:
    import numpy as np

    if layout.number != "u" or layout.bits > 16:
        raise refused(f"a palette with {words(layout)}")
    indices = np.empty((layout.height, layout.width), np.uint16)
    for top, left, block, _ in _blocks(data, layout, frozenset({0})):
        indices[top : top + block.shape[0], left : left + block.shape[1]] = block[..., 0]
    return indices


def _coloured(indices: NDArray[np.uint16], layout: Layout) -> Image.Image:
    """The colours of a palette (ColorMap, 16 bits each; some writers store 8, as libtiff knows too)."""
    import numpy as np
    from PIL import Image

    stored = layout.directory.numbers(320)
    count = 1 << layout.bits
    if len(stored) < 3 * count:
        raise ImageUndecodable("the image is damaged: its palette is incomplete")
    colours = np.array(stored[: 3 * count], np.uint16).reshape(3, count).T
    table = colours.astype(np.uint8) if colours.max() < 256 else samples.to_uint8(colours, (0, 65_535))
    return Image.fromarray(table[indices])


def _not_premultiplied(image: Image.Image) -> Image.Image:
    """A picture whose colours are multiplied with its transparency, without that."""
    import numpy as np
    from PIL import Image

    if image.mode == "RGBA":
        return Image.fromarray(np.asarray(image), "RGBa").convert("RGBA")
    grey, alpha = image.split()
    return Image.merge("RGBa", [grey, grey, grey, alpha]).convert("RGBA")


def _upright(image: Image.Image, layout: Layout) -> Image.Image:
    from embedserve.images.opening import transposition

    transpose = transposition(layout.directory.number(274, 1))
    return image if transpose is None else image.transpose(transpose)
