"""embedserve beside mosec, LitServe, BentoML, Ray Serve, MLServer and a bare grpc.aio server, under the bare loop.

    make serve-peers                                          installs the peers and runs all of it, in twenty minutes
    python benchmarks/serve_peers.py --quick --only embedserve --only mosec

Every server gets the same encoder file, the same images and the same function that prepares them. They take turns: only
one runs at a time, and right before each the bare loop is measured again. The peers run in an environment of their own;
one that is not installed is left out with a line that says so. See benchmarks/README.md for what is measured how.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from measuring import behaviour
from measuring.bare import BUILT_IN, PICTURES, BareLoop, best_bare, encoder_of, jpeg
from measuring.clients import Client, Failed, GrpcClient, Refused, TooLate
from measuring.loads import Window, closed_loop, percentile_ms, stream_loop
from measuring.machine import busy_s, cpu_model, installed, spent_s, versions
from measuring.servers import REPOSITORY, SERVERS, Running, Server, running
from measuring.tables import print_behaviour, print_throughput
from peers.shared import Settings

from embedserve.cores import usable_cores
from embedserve.encoder.session import Encoder
from embedserve.errors import EmbedserveError

CAVEAT = (
    "clients and servers share the cores, so images/s contain the clients' work too;"
    " CPU time per image is that of the server alone"
)
ENVIRONMENT = REPOSITORY / ".venv-serve-peers"
PARTS = ("throughput", "behaviour")


def main() -> None:
    """Parse the arguments, measure, print, and write JSON if asked to."""
    arguments = parse()
    chosen, skipped, peer_versions = [], {}, {}
    for server in SERVERS.values():
        if arguments.only and server.name not in arguments.only:
            continue
        python = server.python(arguments.environment)
        found = installed(python)
        missing = [name for name in server.packages if name not in found]
        if missing:
            skipped[server.name] = f"not installed in {arguments.environment.name}: {', '.join(missing)}"
            print(f"skipped: {server.name} ({skipped[server.name]}; `make serve-peers` installs it)")
        else:
            chosen.append(server)
            peer_versions |= {name: found[name] for name in server.packages}
    if not chosen:
        raise SystemExit("nothing left to measure")
    document: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/serve_peers.py", *sys.argv[1:]]),
        "hardware": {"cpu": cpu_model(), "cores": usable_cores(), "machine": platform.machine()},
        "versions": versions(),
        "peer_versions": peer_versions,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "caveat": CAVEAT,
        "skipped": skipped,
        "servers": {server.name: describe(server) for server in chosen},
    }
    bench = Bench(chosen, arguments)
    try:
        if arguments.tune:
            asyncio.run(bench.tune(arguments.encoder))
            return
        if "throughput" in arguments.part:
            document["encoders"] = [asyncio.run(bench.throughput(name)) for name in arguments.encoder]
        if "behaviour" in arguments.part:
            document["behaviour"] = asyncio.run(bench.behave(arguments.encoder[0]))
    except EmbedserveError as error:
        raise SystemExit(error.message) from None
    print(f"\n{CAVEAT}")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
        print(f"written to {arguments.json}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="embedserve beside other servers, in turns, under the bare loop.")
    parser.add_argument(
        "--encoder", action="append", metavar="heavy|light|FILE", help="what to serve; may be repeated (heavy, light)"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help=f"may be repeated: {', '.join(SERVERS)}")
    parser.add_argument("--part", action="append", choices=PARTS, help="may be repeated (both)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement (2)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind (3)")
    parser.add_argument("--quick", action="store_true", help="one round of short measurements, to see that it works")
    parser.add_argument("--tune", action="store_true", help="measure each peer with every setting that it may have")
    parser.add_argument(
        "--environment", type=Path, default=ENVIRONMENT, help=f"where the peers are installed ({ENVIRONMENT.name})"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything that was measured to this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1.5
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds is at least 1 and --seconds more than 0")
    for name in arguments.only or []:
        if name not in SERVERS:
            parser.error(f"there is no server {name!r}; there are {', '.join(SERVERS)}")
    arguments.part = arguments.part or list(PARTS)
    arguments.encoder = arguments.encoder or list(reversed(BUILT_IN))
    return arguments


def describe(server: Server) -> dict[str, Any]:
    """What a server is and how it is set up."""
    return {
        "protocol": server.protocol,
        "licence": server.licence,
        "note": server.note,
        "settings": {encoder: shown(settings) for encoder, settings in server.best.items()},
        "batching": shown(server.batching) if server.batching else None,
    }


def shown(settings: Settings) -> dict[str, int]:
    """Settings without what is the same for all."""
    return {name: value for name, value in asdict(settings).items() if name not in ("encoder", "port")}


# --- What is measured -----------------------------------------------------------------------------------------------


@dataclass
class Leg:
    """One kind of load on one server, and what was measured of it, one value for each round."""

    images_per_s: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    """Of the bare loop right before."""
    server_cpu_ms: list[float] = field(default_factory=list)
    """CPU time of all processes of the server, per image."""
    cpu_ratio: list[float] = field(default_factory=list)
    """CPU time of the bare loop right before ÷ that of the server: the part of the ceiling that it can be expected to
    reach with clients elsewhere, and the figure that changes least on a busy machine."""
    client_cpu_ms: list[float] = field(default_factory=list)
    """CPU time of this process, per image."""
    others_share: list[float] = field(default_factory=list)
    """Share of the machine's cores that other processes took, 0–1."""
    latencies_s: list[float] = field(default_factory=list)
    """Of every call of all rounds."""

    def to_json(self) -> dict[str, Any]:
        """Medians over the rounds, percentiles over the calls, and the values of each round."""
        by_round = ("images_per_s", "ratio", "server_cpu_ms", "cpu_ratio", "client_cpu_ms", "others_share")
        return {
            "images_per_s": round(median(self.images_per_s), 3),
            "ratio": round(median(self.ratio), 4),
            "server_cpu_ms_per_image": round(median(self.server_cpu_ms), 4),
            "cpu_ratio": round(median(self.cpu_ratio), 4),
            "client_cpu_ms_per_image": round(median(self.client_cpu_ms), 4),
            "others_share": round(median(self.others_share), 4),
            "calls": len(self.latencies_s),
            "p50_ms": percentile_ms(self.latencies_s, 50),
            "p99_ms": percentile_ms(self.latencies_s, 99),
            "by_round": {name: [round(value, 4) for value in getattr(self, name)] for name in by_round},
        }


