"""The benchmarks start, and the short ones measure what they say they measure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
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
from measuring.loads import Call, Tally, closed_loop, images_within, open_loop, percentile_ms
from measuring.machine import Tree, spent_s
from measuring.tables import behaviour_cells
from onnx import TensorProto, helper, numpy_helper
from peers.shared import Settings

from embedserve.encoder import encoder_file
from embedserve.encoder.encoder_file import EncoderMetadata
from embedserve.images.preprocess import PreprocessSpec
from tests.encoders import write_encoder_file

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((REPOSITORY / "benchmarks").glob("*.py"))
LEGS = ("bare loop", "unary", "batch", "stream")


def run(script: str, *arguments: str, **environment: str) -> str:
    """What a benchmark prints."""
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> Path:
    """Mean colour at unit norm."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["colour"], keepdims=0),
        helper.make_node("LpNormalization", ["colour"], ["embeddings"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = EncoderMetadata(name="tiny", dimension=3, preprocess=PreprocessSpec(size_px=8))
    path = tmp_path / "tiny.onnx"
    encoder_file.write(encoder_file.pack(model.SerializeToString(), metadata), path)
    return path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_benchmark_explains_itself(script: Path) -> None:
    assert "usage:" in run(script.name, "--help")


def test_serve_overhead_prints_both_numbers_and_writes_them(tiny_encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--encoder", str(tiny_encoder), "--seconds", "0.1", "--rounds", "2", "--json", str(out)]
    said = run("serve_overhead.py", *options)
    document = json.loads(out.read_text(encoding="utf-8"))

    assert {"date", "command", "hardware", "versions", "rounds", "caveat", "encoders"} <= document.keys()
    assert document["hardware"].keys() >= {"cpu", "cores"}
    [measured] = document["encoders"]
    assert measured["encoder"] == "tiny"
    assert tuple(measured["legs"]) == LEGS
    assert measured["legs"]["bare loop"]["ratio"] == 1
    for name, leg in measured["legs"].items():
        assert leg["images_per_s"] > 0, name
        assert len(leg["by_round"]["ratio"]) == 2, name
        assert f"{leg['images_per_s']:.1f}" in said, name
    for name in ("unary", "batch"):
        assert 0 < measured["legs"][name]["p50_ms"] <= measured["legs"][name]["p99_ms"]
    assert document["caveat"] in said


def test_serve_overhead_names_an_encoder_that_is_not_there() -> None:
    command = [sys.executable, "benchmarks/serve_overhead.py", "--encoder", "missing.onnx"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "missing.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_gpu_benchmark_says_that_it_is_skipped_where_there_is_no_gpu() -> None:
    assert run("gpu.py", CUDA_VISIBLE_DEVICES="").startswith("skipped: ")


# --- What serve_peers.py is made of; no peer is started here --------------------------------------------------------


class FakeClient:
    """Answers after a while; fails what is truncated and, with it, its neighbours if it is told to."""

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


def test_a_call_counts_with_the_part_that_lies_within_the_window() -> None:
    calls = [Call(0, 2, 16), Call(2, 4, 16), Call(10, 12, 16), Call(0, 1, 1)]
    assert images_within(calls, 1, 3) == 8 + 8
    assert images_within(calls, 5, 9) == 0


def test_percentiles_of_nothing_are_nothing() -> None:
    assert percentile_ms([], 99) is None
    assert percentile_ms([0.001, 0.003], 50) == 2


def test_the_closed_loop_keeps_all_clients_busy_and_ends() -> None:
    client, edges = FakeClient(), []
    window = asyncio.run(
        closed_loop(client, [b"a", b"b"], clients=4, per_call=3, seconds=0.05, edge=lambda: edges.append(len(edges)))
    )
    assert client.most == 4
    assert client.now == 0
    assert edges == [0, 1]
    assert window.images > 0
    assert all(call.images == 3 for call in window.calls)


def test_the_open_loop_tells_answers_refusals_and_late_ones_apart() -> None:
    async def both() -> tuple[Tally, Tally]:
        full, _ = await open_loop(FakeClient(0.05, at_once=2), [b"a"], per_s=500, seconds=0.1, within_s=1)
        late, _ = await open_loop(FakeClient(0.5), [b"a"], per_s=100, seconds=0.05, within_s=0.01)
        return full, late

    full, late = asyncio.run(both())
    assert full.outcomes["answered"] == len(full.good) >= 2
    assert full.outcomes["Refused"] == len(full.refused_s) > 0
    assert sum(full.outcomes.values()) == len(full.sent) == 50
    assert dict(late.outcomes) == {"TooLate": 5}


def test_the_poisoned_image_is_the_only_one_that_is_no_image() -> None:
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
def test_a_tree_holds_what_a_process_started_also_when_the_parent_is_gone() -> None:
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


def test_serve_peers_leaves_out_what_is_not_installed(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/serve_peers.py", "--only", "mosec", "--environment", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "skipped: mosec" in done.stdout
    assert "make serve-peers" in done.stdout


@pytest.mark.slow
def test_serve_peers_measures_embedserve_itself(tiny_encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--encoder", str(tiny_encoder), "--part", "throughput", "--only", "embedserve", "--only", "grpc.aio"]
    said = run("serve_peers.py", *options, "--seconds", "0.2", "--rounds", "2", "--json", str(out))
    document = json.loads(out.read_text(encoding="utf-8"))

    [measured] = document["encoders"]
    assert measured["servers"].keys() == {"embedserve", "grpc.aio"}
    for name, one in measured["servers"].items():
        assert not one["problem"], name
        assert one["start_s"] > 0
        assert len(one["legs"]["single"]["by_round"]["ratio"]) == 2
        assert f"{one['legs']['list']['images_per_s']:.1f}" in said
    assert measured["servers"]["embedserve"]["legs"].keys() == {"single", "list", "stream", "stream_list"}
    assert document["caveat"] in said


@pytest.mark.slow
def test_the_gpu_benchmark_measures_serving_and_can_be_tried_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "gpu.json"
    run("gpu.py", "--device", "cpu", "--seconds", "0.3", "--out", str(out))
    document = json.loads(out.read_text(encoding="utf-8"))
    assert [result["precision"] for result in document["serving"]] == ["fp32", "fp16"]
    for result in document["serving"]:
        assert "skipped" not in result, result
        assert result["cosine_to_pytorch"] > 0.999
        for leg in ("bare", "session_run", "encoder"):
            assert result[leg].keys() == {"1", "8", "32", "64"}
            assert min(result[leg].values()) > 0, leg
        assert min(result["server"]["16_per_call"], result["server"]["stream"], result["server"]["p99_ms"]) > 0
        assert result["server_over_limit"].keys() == {"16_per_call", "stream"}
    assert document["training"] == []


@pytest.mark.slow
def test_a_short_soak_goes_without_a_violation_and_accounts_for_every_call(tmp_path: Path) -> None:
    encoders = [write_encoder_file(tmp_path / f"{seed}.onnx", seed=seed) for seed in (1, 2)]
    chosen = [part for encoder in encoders for part in ("--encoder", str(encoder))]
    said = run("soak.py", "--minutes", "0.25", "--every-s", "4", "--json", str(tmp_path / "soak.json"), *chosen)
    document = json.loads((tmp_path / "soak.json").read_text())
    assert "nothing went wrong" in said
    assert document["violations"] == []
    assert document["replaced"] >= 2
    assert min(document["good_calls"].values()) > 0
    assert document["left_by_their_caller"]["Embed"] > 0


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


@pytest.mark.slow
def test_a_short_overload_says_what_was_answered_and_what_was_refused(tmp_path: Path) -> None:
    command = ["--encoder", "fixed", "--seconds", "2", "--max-queue-images", "32", "--json", str(tmp_path / "out.json")]
    with contextlib.suppress(AssertionError):  # exit code 1 where another process takes the cores: figures are no test
        run("overload.py", *command)
    [result] = json.loads((tmp_path / "out.json").read_text())["results"]
    assert result["codes"]["OK"] > 0
    assert result["codes"]["OVERLOADED"] > result["codes"]["OK"]
    assert set(result["codes"]) <= {"OK", "OVERLOADED", "DEADLINE_EXCEEDED"}
