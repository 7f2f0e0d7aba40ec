"""Why nothing was found: the collection is empty, or its items lack a key, or have another kind of value for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from embedserve.errors import EmbedserveError
from embedserve.nearest import nearest
from embedserve.types import And, Eq, Exists, Filter, In, Or, Range

if TYPE_CHECKING:
    from embedserve.client import Client

_SAMPLE = 100
"""Items whose keys are compared with a key that no item has."""
_KIND_SAMPLE = 3
"""Items whose values are looked at."""


def why_nothing(client: Client, collection: str, conditions: Sequence[Filter]) -> str:
    """The reason why nothing matches, as far as a few cheap requests show; empty if they show none.

    Each condition costs one page of at most three items.
    """
    try:
        if client.get_collection(collection).items == 0:
            return f"collection {collection} is empty"
        for leaf in _leaves(conditions):
            if reason := _lacking(client, collection, leaf):
                return reason
    except EmbedserveError:
        pass  # the answer stands without its reason
    return ""


def _leaves(conditions: Sequence[Filter]) -> Iterator[Eq | In | Range | Exists]:
    """Conditions that an item without the key cannot fulfil."""
    for condition in conditions:
        match condition:
            case And(filters):
                yield from _leaves(filters)
            case Eq() | In() | Range() | Exists():
                yield condition
            case Or() | _:
                pass


def _lacking(client: Client, collection: str, leaf: Eq | In | Range | Exists) -> str:
    """What the items lack for a condition; empty if nothing is found."""
    key = leaf.key
    found = islice(client.list_items(collection, filter=Exists(key), page_size=_KIND_SAMPLE), _KIND_SAMPLE)
    values = [item.metadata[key] for item in found if key in item.metadata]
    if not values:
        return f"no item has the key {key!r}{_meant(client, collection, key)}"
    wanted = _wanted_kinds(leaf)
    kinds = {_kind(value) for value in values}
    if wanted and not wanted & kinds and kinds != {"list"}:
        example = f"{values[0]!r}"[:60]
        quote = "; quotes make text" if kinds == {"text"} else ""
        return f"the values of {key!r} are {_or(kinds)}, such as {example}, and the condition has {_or(wanted)}{quote}"
    return ""


def _meant(client: Client, collection: str, key: str) -> str:
    """The most similar key that some items have, as a question; empty if there is none."""
    items = islice(client.list_items(collection, page_size=_SAMPLE), _SAMPLE)
    known = sorted({name for item in items for name in item.metadata})
    close = nearest(key, known)
    return f"; did you mean {close!r}?" if close else ""


def _wanted_kinds(leaf: Eq | In | Range | Exists) -> set[str]:
    match leaf:
        case Eq(_, value):
            return {_kind(value)}
        case In(_, values):
            return {_kind(value) for value in values}
        case Range():
            return {_kind(bound) for bound in (leaf.gt, leaf.gte, leaf.lt, leaf.lte) if bound is not None}
        case _:
            return set()


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "booleans"
    if isinstance(value, (int, float)):
        return "numbers"
    return "text" if isinstance(value, str) else "list"


def _or(kinds: set[str]) -> str:
    return " or ".join(sorted(kinds))
