"""embedserve beside bare FAISS, hnswlib, usearch, Chroma, LanceDB, qdrant-edge and pgvector: search at the same recall.

    make search-peers                                         installs the peers and runs all of it, in an hour
    python benchmarks/search_peers.py --quick                 20,000 vectors and one short round, to see that it works
    python benchmarks/search_peers.py --large                 a million vectors: embedserve, bare FAISS and hnswlib

Every system gets the same vectors and queries, and is tuned to the first setting that reaches a recall. Then they take
turns: only one runs at a time, opened from its files in each round. Of embedserve alone: restarts, durable writes,
filters, and the profile of a search. benchmarks/README.md describes the method.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring.bare import encoder_of
from measuring.document import document, write
from measuring.machine import installed, versions
from measuring.meter import Meter
from peers.search.embedserve_server import PARTS_PER_1000
from searching import embedserve_alone, report
from searching.catalogue import PEERS, Peer
from searching.comparison import Plan, build, compare
from searching.data import DataSet, clustered
from searching.embeddings import fashion
from searching.processes import REPOSITORY, Place

CAVEAT = (
    "clients, libraries and servers share the cores, so queries/s contain the clients' work too; CPU time per query is"
    " that of all processes of a system, including its clients"
)
ENVIRONMENT = REPOSITORY / ".venv-search-peers"
PARTS = ("peers", "restart", "profile", "writes", "filters")
DATA = ("clustered", "fashion")


def main() -> None:
    """Parse the arguments, measure, print, and write JSON if asked to."""
    arguments = parse()
    chosen, skipped, peer_versions = available(arguments)
    encoder = arguments.encoder or encoder_of("light")[0]
    plan = Plan(
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        warmup_s=min(0.3, arguments.seconds / 2),
        targets=tuple(sorted(arguments.target)),
        recall_queries=arguments.recall_queries,
        build_within_s=7200,
    )
    results = document(
        "search_peers.py",
        versions=versions() | {name: installed(Path(sys.executable))[name] for name in ("faiss-cpu",)},
        peer_versions=peer_versions,
        rounds=plan.rounds,
        seconds=plan.seconds,
        caveat=CAVEAT,
        skipped=skipped,
        data=[],
    )
    for name in arguments.data:
        data = opened_data(name, arguments)
        if isinstance(data, str):
            print(f"skipped: {name} ({data})")
            skipped[name] = data
            continue
        folder = arguments.work / "built" / data.folder.name
        systems = [(peer, place_of(peer, folder, encoder, arguments)) for peer in chosen]
        compared = None
        if "peers" in arguments.part:
            compared = compare(systems, data, plan)
            results["data"].append(compared)
            report.print_comparison(compared)
        if name == arguments.data[0]:
            results["embedserve"] = alone(folder, data, plan, compared, encoder, arguments)
            report.print_alone(results["embedserve"])
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    results["aims"] = report.aims(results)
    report.print_aims(results["aims"], results.get("embedserve", {}).get("profile"))
    print(f"\n{CAVEAT}")
    write(results, arguments.json)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Search at the same recall: embedserve beside other systems, in turns."
    )
    parser.add_argument("--data", action="append", choices=DATA, help="data set; may be repeated (both)")
    parser.add_argument("--vectors", type=int, help="clustered vectors, or images of Fashion-MNIST (200,000; 60,000)")
    parser.add_argument("--dimension", type=int, default=256, help="numbers in a clustered vector (256)")
    parser.add_argument("--queries", type=int, help="held-out queries (2,000; 10,000 of Fashion-MNIST)")
    parser.add_argument("--recall-queries", type=int, default=1000, help="queries that measure recall (1,000)")
    parser.add_argument(
        "--large", action="store_true", help="a million clustered vectors; only the systems for that size"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help=f"may be repeated: {', '.join(PEERS)}")
    parser.add_argument(
        "--index", action="append", default=[], metavar="SPEC", help="embedserve with this index too, as in hnsw:m=32"
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="may be repeated (all)")
    parser.add_argument(
        "--target", action="append", type=float, help="recall@10 to reach; may be repeated (0.95, 0.99)"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement (2)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind (3)")
    parser.add_argument("--quick", action="store_true", help="20,000 vectors, one round of short measurements")
    parser.add_argument("--encoder", type=Path, help="encoder file that embedserve is started with (one is made)")
    parser.add_argument(
        "--embedder", type=Path, help="encoder file that embeds Fashion-MNIST (one is trained in a minute)"
    )
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help=f"of the peers ({ENVIRONMENT.name})")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "data/search-peers", help="folder for data sets")
    parser.add_argument("--keep", action="store_true", help="keep what was built, and reuse what was kept")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything that was measured to this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, min(arguments.seconds, 1.0)
        arguments.vectors = arguments.vectors or 20_000
        arguments.queries = arguments.queries or 500
        arguments.target = arguments.target or [0.95]
    if arguments.large:
        arguments.vectors, arguments.data = arguments.vectors or 1_000_000, arguments.data or ["clustered"]
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds is at least 1 and --seconds more than 0")
    for name in arguments.only or []:
        if name not in PEERS:
            parser.error(f"there is no system {name!r}; there are {', '.join(PEERS)}")
    arguments.data = arguments.data or list(DATA)
    arguments.part = arguments.part or list(PARTS)
    arguments.target = arguments.target or [0.95, 0.99]
    arguments.work = arguments.work.absolute()
    arguments.environment = arguments.environment.absolute()
    return arguments


def available(arguments: argparse.Namespace) -> tuple[list[Peer], dict[str, str], dict[str, str]]:
    """The systems to measure, why others are skipped, and the versions of their packages."""
    chosen: list[Peer] = []
    skipped: dict[str, str] = {}
    found_versions: dict[str, str] = {}
    for peer in PEERS.values():
        if arguments.only and peer.name not in arguments.only:
            continue
        if arguments.large and not peer.large:
            skipped[peer.name] = "not measured with so many vectors"
            continue
        found = installed(peer.python(arguments.environment))
        missing = [name for name in peer.packages if name not in found]
        if missing:
            skipped[peer.name] = (
                f"not installed in {arguments.environment.name}: {', '.join(missing)}; `make search-peers` does"
            )
            continue
        chosen.append(peer)
        found_versions |= {name: found[name] for name in peer.packages}
    for name, why in skipped.items():
        print(f"skipped: {name} ({why})")
    if not chosen:
        raise SystemExit("nothing left to measure")
    if any(peer.name == "embedserve" for peer in chosen):
        chosen += [replace(PEERS["embedserve"], name=f"embedserve {spec}") for spec in arguments.index]
    return chosen, skipped, found_versions


def opened_data(name: str, arguments: argparse.Namespace) -> DataSet | str:
    """A data set, made if it does not exist; or why there is none."""
    if name == "clustered":
        count, asked = arguments.vectors or 200_000, arguments.queries or 2000
        return clustered(arguments.work, count, arguments.dimension, asked)
    searched, asked = min(arguments.vectors or 60_000, 60_000), min(arguments.queries or 10_000, 10_000)
    return fashion(arguments.work, searched=searched, asked=asked, encoder=arguments.embedder)


def place_of(peer: Peer, folder: Path, encoder: Path, arguments: argparse.Namespace) -> Place:
    """Where a system runs."""
    options: dict[str, Any] = {}
    if peer.name.startswith("embedserve"):
        spec = peer.name.removeprefix("embedserve").strip()
        options = {"encoder": str(encoder.absolute()), "create": {"index": spec} if spec else {}}
    return Place(
        name=peer.name,
        python=peer.python(arguments.environment),
        implementation=peer.implementation,
        folder=folder / peer.name.replace(" ", "-").replace(":", "-"),
        options=options,
    )


def alone(
    folder: Path,
    data: DataSet,
    plan: Plan,
    compared: dict[str, Any] | None,
    encoder: Path,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """The measurements of embedserve alone, if it is to be measured."""
    found: dict[str, Any] = {}
    parts = [part for part in arguments.part if part != "peers"]
    if not parts or (arguments.only and "embedserve" not in arguments.only):
        return found
    place = place_of(PEERS["embedserve"], folder, encoder, arguments)
    build(place, data, plan.build_within_s)
    for part in parts:
        print(f"embedserve: {part}", flush=True)
        meter = Meter(lambda: {0: children_cpu_s()})
        meter.read()
        if part == "restart":
            found[part] = embedserve_alone.restarts(place, data, plan.rounds)
        elif part == "profile":
            found[part] = embedserve_alone.profile(place, data, plan, compared)
        elif part == "writes":
            found[part] = embedserve_alone.writes(place, data, plan, rows=5000 if arguments.quick else 40_000)
        else:
            create = {"create": {"filter_keys": [PARTS_PER_1000]}, "with_parts": True}
            with_parts = replace(place, folder=folder / "embedserve-with-parts", options=place.options | create)
            found[part] = embedserve_alone.filters(with_parts, data, plan, asked=min(plan.recall_queries, 200))
        meter.read()
        found[part]["foreign_cores"] = round(meter.spent().foreign_cores, 2)
    return found


def children_cpu_s() -> float:
    """CPU seconds of all processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