@dataclass
class Measured:
    """All that was measured of one server with one encoder."""

    legs: dict[str, Leg] = field(default_factory=dict)
    start_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    """PSS of all its processes after the load of a round."""
    processes: int = 0
    idle_cpu_share: list[float] = field(default_factory=list)
    """Cores that it takes without any request."""
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Medians over the rounds."""
        return {
            "legs": {key: leg.to_json() for key, leg in self.legs.items() if leg.ratio},
            "start_s": round(median(self.start_s), 2) if self.start_s else None,
            "memory_mb": round(median(self.memory_mb), 1) if self.memory_mb else None,
            "processes": self.processes,
            "idle_cpu_share": round(median(self.idle_cpu_share), 4) if self.idle_cpu_share else None,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class Bare:
    """One measurement of the bare loop."""

    images_per_s: float
    cpu_ms_per_image: float

    @classmethod
    def of(cls, loop: BareLoop, count: int) -> Bare:
        """Embed ``count`` images."""
        cpu, seconds = time.process_time(), loop.run(count)
        return cls(count / seconds, 1000 * (time.process_time() - cpu) / count)


class Meter:
    """CPU time between the two edges of a window: the server's, this process's and that of all others."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self._edges: list[tuple[dict[int, float], float, float, float]] = []

    def edge(self) -> None:
        """Read the counters."""
        self._edges.append((self._server.tree.cpu(), time.process_time(), busy_s(), time.perf_counter()))

    def add_to(self, leg: Leg, window: Window, bare: Bare) -> None:
        """What the window says."""
        (tree, ours, machine, begun), (tree_after, ours_after, machine_after, ended) = self._edges
        server, client = spent_s(tree, tree_after), ours_after - ours
        others = machine_after - machine - server - client
        leg.images_per_s.append(window.images_per_s)
        leg.ratio.append(window.images_per_s / bare.images_per_s)
        leg.server_cpu_ms.append(1000 * server / window.images)
        leg.cpu_ratio.append(bare.cpu_ms_per_image / leg.server_cpu_ms[-1])
        leg.client_cpu_ms.append(1000 * client / window.images)
        leg.others_share.append(max(others, 0.0) / (ended - begun) / usable_cores())
        leg.latencies_s += window.latencies_s


