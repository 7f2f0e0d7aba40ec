"""The domain as plain values: metadata, filters, items, hits, collections, limits.

Wire messages and database rows are converted to and from these at the edges and go no further.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from embedserve import conditions
from embedserve.errors import InvalidInput, LimitExceeded
from embedserve.metadata import Metadata as Metadata
from embedserve.metadata import MetadataValue as MetadataValue
from embedserve.metadata import check_metadata as check_metadata
from embedserve.metadata import check_metadata_key as check_metadata_key
from embedserve.metadata import metadata_bytes as metadata_bytes
from embedserve.metadata import metadata_bytes_at_most as metadata_bytes_at_most

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date
    from uuid import UUID

    import numpy as np
    from numpy.typing import NDArray

    ValueInput: TypeAlias = str | int | float | bool | date | UUID | np.generic
    """What stands for a value of metadata; ``metadata.plain`` says for which."""
    _Bound: TypeAlias = str | int | float | date | UUID | np.generic | None
    Vector: TypeAlias = NDArray[np.float32]
    """One embedding: float32 [D], unit norm once it is stored."""

DEFAULT_TARGET_RECALL = 0.95
"""recall@10 that approximate search is tuned to, unless a collection or a query sets another."""

MAX_TIMEOUT_S = 31_536_000
"""Longest time that a caller may ask to wait, a year: gRPC ends calls with a timeout beyond 7.5e9 s at once, and
infinite waits never return."""

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
    max_image_pixels: int = field(default=64_000_000, metadata={"help": "Width × height of one image."})
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
    max_connections: int = field(
        default=4096,
        metadata={"help": "gRPC connections at a time, idle ones included; fewer where few files may be open."},
    )
    max_answer_bytes: int = field(
        default=128 << 20, metadata={"help": "Bytes of answers that are read or not yet taken by their callers."}
    )

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not is_whole or not 1 <= value < 2**32:  # as wide as they are on the wire
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
# A condition on a list-valued key holds when it holds for any of its elements; int and double compare as numbers, and
# exactly; bool equals only bool. A condition on a missing key is false, and Not of it is therefore true.
# Each refuses what it cannot mean when it is made, so that nothing is swallowed; those that come over the wire are made
# of the right types, for which this costs one look at each.


@dataclass(frozen=True, slots=True)
class And:
    """All of the filters hold; an empty list always holds."""

    filters: tuple[Filter, ...]

    if TYPE_CHECKING:

        def __init__(self, filters: Iterable[Filter]) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "filters", conditions.inner_filters(self.filters, "And", FILTERS))


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of the filters holds; an empty list never holds."""

    filters: tuple[Filter, ...]

    if TYPE_CHECKING:

        def __init__(self, filters: Iterable[Filter]) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "filters", conditions.inner_filters(self.filters, "Or", FILTERS))


@dataclass(frozen=True, slots=True)
class Not:
    """The filter does not hold."""

    filter: Filter

    def __post_init__(self) -> None:
        conditions.check_is_filter(self.filter, "the filter in Not", FILTERS)


@dataclass(frozen=True, slots=True)
class Eq:
    """The key's value, or one element of its list, equals the value."""

    key: str
    value: str | int | float | bool

    if TYPE_CHECKING:

        def __init__(self, key: str, value: ValueInput) -> None: ...

    def __post_init__(self) -> None:
        if type(self.key) is not str:
            object.__setattr__(self, "key", conditions.key_text(self.key, "Eq"))
        if type(self.value) is not str:
            object.__setattr__(self, "value", conditions.single_value(self.value, self.key))


@dataclass(frozen=True, slots=True)
class In:
    """The key's value, or one element of its list, equals one of the values."""

    key: str
    values: tuple[str | int | float | bool, ...]

    if TYPE_CHECKING:

        def __init__(self, key: str, values: Iterable[ValueInput]) -> None: ...

    def __post_init__(self) -> None:
        if type(self.key) is not str:
            object.__setattr__(self, "key", conditions.key_text(self.key, "In"))
        if type(self.values) is not tuple or set(map(type, self.values)) != {str}:
            object.__setattr__(self, "values", conditions.several_values(self.values, self.key))


@dataclass(frozen=True, slots=True)
class Range:
    """The key's value lies within the bounds; a bound that is None is open.

    Bounds are all numbers or all texts. Numbers compare exactly, integers with floats too; texts by their UTF-8 bytes,
    and for a list one of its elements must lie within all bounds.
    """

    key: str
    gt: float | str | None = None
    gte: float | str | None = None
    lt: float | str | None = None
    lte: float | str | None = None

    @property
    def bounds(self) -> dict[str, float | str]:
        """The bounds that are set, by name."""
        bounds = {"gt": self.gt, "gte": self.gte, "lt": self.lt, "lte": self.lte}
        return {name: bound for name, bound in bounds.items() if bound is not None}

    if TYPE_CHECKING:

        def __init__(
            self, key: str, gt: _Bound = None, gte: _Bound = None, lt: _Bound = None, lte: _Bound = None
        ) -> None: ...

    def __post_init__(self) -> None:
        if type(self.key) is not str:
            object.__setattr__(self, "key", conditions.key_text(self.key, "Range"))
        for name in ("gt", "gte", "lt", "lte"):
            bound = getattr(self, name)
            if bound is not None and type(bound) not in _BOUND_TYPES:
                object.__setattr__(self, name, conditions.bound_value(bound, self.key, name))


@dataclass(frozen=True, slots=True)
class Exists:
    """The item has the key, with any value."""

    key: str

    def __post_init__(self) -> None:
        if type(self.key) is not str:
            object.__setattr__(self, "key", conditions.key_text(self.key, "Exists"))


Filter: TypeAlias = And | Or | Not | Eq | In | Range | Exists
FILTERS = (And, Or, Not, Eq, In, Range, Exists)
_BOUND_TYPES = frozenset((str, int, float))


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
            case Range(key):
                check_metadata_key(key)
                conditions.check_bounds(key, node.bounds)
            case Eq(key, _) | Exists(key):
                check_metadata_key(key)
        limits.check("max_filter_nodes", nodes, "conditions and values in the filter")


def has_condition(condition: Filter) -> bool:
    """Whether a filter, within the limits, asks anything of an item; an empty And, for one, does not."""
    match condition:
        case And(filters) | Or(filters):
            return any(has_condition(child) for child in filters)
        case Not(child):
            return has_condition(child)
        case _:
            return True


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
