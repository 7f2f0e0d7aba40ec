"""The domain as plain values: metadata, filters, items, hits, collections, limits.

Wire messages and database rows are converted to and from these at the edges and go no further.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from embedserve.errors import InvalidInput, LimitExceeded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector: TypeAlias = NDArray[np.float32]
    """One embedding: float32 [D], unit norm once it is stored."""

MetadataValue: TypeAlias = str | int | float | bool | Sequence[str]
Metadata: TypeAlias = Mapping[str, MetadataValue]

DEFAULT_TARGET_RECALL = 0.95
"""recall@10 that approximate search is tuned to, unless a collection or a query sets another."""

EXTERNAL = "external"
"""The fingerprint of a collection whose vectors come from outside; it is bound to no encoder."""


class Keep(StrEnum):
    """What a collection keeps of an image besides its vector."""

    NONE = "none"
    THUMBNAILS = "thumbnails"
    ORIGINALS = "originals"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Every limit that the server enforces before work starts; published by GetServerInfo."""

    max_message_bytes: int = field(
        default=32 << 20, metadata={"help": "Bytes of one gRPC message, in either direction."}
    )
    max_images: int = field(default=64, metadata={"help": "Images in one call."})
    max_items: int = field(default=1000, metadata={"help": "Ready vectors or ids in one call."})
    max_queries: int = field(default=64, metadata={"help": "Queries in one Search call."})
    max_image_bytes: int = field(default=16 << 20, metadata={"help": "Bytes of one encoded image."})
    max_image_pixels: int = field(default=50_000_000, metadata={"help": "Width × height of one image."})
    max_k: int = field(default=1000, metadata={"help": "Hits for one query."})
    max_page_size: int = field(default=1000, metadata={"help": "Items on one page of ListItems."})
    max_id_bytes: int = field(default=256, metadata={"help": "Bytes of one item id in UTF-8."})
    max_metadata_bytes: int = field(default=16 << 10, metadata={"help": "Bytes of one item's metadata as JSON."})
    max_filter_depth: int = field(default=8, metadata={"help": "Nesting of a filter."})
    max_filter_nodes: int = field(default=256, metadata={"help": "Conditions and values in a filter."})
    max_queue_images: int = field(default=1024, metadata={"help": "Images admitted and not yet answered."})
    max_queue_bytes: int = field(default=512 << 20, metadata={"help": "Bytes of images admitted and not yet answered."})
    max_image_side_px: int = field(default=65_535, metadata={"help": "Width and height of one image."})
    max_calls: int = field(default=2048, metadata={"help": "Calls in flight; health checks are not counted."})
    max_connection_calls: int = field(default=512, metadata={"help": "Calls in flight on one connection."})
    max_answer_bytes: int = field(
        default=128 << 20, metadata={"help": "Bytes of answers that are read or not yet taken by their callers."}
    )

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not 1 <= value < 2**32:  # as wide as they are on the wire
                raise InvalidInput(f"{limit.name} is {value}; a limit must be between 1 and {2**32 - 1}")

    def check(self, name: str, value: int, what: str) -> None:
        """Refuse a value above the named limit.

        Raises:
            LimitExceeded: names the limit, its value and what exceeded it.
        """
        limit: int = getattr(self, name)
        if value > limit:
            raise LimitExceeded(f"{value} {what}; {name} is {limit}")


# --- Filters ---------------------------------------------------------------
# A condition on a list-valued key holds when it holds for any of its elements; int and double compare as numbers;
# bool equals only bool. A condition on a missing key is false, and Not of it is therefore true.


@dataclass(frozen=True, slots=True)
class And:
    """All of the filters hold; an empty list always holds."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of the filters holds; an empty list never holds."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The filter does not hold."""

    filter: Filter


@dataclass(frozen=True, slots=True)
class Eq:
    """The key's value, or one element of its list, equals the value."""

    key: str
    value: str | int | float | bool


@dataclass(frozen=True, slots=True)
class In:
    """The key's value, or one element of its list, equals one of the values."""

    key: str
    values: tuple[str | int | float | bool, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The key's value is a number within the bounds; a bound that is None is open."""

    key: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True, slots=True)
