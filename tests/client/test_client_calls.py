"""Errors, retries, deadlines and channels: what every call has in common."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from embedserve import AsyncClient, Client
from embedserve.client import failures, retry
from embedserve.client.access import channel_options
from embedserve.client.target import address
from embedserve.errors import (
    AlreadyExists,
    CollectionNotFound,
    DeadlineExceeded,
    EmbedserveError,
    FailedPrecondition,
    InvalidInput,
    LimitExceeded,
    NotFound,
    Overloaded,
    PermissionDenied,
    ProtocolError,
    Unauthenticated,
    Unavailable,
    all_errors,
)
from embedserve.v1 import collection_service_pb2 as collection_pb
from tests.client.fake_server import Connect, FakeServer, PlainAbort, serving
from tests.sizes import fast_retries

ERRORS = [kind for kind in all_errors() if "code" in kind.__dict__ and kind not in (EmbedserveError, Unavailable)]


def failing_first(times: int, error: Exception, answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A script that fails the first calls and then answers."""
    remaining = iter([error] * times)

    def script(request: Any) -> Any:
        for failure in remaining:
            raise failure
        return answer(request)

    return script


# --- Errors ---


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.code)
def test_an_error_of_the_server_arrives_as_the_same_error(
    connect: Connect, server: FakeServer, kind: type[EmbedserveError]
) -> None:
    def refuse(_: Any) -> Any:
        if kind is Overloaded:
            raise Overloaded("what happened: 7", hint="what to do", retry_after_ms=60_000)
        raise kind("what happened: 7", hint="what to do")

    server.on("GetCollection", refuse)
    with pytest.raises(kind) as caught:
        connect(server.target, timeout_s=5).get_collection("photos")
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == ("what happened: 7", "what to do")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
        (grpc.StatusCode.OUT_OF_RANGE, InvalidInput),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, AlreadyExists),
        (grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, LimitExceeded),
        (grpc.StatusCode.UNIMPLEMENTED, FailedPrecondition),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.UNKNOWN, ProtocolError),
        (grpc.StatusCode.INTERNAL, ProtocolError),
    ],
)
def test_a_failure_without_our_details_is_mapped_by_its_status_code(
    connect: Connect, server: FakeServer, code: grpc.StatusCode, kind: type[EmbedserveError]
) -> None:
    def abort(_: Any) -> Any:
        raise PlainAbort(code, "a proxy said no")

    server.on("GetCollection", abort)
    with pytest.raises(kind) as caught:
        connect(server.target).get_collection("photos")
    assert type(caught.value) is kind
    assert len(server.asked("GetCollection")) == 1


