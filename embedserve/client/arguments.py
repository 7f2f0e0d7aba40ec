"""What callers may pass to the public methods of both clients, checked before anything is sent.

Each function returns its argument with the type that the rest of the client expects, or raises InvalidInput, which
names the parameter, what was given, and what to write.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np

from embedserve.client.images import check_image, is_open_file, path_text
from embedserve.client.inputs import vector_of
from embedserve.client.values import ItemInput, Query
from embedserve.conditions import check_is_filter
from embedserve.errors import InvalidInput
from embedserve.metadata import check_utf_8, digits, plain, plain_id, shown
from embedserve.types import (
    FILTERS,
    MAX_TIMEOUT_S,
    And,
    Eq,
    Filter,
    In,
    Keep,
    Limits,
    Not,
    Or,
    SearchOptions,
    check_filter,
)

CallbackT = TypeVar("CallbackT", bound=Callable[..., Any])
ElementT = TypeVar("ElementT")

_MAX_UINT32 = 2**32 - 1
_SENDABLE_FILTER = Limits(max_filter_depth=40, max_filter_nodes=_MAX_UINT32)
"""Protobuf reads no message with more than 100 levels, of which a filter takes two for each of its own."""


# --- Single values ---------------------------------------------------------


def text(name: str, value: object, *, may_be_empty: bool = True, secret: bool = False) -> str:
    """An argument that is text.

    Args:
        name: of the parameter.
        value: what the caller gave.
        may_be_empty: whether "" means something.
        secret: do not show the value.
    """
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is {type(value).__name__ if secret else shown(value)}", hint=f"{name} is text")
    if not value and not may_be_empty:
        raise InvalidInput(f"{name} is empty", hint=f"write the {name}, as in {name}='photos'")
    if not value.isascii():
        check_utf_8(value, name)
    return value


def whole(name: str, value: Any, *, least: int) -> int:
    """An argument that is a whole number from ``least`` to what the wire can hold."""
    if type(value) is int:
        number = value
    else:
        is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not is_integer:
            raise InvalidInput(f"{name} is {shown(value)}", hint=f"write a whole number, as in {name}={max(least, 10)}")
        number = int(value)
    if not least <= number <= _MAX_UINT32:
        limit = f"at least {least}" if number < least else f"at most {_MAX_UINT32}"
        raise InvalidInput(f"{name} is {digits(number)}; it is {limit}")
    return number


def number(name: str, value: Any) -> float:
    """An argument that is a finite number; the server holds it to its range."""
    found = _float(value)
    if not math.isfinite(found):
        raise InvalidInput(f"{name} is {shown(value)}", hint=f"write a number, as in {name}=0.5")
    return found


def timeout(name: str, value: Any) -> float:
    """An argument that is a time to wait, in seconds."""
    seconds = _float(value)
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidInput(
            f"{name} is {shown(value)}",
            hint=f"write seconds, more than 0 and at most {MAX_TIMEOUT_S} (a year), as in {name}=60",
        )
    return seconds


def _float(value: Any) -> float:
    """A number; nan if it is none, or too large for one."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    return math.nan


def flag(name: str, value: object) -> bool:
    """An argument that is True or False."""
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise InvalidInput(f"{name} is {shown(value)}", hint=f"write {name}=True or {name}=False")


def callback(name: str, value: CallbackT | None) -> CallbackT | None:
    """An argument that is a function to call, or None."""
    if value is None:
        return None
    if not callable(value):
        raise InvalidInput(f"{name} is {shown(value)}", hint=f"write a function, as in {name}=print")
    if inspect.iscoroutinefunction(value):
        raise InvalidInput(
            f"{name} is a coroutine function", hint=f"{name} is called and not awaited: write a plain def"
        )
    return value


def path(name: str, value: Any) -> Path:
    """An argument that is the path of a file."""
    if not isinstance(value, (str, os.PathLike)):
        raise InvalidInput(f"{name} is {shown(value)}", hint=f"write a path, as in {name}='photos.backup'")
    given = path_text(value)
    if not given or "\0" in given:
        raise InvalidInput(f"{name} is {shown(given or value)}", hint=f"write a path, as in {name}='photos.backup'")
    return Path(given)


def keep(value: object) -> Keep:
    """What a collection keeps of images."""
    if not isinstance(value, str) or value not in list(Keep):
        raise InvalidInput(
            f"keep is {_choice(value)}, not one of {', '.join(Keep)}", hint="write keep='thumbnails', for example"
        )
    return Keep(value)


def errors(value: object) -> bool:
    """Whether ``errors`` says "raise" rather than "keep"."""
    if not isinstance(value, str) or value not in ("raise", "keep"):
        raise InvalidInput(
            f'errors is {_choice(value)}, not "raise" or "keep"', hint="write errors='keep', for example"
        )
    return value == "raise"


def _choice(value: object) -> str:
    return repr(str(value)) if isinstance(value, str) and len(value) <= 40 else shown(value)


# --- Several values --------------------------------------------------------