class Bench:
    """The servers that were chosen, and how long each is measured."""

    def __init__(self, servers: list[Server], arguments: argparse.Namespace) -> None:
        self._servers, self._peers = servers, arguments.environment
        self._seconds, self._rounds, self._quick = arguments.seconds, arguments.rounds, arguments.quick

    async def throughput(self, name: str) -> dict[str, Any]:
        """All servers with one encoder, in turns, printed and as a document."""
        path, size, pictures, encoder = opened(name)
        metadata = encoder.metadata
        bytes_each = sum(map(len, pictures)) / len(pictures)
        print(
            f"\n{name}: {metadata.backbone or metadata.name}, {metadata.preprocess.size_px} px; JPEGs of {size[0]} ×"
            f" {size[1]}, {bytes_each / 1000:.1f} kB; {self._rounds} × {self._seconds:g} s each",
            flush=True,
        )
        loop, speed = best_bare(encoder, pictures)
        unit = loop.batch * usable_cores()
        count = max(round(speed * self._seconds / unit), 1) * unit
        measured = {server.name: Measured() for server in self._servers}
        bares: list[Bare] = []
        for number in range(self._rounds):
            shift = number % len(self._servers)
            for server in self._servers[shift:] + self._servers[:shift]:
                if measured[server.name].problem:
                    continue
                bares.append(Bare.of(loop, count))
                print(f"round {number + 1}: {server.name}", flush=True)
                settings = replace(server.settings(name), encoder=str(path))
                turn = self._turn(server, settings, pictures, bares[-1], measured[server.name])
                if problem := await problem_of(turn):
                    measured[server.name].problem = problem
                    print(f"{server.name} is left out: {problem}", file=sys.stderr)
        document = {
            "encoder": name if name in BUILT_IN else metadata.name,
            "backbone": metadata.backbone,
            "size_px": metadata.preprocess.size_px,
            "jpeg_px": list(size),
            "jpeg_bytes": round(bytes_each),
            "bare": {
                "threads": usable_cores(),
                "batch": loop.batch,
                "images_per_s": round(median(bare.images_per_s for bare in bares), 3),
                "cpu_ms_per_image": round(median(bare.cpu_ms_per_image for bare in bares), 4),
                "images_per_s_min": round(min(bare.images_per_s for bare in bares), 3),
                "images_per_s_max": round(max(bare.images_per_s for bare in bares), 3),
            },
            "servers": {name: one.to_json() for name, one in measured.items()},
        }
        print_throughput(document)
        return document

    async def _turn(
        self, server: Server, settings: Settings, pictures: list[bytes], bare: Bare, into: Measured
    ) -> None:
        """Start it, put each kind of load on it, stop it."""
        async with running(server, settings, self._peers, pictures[0]) as run:
            into.start_s.append(run.started_s)
            client = run.client()
            loads: dict[str, Callable[[Meter], Awaitable[Window]]] = {
                "single": partial(self._closed, client, pictures, 16, 1),
                "list": partial(self._closed, client, pictures, 4, 16),
            }
            if server.streams and isinstance(client, GrpcClient):
                for key, per_message in (("stream", 1), ("stream_list", 16)):
                    loads[key] = partial(self._stream, client, pictures, per_message)
            # Connections, threads and, in some, what they learn of their own speed.
            await closed_loop(client, pictures, clients=16, per_call=1, seconds=0.5)
            for key, load in loads.items():
                meter = Meter(run)
                window = await load(meter)
                meter.add_to(into.legs.setdefault(key, Leg()), window, bare)
            into.memory_mb.append(run.tree.pss_mb())
            await client.close()
            before, begun = run.tree.cpu(), time.perf_counter()
            await asyncio.sleep(1)
            into.idle_cpu_share.append(spent_s(before, run.tree.cpu()) / (time.perf_counter() - begun))
            into.processes = len(run.tree.pids())

    async def _closed(self, client: Client, pictures: list[bytes], clients: int, per_call: int, meter: Meter) -> Window:
        return await closed_loop(
            client, pictures, clients=clients, per_call=per_call, seconds=self._seconds, edge=meter.edge
        )

    async def _stream(self, client: GrpcClient, pictures: list[bytes], per_message: int, meter: Meter) -> Window:
        return await stream_loop(client, pictures, per_message=per_message, seconds=self._seconds, edge=meter.edge)

    async def behave(self, name: str) -> dict[str, Any]:
        """What each server does with bad images, lost callers, bulk clients, too much load and SIGTERM."""
        path, _, pictures, encoder = opened(name)
        loop, _ = best_bare(encoder, pictures)
        cpu_ms = Bare.of(loop, 16 * usable_cores()).cpu_ms_per_image
        times = behaviour.Times(window=2.0, overload=2.0) if self._quick else behaviour.Times(window=3.0, overload=5.0)
        results: dict[str, Any] = {}
        print(f"\nbehaviour, with the {name} encoder", flush=True)
        for server in self._servers:
            results[server.name] = {}
            kinds = {"best": replace(server.settings(name), encoder=str(path))}
            if server.batching is not None:
                kinds["batching"] = replace(server.batching, encoder=str(path))
            for kind, settings in kinds.items():
                print(f"{server.name}, {'as measured above' if kind == 'best' else 'with batches'}", flush=True)
                result: dict[str, Any] = {"settings": shown(settings)}
                results[server.name][kind] = result
                behave = self._behave(server, settings, pictures, cpu_ms, times, result, whole=kind == "best")
                if problem := await problem_of(behave):
                    result["problem"] = problem
                    print(f"{server.name}: {problem}", file=sys.stderr)
        print_behaviour(results)
        return {"encoder": name, "bare_cpu_ms_per_image": round(cpu_ms, 3), "servers": results}

    async def _behave(
        self,
        server: Server,
        settings: Settings,
        pictures: list[bytes],
        cpu_ms: float,
        times: behaviour.Times,
        into: dict[str, Any],
        *,
        whole: bool,
    ) -> None:
        async with running(server, settings, self._peers, pictures[0]) as run:
            client = run.client()
            await closed_loop(client, pictures, clients=16, per_call=1, seconds=0.5)
            into["poison"] = await behaviour.poison(client, pictures)
            into["cancel"] = await behaviour.cancel(run, client, pictures, cpu_ms)
            if whole:
                into["fairness"] = await behaviour.fairness(client, pictures, times)
                await behaviour.rest(run)  # calls that were given up may still be worked at
                into["overload"] = await behaviour.overload(run, client, pictures, times)
                await behaviour.rest(run)
                into["terminate"] = await behaviour.terminate(run, client, pictures)
            await client.close()

    async def tune(self, encoders: list[str]) -> None:
        """Each peer with every setting that it may have, once."""
        for name in encoders:
            path, _, pictures, encoder = opened(name)
            loop, speed = best_bare(encoder, pictures)
            count = max(round(speed * self._seconds / loop.batch), usable_cores()) * loop.batch
            for server in self._servers:
                for settings in server.tried:
                    measured = Measured()
                    bare = Bare.of(loop, count)
                    turn = self._turn(server, replace(settings, encoder=str(path)), pictures, bare, measured)
                    if problem := await problem_of(turn):
                        print(f"{name} {server.name} {shown(settings)}: {problem}")
                        continue
                    said = ", ".join(
                        f"{key} {leg.images_per_s[0]:.1f} images/s ({leg.ratio[0]:.2f}, by CPU {leg.cpu_ratio[0]:.2f},"
                        f" {leg.server_cpu_ms[0]:.2f} CPU ms, p99 {percentile_ms(leg.latencies_s, 99):.0f} ms)"
                        for key, leg in measured.legs.items()
                    )
                    print(f"{name} {server.name} {shown(settings)}: {said}", flush=True)


def opened(name: str) -> tuple[Path, tuple[int, int], list[bytes], Encoder]:
    """The encoder file, the size of its pictures, the pictures, and the encoder for the bare loop."""
    path, size = encoder_of(name)
    return path, size, [jpeg(*size, seed) for seed in range(PICTURES)], Encoder.open(path, device="cpu")


async def problem_of(work: Awaitable[None]) -> str:
    """What went wrong with a server, in words; nothing if nothing did."""
    problem = ""
    try:
        await work
    except* (Failed, Refused, TooLate) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        problem = f"{type(error).__name__}: {error}"
    return problem


if __name__ == "__main__":
    main()
