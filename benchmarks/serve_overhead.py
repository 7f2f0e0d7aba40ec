"""Images/s through gRPC beside a bare loop of decoding and onnxruntime on the same machine, in turns.

    python benchmarks/serve_overhead.py                                both encoders, in about three minutes
    python benchmarks/serve_overhead.py --encoder my.onnx --json out.json

The bare loop is the ceiling: one thread per core, each decoding images and running the encoder on them. The server runs
in a process of its own, as `embedserve serve` starts it, and this process is the client. Both share the cores, so the
images/s of the server contain the client's work; the CPU time per image, measured for each process, does not.
See benchmarks/README.md for what is measured how.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import grpc
import numpy as np
from measuring.bare import BUILT_IN, PICTURES, BareLoop, best_bare, encoder_of, jpeg
from measuring.machine import busy_s, cpu_model, cpu_s, memory_mb, versions
from numpy.typing import NDArray

from embedserve.cores import usable_cores
from embedserve.encoder.session import Encoder
from embedserve.errors import EmbedserveError
from embedserve.v1 import common_pb2
from embedserve.v1 import embedding_service_pb2 as pb
from embedserve.v1 import embedding_service_pb2_grpc as pb_grpc

CAVEAT = "client and server share the cores, so images/s of the server contain the client's work too"
CLIENTS = 16
BATCH_CLIENTS = 4
BATCH = 16
PACKED = common_pb2.VECTOR_ENCODING_PACKED_F32
BARE = "bare loop"
Stub: TypeAlias = "pb_grpc.EmbeddingServiceAsyncStub"  # a type only: at run time there is one stub for both


def main() -> None:
    """Parse the arguments, measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description="Images/s through gRPC beside a bare loop, in turns.")
    parser.add_argument(
        "--encoder", action="append", metavar="light|heavy|FILE", help="what to serve; may be repeated (light, heavy)"
    )
    parser.add_argument("--seconds", type=float, default=2.5, help="length of one measurement, about (2.5)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind (5)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything that was measured to this file")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds is at least 1 and --seconds more than 0")
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/serve_overhead.py", *sys.argv[1:]]),
        "hardware": {"cpu": cpu_model(), "cores": usable_cores(), "machine": platform.machine()},
        "versions": versions(),
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "caveat": CAVEAT,
        "encoders": [measure(name, arguments) for name in arguments.encoder or list(BUILT_IN)],
    }
    print(f"\n{CAVEAT}")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
        print(f"written to {arguments.json}")


# --- What is measured -----------------------------------------------------------------------------------------------


@dataclass
class Leg:
    """One way to embed images, and what was measured of it, one value for each round."""

    name: str
    images_per_s: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    """Of the bare loop in the same round."""
    client_cpu_ms: list[float] = field(default_factory=list)
    """CPU time of this process, per image; in the bare loop that is all there is."""
    server_cpu_ms: list[float] = field(default_factory=list)
    others_share: list[float] = field(default_factory=list)
    """Share of the machine's cores that other processes took, 0–1."""
    latencies_ms: list[float] = field(default_factory=list)
    """Of every call of all rounds."""

    def to_json(self) -> dict[str, Any]:
        """Medians over the rounds, percentiles over the calls, and the values of each round."""
        rounds = {name: [round(value, 4) for value in getattr(self, name)] for name in _BY_ROUND}
        return {
            "name": self.name,
            "images_per_s": _median(self.images_per_s),
            "ratio": _median(self.ratio),
            "client_cpu_ms_per_image": _median(self.client_cpu_ms),
            "server_cpu_ms_per_image": _median(self.server_cpu_ms),
            "others_share": _median(self.others_share),
            "calls": len(self.latencies_ms),
            "p50_ms": _percentile(self.latencies_ms, 50),
            "p99_ms": _percentile(self.latencies_ms, 99),
            "by_round": rounds,
        }


