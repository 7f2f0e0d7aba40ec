"""Bulk over streams: order, retries, limits, and that nothing is left when a stream is cancelled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from embedserve import AddResult, Client, ItemInput, Limits, wire
from embedserve.client import bulk, images, inputs, window
from embedserve.errors import (
    CollectionNotFound,
    DataError,
    DeadlineExceeded,
    EmbedserveError,
    EncoderMismatch,
    FailedPrecondition,
    ImageUndecodable,
    ProtocolError,
    Unavailable,
)
from tests.client.fake_server import FINGERPRINT, Connect, FakeServer, PlainAbort, serving, vector_of
from tests.sizes import fast_retries

MANY = [bytes([number]) for number in range(1, 200)]


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    fast_retries(monkeypatch)


def breaking_at(counts: set[int], answer: Callable[..., Any], error: Exception | None = None) -> Callable[..., Any]:
    """A script that fails instead of giving these answers, counted over all streams from 1."""
    asked = iter(range(1, 1_000_000))

    def script(*arguments: Any) -> Any:
        if next(asked) in counts:
            raise error or PlainAbort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        return answer(*arguments)

    return script


def no_client_thread_is_left() -> bool:
    """Waits for the threads of streams to end, among them gRPC's writing thread."""
    given_up = time.monotonic() + 20
    while time.monotonic() < given_up:
        names = [thread.name for thread in threading.enumerate()]
        if not any("embedserve" in name or "_consume" in name for name in names):
            return True
        threading.Event().wait(0.01)
    return False


# --- Order and errors ---


def test_results_of_a_stream_come_in_the_order_of_the_inputs(connect: Connect, server: FakeServer) -> None:
    client = connect(server.target)
    assert client.embed(MANY).vectors[:, 1].tolist() == list(range(1, 200))
    ids = [f"i{number}" for number in range(100)]
    assert client.add("photos", [ItemInput(id=id, image=b"1") for id in ids]) == [AddResult(id) for id in ids]
    assert [method for method, _ in server.streams] == ["EmbedStream", "UpsertStream"]


def test_a_stream_has_no_deadline_and_names_encoder_and_collection(connect: Connect, server: FakeServer) -> None:
    client = connect(server.target)
    list(client.embed_each(MANY, encoder_fingerprint=FINGERPRINT))
    list(client.add_each("photos", [ItemInput(image=image) for image in MANY], encoder_fingerprint=FINGERPRINT))
    assert [deadline_s is None or deadline_s > 1e6 for _, deadline_s in server.streams] == [True, True]
    requests = [*server.asked("EmbedStream"), *server.asked("UpsertStream")]
    assert {request.encoder_fingerprint for request in requests} == {FINGERPRINT}
    assert {request.collection for request in server.asked("UpsertStream")} == {"photos"}


def test_files_that_cannot_be_read_keep_their_place_in_a_stream(
    connect: Connect, server: FakeServer, tmp_path: Path
) -> None:
    images: list[Any] = list(MANY[:50])
    images[3] = images[20] = images[49] = tmp_path / "gone.jpg"
    results = list(connect(server.target).embed_each(images))
    assert [number for number, result in enumerate(results) if isinstance(result, DataError)] == [3, 20, 49]
    assert [result[1] for result in results if isinstance(result, np.ndarray)] == [
        number + 1 for number in range(50) if number not in (3, 20, 49)
    ]
    added = connect(server.target).add(
        "photos", [ItemInput(id=str(n), image=image) for n, image in enumerate(images)], errors="keep"
    )
    assert [result.id for result in added] == [str(number) for number in range(50)]
    assert [number for number, result in enumerate(added) if result.error is not None] == [3, 20, 49]


def test_a_thousand_inputs_that_cannot_be_sent_open_no_stream(connect: Connect, server: FakeServer) -> None:
    results = list(connect(server.target).embed_each(["/nowhere/a.jpg"] * 1000))
    assert [type(result) for result in results] == [DataError] * 1000
    assert server.streams == []


