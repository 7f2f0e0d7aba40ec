"""Measurements of embedserve alone: restarts, writes, filters, and the profile of a search."""

from __future__ import annotations

import contextlib
import pstats
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from measuring.child import Child, real_server, started
from measuring.rounds import percentile

from embedserve.client import Client
from searching.comparison import Plan, build
from searching.data import DataSet, recall, true_neighbours
from searching.processes import Opened, Place, opened

BELOW = {"100 %": 1000, "50 %": 500, "10 %": 100, "1 %": 10, "0.1 %": 1}
"""Selectivity → the bound below which ``p`` lies, of 0 to 999."""

PER_CALL = 256
PROFILED = 12
"""Functions shown of the profile."""

Functions: TypeAlias = dict[tuple[str, int, str], tuple[Any, ...]]
"""File, line and name of a function → its calls and seconds, as in pstats."""


def restarts(place: Place, data: DataSet, rounds: int) -> dict[str, Any]:
    """Seconds from the start of the process until it is ready and until its first hit, with the items and without any.

    The files are in the page cache, as after a restart of the process, not of the machine.
    """
    query = data.queries()[0]
    times: dict[str, list[float]] = {"empty_ready_s": [], "ready_s": [], "first_hit_s": []}
    with tempfile.TemporaryDirectory() as empty:
        for _ in range(rounds):
            with _timed(place, Path(empty)) as (_, seconds):
                times["empty_ready_s"].append(seconds)
            with _timed(place, place.folder / "data") as (child, seconds):
                times["ready_s"].append(seconds)
                begun = time.perf_counter()
                _first_hit(child, query)
                times["first_hit_s"].append(seconds + time.perf_counter() - begun)
    with _timed(place, place.folder / "data") as (child, _):
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()
    with _timed(place, place.folder / "data") as (child, after_kill):
        _first_hit(child, query)
    found = {name: round(median(values), 3) for name, values in times.items()}
    return {
        "items": len(data.vectors()),
        **found,
        "store_s": round(found["ready_s"] - found["empty_ready_s"], 3),
        "ready_after_kill_s": round(after_kill, 3),
        "by_round": {name: [round(value, 3) for value in values] for name, values in times.items()},
    }


@contextlib.contextmanager
def _timed(place: Place, folder: Path) -> Iterator[tuple[Child, float]]:
    begun = time.perf_counter()
    with real_server(Path(place.options["encoder"]), "--data", str(folder)) as child:
        yield child, time.perf_counter() - begun


def _first_hit(child: Child, query: Any) -> None:
    with Client(child.address) as client:
        if not client.search("items", vector=query, k=1):
            raise SystemExit("a restarted server found nothing")


# --- Writes ---------------------------------------------------------------------------------------------------------


def writes(place: Place, data: DataSet, plan: Plan, rows: int) -> dict[str, Any]:
    """Durable writes of vectors beside existing items, and single writes while others search."""
    dimension = data.vectors().shape[1]
    rows = min(rows, len(data.vectors()))
    results: dict[str, Any] = {"rows": rows, "per_call": PER_CALL}
    with _copy_of(place) as copy, opened(copy, data.queries_file, data.truth_file) as system:
        for number, (name, clients, per_call) in enumerate(
            [("upsert, 1 client", 1, PER_CALL), ("upsert, 2 clients", 2, PER_CALL), ("UpsertStream", 1, 0)]
            * plan.rounds
        ):
            collection = f"written-{number}"
            system.first.ask("call", method="make_empty", name=collection, dimension=dimension)
            spent = sum(system.cpu().values())
            seconds = _upserted(system, data, collection, rows, clients, per_call)
            spent = sum(system.cpu().values()) - spent
            into = results.setdefault(name, {"rows_per_s": [], "cpu_ms_per_row": []})
            into["rows_per_s"].append(round(rows / seconds, 1))
            into["cpu_ms_per_row"].append(round(1000 * spent / rows, 4))
        results["one by one, alone"] = _one_by_one(system, data, plan, searching=False)
        results["one by one, 4 clients searching"] = _one_by_one(system, data, plan, searching=True)
    for result in results.values():
        if isinstance(result, dict) and "rows_per_s" in result:
            result["by_round"] = {key: result[key] for key in ("rows_per_s", "cpu_ms_per_row")}
            result |= {key: median(values) for key, values in result["by_round"].items()}
    return results