_BY_ROUND = ("images_per_s", "ratio", "client_cpu_ms", "server_cpu_ms", "others_share")


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All legs of one encoder, printed and as a document."""
    path, size = encoder_of(name)
    pictures = [jpeg(*size, seed) for seed in range(PICTURES)]
    try:
        encoder = Encoder.open(path, device="cpu")
    except EmbedserveError as error:
        raise SystemExit(error.message) from None
    cores = usable_cores()
    legs = {
        BARE: Leg(BARE),
        "unary": Leg(f"unary, {CLIENTS} clients"),
        "batch": Leg(f"{BATCH} per call, {BATCH_CLIENTS} clients"),
        "stream": Leg("EmbedStream"),
    }
    bytes_each = sum(map(len, pictures)) / len(pictures)
    metadata = encoder.metadata
    print(
        f"\n{name}: {metadata.backbone or metadata.name}, {metadata.preprocess.size_px} px, {metadata.dimension}"
        f" numbers per image; JPEGs of {size[0]} × {size[1]}, {bytes_each / 1000:.1f} kB; {arguments.rounds} rounds",
        flush=True,
    )
    with server(path) as (process, address):
        memory = {"ready_mb": memory_mb(process.pid, "VmRSS")}
        bare, speed = best_bare(encoder, pictures)
        legs[BARE].name = f"{BARE}, {cores} threads × {bare.batch}"
        # Whole calls, enough for every client, and the same for every core. Every measurement embeds this many images.
        unit = BATCH * math.lcm(cores, BATCH_CLIENTS)
        count = max(round(speed * arguments.seconds / unit), 1) * unit
        try:
            asyncio.run(run_rounds(legs, bare, pictures, count, arguments.rounds, process.pid, address))
        except* grpc.aio.AioRpcError as group:
            raise SystemExit(f"a call failed: {group.exceptions[0]}") from None
        memory["peak_mb"] = memory_mb(process.pid, "VmHWM")
    for leg in legs.values():
        leg.ratio = [ours / bare for ours, bare in zip(leg.images_per_s, legs[BARE].images_per_s, strict=True)]
    print_table(list(legs.values()), memory)
    return {
        "encoder": name if name in BUILT_IN else metadata.name,
        "backbone": metadata.backbone,
        "size_px": metadata.preprocess.size_px,
        "dimension": metadata.dimension,
        "jpeg_px": list(size),
        "jpeg_bytes": round(bytes_each),
        "images_per_measurement": count,
        "bare_batch": bare.batch,
        "server_memory": memory,
        "legs": {key: leg.to_json() for key, leg in legs.items()},
    }


async def run_rounds(
    legs: dict[str, Leg], bare: BareLoop, pictures: list[bytes], count: int, rounds: int, pid: int, address: str
) -> None:
    """Every leg once, in turns, for each round; in every second round in reverse order."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub: Stub = pb_grpc.EmbeddingServiceStub(channel)

        async def run_bare(count: int) -> list[float]:
            await asyncio.to_thread(bare.run, count)
            return []

        run: dict[str, Callable[[int], Any]] = {
            BARE: run_bare,
            "unary": lambda count: run_unary(stub, pictures, count, per_call=1, clients=CLIENTS),
            "batch": lambda count: run_unary(stub, pictures, count, per_call=BATCH, clients=BATCH_CLIENTS),
            "stream": lambda count: run_stream(stub, pictures, count),
        }
        for key in legs:
            await run[key](BATCH * 2)  # connections made, threads started
        for number in range(rounds):
            for key in list(legs) if number % 2 == 0 else reversed(legs):
                await run_once(legs[key], run[key], count, pid, has_server=key != BARE)


