"""Strips and tiles of a TIFF → arrays of samples. Pillow, and libtiff in it, decompress; the rest is arithmetic.

Pillow reads the bytes of strips and tiles as if they were grey pixels of 8 bits, through a directory written for that.
So it needs to know nothing of sample types, byte orders and planes, some of which it takes for others without an error.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from embedserve.errors import ImageUndecodable
from embedserve.images import tiff_header as tags
from embedserve.images.tiff_header import Directory, rewritten
from embedserve.images.tiff_layout import Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_GROUP_BYTES = 4 << 20
"""Chunks are decompressed in groups of about this size, so that samples of the whole picture are never in memory."""


def rows_of(directory: Directory, layout: Layout, bands: tuple[int, ...]) -> Iterator[tuple[int, NDArray[Any]]]:
    """The samples of the bands (from 0), from top to bottom: the first row, and an array [rows, W, len(bands)]."""
    import numpy as np

    data = directory.data
    if directory.number(tags.FILL_ORDER, 1) == 2:
        mirror = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]
        data = mirror[np.frombuffer(data, np.uint8)].tobytes()
    per_group = max(1, _GROUP_BYTES // (layout.across * layout.chunk_row_bytes * layout.chunk_height))
    per_plane = layout.across * layout.down
    for top in range(0, layout.down, per_group):
        down = min(per_group, layout.down - top)
        first, last = top * layout.across, (top + down) * layout.across
        row = top * layout.chunk_height
        rows = min(down * layout.chunk_height, layout.height - row)  # the last tiles have more
        if not layout.planar:
            raw = _decompressed(data, layout, first, last, down, row)[:rows]
            for start, samples in _unpacked(raw, layout, directory.order, layout.samples):
                yield row + start, samples[..., list(bands)]
            continue
        planes = []
        for band in bands:
            skip = band * per_plane
            raw = _decompressed(data, layout, first + skip, last + skip, down, row)[:rows]
            planes.append(np.concatenate([block for _, block in _unpacked(raw, layout, directory.order, 1)]))
        yield row, np.concatenate(planes, axis=-1)


def _decompressed(data: bytes, layout: Layout, first: int, last: int, down: int, row: int) -> NDArray[np.uint8]:
    """The bytes of some chunks: uint8 [rows, chunks across, bytes of a chunk's row]."""
    import numpy as np
    from PIL import Image

    height = down * layout.chunk_height if layout.tiled else min(down * layout.chunk_height, layout.height - row)
    width = layout.across * layout.chunk_row_bytes
    offsets, counts = layout.offsets[first:last], layout.counts[first:last]
    if layout.compression == 1:
        return _plain(data, layout, offsets, counts, height)
    if any(offset + count > len(data) for offset, count in zip(offsets, counts, strict=True)):
        raise ImageUndecodable("the image is damaged: strips or tiles lie behind its end")
    begin = min(offsets)
    end = max(offset + count for offset, count in zip(offsets, counts, strict=True))
    fields: dict[int, tuple[int, ...] | bytes] = {
        tags.WIDTH: (width,),
        tags.LENGTH: (height,),
        tags.BITS: (8,),
        tags.COMPRESSION: (layout.compression,),
        tags.PHOTOMETRIC: (1,),
        tags.SAMPLES: (1,),
    }
    moved = tuple(8 + offset - begin for offset in offsets)
    if layout.tiled:
        fields |= {tags.TILE_WIDTH: (layout.chunk_row_bytes,), tags.TILE_LENGTH: (layout.chunk_height,)}
        fields |= {tags.TILE_OFFSETS: moved, tags.TILE_COUNTS: counts}
    else:
        fields |= {tags.ROWS_PER_STRIP: (layout.chunk_height,), tags.STRIP_OFFSETS: moved, tags.STRIP_COUNTS: counts}
    # Pillow's guard counts our bytes as pixels; the limits on the picture itself are checked already.
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = width * height
    with Image.open(io.BytesIO(rewritten(bytes(8) + data[begin:end], fields)), formats=("TIFF",)) as image:
        return np.asarray(image).reshape(height, layout.across, layout.chunk_row_bytes)


def _plain(
    data: bytes, layout: Layout, offsets: tuple[int, ...], counts: tuple[int, ...], height: int
) -> NDArray[np.uint8]:
    """The bytes of chunks that are not compressed, as ``_decompressed``."""
    import numpy as np

    raw = np.empty((height, layout.across, layout.chunk_row_bytes), np.uint8)
    for index, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        top = index // layout.across * layout.chunk_height
        rows = min(layout.chunk_height, height - top)
        size = rows * layout.chunk_row_bytes
        if size > count or offset + size > len(data):
            raise ImageUndecodable("the image is damaged: it ends before its last pixel")
        chunk = np.frombuffer(data, np.uint8, size, offset).reshape(rows, -1)
        raw[top : top + rows, index % layout.across] = chunk
    return raw


def _unpacked(raw: NDArray[np.uint8], layout: Layout, order: str, samples: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Bytes [rows, across, bytes] → blocks of rows: the first row, and an array [rows, W, samples]."""
    step = max(1, _GROUP_BYTES // (8 * raw[0].size))
    for start in range(0, len(raw), step):
        values = _numbers(raw[start : start + step], layout, order, samples)
        values = _unpredicted(values, layout, samples)
        wide = values.reshape(len(values), layout.across * layout.chunk_width, samples)
        yield start, wide[:, : layout.width]


def _numbers(raw: NDArray[np.uint8], layout: Layout, order: str, samples: int) -> NDArray[Any]:
    import numpy as np

    bits, per_row = layout.bits, layout.chunk_width * samples
    if layout.predictor == 3:
        # Each row holds the first bytes of all its numbers, the most significant, then their second bytes, and so on;
        # of these bytes the differences are stored.
        size = bits // 8
        summed = np.add.accumulate(raw.reshape(*raw.shape[:2], -1, samples), axis=2, dtype=np.uint8)
        apart = summed.reshape(*raw.shape[:2], size, per_row)
        return np.ascontiguousarray(np.moveaxis(apart, 2, 3)).view(f">f{size}")[..., 0]
    if bits in (8, 16, 32, 64):
        return np.ascontiguousarray(raw).view(f"{order}{'_uif'[layout.kind]}{bits // 8}")
    one_by_one = np.unpackbits(raw, axis=2)[..., : per_row * bits].reshape(*raw.shape[:2], per_row, bits)
    weights = (1 << np.arange(bits, dtype=np.uint64)[::-1]).astype(np.uint32)
    numbers: NDArray[Any] = one_by_one.astype(np.uint32) @ weights if bits > 16 else _small(one_by_one, bits)
    return numbers


def _small(one_by_one: NDArray[np.uint8], bits: int) -> NDArray[Any]:
    import numpy as np

    numbers = np.zeros(one_by_one.shape[:-1], np.uint8 if bits <= 8 else np.uint16)
    for place in range(bits):
        numbers = (numbers << 1) | one_by_one[..., place]
    return numbers


def _unpredicted(values: NDArray[Any], layout: Layout, samples: int) -> NDArray[Any]:
    import numpy as np

    if layout.predictor == 2:
        # Differences are of the bit patterns, also those of floating-point numbers.
        whole = values.astype(values.dtype.newbyteorder("=")).view(f"u{layout.bits // 8}")
        by_pixel = whole.reshape(*whole.shape[:2], layout.chunk_width, samples)
        summed = np.add.accumulate(by_pixel, axis=2, dtype=whole.dtype)
        return summed.view(values.dtype.newbyteorder("="))
    return values
