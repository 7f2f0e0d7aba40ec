"""The harness of the benchmarks: loads, figures, clients, processes, the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from measuring import behaviour
from measuring.clients import (
    HttpClient,
    Refused,
    TooLate,
    inference_request,
    msgpack_body,
    multipart_body,
    read_response,
)
from measuring.ledger import Ledger
from measuring.loads import Images, closed, latencies_ms, offered
from measuring.machine import Tree, spent_s
from measuring.rounds import Figures, in_turns, percentile
from measuring.tables import behaviour_cells
from peers.shared import Settings

from embedserve.loadtest import Measurements, Reply


class FakeClient:
    """Answers after a while; refuses calls beyond ``at_once``."""

    def __init__(self, takes_s: float = 0.002, at_once: int = 1000) -> None:
        self.takes_s, self.at_once, self.now, self.most = takes_s, at_once, 0, 0

    async def call(self, images: list[bytes], timeout_s: float = 60.0) -> None:
        if self.now >= self.at_once:
            raise Refused("full")
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(self.takes_s * len(images))
        except TimeoutError:
            raise TooLate("late") from None
        finally:
            self.now -= 1

    async def close(self) -> None:
        pass


def test_percentiles_of_nothing_are_nothing() -> None:
    assert percentile([], 99) is None
    assert percentile([1, 3], 50) == 2


def test_calls_carry_the_pictures_in_rotation() -> None:
    images = Images([b"a", b"b"], 3)
    assert [images.of(number) for number in range(2)] == [[b"a", b"b", b"a"], [b"b", b"a", b"b"]]


def test_the_closed_loop_keeps_all_clients_busy_and_ends() -> None:
    client, edges = FakeClient(), []
    measured = asyncio.run(
        closed(client, Images([b"a", b"b"], 3), clients=4, seconds=0.05, edge=lambda: edges.append(len(edges)))
    )
    assert client.most == 4
    assert client.now == 0
    assert edges == [0, 1]
    assert measured.steady_images > 0
    assert measured.all_images == 3 * len(measured)
    assert len(latencies_ms(measured)) > 0


def test_latencies_are_those_of_all_calls_if_each_is_longer_than_the_window() -> None:
    measured = Measurements(warmup_s=1, seconds=0.5)
    measured.add(due_s=0, sent_s=0, done_s=2, outcome=Reply())
    assert latencies_ms(measured) == [2000]
    measured.add(due_s=1.25, sent_s=1.25, done_s=1.75, outcome=Reply())
    assert latencies_ms(measured) == [500]


def test_a_failed_call_ends_a_closed_loop_with_its_error() -> None:
    with pytest.raises(Refused):
        asyncio.run(closed(FakeClient(at_once=2), Images([b"a"]), clients=4, seconds=60))


def test_the_open_loop_tells_answers_refusals_and_late_ones_apart() -> None:
    async def both() -> tuple[Measurements, Measurements]:
        full = await offered(FakeClient(0.05, at_once=2), [b"a"], per_s=500, warmup_s=0, seconds=0.1, within_s=1)
        late = await offered(FakeClient(0.5), [b"a"], per_s=100, warmup_s=0, seconds=0.05, within_s=0.01)
        return full, late

    full, late = asyncio.run(both())
    assert full.codes()["OK"] == len(full.latencies_ms()) >= 2
    assert full.codes()["Refused"] == len(full.latencies_ms("Refused")) > 0
    assert sum(full.codes().values()) == len(full) == 50
    assert late.codes() == {"TooLate": 5}


def test_turns_move_on_by_one_or_are_reversed_in_every_second_round() -> None:
    assert list(in_turns("abc", 2)) == [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a")]
    assert list(in_turns("ab", 2, reverse=True)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]


def test_figures_are_medians_over_the_rounds_and_none_if_not_measured() -> None:
    figures = Figures()
    for rate in (3.0, 1.0, 2.0):
        figures.add(rate=rate)
    assert (figures.median("rate"), figures.median("other")) == (2, None)
    assert figures.by_round("rate", "other") == {"rate": [3, 1, 2], "other": []}
    assert figures.calls() == {"calls": 0, "p50_ms": None, "p99_ms": None}


def test_the_poisoned_image_is_the_only_undecodable_one() -> None:
    import io

    from PIL import Image

    from embedserve.errors import ImageUndecodable
    from embedserve.images import codec

    out = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(out, "JPEG")
    with pytest.raises(ImageUndecodable):
        codec.decode(behaviour.truncated(out.getvalue()))

    class Neighbours(FakeClient):
        async def call(self, images: list[bytes], timeout_s: float = 60.0) -> None:
            self.now += 1
            await asyncio.sleep(0)
            if self.now % 17 in (7, 8, 9):
                raise Refused("in a batch with a bad one")

    result = asyncio.run(behaviour.poison(Neighbours(), [out.getvalue()]))
    assert len(result["failed"]) == behaviour.POISON_REPEATS


def test_bodies_of_the_http_client_are_what_servers_parse() -> None:
    media_type, parts = msgpack_body([b"one", b"two!"])
    assert media_type == b"application/msgpack"
    assert b"".join(parts) == b"\xdc\x00\x02" + b"\xc6\x00\x00\x00\x03one" + b"\xc6\x00\x00\x00\x04two!"
    media_type, parts = multipart_body([b"one", b"two!"])
    boundary = media_type.partition(b"boundary=")[2]
    assert b"".join(parts).count(b"--" + boundary) == 3
    assert b"".join(parts).endswith(b"\r\ntwo!\r\n--" + boundary + b"--\r\n")


def test_the_hand_written_inference_request_is_protobuf() -> None:
    large = bytes(300)
    assert inference_request([b"one", large]) == (
        b"\x0a\x05embed"  # model_name
        b"\x2a\x12\x0a\x06images\x12\x05BYTES\x1a\x01\x02"  # inputs: name, datatype, shape
        b"\x3a\xb7\x02\x03\x00\x00\x00one\x2c\x01\x00\x00" + large  # raw_input_contents, 311 bytes
    )


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", (200, True, b"abc")),
        (b"HTTP/1.1 429 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", (429, False, b"")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n",
            (200, True, b"abc"),
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", (200, False, b"until the end")),
    ],
)
def test_the_http_client_reads_every_kind_of_response(raw: bytes, expected: tuple[int, bool, bytes]) -> None:
    async def read() -> tuple[int, bool, bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(raw)
        reader.feed_eof()
        return await read_response(reader)

    assert asyncio.run(read()) == expected


def test_the_http_client_keeps_its_connection_and_names_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("measuring.clients._IDLE_S", 60)
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                status, answer = (b"503 Full", b"") if b"refuse" in body else (b"200 OK", b"\0" * 4)
                writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(answer), answer))
        writer.close()

    async def talk() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = HttpClient(f"127.0.0.1:{port}", "/embed", msgpack_body)
            await client.call([b"one"])
            await client.call([b"two"])
            with pytest.raises(Refused):
                await client.call([b"refuse"])
            await client.close()
            await asyncio.sleep(0.05)

    asyncio.run(talk())
    assert len(connections) == 1


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
def test_a_tree_holds_the_children_of_a_process_after_it_has_ended() -> None:
    mark = f"mark-{os.getpid()}"
    orphan = (
        "import subprocess,sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0).pid, flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", orphan],
        env={**os.environ, "MARK": mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.wait()
        tree = Tree(process.pid, mark)
        assert child in tree.pids()
        assert tree.pss_mb() > 0
        assert spent_s({child: 1.0}, {child: 1.5, 99: 0.25}) == 0.75


def test_settings_of_a_peer_pass_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(encoder="a.onnx", port=1234, workers=3, intra_op=2, max_batch=8, max_wait_ms=5)
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.of_environment() == settings


def test_a_line_of_the_behaviour_table_leaves_open_what_was_not_measured() -> None:
    assert behaviour_cells({}) == ["–"] * 6
    cells = behaviour_cells(
        {
            "poison": {"failed": [6, 7, 7]},
            "cancel": {"burnt_cpu_s": 1.234, "burnt_images": 27.4},
            "fairness": {"beside_p99_ms": 123.4, "ratio": 2.5},
            "overload": {"goodput_ratio": 0.97, "refused_p50_ms": None},
            "terminate": {"lost": 0, "in_flight": 16},
        }
    )
    assert cells == ["7 (6–7)", "1.23 = 27", "123 ms, 2.5×", "0.97", "none", "0 of 16"]


def test_the_ledger_tells_calls_that_the_server_lost_or_made_up() -> None:
    ledger = Ledger(known=Counter({("Embed", "OK"): 10, ("Embed", "INTERNAL"): 1}), left=Counter({"Embed": 3}))
    right = Counter({("Embed", "OK"): 11, ("Embed", "CANCELLED"): 2, ("Embed", "INTERNAL"): 1})
    assert ledger.differences(right) == []
    assert ledger.differences(right - Counter({("Embed", "OK"): 2})) == [
        "Embed OK: the server counts 9, the client 10 and 3 without a status"
    ]
    assert ledger.differences(right + Counter({("Embed", "INTERNAL"): 1})) == [
        "Embed INTERNAL: the server counts 2, the client 1",
        "Embed: the server counts 1 calls that nobody made",
    ]
    assert ledger.differences(right + Counter({("Search", "OK"): 1})) == [
        "Search OK: the server counts 1, the client 0",
        "Search: the server counts 1 calls that nobody made",
    ]