async def run_once(leg: Leg, run: Callable[[int], Any], count: int, pid: int, *, has_server: bool) -> None:
    """One measurement: ``count`` images, from the first one sent to the last one answered."""
    ours, theirs, machine = time.process_time(), cpu_s(pid), busy_s()
    begun = time.perf_counter()
    latencies = await run(count)
    seconds = time.perf_counter() - begun
    ours, theirs, machine = time.process_time() - ours, cpu_s(pid) - theirs, busy_s() - machine
    leg.images_per_s.append(count / seconds)
    leg.client_cpu_ms.append(ours / count * 1000)
    if has_server and theirs > 0:
        leg.server_cpu_ms.append(theirs / count * 1000)
    if machine > 0:
        leg.others_share.append(max(machine - ours - theirs, 0) / seconds / (os.cpu_count() or 1))
    leg.latencies_ms += [1000 * latency for latency in latencies]


# --- The legs -------------------------------------------------------------------------------------------------------


async def run_unary(stub: Stub, pictures: list[bytes], count: int, *, per_call: int, clients: int) -> list[float]:
    """Closed loop: every client sends its next call when the one before is answered. Seconds of each call."""
    starts = iter(range(0, count, per_call))
    latencies: list[float] = []

    async def client() -> None:
        for start in starts:
            images = [pictures[number % len(pictures)] for number in range(start, start + per_call)]
            begun = time.perf_counter()
            response = await stub.Embed(pb.EmbedRequest(images=images, vector_encoding=PACKED))
            latencies.append(time.perf_counter() - begun)
            for result in response.results:
                unpack(result)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return latencies


async def run_stream(stub: Stub, pictures: list[bytes], count: int) -> list[float]:
    """One stream, written as fast as the server reads it; no latencies, since images wait in the stream."""

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        for number in range(count):
            image = pictures[number % len(pictures)]
            yield pb.EmbedStreamRequest(key=str(number), image=image, vector_encoding=PACKED)

    async for response in stub.EmbedStream(requests()):
        unpack(response.result)
    return []


def unpack(result: pb.EmbedResult) -> NDArray[np.float32]:
    """The vector of a result; nothing that is measured may fail."""
    if result.HasField("error"):
        raise SystemExit(f"the server could not embed an image: {result.error.message}")
    return np.frombuffer(result.vector.packed_f32, "<f4")


@contextlib.contextmanager
def server(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`embedserve serve` in a process of its own, and its address; stopped at the end."""
    command = [sys.executable, "-m", "embedserve", "serve", str(path), "--port", "0", "--no-http", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"ready .*gRPC on (\S+)", line):
                    yield process, found[1]
                    return
            raise SystemExit(f"the server did not start:\n{said}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


# --- Printing -------------------------------------------------------------------------------------------------------


def print_table(legs: list[Leg], memory: dict[str, float | None]) -> None:
    """One line for each leg."""
    print(f"{'':<24}{'images/s':>9}  {'of bare (min–max)':<19}{'CPU ms/image: server':>21}{'client':>8}", end="")
    print(f"{'p50 / p99 ms per call':>24}{'others':>8}")
    for leg in legs:
        spread = f"{median(leg.ratio):.2f} ({min(leg.ratio):.2f}–{max(leg.ratio):.2f})"
        calls = f"{_shown(_percentile(leg.latencies_ms, 50))} / {_shown(_percentile(leg.latencies_ms, 99))}"
        print(
            f"{leg.name:<24}{median(leg.images_per_s):>9.1f}  {spread:<19}{_shown(_median(leg.server_cpu_ms)):>21}"
            f"{_shown(_median(leg.client_cpu_ms)):>8}{calls if leg.latencies_ms else '–':>24}"
            f"{f'{100 * median(leg.others_share):.0f} %' if leg.others_share else '–':>8}"
        )
    print(
        f"server memory: {_shown(memory['ready_mb'])} MB when ready, {_shown(memory['peak_mb'])} MB at most", flush=True
    )


def _median(values: list[float]) -> float | None:
    return round(median(values), 4) if values else None


def _percentile(values: list[float], percent: int) -> float | None:
    return round(float(np.percentile(values, percent)), 3) if values else None


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


if __name__ == "__main__":
    main()
