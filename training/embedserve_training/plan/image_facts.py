"""What the images of a folder say about the rule that they should be read by. This module imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

MUCH = 0.2
"""A centre square that lacks more than this share of a picture's area loses much of it."""
_SHOWN = 0.1
"""Share of the square's side that the smallest view shows of the picture, wherever it lies."""
_LEAST_RATIO = 3 / 4
"""Smallest width over height, and height over width, of a view; see ``Augmentation.crop_ratio``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureFacts:
    """Of a folder's images: those whose headers were read, and a sample that was decoded."""

    headers: int = 0
    """Images whose size was read."""
    losing: int = 0
    """Those of which a centre square lacks more than ``MUCH`` of the area."""
    longest_aspect: float = 1.0
    """Longer over shorter side of the longest of them."""
    sampled: int = 0
    """Images that were decoded."""
    plain: int = 0
    """Those of them with a border of one colour."""
    cut: int = 0
    """Those with such a border whose object reaches out of the centre square."""
    border_colour: str = ""
    """Colour of most borders, as in "#ffffff"; empty if they have no one colour."""
    deep: int = 0
    """Decoded images with more than 8 bits per sample."""
    deepest_bits: int = 16
    highest: int = 0
    """The highest sample of these."""
    tagged: tuple[tuple[float, float] | None, ...] = ()
    """The different ranges that these state; None for those that state none."""
    notes: tuple[tuple[str, int], ...] = ()
    """What decoding decided for single images, and for how many of the decoded ones."""

    def noted(self, *words: str) -> str:
        """The notes with one of these words, as the end of a reason; empty if there are none."""
        found = [(note, count) for note, count in self.notes if any(word in note for word in words)]
        return "".join(f"; {count} of {self.sampled} images looked at: {note}" for note, count in found)


def crop_reason(seen: PictureFacts) -> str:
    """Why the centre is taken, what is lost by it, and what to type where pictures should be padded instead."""
    if not seen.headers:
        return "the centre square"
    if not seen.losing:
        return f"the centre square; no image loses more than a fifth of its area ({seen.headers} headers read)"
    lost = (
        f"{math.ceil(100 * seen.losing / seen.headers)} % of the images lose more than a fifth of their area"
        f" ({seen.headers} headers read)"
    )
    if proposes_pad(seen):
        return (
            f"the centre square; {lost}, and of {seen.sampled} looked at {seen.plain} have a plain border and"
            f" {seen.cut} an object that is cut: --fit pad shows them whole"
        )
    return f"the centre square; {lost}; --fit pad or squeeze keep all of it"


def proposes_pad(seen: PictureFacts) -> bool:
    """Whether these are pictures of products, so to say: at least half have a border of one colour, and from at least a
    tenth the centre square cuts a part of what is within the border."""
    return 0 < seen.sampled <= 2 * seen.plain and seen.sampled <= 10 * seen.cut


def value_range(seen: PictureFacts) -> tuple[str, str]:
    """What becomes black and white of samples with more than 8 bits, as a setting, and why."""
    if not seen.deep:
        return "tag", "no image looked at has more than 8 bits"
    top = 2**seen.deepest_bits - 1
    share = f"{seen.deepest_bits}-bit images use {max(round(100 * seen.highest / top), 1)} % of their range"
    if len(seen.tagged) == 1 and (stated := seen.tagged[0]) is not None:
        low, high = stated
        if 0 <= low < high <= top and seen.highest <= high:
            return "tag", f"all of them state {low:g}–{high:g}; {share}"
    if 0 < seen.highest < top / 4:
        return f"0,{2 ** seen.highest.bit_length() - 1}", share
    return "full", share


def crop_min_of_padded(longest_aspect: float) -> float:
    """Smallest share of a padded square that a view may show, so that no view is nothing but padding.

    Beside a picture of aspect a there are two bands of p = (1 − 1/a)/2 of the side. A view of share s is at least
    √(s · 3/4) high and wide, which shall be at least p + ``_SHOWN``.
    """
    band = (1 - 1 / max(longest_aspect, 1.0)) / 2
    return min(math.ceil(100 * (band + _SHOWN) ** 2 / _LEAST_RATIO) / 100, 1.0)
