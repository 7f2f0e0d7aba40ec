"""GIF: a frame may be smaller than its canvas, and what is around it is nothing, which becomes white."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def load(image: Image.Image) -> Image.Image:
    """The first frame of an opened GIF on its canvas, decoded; transparent around it."""
    from PIL import Image

    tiles = list(image.tile)  # type: ignore[attr-defined]
    image.load()
    if not tiles or tiles[0].extents is None or tuple(tiles[0].extents) == (0, 0, *image.size):
        return image
    box = tuple(tiles[0].extents)
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 0))
    canvas.paste(image.crop(box).convert("RGBA"), box)
    canvas.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return canvas
