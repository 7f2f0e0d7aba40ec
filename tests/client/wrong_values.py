"""What parameters do not mean, by what they are."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedserve import Eq


async def asynchronous() -> AsyncIterator[bytes]:
    yield b"1"


async def coroutine(*args: object) -> None: ...


class Made:
    """A wrong value that is made anew for each call."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


NAN, INF = float("nan"), float("inf")
PICTURE = Image.new("RGB", (2, 2))
NOT_TEXT: list[Any] = [None, 5, True, b"photos", ["photos"], {"a": 1}, str, Path("photos"), "\udc80"]
NO_NAME = [*NOT_TEXT, ""]
NO_FLAG: list[Any] = [None, 1, 0, "no", "", [], 1.0, bool]
NO_COUNT = [None, "5", True, np.True_, 2.5, 5.0, NAN, -1, 2**32, 10**5000, [5], Decimal(5), int]
NO_NUMBER = ["0.5", True, np.True_, NAN, INF, -INF, 10**400, [0.5], 1j, Decimal(1), float]
NO_TIME = [None, "5", True, 0, -1, NAN, INF, -INF, 1e9, 1e12, 10**400, [5], np.float32("inf")]
NO_PATH = [None, 5, True, b"file", ["file"], "", "a\0b", Path]
NO_FUNCTION = [5, "print", True, coroutine]
NO_FILTER: list[Any] = [
    *({"tenant": "a"}, {"a": 1, "b": 2}, {}, [], [Eq("a", 1)], (Eq("a", 1),), "tenant=a", "", True, False, 0, b"", Eq),
    *(type(None), object(), lambda item: True),
]
NO_LIST: list[Any] = [None, 5, True, {"a": 1}, b"abc", "abc", "", list, np.zeros((2, 2)), np.array(3)]
NO_LIST_OR_STREAM: list[Any] = [*NO_LIST, Made(asynchronous)]
NO_IMAGE: list[Any] = [
    *({}, {"image": b"1"}, [], [b"1"], 7, 1.5, True, "", Path, io.BytesIO, object(), np.zeros(512, np.float32)),
    *(np.zeros((4, 4, 3)), np.zeros((3, 8, 8), np.uint8), np.zeros((1, 4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)),
    np.ma.masked_array(np.zeros((4, 4), np.uint8), mask=True),
]
NO_VECTOR: list[Any] = [
    *(
        "abc",
        b"abcd",
        ["1", "2"],
        [True, False],
        [None, 1.0],
        [1j, 2j],
        [1, NAN],
        [1, INF],
        [1e39],
        [[1.0, 2.0]],
        [],
        1.0,
    ),
    *([[1], [1, 2]], {1.0, 2.0}, {"a": 1}, [Decimal(1)], np.zeros((1, 4)), np.zeros(4, complex), np.zeros(4, object)),
    *(np.zeros(4, bool), np.array(["a"]), np.ma.masked_array([1.0], mask=[True]), (x for x in [1.0]), object()),
]
NO_ID = [True, np.True_, 1.5, np.float64(1), b"a", "", "\udc80", ["a"], {"a": 1}, str, 10**5000]

NO_BOUND: list[Any] = [True, [1], {"a": 1}, b"a", 1j, np.True_, np.array([1, 2]), int]
NO_VALUE: list[Any] = [None, [1], ("a",), {"a": 1}, {"a"}, b"a", 1j, Decimal(1), object(), str, np.ones(1)]
NO_METADATA: list[Any] = [
    *([], ["a"], "a", 5, True, [("a", 1)], {5: 1}, {None: 1}, {b"a": 1}, {"a": None}, {"a": b"b"}, {"a": {"b": 1}}),
    *({"a": [1, 2]}, {"a": ["b", None]}, {"a": {"b"}}, {"a": NAN}, {"a": np.float32("nan")}, {"a": 10**5000}, {"": 1}),
    *({"a": Decimal(1)}, {"a": 1j}, {"a": object()}, {"a": np.zeros((2, 2))}, {"a": np.datetime64("2026-11-24")}),
    *({"a": np.datetime64("NaT")}, {"a": np.timedelta64(1, "s")}, {"a": np.array([1.5])}, {"it's": 1}, {"a": "\udc80"}),
]
