"""Images/s through gRPC beside a bare loop of decoding and onnxruntime on the same machine, in turns.

    python benchmarks/serve_overhead.py                                both encoders, in about three minutes
    python benchmarks/serve_overhead.py --encoder my.onnx --json out.json

The bare loop is the ceiling: one thread per core, each decoding images and running the encoder on them. The server runs
in a process of its own, as `embedserve serve` starts it, and this process is the client. Both share the cores, so the
images/s of the server contain the client's work; the CPU time per image, measured for each process, does not.
benchmarks/README.md describes the method.
"""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from measuring.bare import BUILT_IN, PICTURES, BareLoop, best_bare, encoder_of, jpeg
from measuring.child import real_server
from measuring.clients import Failed, GrpcClient, Refused, TooLate
from measuring.document import document, write
from measuring.loads import Images, closed, streamed
from measuring.machine import cpu_s, memory_mb
from measuring.meter import Meter
from measuring.rounds import Figures, in_turns, ratios

from embedserve.cores import usable_cores
from embedserve.encoder.session import Encoder
from embedserve.errors import EmbedserveError
from embedserve.loadtest import Measurements

CAVEAT = "client and server share the cores, so images/s of the server contain the client's work too"
CLIENTS = 16
BATCH_CLIENTS = 4
BATCH = 16
BARE = "bare loop"
BY_ROUND = ("images_per_s", "ratio", "client_cpu_ms", "server_cpu_ms", "others_share")
HOUR_S = 3600.0
"""Longer than any measurement: it ends after a number of images."""


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
    results = document(
        "serve_overhead.py",
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        caveat=CAVEAT,
    )
    results["encoders"] = [measure(name, arguments) for name in arguments.encoder or list(BUILT_IN)]
    print(f"\n{CAVEAT}")
    write(results, arguments.json)