class Exists:
    """The item has the key, with any value."""

    key: str


Filter: TypeAlias = And | Or | Not | Eq | In | Range | Exists


@lru_cache(maxsize=1024)  # few keys recur; an exception is not cached
def check_metadata_key(key: str) -> None:
    """Refuse a key that is not 1–128 characters without quotes, backslashes and control characters.

    Raises:
        InvalidInput: with the offending key.
    """
    if not 1 <= len(key) <= 128 or not key.isprintable() or any(character in "\"'`\\" for character in key):
        raise InvalidInput(
            f"metadata key {key!r} is not allowed",
            hint="keys are 1–128 printable characters without quotes and backslashes",
        )


def check_metadata(metadata: Metadata) -> None:
    """Refuse keys and values that not every backend can store exactly.

    Raises:
        InvalidInput: names the key and says what is wrong with its value.
    """
    for key, value in metadata.items():
        check_metadata_key(key)
        if isinstance(value, bool):
            continue
        if isinstance(value, str):
            _check_text(key, value)
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise InvalidInput(f"metadata {key!r} is {value}, which does not fit 64 bits")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise InvalidInput(f"metadata {key!r} is {value}; only finite numbers can be kept")
        else:
            is_list = isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview))
            if not is_list or not all(isinstance(element, str) for element in value):
                raise InvalidInput(
                    f"metadata {key!r} is a {type(value).__name__}",
                    hint="values are strings, integers, floats, booleans or lists of strings",
                )
            for element in value:
                _check_text(key, element)


def _check_text(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"metadata {key!r} is {text!r}, which cannot be written in UTF-8") from None


def metadata_bytes(metadata: Metadata) -> int:
    """Size of metadata as JSON in UTF-8, in bytes."""
    return len(json.dumps(dict(metadata), ensure_ascii=False).encode())


def metadata_bytes_at_most(metadata: Metadata) -> int:
    """An upper bound of ``metadata_bytes`` that is cheap to compute; about six times too high for plain text."""
    size_bytes = 2
    for key, value in metadata.items():
        size_bytes += 8 + _MAX_CHAR_BYTES * len(key)
        if isinstance(value, str):
            size_bytes += _MAX_CHAR_BYTES * len(value)
        elif isinstance(value, Sequence):
            size_bytes += sum(4 + _MAX_CHAR_BYTES * len(element) for element in value)
        else:
            size_bytes += _MAX_NUMBER_BYTES
    return size_bytes


_MAX_CHAR_BYTES = 6
"""Of one character in JSON: a control character becomes \\u0001; UTF-8 takes at most 4."""
_MAX_NUMBER_BYTES = 32


def check_filter(condition: Filter, limits: Limits) -> None:
    """Refuse a filter with bad keys, or one deeper or larger than the limits.

    Raises:
        InvalidInput: a key or bound is not allowed.
        LimitExceeded: max_filter_depth or max_filter_nodes is exceeded.
    """
    nodes = 0
    waiting: list[tuple[Filter, int]] = [(condition, 1)]
    while waiting:
        node, depth = waiting.pop()
        limits.check("max_filter_depth", depth, "levels in the filter")
        nodes += 1
        match node:
            case And(filters) | Or(filters):
                waiting += [(child, depth + 1) for child in filters]
            case Not(child):
                waiting.append((child, depth + 1))
            case In(key, values):
                check_metadata_key(key)
                nodes += len(values)
            case Range(key, gt, gte, lt, lte):
                check_metadata_key(key)
                if all(bound is None for bound in (gt, gte, lt, lte)):
                    raise InvalidInput(f"the range on {key!r} has no bound")
                if any(bound is not None and math.isnan(bound) for bound in (gt, gte, lt, lte)):
                    raise InvalidInput(f"the range on {key!r} has a bound that is not a number")
            case Eq(key, _) | Exists(key):
                check_metadata_key(key)
        limits.check("max_filter_nodes", nodes, "conditions and values in the filter")