def test_a_message_that_is_refused_as_a_whole_fails_each_of_its_inputs(connect: Connect, server: FakeServer) -> None:
    answer = server.scripts["EmbedStream"]

    def script(request: Any, index: int) -> Any:
        response = answer(request, index)
        if request.key == "1":
            del response.results[:]
            response.result.error.CopyFrom(error_status(ImageUndecodable("no room for these")))
        return response

    server.on("EmbedStream", script)
    results = list(connect(server.target).embed_each(MANY[:40]))
    assert [number for number, result in enumerate(results) if isinstance(result, EmbedserveError)] == [*range(16, 32)]


def error_status(error: EmbedserveError) -> Any:
    return wire.error_to_status(error)


@pytest.mark.parametrize("method", ["EmbedStream", "UpsertStream"])
def test_an_answer_out_of_order_is_a_bug_of_the_server(connect: Connect, server: FakeServer, method: str) -> None:
    answer = server.scripts[method]

    def script(request: Any, index: int) -> Any:
        response = answer(request, index)
        if method == "EmbedStream":
            response.key = "7"
        else:
            response.index += 1
        return response

    server.on(method, script)
    client = connect(server.target)
    with pytest.raises(ProtocolError, match="answered out of order"):
        client.embed(MANY) if method == "EmbedStream" else client.add("photos", [ItemInput(image=b"1")] * 40)


@pytest.mark.parametrize(
    "error",
    [CollectionNotFound("no collection 'photos'"), EncoderMismatch("another encoder"), FailedPrecondition("no")],
    ids=lambda error: error.code,
)
def test_an_error_of_the_whole_stream_is_raised_and_not_retried(
    connect: Connect, server: FakeServer, error: EmbedserveError
) -> None:
    def script(_request: Any, _index: int) -> Any:
        raise error

    server.on("UpsertStream", script)
    with pytest.raises(type(error), match=error.message):
        connect(server.target).add("photos", [ItemInput(image=b"1")] * 40)
    assert len(server.streams) <= 2  # grpc.aio may lose the status; the client then tries once more


def test_a_stream_that_ends_too_early_is_a_bug_of_the_server(connect: Connect, server: FakeServer) -> None:
    server.converse = lambda method, requests, context: iter(())  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match="ended the stream before it had answered"):
        connect(server.target).embed(MANY)


def test_an_error_in_the_inputs_reaches_the_caller_and_ends_the_stream(connect: Connect, server: FakeServer) -> None:
    def images() -> Iterator[bytes]:
        yield from MANY[:100]
        raise ZeroDivisionError("of the caller")

    with pytest.raises(ZeroDivisionError, match="of the caller"):
        list(connect(server.target).embed_each(images()))
    assert no_client_thread_is_left()


