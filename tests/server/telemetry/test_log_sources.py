"""Whatever writes to the standard error of a real server: one object per line with JSON, and nobody waits for it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from tests.running import ServerProcess
from tests.waiting import wait_until

PROVOKING = """
import asyncio, gc, logging, os, sys, threading, traceback, warnings
from embedserve.server import process

say_ready = process._say_ready

class Dying:
    def __del__(self):
        raise ValueError("in a finalizer")

def fail():
    raise ValueError("in a thread")

async def fail_in_a_task():
    raise ValueError("in a task")

async def provoke(*arguments):
    logging.getLogger("PIL.TiffImagePlugin").warning("of %s", "Pillow")
    logging.getLogger("_cython.cygrpc").error("of gRPC\\u2028in two lines\\x85or three")
    logging.getLogger("library").error("%d", "arguments that do not fit")
    logging.getLogger("library").error("fields", extra={"fields": {"nan": float("nan"), "of": object(), 1: {2}}})
    warnings.warn("of Python", RuntimeWarning)
    os.write(2, b"E0000 00:00:1764540000.123456   12345 tcp_server_posix.cc:417] Failed accept4: Too many\\n")
    os.write(2, b"\\x1b[1;31m2026-11-30 10:00:00.1 [W:onnxruntime:Default, graph.cc:12 Resolve] of ONNX\\x1b[m\\n")
    os.write(2, b"<jemalloc>: bytes that are \\xff no text\\n")
    for number in range(1000):
        os.write(2, b"E0000 00:00:1764540000.123456   12345 repeated.cc:1] accept %d\\n" % number)
    print("printed", "in", "parts", file=sys.stderr)
    try:
        raise ValueError("printed traceback")
    except ValueError:
        traceback.print_exc()
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    Dying()
    await asyncio.wait([asyncio.create_task(fail_in_a_task())])
    gc.collect()
    asyncio.get_running_loop().call_exception_handler({"message": "of asyncio"})
    await say_ready(*arguments)

process._say_ready = provoke
from embedserve.cli import run
run()
"""


def documents_of(said: list[str]) -> list[dict[str, Any]]:
    # splitlines knows more ends of lines than JSON.
    found = [json.loads(line) for text in said for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= document.keys() for document in found)
    return found


def test_every_source_of_lines_is_json(encoder_file: Path) -> None:
    with ServerProcess(str(encoder_file), "--log-format", "json", program=("-c", PROVOKING)) as server:
        server.wait_for_line('"repeated"')
        assert server.terminate() == 0
    documents = documents_of(server.said)
    found = {(document["logger"], document["level"], document["message"].split("\n")[0]) for document in documents}
    assert {
        ("PIL.TiffImagePlugin", "warning", "of Pillow"),
        ("_cython.cygrpc", "error", "of gRPC\u2028in two lines\x85or three"),
        ("library", "error", "%d ('arguments that do not fit',)"),
        ("py.warnings", "warning", "of Python"),
        ("grpc", "error", "Failed accept4: Too many"),
        ("onnxruntime", "warning", "of ONNX"),
        ("stderr", "warning", "<jemalloc>: bytes that are \\xff no text"),
        ("stderr", "warning", "printed in parts"),
        ("stderr", "warning", "ValueError: printed traceback"),
        ("asyncio", "error", "of asyncio"),
        ("asyncio", "error", "Task exception was never retrieved"),
    } <= found
    uncaught = [document for document in documents if document["message"] == "uncaught exception"]
    assert {document["exception"].splitlines()[-1] for document in uncaught} == {
        "ValueError: in a thread",
        "ValueError: in a finalizer",
    }
    [fields] = [document for document in documents if document["message"] == "fields"]
    assert fields["nan"] == "nan"
    repeated = [document for document in documents if document.get("source") == "repeated.cc:1"]
    assert sum(document.get("repeated", 1) for document in repeated) == 1000
    assert len(repeated) < 100


def test_why_a_server_does_not_start_is_json_too(tmp_path: Path) -> None:
    (tmp_path / "none.onnx").write_text("no model")
    with ServerProcess(str(tmp_path / "none.onnx"), "--log-format", "json") as server:
        assert server.wait() == 2
    last = documents_of(server.said)[-1]
    assert (last["level"], last["error"]) == ("error", "ENCODER_FILE")
    assert "none.onnx" in last["message"]
    assert last["hint"]


def test_a_bug_at_the_start_is_json_with_its_traceback(encoder_file: Path) -> None:
    program = (
        "from embedserve.server import process; process._run = lambda *_: 1 / 0; import embedserve.cli as c; c.run()"
    )
    with ServerProcess(str(encoder_file), "--log-format", "json", program=("-c", program)) as server:
        assert server.wait() == 1
    [bug] = documents_of(server.said)
    assert (bug["level"], bug["message"]) == ("critical", "this is a bug in embedserve")
    assert "ZeroDivisionError" in bug["exception"]


@pytest.mark.skipif(sys.platform != "linux", reason="signals a process by its id")
@pytest.mark.parametrize("format", ["text", "json"])
def test_a_crash_is_written_to_the_true_standard_error(encoder_file: Path, format: str) -> None:
    with ServerProcess(str(encoder_file), "--log-format", format) as server:
        os.kill(server.pid, signal.SIGABRT)
        assert server.wait() == -signal.SIGABRT
    assert any("Fatal Python error: Aborted" in line for line in server.said)


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_server_whose_standard_error_nobody_reads_answers_and_stops(encoder_file: Path, format: str) -> None:
    with ServerProcess(str(encoder_file), "--log-format", format, "--log-level", "debug") as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = EmbeddingServiceStub(channel)
            for _ in range(400):  # some 160 kB of lines; a pipe holds 64 KiB
                stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=(("x-request-id", "x" * 128),), timeout=20)
        server.signal(signal.SIGTERM)
        wait_until(lambda: server.exit_code is not None)
        assert server.exit_code == 0


def test_what_a_server_says_at_start_and_stop_has_its_values_in_fields(encoder_file: Path, tmp_path: Path) -> None:
    with ServerProcess(str(encoder_file), "--data", str(tmp_path / "data"), "--log-format", "json") as server:
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    by_message = {document["message"]: document for document in documents_of(server.said)}
    assert by_message["ready"]["grpc"] == server.address
    assert by_message["ready"]["http"] == server.http_url
    assert by_message["encoder"]["dimension"] == 24
    assert by_message["collections"]["count"] == 0
    assert by_message["stopping: finishing calls in flight"]["signal"] == "SIGTERM"
    assert "stopped" in by_message
