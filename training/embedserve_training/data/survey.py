"""A look at a folder's images before anything is planned: headers of many, pixels of some.

Shapes: H height, W width of a picture as decoded.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedserve.errors import ImageError
from embedserve.images import codec
from embedserve.images.inspect import ImageFacts, header_size, inspect
from embedserve.images.pixel_rule import PixelRule
from embedserve.regular_file import regular
from embedserve_training.data.folders import ImageFolder, Skipped, nothing_readable
from embedserve_training.plan.image_facts import MUCH, PictureFacts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HEADERS = 4096
"""Files whose header is read, at most, evenly spread over the folder: 0.05–0.1 ms each, measured on PNG and JPEG."""
_ALIKE = 12
"""Levels by which the pixels of a plain border may differ from its median colour, which JPEG makes them do."""
_PLAIN_SHARE = 0.95
"""Share of a border's pixels that must be alike."""
_OBJECT = 32
"""Levels by which a pixel differs from the border's colour that belongs to an object."""


@dataclass(frozen=True, kw_only=True)
class FolderSummary:
    """What a sample of a folder's images says about all of them."""

    median_side_px: int
    """Median of the shorter sides."""
    grey: bool
    """Whether none of them has any colour."""
    pictures: PictureFacts


def summarise(folder: ImageFolder, *, sample: int = 64) -> FolderSummary:
    """Read up to ``sample`` images, evenly spread over the folder, and the headers of up to 4,096.

    Raises:
        DataError: none of them can be read.
    """
    sides: list[int] = []
    grey = True
    skipped: list[Skipped] = []
    seen = _Seen()
    for position in _spread(len(folder.paths), sample):
        path = folder.paths[position]
        notes: list[str] = []
        try:
            data = codec.read_file(folder.file(position), folder.limits)
            pixels = codec.decode(data, folder.limits, notes=notes)
        except ImageError as error:
            skipped.append(Skipped(path=path, reason=error.message))
        except OSError as error:
            skipped.append(Skipped(path=path, reason=f"cannot be read: {error.strerror or error}"))
        else:
            sides.append(min(pixels.shape[:2]))
            grey = grey and bool((pixels == pixels[..., :1]).all())
            seen.add(data, pixels, set(notes), folder)
    if not sides:
        raise nothing_readable(folder, skipped)
    pictures = seen.facts(_shapes(folder))
    return FolderSummary(median_side_px=int(statistics.median(sides)), grey=grey, pictures=pictures)


def lost_share(width: int, height: int) -> float:
    """Share of a picture's area that is not in its centre square."""
    return 1 - min(width, height) / max(width, height)


def plain_border(pixels: NDArray[np.uint8]) -> tuple[int, int, int] | None:
    """Colour of a border, a fiftieth of the shorter side wide, if it is of one colour; else None."""
    import numpy as np

    wide = max(round(min(pixels.shape[:2]) / 50), 1)
    edges = (pixels[:wide], pixels[-wide:], pixels[:, :wide], pixels[:, -wide:])
    border = np.concatenate([edge.reshape(-1, 3) for edge in edges])
    colour = np.median(border, axis=0).astype(int)
    alike = (np.abs(border.astype(int) - colour) <= _ALIKE).all(axis=1).mean()
    return (int(colour[0]), int(colour[1]), int(colour[2])) if alike >= _PLAIN_SHARE else None


def is_cut(pixels: NDArray[np.uint8], border: tuple[int, int, int]) -> bool:
    """Whether something that differs from the border's colour lies outside of the centre square."""
    import numpy as np

    height, width = pixels.shape[:2]
    ends = abs(width - height) // 2
    turned = pixels if width >= height else pixels.swapaxes(0, 1)
    outside = np.concatenate([turned[:, :ends], turned[:, turned.shape[1] - ends :]], axis=1)
    differs = (np.abs(outside.astype(int) - border) > _OBJECT).any(axis=2)
    return bool(differs.size and differs.mean() > 0.01)