def test_slow_files_are_read_a_few_at_a_time_and_keep_their_order(
    connect: Connect, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_SLOW_READ_S", 0.0)
    together, lock, under_way, most = threading.Barrier(4), threading.Lock(), 0, 0
    real = images.read_image

    def slow(image: Any, limits: Limits) -> bytes:
        nonlocal under_way, most
        if threading.current_thread().name.startswith("embedserve-read"):
            with lock:
                under_way += 1
                most = max(most, under_way)
            with suppress(threading.BrokenBarrierError):
                together.wait(20)  # breaks unless four are read at once
            with lock:
                under_way -= 1
        return real(image, limits)

    monkeypatch.setattr(bulk, "read_image", slow)
    paths = [tmp_path / f"{number}.jpg" for number in range(41)]
    for number, path in enumerate(paths):
        if number != 30:
            path.write_bytes(bytes([number + 1]))
    results = list(connect(server.target).embed_each(paths))
    assert most == 4
    assert not together.broken
    assert isinstance(results.pop(30), DataError)
    assert [result[1] for result in results] == [number + 1 for number in range(41) if number != 30]
    assert no_client_thread_is_left()


# --- Retries ---


@pytest.mark.parametrize(
    "error",
    [PlainAbort(grpc.StatusCode.UNAVAILABLE, "connection reset"), Unavailable("the server is shutting down")],
    ids=["connection-lost", "draining"],
)
def test_a_broken_stream_is_reopened_and_each_input_is_answered_once(
    connect: Connect, server: FakeServer, error: Exception
) -> None:
    server.on("EmbedStream", breaking_at({1, 4, 5, 13}, server.scripts["EmbedStream"], error))
    vectors = connect(server.target).embed(MANY).vectors
    assert vectors[:, 1].tolist() == list(range(1, 200))
    assert len(server.streams) == 5


def test_items_that_are_sent_again_keep_their_ids(connect: Connect, server: FakeServer) -> None:
    server.on("UpsertStream", breaking_at({2, 3, 7}, server.scripts["UpsertStream"]))
    results = connect(server.target).add("photos", [ItemInput(image=image) for image in MANY], errors="keep")
    written = {item.id: item.image for request in server.asked("UpsertStream") for item in request.items}
    assert [written[result.id] for result in results] == MANY
    assert len(written) == len(MANY)


def test_only_what_was_not_answered_is_sent_again(connect: Connect, server: FakeServer) -> None:
    server.on("EmbedStream", breaking_at({6}, server.scripts["EmbedStream"]))
    connect(server.target).embed(MANY)
    keys = [request.key for request in server.asked("EmbedStream")]
    again = keys[6:]
    assert keys[:6] == [str(number) for number in range(6)]
    # grpc.aio drops answers that have arrived but not been read when the stream breaks.
    assert int(again[0]) <= 5
    assert again == [str(number) for number in range(int(again[0]), 13)]


def test_the_client_does_not_wait_for_a_server_that_never_answered(connect: Connect, server: FakeServer) -> None:
    def script(_request: Any, _index: int) -> Any:
        raise PlainAbort(grpc.StatusCode.UNAVAILABLE, "connection reset")

    server.on("EmbedStream", script)
    with pytest.raises(Unavailable, match="no server answers"):
        connect(server.target).embed(MANY)
    assert len(server.streams) == 5


def test_the_client_waits_as_time_remains_for_a_server_that_has_answered(connect: Connect, server: FakeServer) -> None:
    # Longer than for a server that never answered: the client gives up on that after five streams.
    server.on("EmbedStream", breaking_at(set(range(3, 15)), server.scripts["EmbedStream"]))
    assert len(connect(server.target).embed(MANY).vectors) == len(MANY)
    assert len(server.streams) == 13


def test_a_server_that_does_not_come_back_is_unavailable(connect: Connect, server: FakeServer) -> None:
    server.on("EmbedStream", breaking_at(set(range(3, 1_000_000)), server.scripts["EmbedStream"]))
    got: list[Any] = []
    with pytest.raises(Unavailable):
        got.extend(connect(server.target, timeout_s=2).embed_each(MANY))
    assert len(got) == 32
    assert no_client_thread_is_left()


def test_the_client_gives_up_on_a_stalled_stream_after_the_timeout(connect: Connect, server: FakeServer) -> None:
    answer, released = server.scripts["EmbedStream"], threading.Event()

    def script(request: Any, index: int) -> Any:
        if request.key == "2":
            released.wait(20)
        return answer(request, index)

    server.on("EmbedStream", script)
    got: list[Any] = []
    try:
        with pytest.raises(DeadlineExceeded, match=r"gave no answer for 0\.2 s"):
            got.extend(connect(server.target, timeout_s=0.2).embed_each(MANY))
    finally:
        released.set()
    assert len(got) == 32


def test_the_time_of_the_caller_does_not_count(connect: Connect, server: FakeServer) -> None:
    def images() -> Iterator[bytes]:
        for number, image in enumerate(MANY):
            if number == 100:
                threading.Event().wait(0.3)
            yield image

    results = connect(server.target, timeout_s=0.2).embed_each(images())
    got = [next(results)]
    threading.Event().wait(0.3)
    assert len(got + list(results)) == len(MANY)


def test_streams_may_break_any_number_of_times_while_they_make_progress(connect: Connect, server: FakeServer) -> None:
    converse = server.converse

    def breaking(method: str, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield next(converse(method, requests, context))
        context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")

    server.converse = breaking  # type: ignore[method-assign]
    assert connect(server.target).embed(MANY).vectors[:, 1].tolist() == list(range(1, 200))
    assert len(server.streams) == 13


# --- Limits ---


def test_inputs_are_taken_only_as_far_ahead_as_the_stream_has_room(connect: Connect, server: FakeServer) -> None:
    taken = 0

    def images() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield b"1"

    results = connect(server.target).embed_each(images())
    for number in range(1, 1000):
        assert next(results)[0] == 1
        # What was answered, what is in flight, and the input that begins the next message.
        assert taken <= number + 16 * (window.MESSAGES_AHEAD + 2) + 1
    results.close()


def test_the_bytes_in_flight_are_limited(connect: Connect, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "BYTES_AHEAD", 3 << 20)
    taken = 0

    def images() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(40):
            taken += 1
            yield b"1" * (1 << 20)

    for number, _ in enumerate(connect(server.target).embed_each(images()), start=1):
        assert taken <= number + 3 + 3
    assert {len(request.images) for request in server.asked("EmbedStream")} == {1}


def test_slow_inputs_are_sent_without_waiting_for_a_full_message(connect: Connect, server: FakeServer) -> None:
    arrived = threading.Semaphore(0)
    answer = server.scripts["EmbedStream"]

    def script(request: Any, index: int) -> Any:
        arrived.release()
        return answer(request, index)

    server.on("EmbedStream", script)

    def images() -> Iterator[bytes]:
        yield b"1"
        threading.Event().wait(0.1)
        yield b"2"
        threading.Event().wait(0.1)
        yield b"3"
        assert arrived.acquire(timeout=20)  # it would not arrive if the client waited for a full message
        yield b"4"

    assert len(list(connect(server.target).embed_each(images()))) == 4


def test_ten_thousand_tiny_images_come_back_in_order(connect: Connect, server: FakeServer) -> None:
    images = ((number % 251 + 1).to_bytes(1, "little") * (number % 7 + 1) for number in range(10_000))
    for number, vector in enumerate(connect(server.target).embed_each(images)):
        assert vector.tolist() == vector_of(bytes([number % 251 + 1]) * (number % 7 + 1)).tolist()
    assert number == 9_999


# --- Cancelling ---


def test_closing_the_iterator_cancels_the_stream_and_leaves_no_thread(connect: Connect, server: FakeServer) -> None:
    released, answer = threading.Event(), server.scripts["EmbedStream"]

    def script(request: Any, index: int) -> Any:
        if request.key == "1":
            released.wait(20)
        return answer(request, index)

    server.on("EmbedStream", script)
    results = connect(server.target).embed_each(MANY)
    next(results)
    results.close()
    try:
        # The limits and the stream have ended for the client, while the server still works.
        assert [server.ended.acquire(timeout=20) for _ in range(2)] == [True] * 2
        assert not released.is_set()
    finally:
        released.set()
    assert no_client_thread_is_left()


def test_an_error_that_is_raised_for_one_image_cancels_the_rest(
    connect: Connect, server: FakeServer, tmp_path: Path
) -> None:
    taken = 0

    def images() -> Iterator[Any]:
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield tmp_path / "gone.jpg" if number == 20 else b"1"

    with pytest.raises(DataError):
        connect(server.target).embed(images())
    assert taken < 500
    assert no_client_thread_is_left()


def test_a_stream_that_is_finished_leaves_no_thread(connect: Connect, server: FakeServer) -> None:
    connect(server.target).embed(MANY)
    assert no_client_thread_is_left()


def test_closing_the_client_during_a_stream_is_reported(connect: Connect, server: FakeServer) -> None:
    client = connect(server.target)
    results = client.embed_each(MANY)
    next(results)
    client.close()
    with pytest.raises((Unavailable, FailedPrecondition), match="closed"):
        list(results)
    assert no_client_thread_is_left()


def test_the_messages_of_a_stream_fit_small_limits() -> None:
    limits = Limits(max_images=3, max_queue_images=2, max_message_bytes=2000)
    with serving(limits) as small, Client(small.target) as client:
        client.embed(MANY[:20])
        assert {len(request.images) for request in small.asked("EmbedStream")} == {2}
