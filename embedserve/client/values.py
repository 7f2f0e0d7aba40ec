"""What the client takes and returns beside ``embedserve.types``: images, items to add, queries, descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from embedserve.errors import EmbedserveError, InvalidInput
from embedserve.types import Limits

if TYPE_CHECKING:
    import os
    from datetime import date
    from typing import IO
    from uuid import UUID

    import numpy as np
    from numpy.typing import ArrayLike, NDArray
    from PIL.Image import Image

_Encoded: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[Any] | IO[bytes]"
ImageInput: TypeAlias = "_Encoded | Image | NDArray[np.uint8]"
"""An encoded image (JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF) as bytes, as the path of a file that holds one, or as an
open binary file, which is read from where it stands; or pixels, sent as PNG: a PIL image, whose EXIF orientation is
applied, or a uint8 array [H, W, 3] (RGB), [H, W, 4] (RGBA, composed on white) or [H, W] (grey)."""

ItemId: TypeAlias = "str | int | UUID | np.integer[Any]"
"""The id of an item, 1–256 bytes of UTF-8. Integers, NumPy's included, and UUIDs are taken as their text, so 7 and "7"
are the same id, and what the server returns is text."""

MetadataInput: TypeAlias = "Mapping[str, Any | date | UUID] | None"
"""Metadata as callers may give them: text, numbers, booleans and lists of text, and what stands for one of them:
scalars of NumPy and pandas, UUIDs, a ``datetime`` with a time zone (stored as text in UTC that sorts, as in
"2026-11-24T09:30:00.000000Z") and a ``date`` ("2026-11-24"). None means none. What is missing (None, NaN, NaT, NA) is
refused by its key: leave the key out."""


@dataclass(frozen=True, slots=True)
class EncoderRef:
    """Name, fingerprint and dimension of an encoder."""

    name: str
    fingerprint: str
    """64 hexadecimal digits. Vectors may be compared only where their fingerprints are equal."""
    dimension: int
    """D: numbers in a vector."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embeddings:
    """The embeddings of N images.

    It has the length, the rows and the slices of ``vectors``, and ``numpy.asarray`` makes them of it without a copy.
    """

    vectors: NDArray[np.float32]
    """float32 [N, D], unit norm, in the order of the images; a row of NaN where the image could not be used."""
    errors: Mapping[int, EmbedserveError]
    """Position from 0 → why that image could not be used; empty if all could."""
    encoder: EncoderRef

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return iter(self.vectors)

    def __getitem__(self, position: Any) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self.vectors[position]
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        import numpy as np

        return np.array(self.vectors, dtype=dtype, copy=copy)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderInfo:
    """The encoder that the server runs."""

    name: str
    fingerprint: str
    """sha256 over graph, weights and preprocessing, as 64 hexadecimal digits."""
    dimension: int
    """D: numbers in an embedding."""
    size_px: int
    """Side of the square that the graph takes."""
    resize_px: int
    """The shorter side is resized to this many pixels and the centre is cropped; 0: the whole image is squeezed."""
    filter: str
    """Resampling filter: "bilinear" or "bicubic"."""
    fit: str
    """How a picture meets the square: "crop" (its centre), "squeeze" (with another aspect) or "pad" (in its middle)."""
    pad_colour: tuple[int, ...]
    """Red, green and blue, 0–255, of what "pad" adds; otherwise empty."""
    colour: str
    """"srgb": colours are converted to sRGB where a file's profile says otherwise; "stored": they are not."""
    value_range: str | tuple[float, float]
    """What becomes 0 and 255 of samples with more than 8 bits: "full" (all that the bits hold), "tag" (what the file
    says) or these two numbers."""
    bands: tuple[int, ...]
    """Numbers, from 1, of the bands that are red, green and blue, or grey; empty: as the file says."""
    channels: int
    method: str
    """How it was trained, for example "simclr"."""
    backbone: str
    precision: str
    metadata: Mapping[str, Any] = field(repr=False)
    """The whole self-description of the encoder file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """The server's version, state and limits."""

    version: str
    started_unix_s: float
    """When it became ready, in seconds since 1970."""
    provider: str
    """What runs the encoder, for example "CPUExecutionProvider"."""
    encoder: EncoderRef
    limits: Limits
    images_in_flight: int
    has_collections: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ItemInput:
    """An item to add: exactly one of ``image`` and ``vector``.

    Raises:
        InvalidInput: both or neither are given.
    """

    id: ItemId = ""
    """1–256 bytes of UTF-8; empty: the client makes a new id. Integers and UUIDs are taken as their text."""
    image: ImageInput | None = None
    vector: ArrayLike | None = None
    """D numbers; stored with unit norm."""
    metadata: MetadataInput = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.image is None) == (self.vector is None):
            raise InvalidInput(f"item {self.id!r} needs either an image or a vector")


@dataclass(frozen=True, slots=True)
class AddResult:
    """The outcome for one item."""

    id: str
    """The id under which it is stored, or would have been."""
    error: EmbedserveError | None = None
    """Why it was not stored; None if it was."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Query:
    """What to search for: exactly one of an image, a vector and the id of an item.

    Raises:
        InvalidInput: none is given, or several.
    """

    image: ImageInput | None = None
    vector: ArrayLike | None = None
    """D numbers; their norm does not matter."""
    id: ItemId | None = None
    """Id of an item of the collection; the item is not among its own hits."""

    def __post_init__(self) -> None:
        given = [name for name in ("image", "vector", "id") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidInput(
                f"a query is exactly one of image, vector and id; given: {', '.join(given) or 'none of them'}"
            )