# --- Items, hits, collections ----------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """What is kept of an item's image: a JPEG thumbnail or the original bytes."""

    data: bytes
    media_type: str
    """As in "image/jpeg"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One stored item. Parts that were not requested are None or empty."""

    id: str
    metadata: Metadata = field(default_factory=dict)
    vector: Vector | None = None
    content_sha256: bytes = b""
    """sha256 of the item's image bytes; empty for an item that was written as a vector."""
    media: Media | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Include:
    """Which parts of items to read besides id and content hash."""

    metadata: bool = False
    vectors: bool = False
    media: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Items of one page, and where the next page begins."""

    items: tuple[Item, ...]
    next_page_token: str
    """Empty on the last page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One answer to a query."""

    id: str
    score: float
    """Cosine similarity in [−1, 1], rounded to 1e-6; higher is closer; ties are broken by id."""
    metadata: Metadata = field(default_factory=dict)
    vector: Vector | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectionIdentity:
    """What never changes in a collection: which vectors it holds. Known without reading its files."""

    name: str
    fingerprint: str
    """Fingerprint of the encoder that it is bound to, or EXTERNAL."""
    encoder_name: str
    dimension: int
    keep: Keep
    uid: str = ""
    """Distinguishes it from earlier and later collections of the same name; known to the store only."""

    @property
    def external(self) -> bool:
        """Whether its vectors come from outside, so that images cannot be compared with them."""
        return self.fingerprint == EXTERNAL


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """Share of the ten nearest items that approximate search finds, measured against exact search."""

    value: float
    """Mean recall@10 over the queries, in [0, 1]."""
    queries: int
    """Number of queries that it was measured with."""
    real: bool
    """True if the queries were sampled from clients' searches, False if made from the collection's own vectors."""
    measured_unix_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectionInfo(CollectionIdentity):
    """What a collection is and holds."""

    created_unix_s: float
    items: int = 0
    aliases: tuple[str, ...] = ()
    index: str = ""
    """Description of the index in use, as in "exact (flat inner product)"."""
    disk_bytes: int = 0
    index_spec: str = "auto"
    """The index requested when the collection was created, as in "auto" or "hnsw:m=32"."""
    target_recall: float = DEFAULT_TARGET_RECALL
    """The recall@10 that approximate search is tuned to."""
    filter_keys: tuple[str, ...] = ()
    """Indexed metadata keys: filters on them need not read all items."""
    recall: Recall | None = None
    """As last measured; None while every search is exact, or before the first measurement."""
    building: bool = False
    """Whether segments are being built or merged in the background."""
    segments: int = 0
    """Number of segments of the index."""
    unsealed: int = 0
    """Items that are in no segment yet; searches compare them one by one."""
    deleted: int = 0
    """Rows of the index whose items were deleted or replaced; merging removes them."""

    @property
    def dead(self) -> int:
        """The old name of ``deleted``."""
        warnings.warn("CollectionInfo.dead is now called deleted", DeprecationWarning, stacklevel=2)
        return self.deleted


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """What a check of a collection found."""

    items: int
    """Rows that were compared with their checksums."""
    segments: int
    """Segments whose files were compared with their hashes."""
    searched: int
    """Items that were searched by their own vectors."""
    recall: Recall | None
    """Measured during the check; None if every search is exact."""
    problems: tuple[str, ...]
    """One sentence per problem, with the file or item; empty if there is none."""


@dataclass(frozen=True, slots=True)
class CheckProgress:
    """The progress of a check."""

    stage: str
    """What is being checked: "items", "segments", "search" or "recall"."""
    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """What a search asks for besides its query vectors."""

    k: int = 10
    min_score: float | None = None
    filter: Filter | None = None
    group_by: str = ""
    """Metadata key; at most one hit, the closest, for each of its values. Items without the key are not grouped."""
    exact: bool = False
    """Compare with all items, without approximation."""
    ef: int = 0
    """Candidates that HNSW keeps during a search; 0: as many as the target recall needs. At most one of ef, nprobe and
    target_recall may be set, and none together with exact."""
    nprobe: int = 0
    """Lists that IVF scans; 0: as many as the target recall needs."""
    target_recall: float | None = None
    """recall@10 to search for, in (0, 1]; None: the collection's own."""
    include_metadata: bool = True
    include_vectors: bool = False
