"""How the samples in a file become red, green and blue of 8 bits: the part of the preprocess rule that decoding needs.

Formats leave three things open that change the picture: what the numbers of a profile mean, which of 65,536 values are
black and white, and which of many bands are red, green and blue. Training settles them, the encoder file carries them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedserve.errors import EncoderFileError

COLOURS = ("srgb", "stored")
VALUE_RANGES = ("full", "tag")
MAX_BANDS = 65_535
"""What the 16 bits of a TIFF's SamplesPerPixel can say."""
_LARGEST = 1e30
"""Beyond any sample. A document may hold whole numbers that no float can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelRule:
    """How stored samples become RGB uint8. The defaults are those of new encoders."""

    colour: str = "srgb"
    """"srgb": colours are converted to sRGB where the file has a profile that says otherwise. "stored": the numbers are
    taken as they are, whatever the profile says, as encoders did before there was this rule."""
    value_range: str | tuple[float, float] = "tag"
    """What becomes 0 and 255 of samples with more than 8 bits. "full": the lowest and highest number that their bits
    can hold. "tag": what the file says itself (a TIFF's MinSampleValue and MaxSampleValue), and where it says nothing,
    as "full". Two numbers: these; smaller ones become 0, larger ones 255."""
    bands: tuple[int, ...] = ()
    """Numbers, from 1, of the three bands that are red, green and blue, or of the one that is grey. Empty: as the file
    says; of bands that it does not name, the first three or the first."""

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise EncoderFileError(f'preprocess.colour is {self.colour!r}, not "srgb" or "stored"')
        _check_range(self.value_range)
        _check_bands(self.bands)

    @property
    def high_bytes(self) -> bool:
        """Whether colours of 16 bits are cut to their higher byte, as they were for encoders from before this rule."""
        return self.colour == "stored" and self.value_range == "full"

    def to_json(self) -> dict[str, Any]:
        """What differs from ``STORED``, so that the fingerprints of encoders from before this rule stay as they are."""
        document: dict[str, Any] = {}
        if self.colour != STORED.colour:
            document["colour"] = self.colour
        if self.value_range != STORED.value_range:
            document["value_range"] = self.value_range if isinstance(self.value_range, str) else [*self.value_range]
        if self.bands != STORED.bands:
            document["bands"] = [*self.bands]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> PixelRule:
        """The rule that the fields of a JSON document describe; where one is missing, that of ``STORED``.

        Raises:
            EncoderFileError: a field has a value that is not possible.
        """
        value_range = document.get("value_range", STORED.value_range)
        bands = document.get("bands", STORED.bands)
        return cls(
            colour=document.get("colour", STORED.colour),
            value_range=tuple(value_range) if isinstance(value_range, list) else value_range,
            bands=tuple(bands) if isinstance(bands, list) else bands,
        )


FIELDS = frozenset(PixelRule.__dataclass_fields__)
"""Names of the fields in a JSON document."""


def _check_range(value: object) -> None:
    if isinstance(value, str) and value in VALUE_RANGES:
        return
    numbers = isinstance(value, tuple) and len(value) == 2 and all(type(end) in (int, float) for end in value)
    if numbers and isinstance(value, tuple) and all(-_LARGEST < end < _LARGEST for end in value):
        if value[0] < value[1]:
            return
        raise EncoderFileError(f"preprocess.value_range is from {value[0]} to {value[1]}; the first must be smaller")
    raise EncoderFileError(f'preprocess.value_range is {value!r}, not "full", "tag" or two numbers')


def _check_bands(value: object) -> None:
    numbers = isinstance(value, tuple) and all(type(band) is int and 1 <= band <= MAX_BANDS for band in value)
    if not numbers or not isinstance(value, tuple) or len(value) not in (0, 1, 3):
        raise EncoderFileError(f"preprocess.bands is {value!r}, not one or three numbers of bands, from 1")


STORED = PixelRule(colour="stored", value_range="full")
"""What was done before there was this rule."""