def several(name: str, values: Any, one: tuple[type, ...] = ()) -> Iterable[Any]:
    """An argument that is any number of values, which are not taken yet.

    Args:
        name: of the parameter.
        values: what the caller gave.
        one: types of a single value, which is refused beside text, bytes, mappings and arrays of several dimensions.
    """
    hint = f"write a list, as in {name}=[…]"
    if hasattr(values, "__aiter__"):
        raise InvalidInput(
            f"{name} is {shown(values)}, which is asynchronous", hint=f"collect it: {name}=[x async for x in …]"
        )
    if inspect.iscoroutine(values):
        raise InvalidInput(f"{name} is a coroutine", hint=f"await it: {name}=await …")
    if isinstance(values, (str, bytes, bytearray, memoryview, os.PathLike, *one)):
        raise InvalidInput(f"{name} is {shown(values)}, and takes several", hint=f"give a list: {name}=[value]")
    if is_open_file(values):  # its lines end with line ends, so that no id would be found
        raise InvalidInput(
            f"{name} is {shown(values)}, an open file", hint=f"write {name}=file.read().splitlines(), for example"
        )
    if isinstance(values, (Mapping, type)) or getattr(values, "ndim", 1) != 1 or not isinstance(values, Iterable):
        if isinstance(values, Mapping):
            hint = f"write a list: {name}=list(values.values()), or of its keys: list(values)"
        raise InvalidInput(f"{name} is {shown(values)}", hint=hint)
    return values


def ids(values: Any) -> list[str]:
    """Ids of items, as text."""
    return [plain_id(value, f"ids[{position}]") for position, value in enumerate(several("ids", values))]


def additions(collection: Any, items: Any, encoder_fingerprint: Any) -> tuple[str, Iterable[ItemInput], str]:
    """The arguments of ``add``; an item of a wrong type fails alone when it is taken."""
    return (
        text("collection", collection, may_be_empty=False),
        several("items", items, (ItemInput,)),
        text("encoder_fingerprint", encoder_fingerprint),
    )


def texts(name: str, values: Any) -> list[str]:
    """Any number of texts."""
    return [text(f"{name}[{position}]", value) for position, value in enumerate(several(name, values))]


# --- Searching -------------------------------------------------------------


def query(image: Any, vector: Any, id: Any) -> Query:
    """The one query of a search."""
    asked = Query(image=image, vector=vector, id=id)
    if vector is not None:
        return Query(vector=vector_of(vector))
    if id is not None:
        return Query(id=plain_id(id, "id"))
    check_image(image)
    return asked


def condition(value: Any) -> Filter | None:
    """The ``filter`` of a search or a list; None: no filter."""
    if value is None:
        return None
    check_is_filter(value, "filter", FILTERS)
    found: Filter = value
    check_filter(found, _SENDABLE_FILTER)
    waiting: list[Filter] = [found]
    while waiting:
        match waiting.pop():
            case And(filters) | Or(filters):
                waiting += filters
            case Not(inner):
                waiting.append(inner)
            case Eq(key, one):
                plain(one, f"value of Eq on {key!r}")
            case In(key, values):
                for one in values:
                    plain(one, f"a value of In on {key!r}")
    return found


def search_options(
    *,
    k: Any,
    min_score: Any,
    filter: Any,
    group_by: Any,
    exact: Any,
    ef: Any,
    nprobe: Any,
    target_recall: Any,
    include_metadata: Any,
    include_vectors: Any,
) -> SearchOptions:
    """The options of a search; ``AsyncClient.search`` explains them."""
    return SearchOptions(
        k=whole("k", k, least=1),
        min_score=None if min_score is None else number("min_score", min_score),
        filter=None if filter is None else condition(filter),
        group_by=text("group_by", group_by),
        exact=flag("exact", exact),
        ef=whole("ef", ef, least=0),
        nprobe=whole("nprobe", nprobe, least=0),
        target_recall=None if target_recall is None else number("target_recall", target_recall),
        include_metadata=flag("include_metadata", include_metadata),
        include_vectors=flag("include_vectors", include_vectors),
    )


# --- Connections -----------------------------------------------------------


def target(value: Any) -> str | list[str]:
    """The address of a server, or of several."""
    several = list(value) if isinstance(value, (list, tuple)) else [value]
    if not several or not all(isinstance(one, str) and one.strip() for one in several):
        hint = "write HOST:PORT, as in Client('localhost:50051')"
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            hint = f"write HOST:PORT, as in Client('localhost:{shown(value).split()[0]}')"
        raise InvalidInput(f"target is {shown(value)}", hint=hint)
    return value if isinstance(value, str) else several


def certificate_file(name: str, value: Any) -> Path | None:
    """An argument that is the path of a PEM file, or None."""
    return None if value is None else path(name, value)


def credentials(value: Any) -> grpc.ChannelCredentials | None:
    """Channel credentials of gRPC, or None."""
    if value is not None and not isinstance(value, grpc.ChannelCredentials):
        raise InvalidInput(
            f"credentials is {shown(value)}", hint="write grpc.ssl_channel_credentials(…); for a bearer token: token=…"
        )
    return value