def test_if_no_server_answers_the_error_says_where_and_how_to_start_one(
    connect: Connect, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast_retries(monkeypatch)
    with pytest.raises(Unavailable) as caught:
        connect(f"localhost:{free_port}").list_collections()
    assert f"no server answers at localhost:{free_port}" in caught.value.message
    assert "embedserve serve encoder.onnx --data data/" in caught.value.hint


def test_an_answer_that_is_late_is_a_deadline_exceeded(connect: Connect, server: FakeServer) -> None:
    released = threading.Event()
    server.on("ListCollections", lambda _: released.wait(20) and collection_pb.ListCollectionsResponse())
    try:
        with pytest.raises(DeadlineExceeded) as caught:
            connect(server.target, timeout_s=0.2).list_collections()
    finally:
        released.set()
    assert "within 0.2 s" in caught.value.message


def test_a_closed_client_says_so(connect: Connect, server: FakeServer) -> None:
    client = connect(server.target)
    client.close()
    client.close()
    with pytest.raises(FailedPrecondition, match="has been closed"):
        client.list_collections()


# --- Retries ---


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("the server is busy", retry_after_ms=1),
        Unavailable("the server is starting"),
        PlainAbort(grpc.StatusCode.UNAVAILABLE, "connection reset"),
    ],
    ids=["overloaded", "starting", "connection-lost"],
)
def test_a_call_to_a_busy_or_absent_server_is_retried(
    connect: Connect, server: FakeServer, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast_retries(monkeypatch)
    server.on("ListCollections", failing_first(2, error, lambda _: collection_pb.ListCollectionsResponse()))
    assert connect(server.target).list_collections() == []
    assert len(server.asked("ListCollections")) == 3


def test_each_of_many_calls_to_an_overloaded_server_is_retried(connect: Connect, small_server: FakeServer) -> None:
    def answer(request: Any) -> Any:
        return collection_pb.DeleteItemsResponse(deleted_count=len(request.ids))

    small_server.on("DeleteItems", failing_first(3, Overloaded("the server is busy", retry_after_ms=1), answer))
    assert connect(small_server.target).delete_items("photos", [str(number) for number in range(10)]) == 10
    assert len(small_server.asked("DeleteItems")) == 3 + 3


def test_making_a_collection_is_never_retried(connect: Connect, server: FakeServer) -> None:
    def starting(_: Any) -> Any:
        raise Unavailable("the server is starting")

    server.on("CreateCollection", starting)
    with pytest.raises(Unavailable, match="the server is starting"):
        connect(server.target).create_collection("photos")
    assert len(server.asked("CreateCollection")) == 1


def test_a_pause_beyond_the_deadline_is_not_waited_for(connect: Connect, server: FakeServer) -> None:
    def busy(_: Any) -> Any:
        raise Overloaded("the server is busy", retry_after_ms=30_000)

    server.on("ListCollections", busy)
    begun = time.monotonic()
    with pytest.raises(Overloaded) as caught:
        connect(server.target, timeout_s=10).list_collections()
    assert time.monotonic() - begun < 10
    assert caught.value.retry_after_ms == 30_000
    assert len(server.asked("ListCollections")) == 1


def test_a_retried_call_has_only_the_remaining_time(connect: Connect, server: FakeServer) -> None:
    # gRPC rounds longer deadlines.
    error = Overloaded("the server is busy", retry_after_ms=200)
    server.on("ListCollections", failing_first(1, error, lambda _: collection_pb.ListCollectionsResponse()))
    connect(server.target, timeout_s=5).list_collections()
    first_s, second_s = server.timeouts_s
    assert second_s < first_s - 0.1


def test_the_pause_doubles_and_is_never_shorter_than_the_server_asked_for() -> None:
    failure = failures.Failure(Overloaded("busy"), retry_after_s=0.1)
    shortest = [retry.pause_s(failure, attempt, 60, jitter=lambda: 0.0) for attempt in range(1, 8)]
    longest = [retry.pause_s(failure, attempt, 60, jitter=lambda: 1.0) for attempt in range(1, 8)]
    assert shortest == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 1.6, 1.6])
    assert longest == pytest.approx([0.15, 0.3, 0.6, 1.2, 2.4, 2.4, 2.4])


def test_an_unavailable_server_is_given_up_after_five_attempts() -> None:
    failure = failures.Failure(Unavailable("no server answers"), retry_after_s=0.1)
    pauses = [retry.pause_s(failure, attempt, 60, jitter=lambda: 0.0) for attempt in range(1, 6)]
    assert pauses == [pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.4), pytest.approx(0.8), None]


def test_other_failures_are_not_retried() -> None:
    assert retry.pause_s(failures.Failure(InvalidInput("no"), None), 1, 60) is None


