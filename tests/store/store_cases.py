"""Items, and slow reference answers, written independently of how the store finds its own."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedserve.store.local.collection.collection import Collection
from embedserve.store.local.store import LocalStore
from embedserve.types import (
    EXTERNAL,
    And,
    Eq,
    Exists,
    Filter,
    In,
    Include,
    Item,
    Keep,
    Metadata,
    Not,
    Or,
    Range,
    SearchOptions,
)

EVERYTHING = Include(metadata=True, vectors=True, media=True)


def unit(*numbers: float) -> NDArray[np.float32]:
    vector = np.array(numbers, np.float64)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def random_units(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """float32 [count, dimension], unit norm."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension))
    scaled: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled.astype(np.float32)


def new_collection(
    store: LocalStore,
    name: str = "photos",
    dimension: int = 4,
    *,
    index: str = "auto",
    filter_keys: Sequence[str] = (),
) -> None:
    store.create_collection(
        name,
        fingerprint=EXTERNAL,
        encoder_name="",
        dimension=dimension,
        keep=Keep.ORIGINALS,
        index=index,
        filter_keys=filter_keys,
    )


def collection_of(store: LocalStore, name: str = "photos") -> Collection:
    return store._registry.find(name)


def all_ids(store: LocalStore, name: str = "photos", page_size: int = 100) -> list[str]:
    """All ids, read page by page."""
    ids, token = [], ""
    while True:
        page = store.list_items(name, page_size=page_size, page_token=token, filter=None, include=Include())
        ids += [item.id for item in page.items]
        token = page.next_page_token
        if not token:
            return ids


def holds(condition: Filter, metadata: Metadata) -> bool:
    """Whether metadata match a filter, as the wire protocol defines it."""
    match condition:
        case And(filters):
            return all(holds(child, metadata) for child in filters)
        case Or(filters):
            return any(holds(child, metadata) for child in filters)
        case Not(child):
            return not holds(child, metadata)
        case Eq(key, value):
            return any(_same(element, value) for element in _elements(metadata, key))
        case In(key, values):
            return any(_same(element, value) for element in _elements(metadata, key) for value in values)
        case Range(key):
            return any(_is_within(element, condition) for element in _elements(metadata, key))
        case Exists(key):
            return key in metadata


def _elements(metadata: Metadata, key: str) -> Iterable[object]:
    if key not in metadata:
        return []
    value = metadata[key]
    return value if isinstance(value, (list, tuple)) else [value]


def _is_within(stored: object, condition: Range) -> bool:
    """Whether a value lies within the bounds: a number, compared exactly, or a text, by the bytes of its UTF-8."""
    compare: dict[str, Callable[[Any, Any], bool]] = {
        "gt": operator.gt,
        "gte": operator.ge,
        "lt": operator.lt,
        "lte": operator.le,
    }
    for name, bound in condition.bounds.items():
        if isinstance(stored, bool) or isinstance(stored, str) != isinstance(bound, str):
            return False
        if not compare[name](_by_bytes(stored), _by_bytes(bound)):
            return False
    return True


def _by_bytes(value: object) -> object:
    return value.encode() if isinstance(value, str) else value


def _same(stored: object, wanted: object) -> bool:
    if isinstance(stored, bool) or isinstance(wanted, bool):
        return isinstance(stored, bool) and isinstance(wanted, bool) and stored == wanted
    return stored == wanted


def slow_search(
    items: Mapping[str, Item], query: NDArray[np.float32], options: SearchOptions, exclude: str | None = None
) -> list[tuple[str, float]]:
    """Ids and scores of all items that may be hits, sorted, then cut to k."""
    scored = []
    for item in items.values():
        assert item.vector is not None
        if item.id == exclude or (options.filter is not None and not holds(options.filter, item.metadata)):
            continue
        score = round(min(1.0, max(-1.0, float(item.vector.astype(np.float64) @ query.astype(np.float64)))), 6)
        if options.min_score is None or score >= options.min_score:
            scored.append((item.id, score))
    scored.sort(key=lambda pair: (-pair[1], pair[0].encode()))
    if options.group_by:
        scored = _one_of_each_group(items, scored, options.group_by)
    return scored[: options.k]


def _one_of_each_group(items: Mapping[str, Item], scored: list[tuple[str, float]], key: str) -> list[tuple[str, float]]:
    kept: list[tuple[str, float]] = []
    seen: list[object] = []
    for id, score in scored:
        if key in items[id].metadata:
            value = items[id].metadata[key]
            if any(isinstance(value, bool) == isinstance(other, bool) and value == other for other in seen):
                continue
            seen.append(value)
        kept.append((id, score))
    return kept


def found(
    store: LocalStore,
    query: NDArray[np.float32],
    options: SearchOptions,
    exclude: str | None = None,
    name: str = "photos",
) -> list[tuple[str, float]]:
    """The answer of the store in the form of ``slow_search``."""
    (hits,) = store.search(name, query[None], options, [exclude])
    return [(hit.id, hit.score) for hit in hits]


def items_file(directory: Path) -> Path:
    """The file with the items of the only collection."""
    (path,) = directory.glob("collections/*/items.sqlite")
    return path
