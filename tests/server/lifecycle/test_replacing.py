"""Replacing the encoder of a running server."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from embedserve import Client
from embedserve.client import ItemInput
from embedserve.encoder.session import ImageEncoder
from embedserve.engine.engine import Engine
from embedserve.errors import EncoderFileError, EncoderMismatch, FailedPrecondition, PermissionDenied
from embedserve.server.lifecycle.replacing import EncoderReplacer
from embedserve.server.lifecycle.state import ServerState
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.encoders import write_encoder_file
from tests.fakes import DIMENSION, FakeEncoder, picture
from tests.running import ServerProcess, serving
from tests.waiting import until

NEW = "be" * 32
READER, WRITER = "abcdefghijklmnop", "0123456789abcdef"


async def engine_of(encoder: ImageEncoder) -> tuple[Engine, ServerState]:
    engine, state = await Engine.start(encoder), ServerState()
    state.ready(engine)
    return engine, state


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"read {READER}\nwrite {WRITER}\n")
    path.chmod(0o600)
    return path


def test_calls_in_flight_are_answered_by_the_encoder_that_they_began_with() -> None:
    entered, released = threading.Event(), threading.Event()
    armed = threading.Event()

    def hold(images: np.ndarray) -> None:
        if armed.is_set():
            entered.set()
            assert released.wait(20)

    async def scenario() -> tuple[list[str], list[str]]:
        old, new = FakeEncoder(on_batch=hold, parallel_runs=1), FakeEncoder(fingerprint=NEW)
        engine, state = await engine_of(old)
        armed.set()
        calls = [asyncio.create_task(engine.embed([picture(seed), picture(seed + 1)])) for seed in range(5)]
        await asyncio.to_thread(entered.wait, 20)
        replacing = asyncio.create_task(EncoderReplacer(lambda: new, state).replace())
        await until(lambda: engine.encoder is not old)
        encoder, [vector] = await engine.embed([picture(0)])  # does not wait for the old one
        assert isinstance(vector, np.ndarray)
        after = [encoder.fingerprint]
        assert not replacing.done()
        released.set()
        before = [(await call)[0].fingerprint for call in calls]
        for call in calls:
            assert all(isinstance(vector, np.ndarray) for vector in call.result()[1])
        assert await replacing == (old, new)
        await engine.close()
        return before, after

    before, after = asyncio.run(scenario())
    assert before == ["fa" * 32] * 5
    assert after == [NEW]


def test_a_file_that_cannot_be_read_changes_nothing() -> None:
    def broken() -> ImageEncoder:
        raise EncoderFileError("the file is not an ONNX model")

    async def scenario() -> None:
        encoder = FakeEncoder()
        engine, state = await engine_of(encoder)
        with pytest.raises(EncoderFileError):
            await EncoderReplacer(broken, state).replace()
        assert engine.encoder is encoder
        assert isinstance((await engine.embed([picture(1)]))[1][0], np.ndarray)
        await engine.close()

    asyncio.run(scenario())


def test_an_encoder_that_does_not_reproduce_its_reference_vectors_is_not_served() -> None:
    async def scenario() -> None:
        encoder, drifted = FakeEncoder(), FakeEncoder(fingerprint=NEW)
        wrong = np.tile(np.eye(DIMENSION, dtype=np.float32)[0], (8, 1))
        drifted.metadata = replace(drifted.metadata, reference=wrong)
        engine, state = await engine_of(encoder)
        with pytest.raises(EncoderFileError, match="does not reproduce the reference vectors"):
            await EncoderReplacer(lambda: drifted, state).replace()
        assert engine.encoder is encoder
        await engine.close()

    asyncio.run(scenario())


def test_an_encoder_that_fails_while_it_is_warmed_up_is_not_served() -> None:
    def fail(images: np.ndarray) -> None:
        raise EncoderFileError("an operator is missing")

    async def scenario() -> None:
        encoder = FakeEncoder()
        engine, state = await engine_of(encoder)
        with pytest.raises(EncoderFileError):
            await EncoderReplacer(lambda: FakeEncoder(fingerprint=NEW, on_batch=fail), state).replace()
        assert isinstance((await engine.embed([picture(1)]))[1][0], np.ndarray)
        await engine.close()

    asyncio.run(scenario())


def test_another_encoder_than_expected_is_not_served_and_the_same_one_is_not_loaded_twice() -> None:
    async def scenario() -> None:
        encoder = FakeEncoder()
        engine, state = await engine_of(encoder)
        embedder = engine.embedder
        with pytest.raises(EncoderMismatch):
            await EncoderReplacer(lambda: FakeEncoder(fingerprint=NEW), state).replace("cd" * 32)
        assert await EncoderReplacer(FakeEncoder, state).replace() == (encoder, encoder)
        assert engine.embedder is embedder
        await engine.close()

    asyncio.run(scenario())


def test_a_cancelled_replacement_does_not_let_the_next_one_load_beside_it() -> None:
    loading, most = 0, 0

    def slowly() -> ImageEncoder:
        nonlocal loading, most
        loading += 1
        most = max(most, loading)
        time.sleep(0.05)
        loading -= 1
        return FakeEncoder(fingerprint=NEW)

    async def scenario() -> str:
        engine, state = await engine_of(FakeEncoder())
        replacer = EncoderReplacer(slowly, state)
        for _ in range(4):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(replacer.replace(), 0.005)
        await replacer.replace()
        fingerprint = engine.encoder.fingerprint
        await engine.close()
        return fingerprint

    assert asyncio.run(scenario()) == NEW
    assert most == 1


def test_an_encoder_that_would_run_elsewhere_is_not_served() -> None:
    async def scenario() -> None:
        encoder, moved = FakeEncoder(), FakeEncoder(fingerprint=NEW)
        moved.provider = "CUDAExecutionProvider"
        engine, state = await engine_of(encoder)
        with pytest.raises(EncoderFileError, match="would run on CUDA"):
            await EncoderReplacer(lambda: moved, state).replace()
        assert engine.encoder is encoder
        await engine.close()

    asyncio.run(scenario())


def test_a_replaced_encoder_is_freed_at_once() -> None:
    async def scenario() -> None:
        encoder = FakeEncoder()
        gone = weakref.ref(encoder)
        engine, state = await engine_of(encoder)
        await engine.embed([picture(1)])
        del encoder
        await EncoderReplacer(lambda: FakeEncoder(fingerprint=NEW), state).replace()
        await until(lambda: gone() is None)
        await engine.close()

    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()


def test_a_stream_that_named_its_encoder_ends_when_it_is_replaced_and_another_continues(tokens: Path) -> None:
    def messages(fingerprint: str, go_on: threading.Event) -> Iterator[pb.EmbedStreamRequest]:
        yield pb.EmbedStreamRequest(key="a", image=picture(1), encoder_fingerprint=fingerprint)
        assert go_on.wait(20)
        yield pb.EmbedStreamRequest(key="b", image=picture(2))

    with (
        serving(FakeEncoder(), tokens=tokens, open_encoder=lambda: FakeEncoder(fingerprint=NEW)) as at,
        grpc.insecure_channel(at) as channel,
        Client(at, token=WRITER) as client,
    ):
        stub, metadata = EmbeddingServiceStub(channel), (("authorization", f"Bearer {WRITER}"),)
        go_on = threading.Event()
        named = stub.EmbedStream(messages("fa" * 32, go_on), timeout=30, metadata=metadata)
        open_ended = stub.EmbedStream(messages("", go_on), timeout=30, metadata=metadata)
        assert next(named).encoder.fingerprint == next(open_ended).encoder.fingerprint == "fa" * 32
        assert client.replace_encoder().fingerprint == NEW
        go_on.set()
        assert [response.encoder.fingerprint for response in open_ended] == [NEW]
        with pytest.raises(grpc.RpcError) as ended:
            next(named)
    assert ended.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_collections_of_the_old_encoder_answer_vectors_and_ids_and_say_why_not_images(
    tmp_path: Path, tokens: Path
) -> None:
    with (
        serving(
            FakeEncoder(),
            tmp_path / "data",
            tokens=tokens,
            open_encoder=lambda: FakeEncoder(fingerprint=NEW, name="new"),
        ) as address,
        Client(address, token=WRITER) as client,
    ):
        client.create_collection("photos")
        client.add("photos", [ItemInput(id=str(seed), image=picture(seed)) for seed in range(3)])
        vector = client.embed([picture(1)]).vectors[0]
        client.replace_encoder()
        assert client.search("photos", id="1", k=2)
        assert client.search("photos", vector=vector, encoder_fingerprint="fa" * 32, k=1)[0].id == "1"
        with pytest.raises(EncoderMismatch, match="this server runs new"):
            client.search("photos", image=picture(1))
        [result] = client.add("photos", [ItemInput(id="4", vector=vector)], encoder_fingerprint="fa" * 32)
        assert result.error is None
        with pytest.raises(EncoderMismatch):
            client.add("photos", [ItemInput(image=picture(1))])
        client.create_collection("photos-2")
        client.add("photos-2", [ItemInput(id="1", image=picture(1))])
        assert client.search("photos-2", image=picture(1))[0].id == "1"


def test_replacing_needs_the_role_write(tokens: Path) -> None:
    def new() -> ImageEncoder:
        return FakeEncoder(fingerprint=NEW)

    with serving(FakeEncoder(), tokens=tokens, open_encoder=new) as address:
        with Client(address, token=READER) as reader, pytest.raises(PermissionDenied):
            reader.replace_encoder()
        with Client(address, token=WRITER) as writer:
            assert writer.replace_encoder(fingerprint=NEW).fingerprint == NEW
    with (
        serving(FakeEncoder(), open_encoder=new) as address,
        Client(address) as client,
        pytest.raises(FailedPrecondition, match="no tokens"),
    ):
        client.replace_encoder()


def test_sighup_replaces_the_encoder_and_keeps_it_if_the_file_is_broken(tmp_path: Path) -> None:
    path = write_encoder_file(tmp_path / "encoder.onnx", seed=1)
    with ServerProcess(str(path)) as server, Client(server.address) as client:
        first = client.server_info().encoder.fingerprint
        path.write_bytes(b"no encoder")
        server.signal(signal.SIGHUP)
        server.wait_for_line("encoder not replaced")
        assert client.server_info().encoder.fingerprint == first
        write_encoder_file(path, seed=2)
        server.signal(signal.SIGHUP)
        server.wait_for_line("encoder replaced")
        second = client.server_info().encoder.fingerprint
        assert second != first
        assert client.embed([picture(1)]).encoder.fingerprint == second
        assert server.terminate() == 0


def test_no_call_fails_while_encoders_are_replaced_and_no_response_mixes_two() -> None:
    fingerprints = ["fa" * 32, NEW]
    opened = 0

    def next_encoder() -> ImageEncoder:
        nonlocal opened
        opened += 1
        return FakeEncoder(fingerprint=fingerprints[opened % 2])

    async def scenario() -> set[str]:
        engine, state = await engine_of(FakeEncoder())
        replacer = EncoderReplacer(next_encoder, state)
        seen: set[str] = set()
        until = time.monotonic() + 20

        async def caller(seed: int) -> None:
            while opened < 12 and time.monotonic() < until:
                encoder, vectors = await engine.embed([picture(seed), picture(seed + 1)])
                assert all(isinstance(vector, np.ndarray) for vector in vectors)
                seen.add(encoder.fingerprint)

        async with asyncio.TaskGroup() as group:
            for seed in range(6):
                group.create_task(caller(seed))
            for _ in range(12):
                await replacer.replace()
        assert engine.admission.images == 0
        await engine.close()
        return seen

    assert asyncio.run(scenario()) == set(fingerprints)