def test_a_call_that_ended_while_it_was_written_to_is_retried(
    connect: Connect, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # grpc.aio replaces any status that arrives at that moment by this one, even one that asks for a retry.
    fast_retries(monkeypatch)
    error = PlainAbort(grpc.StatusCode.INTERNAL, "Internal error from Core")
    server.on("ListCollections", failing_first(1, error, lambda _: collection_pb.ListCollectionsResponse()))
    assert connect(server.target).list_collections() == []


# --- Readiness ---


def test_waiting_for_a_server_ends_when_it_is_serving(connect: Connect, server: FakeServer) -> None:
    states = iter([health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING])
    server.on("Check", lambda _: health_pb2.HealthCheckResponse(status=next(states)))
    connect(server.target).wait_ready(20)
    assert len(server.asked("Check")) == 2


def test_waiting_for_an_absent_server_ends_in_time(connect: Connect, free_port: int) -> None:
    with pytest.raises(Unavailable) as caught:
        connect(f"localhost:{free_port}").wait_ready(0.2)
    assert f"localhost:{free_port} is not ready after 0.2 s: nothing answers there" in caught.value.message


def test_waiting_for_a_server_that_keeps_starting_says_so(connect: Connect, server: FakeServer) -> None:
    answer = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
    server.on("Check", lambda _: answer)
    with pytest.raises(Unavailable, match="it is starting or stopping"):
        connect(server.target).wait_ready(0.3)


def test_a_server_that_starts_later_is_found(connect: Connect, free_port: int) -> None:
    client = connect(f"localhost:{free_port}")
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(Unavailable):
            client.wait_ready(0.1)
        waiting = pool.submit(client.wait_ready, 20)
        with serving(port=free_port):
            waiting.result()


# --- Channels ---


@pytest.mark.parametrize(
    ("target", "full"),
    [
        ("gpu-box", "gpu-box:50051"),
        ("gpu-box:443", "gpu-box:443"),
        ("[::1]:50051", "[::1]:50051"),
        ("unix:///run/embedserve.sock", "unix:///run/embedserve.sock"),
    ],
)
def test_the_port_may_be_left_out_of_a_target(target: str, full: str) -> None:
    assert address(target) == full


def test_a_proxy_is_never_used_for_this_machine() -> None:
    assert ("grpc.enable_http_proxy", 0) in channel_options("localhost:50051")
    assert ("grpc.enable_http_proxy", 0) in channel_options("127.0.0.1:50051")
    assert ("grpc.enable_http_proxy", 0) not in channel_options("gpu-box:50051")


def test_pings_stay_within_what_grpc_servers_permit_by_default() -> None:
    assert dict(channel_options("gpu-box:50051"))["grpc.keepalive_time_ms"] > 300_000


def test_one_client_serves_several_threads_at_once(server: FakeServer) -> None:
    answer, all_here = server.scripts["Embed"], threading.Barrier(4)

    def together(request: Any) -> Any:
        all_here.wait(20)  # breaks unless four calls are in flight
        return answer(request)

    def work(number: int) -> list[float]:
        images = [bytes([number]) * size for size in (1, 2, 3)]
        return [float(value) for value in client.embed(images).vectors[:, :2].ravel()]

    server.on("Embed", together)
    with Client(server.target) as client, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(1, 13)))
    assert results == [[1, number, 2, number, 3, number] for number in range(1, 13)]


def test_closing_leaves_nothing_to_warn_about(server: FakeServer) -> None:
    program = (
        "import asyncio, embedserve\n"
        f"with embedserve.Client({server.target!r}) as client:\n"
        "    assert len(client.embed([b'1', b'22']).vectors) == 2\n"
        "async def work():\n"
        f"    async with embedserve.AsyncClient({server.target!r}) as client:\n"
        "        assert len((await client.embed([b'1', b'22'])).vectors) == 2\n"
        "asyncio.run(work())\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_call_that_finds_nothing_is_not_retried(connect: Connect, server: FakeServer) -> None:
    def missing(_: Any) -> Any:
        raise CollectionNotFound("no collection 'x'")

    server.on("DeleteCollection", missing)
    with pytest.raises(CollectionNotFound):
        connect(server.target).delete_collection("x")
    assert len(server.asked("DeleteCollection")) == 1


@pytest.mark.parametrize("count", [1, 40])
def test_a_client_that_is_closed_before_a_call_is_sent_says_so(server: FakeServer, count: int) -> None:
    async def close_while_images_are_taken() -> None:
        client = AsyncClient(server.target)
        is_taken, is_closed = threading.Event(), threading.Event()

        def images() -> Iterator[bytes]:
            is_taken.set()
            assert is_closed.wait(10)
            yield from [b"1"] * count

        await client.server_info()
        embedding = asyncio.ensure_future(client.embed(images()))
        await asyncio.to_thread(is_taken.wait, 10)
        await client.close()
        is_closed.set()
        await embedding

    with pytest.raises(FailedPrecondition, match="this client has been closed"):
        asyncio.run(close_while_images_are_taken())