class _Seen:
    """What is gathered of the decoded images."""

    def __init__(self) -> None:
        self.sampled = self.cut = self.deep = self.highest = 0
        self.deepest_bits = 0
        self.borders: list[tuple[int, int, int]] = []
        self.tagged: set[tuple[float, float] | None] = set()
        self.notes: Counter[str] = Counter()

    def add(self, data: bytes, pixels: NDArray[np.uint8], notes: set[str], folder: ImageFolder) -> None:
        self.sampled += 1
        self.notes.update(notes)
        try:
            facts = inspect(data, folder.limits)
        except Exception:  # decoded, yet by another library than the one that looks here
            facts = None
        if facts is not None and facts.bits > 8:
            self.deep += 1
            self.deepest_bits = max(self.deepest_bits, facts.bits)
            self.tagged.add(facts.tagged)
            self.highest = max(self.highest, _highest(data, facts, folder))
            pixels = _brightened(pixels)
        if (border := plain_border(pixels)) is not None:
            self.borders.append(border)
            self.cut += is_cut(pixels, border)

    def facts(self, shapes: list[tuple[int, int]]) -> PictureFacts:
        aspects = [max(shape) / min(shape) for shape in shapes]
        return PictureFacts(
            headers=len(shapes),
            losing=sum(lost_share(*shape) > MUCH for shape in shapes),
            longest_aspect=max(aspects, default=1.0),
            sampled=self.sampled,
            plain=len(self.borders),
            cut=self.cut,
            border_colour=self._border_colour(),
            deep=self.deep,
            deepest_bits=self.deepest_bits or 16,
            highest=self.highest,
            tagged=tuple(self.tagged),
            notes=tuple(self.notes.most_common()),
        )

    def _border_colour(self) -> str:
        """The median colour of the plain borders, if most images have one and most of these are about alike."""
        if 2 * len(self.borders) < self.sampled:
            return ""
        colour = [round(statistics.median(border[band] for border in self.borders)) for band in range(3)]
        alike = sum(
            all(abs(one - other) <= 2 * _ALIKE for one, other in zip(border, colour, strict=True))
            for border in self.borders
        )
        return "#{:02x}{:02x}{:02x}".format(*colour) if 2 * alike > len(self.borders) else ""


def _highest(data: bytes, facts: ImageFacts, folder: ImageFolder) -> int:
    """The highest sample. Of images with colour it is known by the 255th part of their range: from their pixels."""
    if facts.used is not None:
        return facts.used[1]
    pixels = codec.decode(data, folder.limits, rule=PixelRule(colour="stored", value_range="full"))
    top: int = (1 << facts.bits) - 1
    level = int(pixels.max())
    # The smallest number of bits whose highest number has this level, where one has.
    for bits in range(8, facts.bits):
        if round(((1 << bits) - 1) * 255 / top) == level:
            return (1 << bits) - 1
    return round(level * top / 255)


def _brightened(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels of which the brightest is white: those of 12 bits in 16 are nearly black, whatever the picture."""
    import numpy as np

    return (pixels * (255.0 / max(int(pixels.max()), 1))).astype(np.uint8)


def _shapes(folder: ImageFolder) -> list[tuple[int, int]]:
    """Width and height of the files whose header tells them; quarter turns make no difference to what they are for."""
    shapes = []
    for position in _spread(len(folder.paths), _HEADERS):
        try:
            with open(folder.file(position), "rb", opener=regular) as file:
                size = header_size(file)
        except OSError:
            continue
        if size and min(size) > 0:
            shapes.append(size)
    return shapes


def _spread(total: int, count: int) -> list[int]:
    """Up to ``count`` positions of ``total``, evenly spread."""
    step = max(total / count, 1.0)
    return list(dict.fromkeys(int(step * i) for i in range(min(count, total))))
