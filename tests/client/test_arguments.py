"""Every parameter of every public method and constructor refuses what it does not mean, before anything is sent.

The tables below have a row for each parameter: a new one without a row fails.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from embedserve import And, AsyncClient, Client, Exists, ItemInput, MetadataChange, Not, Or, Query
from embedserve.errors import FailedPrecondition, InvalidInput, LimitExceeded
from embedserve.types import MAX_TIMEOUT_S
from tests.client.fake_server import Connect, FakeServer
from tests.client.test_client_methods import public
from tests.client.wrong_values import (
    NO_COUNT,
    NO_FILTER,
    NO_FLAG,
    NO_FUNCTION,
    NO_ID,
    NO_IMAGE,
    NO_LIST_OR_STREAM,
    NO_NAME,
    NO_NUMBER,
    NO_PATH,
    NO_TIME,
    NO_VECTOR,
    NOT_TEXT,
    PICTURE,
    Made,
    asynchronous,
    coroutine,
)

WRONG: dict[str | tuple[str, str], list[Any]] = {
    # --- connections ---
    "target": [None, 50051, True, b"localhost", ["localhost", 50051], {}, "", " ", str],
    "timeout_s": NO_TIME,
    "token": NOT_TEXT,
    "tls": NO_FLAG,
    "ca": NO_PATH[1:],
    "client_cert": NO_PATH[1:],
    "client_key": NO_PATH[1:],
    "allow_plain_token": NO_FLAG,
    "credentials": ["token", True, grpc.ChannelCredentials, object()],
    # --- embeddings and search ---
    "images": [*NO_LIST_OR_STREAM, PICTURE, io.BytesIO(b"a"), Path("a.jpg"), np.zeros((4, 4, 3), np.uint8)],
    "errors": [None, True, "", "return", "RAISE", b"keep", ["keep"], 5],
    "encoder_fingerprint": NOT_TEXT,
    "collection": NO_NAME,
    "image": NO_IMAGE,
    "vector": NO_VECTOR,
    "id": NO_ID,
    "k": [*NO_COUNT, 0],
    "min_score": NO_NUMBER,
    "filter": NO_FILTER,
    "group_by": NOT_TEXT,
    "exact": NO_FLAG,
    "ef": NO_COUNT,
    "nprobe": NO_COUNT,
    "target_recall": NO_NUMBER,
    "include_metadata": NO_FLAG,
    "include_vectors": NO_FLAG,
    "include_media": NO_FLAG,
    "queries": [*NO_LIST_OR_STREAM, Query(id="a")],
    "fingerprint": NOT_TEXT,
    # --- collections and items ---
    "items": [*NO_LIST_OR_STREAM, ItemInput(id="a", image=b"1")],
    "ids": [*NO_LIST_OR_STREAM, *([id] for id in NO_ID), ["a", None], ("a", b"b"), np.array([1.5])],
    "changes": [*NO_LIST_OR_STREAM],
    "page_size": [*NO_COUNT, 0],
    "name": NO_NAME,
    "keep": [None, True, "", "all", b"none", ["none"], 5],
    "external": NO_FLAG,
    "dimension": NO_COUNT,
    "index": NOT_TEXT,
    "filter_keys": [*NO_LIST_OR_STREAM, ["a", 5], [None], [b"a"]],
    "encoder_name": NOT_TEXT,
    "alias": NO_NAME,
    ("delete_items", "filter"): [*NO_FILTER, And([]), Not(Or([]))],
    ("set_alias", "collection"): NOT_TEXT,  # an empty one removes the alias
    "on_progress": NO_FUNCTION,
    "path": NO_PATH,
    "overwrite": NO_FLAG,
}
"""Parameter, or method and parameter → what it does not mean."""

REQUIRED: dict[str, dict[str, Any]] = {
    "embed": {"images": [b"1"]},
    "embed_each": {"images": [b"1"]},
    "search": {"collection": "photos", "id": "a"},
    "search_many": {"collection": "photos", "queries": [Query(id="a")]},
    "add": {"collection": "photos", "items": [ItemInput(id="a", image=b"1")]},
    "add_each": {"collection": "photos", "items": [ItemInput(id="a", image=b"1")]},
    "get_items": {"collection": "photos", "ids": ["a"]},
    "delete_items": {"collection": "photos", "ids": ["a"]},
    "count_items": {"collection": "photos"},
    "update_metadata": {"collection": "photos", "changes": [MetadataChange("a", set={"n": 1})]},
    "list_items": {"collection": "photos"},
    "create_collection": {"name": "photos"},
    "get_collection": {"name": "photos"},
    "delete_collection": {"name": "photos"},
    "set_alias": {"alias": "latest", "collection": "photos"},
    "check_collection": {"name": "photos"},
    "backup_collection": {"name": "photos", "path": "/nowhere/file"},
    "restore_collection": {"name": "photos", "path": "/nowhere/file"},
}
"""Method → arguments without which it cannot be called."""

METHODS = sorted(public(Client))
PARAMETERS = {method: list(inspect.signature(getattr(Client, method)).parameters)[1:] for method in METHODS}
CASES = [(method, parameter) for method, parameters in PARAMETERS.items() for parameter in parameters]


def refused(call: Callable[[], Any], parameter: str) -> InvalidInput:
    """The error that the call raises; it names the parameter, and says what to write."""
    with pytest.raises(InvalidInput) as caught:
        call()
    error = caught.value
    assert re.search(rf"\b{parameter}\b", error.message), error.message
    assert len(error.message) < 300
    return error


@pytest.mark.parametrize(("method", "parameter"), CASES)
def test_a_method_refuses_what_a_parameter_does_not_mean_and_sends_nothing(
    connect: Connect, server: FakeServer, method: str, parameter: str
) -> None:
    wrong = WRONG.get((method, parameter)) or WRONG[parameter]
    given = REQUIRED.get(method, {})
    if method == "search" and parameter in ("image", "vector"):
        given = {"collection": "photos"}
    if (method, parameter) == ("delete_items", "filter"):
        given = {"collection": "photos"}  # one of ids and filter
    client = connect(server.target)
    for value in wrong:
        value = value.make() if isinstance(value, Made) else value
        error = refused(partial(getattr(client, method), **{**given, parameter: value}), parameter)
        assert error.hint or "it is at " in error.message or "UTF-8" in error.message, error.message
    assert server.requests == []
    assert server.streams == []


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("parameter", inspect.signature(Client).parameters)
def test_a_constructor_refuses_what_a_parameter_does_not_mean(kind: Any, parameter: str) -> None:
    for value in WRONG[parameter]:
        refused(partial(kind, **{parameter: value}), parameter)


def test_a_wrong_token_is_not_shown() -> None:
    with pytest.raises(InvalidInput) as caught:
        Client("localhost:1", token=b"secret")  # type: ignore[arg-type]
    assert caught.value.message == "token is bytes"


def test_a_port_alone_is_answered_with_the_address() -> None:
    with pytest.raises(InvalidInput, match=r"target is 50051 \(int\)") as caught:
        Client(50051)  # type: ignore[arg-type]
    assert "Client('localhost:50051')" in caught.value.hint


def test_a_filter_as_a_dict_is_answered_with_the_filter(connect: Connect, server: FakeServer) -> None:
    with pytest.raises(InvalidInput, match=r"filter is \{'tenant': 'a'\} \(dict\)") as caught:
        connect(server.target).search("photos", id="a", filter={"tenant": "a"})
    assert caught.value.hint == "write Eq('tenant', 'a')"


def test_a_filter_that_protobuf_could_not_read_is_refused(connect: Connect, server: FakeServer) -> None:
    deep: Any = Exists("a")
    for _ in range(5000):
        deep = Not(deep)
    with pytest.raises(LimitExceeded, match="levels in the filter"):
        connect(server.target).search("photos", id="a", filter=deep)
    with pytest.raises(LimitExceeded, match="levels in the filter"):
        list(connect(server.target).list_items("photos", filter=deep))
    assert server.requests == []


# --- Blocking and asynchronous ---


def test_a_client_of_one_event_loop_says_what_to_do_in_another(server: FakeServer) -> None:
    client = AsyncClient(server.target)
    asyncio.run(client.server_info())

    async def again(method: str) -> None:
        await getattr(client, method)()

    for method in ("server_info", "list_collections", "wait_ready"):
        with pytest.raises(FailedPrecondition, match="another one") as caught:
            asyncio.run(again(method))
        assert "in each asyncio.run" in caught.value.hint
    asyncio.run(client.close())


def test_the_wrong_kind_of_with_is_explained() -> None:
    with pytest.raises(InvalidInput, match="`async with`"), AsyncClient():
        pass

    async def enter() -> None:
        async with Client():
            pass

    with pytest.raises(InvalidInput, match="`with`"):
        asyncio.run(enter())


@pytest.mark.parametrize("method", ["embed", "embed_each"])
def test_an_asynchronous_iterator_is_answered_with_how_to_collect_it(
    connect: Connect, server: FakeServer, method: str
) -> None:
    with pytest.raises(InvalidInput, match="asynchronous") as caught:
        getattr(connect(server.target), method)(asynchronous())
    assert "async for" in caught.value.hint


@pytest.fixture
def made_coroutine() -> Iterator[Any]:
    made = coroutine()
    yield made
    made.close()


def test_a_coroutine_is_answered_with_await(connect: Connect, server: FakeServer, made_coroutine: Any) -> None:
    with pytest.raises(InvalidInput, match="images is a coroutine") as caught:
        connect(server.target).embed(made_coroutine)
    assert "await" in caught.value.hint


# --- Times ---


def test_the_longest_time_that_is_taken_reaches_the_server_as_a_deadline(connect: Connect, server: FakeServer) -> None:
    # grpcio ends calls at once whose deadline lies beyond its clock, some 236 years from now.
    client = connect(server.target, timeout_s=MAX_TIMEOUT_S)
    client.embed([b"1"])
    client.embed([b"1"] * 40)
    client.wait_ready(MAX_TIMEOUT_S)
    assert min(server.timeouts_s) > MAX_TIMEOUT_S - 60
