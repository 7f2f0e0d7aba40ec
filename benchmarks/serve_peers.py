"""embedserve beside mosec, LitServe, BentoML, Ray Serve, MLServer and a bare grpc.aio server, below the bare loop.

    make serve-peers                                          installs the peers and runs all of it, in twenty minutes
    python benchmarks/serve_peers.py --quick --only embedserve --only mosec

Every server gets the same encoder file, the same images and the same preprocessing. They take turns: only
one runs at a time, and right before each the bare loop is measured again. The peers run in an environment of their own;
one that is not installed is skipped with a message. benchmarks/README.md describes the method.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from measuring import behaviour
from measuring.bare import BUILT_IN, PICTURES, BareLoop, best_bare, encoder_of, jpeg
from measuring.clients import Failed, GrpcClient, Refused, TooLate
from measuring.document import document, write
from measuring.loads import Images, closed, latencies_ms, streamed
from measuring.machine import installed
from measuring.meter import Meter
from measuring.rounds import Figures, in_turns
from measuring.servers import REPOSITORY, SERVERS, Server, running
from measuring.tables import print_behaviour, print_throughput
from peers.shared import Settings

from embedserve.cores import usable_cores
from embedserve.encoder.session import Encoder
from embedserve.errors import EmbedserveError
from embedserve.loadtest import Measurements

CAVEAT = (
    "clients and servers share the cores, so images/s contain the clients' work too;"
    " CPU time per image is that of the server alone"
)
ENVIRONMENT = REPOSITORY / ".venv-serve-peers"
PARTS = ("throughput", "behaviour")


def main() -> None:
    """Parse the arguments, measure, print, and write JSON if asked to."""
    arguments = parse()
    chosen = []
    skipped: dict[str, str] = {}
    peer_versions: dict[str, str] = {}
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
    results = document(
        "serve_peers.py",
        peer_versions=peer_versions,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        caveat=CAVEAT,
        skipped=skipped,
        servers={server.name: describe(server) for server in chosen},
    )
    bench = Bench(chosen, arguments)
    try:
        if arguments.tune:
            asyncio.run(bench.tune(arguments.encoder))
            return
        if "throughput" in arguments.part:
            results["encoders"] = [asyncio.run(bench.throughput(name)) for name in arguments.encoder]
        if "behaviour" in arguments.part:
            results["behaviour"] = asyncio.run(bench.behave(arguments.encoder[0]))
    except EmbedserveError as error:
        raise SystemExit(error.message) from None
    print(f"\n{CAVEAT}")
    write(results, arguments.json)


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
    parser.add_argument("--tune", action="store_true", help="measure each peer with all settings of its list")
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
    """Protocol, licence and settings of a server."""
    return {
        "protocol": server.protocol,
        "licence": server.licence,
        "note": server.note,
        "settings": {encoder: shown(settings) for encoder, settings in server.best.items()},
        "batching": shown(server.batching) if server.batching else None,
    }


def shown(settings: Settings) -> dict[str, int]:
    """Settings, without those that are the same for all."""
    return {name: value for name, value in asdict(settings).items() if name not in ("encoder", "port")}


# --- What is measured -----------------------------------------------------------------------------------------------


BY_ROUND = ("images_per_s", "ratio", "server_cpu_ms", "cpu_ratio", "client_cpu_ms", "others_share")
"""Figures of a kind of load. ``ratio``: images/s over those of the bare loop right before. ``server_cpu_ms``: CPU time
per image of all processes of the server. ``cpu_ratio``: CPU time of the bare loop right before ÷ that of the server,
the part of the ceiling that it can be expected to reach with clients elsewhere, and the figure that varies least on a
busy machine. ``client_cpu_ms``: CPU time per image of this process. ``others_share``: share of the machine's cores that
other processes took, 0–1."""


def to_json(leg: Figures) -> dict[str, Any]:
    """Medians over the rounds, percentiles over the calls, and the values of each round."""
    return {
        "images_per_s": leg.median("images_per_s", 3),
        "ratio": leg.median("ratio"),
        "server_cpu_ms_per_image": leg.median("server_cpu_ms"),
        "cpu_ratio": leg.median("cpu_ratio"),
        "client_cpu_ms_per_image": leg.median("client_cpu_ms"),
        "others_share": leg.median("others_share"),
        **leg.calls(),
        "by_round": leg.by_round(*BY_ROUND),
    }


@dataclass
class Measured:
    """All that was measured of one server with one encoder."""

    legs: dict[str, Figures] = field(default_factory=dict)
    server: Figures = field(default_factory=Figures)
    """Of each round: ``start_s``; ``memory_mb``, PSS of all its processes after the load; ``idle_cpu_share``, cores
    that it takes without any request."""
    processes: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Medians over the rounds."""
        return {
            "legs": {key: to_json(leg) for key, leg in self.legs.items() if leg["ratio"]},
            "start_s": self.server.median("start_s", 2),
            "memory_mb": self.server.median("memory_mb", 1),
            "processes": self.processes,
            "idle_cpu_share": self.server.median("idle_cpu_share"),
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


def add(leg: Figures, measured: Measurements, meter: Meter, bare: Bare) -> None:
    """Add the measurements of one round to the figures of a load."""
    spent, images = meter.spent(), measured.steady_images
    server_cpu_ms = 1000 * spent.measured_s / images
    leg.add(
        images_per_s=measured.steady_images_per_s,
        ratio=measured.steady_images_per_s / bare.images_per_s,
        server_cpu_ms=server_cpu_ms,
        cpu_ratio=bare.cpu_ms_per_image / server_cpu_ms,
        client_cpu_ms=1000 * spent.own_s / images,
        others_share=spent.foreign_cores / usable_cores(),
    )


class Bench:
    """The chosen servers, and how long each is measured."""

    def __init__(self, servers: list[Server], arguments: argparse.Namespace) -> None:
        self._servers, self._peers = servers, arguments.environment
        self._seconds, self._rounds, self._quick = arguments.seconds, arguments.rounds, arguments.quick

    async def throughput(self, name: str) -> dict[str, Any]:
        """All servers with one encoder, in turns; printed and returned as a document."""
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
        for number, server in in_turns(self._servers, self._rounds):
            if measured[server.name].problem:
                continue
            bares.append(Bare.of(loop, count))
            print(f"round {number + 1}: {server.name}", flush=True)
            settings = replace(server.settings(name), encoder=str(path))
            turn = self._turn(server, settings, pictures, bares[-1], measured[server.name])
            if problem := await problem_of(turn):
                measured[server.name].problem = problem
                print(f"{server.name} is left out: {problem}", file=sys.stderr)
        found = {
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
        print_throughput(found)
        return found

    async def _turn(
        self, server: Server, settings: Settings, pictures: list[bytes], bare: Bare, into: Measured
    ) -> None:
        """Start the server, put each kind of load on it, stop it."""
        async with running(server, settings, self._peers, pictures[0]) as run:
            client = run.client()
            loads: dict[str, Callable[..., Awaitable[Measurements]]] = {
                "single": partial(closed, client, Images(pictures), clients=16),
                "list": partial(closed, client, Images(pictures, 16), clients=4),
            }
            if server.streams and isinstance(client, GrpcClient):
                for key, per_message in (("stream", 1), ("stream_list", 16)):
                    loads[key] = partial(streamed, client, Images(pictures, per_message))
            # Warm up connections, threads and, in some servers, estimates of their own speed.
            await closed(client, Images(pictures), clients=16, seconds=0.5)
            for key, load in loads.items():
                meter = Meter(run.tree.cpu)
                measured = await load(seconds=self._seconds, edge=meter.read)
                leg = into.legs.setdefault(key, Figures())
                add(leg, measured, meter, bare)
                leg.latencies_ms += latencies_ms(measured)
            memory_mb = run.tree.pss_mb()
            await client.close()
            meter = Meter(run.tree.cpu)
            meter.read()
            await asyncio.sleep(1)
            meter.read()
            idle = meter.spent()
            into.server.add(start_s=run.started_s, memory_mb=memory_mb, idle_cpu_share=idle.measured_s / idle.seconds)
            into.processes = len(run.tree.pids())

    async def behave(self, name: str) -> dict[str, Any]:
        """How each server handles bad images, cancelled calls, bulk clients, overload and SIGTERM."""
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
            await closed(client, Images(pictures), clients=16, seconds=0.5)
            into["poison"] = await behaviour.poison(client, pictures)
            into["cancel"] = await behaviour.cancel(run, client, pictures, cpu_ms)
            if whole:
                into["fairness"] = await behaviour.fairness(client, pictures, times)
                await behaviour.wait_until_idle(run)  # the server may still process calls that were given up
                into["overload"] = await behaviour.overload(run, client, pictures, times)
                await behaviour.wait_until_idle(run)
                into["terminate"] = await behaviour.terminate(run, client, pictures)
            await client.close()

    async def tune(self, encoders: list[str]) -> None:
        """Each peer with all settings of its list, once."""
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
                        f"{key} {leg['images_per_s'][0]:.1f} images/s ({leg['ratio'][0]:.2f}, by CPU"
                        f" {leg['cpu_ratio'][0]:.2f}, {leg['server_cpu_ms'][0]:.2f} CPU ms, p99"
                        f" {leg.percentile_ms(99):.0f} ms)"
                        for key, leg in measured.legs.items()
                    )
                    print(f"{name} {server.name} {shown(settings)}: {said}", flush=True)


def opened(name: str) -> tuple[Path, tuple[int, int], list[bytes], Encoder]:
    """The encoder file, the size of its JPEGs, the JPEGs, and the encoder for the bare loop."""
    path, size = encoder_of(name)
    return path, size, [jpeg(*size, seed) for seed in range(PICTURES)], Encoder.open(path, device="cpu")


async def problem_of(work: Awaitable[None]) -> str:
    """What went wrong with a server, in words; empty if nothing did."""
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