# --- What is measured -----------------------------------------------------------------------------------------------


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All legs of one encoder, printed and as a document."""
    path, size = encoder_of(name)
    pictures = [jpeg(*size, seed) for seed in range(PICTURES)]
    try:
        encoder = Encoder.open(path, device="cpu")
    except EmbedserveError as error:
        raise SystemExit(error.message) from None
    cores = usable_cores()
    titles = {
        BARE: BARE,
        "unary": f"unary, {CLIENTS} clients",
        "batch": f"{BATCH} per call, {BATCH_CLIENTS} clients",
        "stream": "EmbedStream",
    }
    legs = {key: Figures() for key in titles}
    bytes_each = sum(map(len, pictures)) / len(pictures)
    metadata = encoder.metadata
    print(
        f"\n{name}: {metadata.backbone or metadata.name}, {metadata.preprocess.size_px} px, {metadata.dimension}"
        f" numbers per image; JPEGs of {size[0]} × {size[1]}, {bytes_each / 1000:.1f} kB; {arguments.rounds} rounds",
        flush=True,
    )
    with real_server(path, "--no-http") as server:
        pid = server.process.pid
        memory = {"ready_mb": memory_mb(pid, "VmRSS")}
        bare, speed = best_bare(encoder, pictures)
        titles[BARE] = f"{BARE}, {cores} threads × {bare.batch}"
        # Whole calls, enough for every client, and the same for every core. Every measurement embeds this many images.
        unit = BATCH * math.lcm(cores, BATCH_CLIENTS)
        count = max(round(speed * arguments.seconds / unit), 1) * unit
        try:
            asyncio.run(run_rounds(legs, bare, pictures, count, arguments.rounds, pid, server.address))
        except* (Failed, Refused, TooLate) as group:
            raise SystemExit(f"a call failed: {group.exceptions[0]}") from None
        memory["peak_mb"] = memory_mb(pid, "VmHWM")
    for leg in legs.values():
        leg.values["ratio"] = ratios(leg["images_per_s"], legs[BARE]["images_per_s"])
    print_table(titles, legs, memory)
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
        "legs": {key: to_json(titles[key], leg) for key, leg in legs.items()},
    }


def to_json(title: str, leg: Figures) -> dict[str, Any]:
    """Medians over the rounds, percentiles over the calls, and the values of each round."""
    return {
        "name": title,
        "images_per_s": leg.median("images_per_s"),
        "ratio": leg.median("ratio"),
        "client_cpu_ms_per_image": leg.median("client_cpu_ms"),
        "server_cpu_ms_per_image": leg.median("server_cpu_ms"),
        "others_share": leg.median("others_share"),
        **leg.calls(),
        "by_round": leg.by_round(*BY_ROUND),
    }


async def run_rounds(
    legs: dict[str, Figures], bare: BareLoop, pictures: list[bytes], count: int, rounds: int, pid: int, address: str
) -> None:
    """Every leg once for each round; in every second round in reverse order."""
    client = GrpcClient(address)

    async def run_bare(count: int) -> Measurements | None:
        await asyncio.to_thread(bare.run, count)
        return None

    async def run_calls(count: int, per_call: int, clients: int) -> Measurements | None:
        images = Images(pictures, per_call)
        return await closed(
            client, images, clients=clients, seconds=HOUR_S, warmup_s=0, hold_load=False, max_calls=count // per_call
        )

    run: dict[str, Callable[[int], Awaitable[Measurements | None]]] = {
        BARE: run_bare,
        "unary": lambda count: run_calls(count, 1, CLIENTS),
        "batch": lambda count: run_calls(count, BATCH, BATCH_CLIENTS),
        "stream": lambda count: streamed(client, Images(pictures), seconds=HOUR_S, warmup_s=0, max_messages=count),
    }
    try:
        for key in legs:
            await run[key](BATCH * 2)  # connections made, threads started
        for _, key in in_turns(list(legs), rounds, reverse=True):
            await run_once(legs[key], run[key], count, set() if key == BARE else {pid}, with_latencies=key != "stream")
    finally:
        await client.close()


async def run_once(
    leg: Figures,
    run: Callable[[int], Awaitable[Measurements | None]],
    count: int,
    servers: set[int],
    *,
    with_latencies: bool,
) -> None:
    """One measurement: ``count`` images, from the first one sent to the last one answered."""
    meter = Meter(lambda: {pid: cpu_s(pid) for pid in servers})
    meter.read()
    measured = await run(count)
    meter.read()
    spent = meter.spent()
    leg.add(images_per_s=count / spent.seconds, client_cpu_ms=1000 * spent.own_s / count)
    if spent.measured_s:
        leg.add(server_cpu_ms=1000 * spent.measured_s / count)
    leg.add(others_share=spent.foreign_cores / usable_cores())
    if measured is not None and with_latencies:  # images wait in a stream
        leg.latencies_ms += list(measured.latencies_ms())


# --- Printing -------------------------------------------------------------------------------------------------------


def print_table(titles: dict[str, str], legs: dict[str, Figures], memory: dict[str, float | None]) -> None:
    """One line for each leg."""
    print(f"{'':<24}{'images/s':>9}  {'of bare (min–max)':<19}{'CPU ms/image: server':>21}{'client':>8}", end="")
    print(f"{'p50 / p99 ms per call':>24}{'others':>8}")
    for key, leg in legs.items():
        spread = f"{median(leg['ratio']):.2f} ({min(leg['ratio']):.2f}–{max(leg['ratio']):.2f})"
        calls = f"{_shown(leg.percentile_ms(50))} / {_shown(leg.percentile_ms(99))}" if leg.latencies_ms else "–"
        server_ms, client_ms = _shown(leg.median("server_cpu_ms")), _shown(leg.median("client_cpu_ms"))
        others = f"{100 * median(leg['others_share']):.0f} %"
        print(
            f"{titles[key]:<24}{median(leg['images_per_s']):>9.1f}  {spread:<19}{server_ms:>21}{client_ms:>8}"
            f"{calls:>24}{others:>8}"
        )
    print(
        f"server memory: {_shown(memory['ready_mb'])} MB when ready, {_shown(memory['peak_mb'])} MB at most", flush=True
    )


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


if __name__ == "__main__":
    main()