@contextlib.contextmanager
def _copy_of(place: Place) -> Iterator[Place]:
    """A copy for the writes, so that the built system stays unchanged."""
    folder = place.folder.with_name(place.folder.name + "-written")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place.folder, folder)
    try:
        yield replace(place, folder=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _upserted(system: Opened, data: DataSet, collection: str, rows: int, clients: int, per_call: int) -> float:
    """Seconds from the start of the first client to the end of the last; each writes its part of the rows."""
    at, part = time.time() + 0.5, rows // clients
    used = system.processes[:clients]
    for number, process in enumerate(used):
        process.send(
            "call",
            method="upsert",
            name=collection,
            vectors=str(data.vectors_file),
            first=number * part,
            count=part if number < clients - 1 else rows - number * part,
            per_call=per_call,
            at=at,
        )
    answers = [process.answer(600) for process in used]
    return float(max(answer["ended"] for answer in answers) - min(answer["begun"] for answer in answers))


def _one_by_one(system: Opened, data: DataSet, plan: Plan, *, searching: bool) -> dict[str, Any]:
    """Latency of single durable writes, in milliseconds."""
    writer, searcher = system.processes
    at, seconds = time.time() + 0.5, max(plan.seconds, 1.0)
    if searching:
        searcher.send(
            "load",
            setting=system.described["ladder"][0],
            clients=4,
            per_call=1,
            warmup_s=0.3,
            seconds=seconds,
            at=at,
        )
    taken = writer.ask(
        "call", method="upsert_one_by_one", vectors=str(data.vectors_file), seconds=seconds, at=at + 0.3
    )["taken_ms"]
    result = {"p50_ms": percentile(taken, 50), "p99_ms": percentile(taken, 99), "writes": len(taken)}
    if searching:
        loaded = searcher.answer(120)
        result["searches_per_s"] = round(loaded["qps"], 1)
        result["search_p99_ms"] = percentile(loaded["taken_ms"], 99)
    return result


# --- Filters --------------------------------------------------------------------------------------------------------


def filters(place: Place, data: DataSet, plan: Plan, asked: int) -> dict[str, Any]:
    """Filtered search: recall, queries/s, and how many queries got fewer hits than min(k, matches)."""
    from peers.search.embedserve_server import part_of

    vectors, queries = data.vectors(), data.queries()[:asked]
    built = build(place, data, plan.build_within_s)
    parts = np.array([part_of(row) for row in range(len(vectors))])
    results: dict[str, Any] = {"items": len(vectors), "queries": len(queries), "build": built, "selectivity": {}}
    with opened(place, data.queries_file, data.truth_file, clients=1) as system:
        for name, below in BELOW.items():
            matches = np.flatnonzero(parts < below)
            truth = true_neighbours(vectors, queries, rows=matches)
            answer = system.first.ask(
                "call", within_s=900, method="filtered", queries=len(queries), below=below, seconds=plan.seconds
            )
            found = np.array(answer["found"])
            taken = answer["taken_ms"]
            results["selectivity"][name] = {
                "matches": len(matches),
                "recall": round(recall(found, truth), 4),
                "short": int(((found >= 0).sum(axis=1) < (truth >= 0).sum(axis=1)).sum()),
                "wrong": int((parts[found[found >= 0]] >= below).sum()),
                "qps": round(answer["qps"], 1),
                "p50_ms": percentile(taken, 50),
                "p99_ms": percentile(taken, 99),
            }
    return results


# --- Profile --------------------------------------------------------------------------------------------


def profile(place: Place, data: DataSet, plan: Plan, comparison: dict[str, Any] | None) -> dict[str, Any]:
    """A search in detail: latency at the client, timings of the server, CPU time, and its event loop under cProfile."""
    result: dict[str, Any] = {}
    with opened(place, data.queries_file, data.truth_file) as system:
        for mode, per_call in (("single", 1), ("batch", 64)):
            calls = 300 if per_call == 1 else 20
            result[mode] = system.first.ask(
                "call", method="timings", queries=len(data.queries()), per_call=per_call, calls=calls
            )
        setting = system.described["ladder"][0]
        for mode, clients, per_call in (("eight", 8, 1), ("batch", 1, 64)):
            loaded = system.load(
                setting, clients=clients, per_call=per_call, warmup_s=plan.warmup_s, seconds=plan.seconds
            )
            result.setdefault(mode, {}).update(
                {
                    "client_cpu_ms_per_query": round(loaded.client_cpu_ms, 4),
                    "server_cpu_ms_per_query": round(loaded.cpu_ms - loaded.client_cpu_ms, 4),
                    "faiss_cpu_ms_per_query": _cpu_of_faiss(comparison, place.name, mode),
                }
            )
    idle = _profiled(place, lambda _: None)
    for mode, clients, per_call in (("eight", 8, 1), ("batch", 1, 64)):
        ask = partial(_ask_for, data=data, clients=clients, per_call=per_call, seconds=plan.seconds)
        result[mode]["event_loop"] = _event_loop(_profiled(place, ask), idle)
    return result


def _cpu_of_faiss(comparison: dict[str, Any] | None, name: str, mode: str) -> float | None:
    """CPU time of a query in bare FAISS with the same kind of index as embedserve, at the first target."""
    from searching.comparison import kind_of

    if comparison is None or name not in comparison["systems"]:
        return None
    kind = kind_of(comparison["systems"][name]["about"])
    for other, one in comparison["systems"].items():
        if other.startswith("FAISS") and kind_of(other) == kind and one["targets"]:
            cpu: float = next(iter(one["targets"].values()))["modes"][mode]["cpu_ms"]
            return cpu
    return None


def _event_loop(asked: Functions, idle: Functions) -> list[dict[str, Any]]:
    """Own time of the functions of the server's main thread, minus that in a server without requests.

    cProfile slows all functions down, those that are called often the most.
    """
    found = [
        {
            "function": name if file == "~" else f"{Path(file).parent.name}/{Path(file).name}:{line} {name}",
            "own_s": round(own - idle.get((file, line, name), (0, 0, 0))[2], 3),
            "calls": calls - idle.get((file, line, name), (0, 0))[1],
        }
        for (file, line, name), (_, calls, own, *_) in asked.items()
        if "poll" not in name  # waiting
    ]
    return sorted(found, key=lambda row: -row["own_s"])[:PROFILED]


def _profiled(place: Place, ask: Callable[[str], None]) -> Functions:
    """The profile of a server from its start to its end."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "profile"
        command = [sys.executable, "-m", "cProfile", "-o", str(out), "-m", "embedserve", "serve"]
        command += [str(place.options["encoder"]), "--data", str(place.folder / "data"), "--device", "cpu"]
        with started([*command, "--port", "0", "--http-port", "0"]) as child:
            ask(child.address)
        stats: Functions = pstats.Stats(str(out)).stats  # type: ignore[attr-defined]  # not in typeshed
        return stats


def _ask_for(address: str, data: DataSet, clients: int, per_call: int, seconds: float) -> None:
    """Put load on a server from this process."""
    from peers.search.embedserve_server import Embedserve

    from searching.loads import search_loop

    system = Embedserve({})
    system.connect(address)
    try:
        search_loop(system.client, data.queries(), clients=clients, per_call=per_call, warmup_s=0.2, seconds=seconds)
    finally:
        system.close()
