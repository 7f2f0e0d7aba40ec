"""All systems over one data set: each is built and tuned once, then they take turns."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from measuring.machine import PeakMemory, disk_mb
from measuring.rounds import Figures, in_turns, ratios

from searching.catalogue import Peer
from searching.data import DataSet
from searching.processes import Failed, Opened, Place, SystemProcess, opened
from searching.report import FOREIGN_CORES

MODES = {"single": (1, 1), "eight": (8, 1), "batch": (1, 64)}
"""Kind of load → clients, queries in a call."""

OWN = "as it comes"
"""The first step of a system that, without search parameters, searches for the recall that it is tuned to."""

_SWEEP_CALL = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Length and number of the measurements."""

    rounds: int
    seconds: float
    warmup_s: float
    targets: tuple[float, ...]
    recall_queries: int
    build_within_s: float


def to_json(leg: Figures) -> dict[str, Any]:
    """One kind of load: medians over the rounds, percentiles over the calls."""
    foreign_cores = max(leg["foreign_cores"])
    return {
        "qps": leg.median("qps", 1),
        "cpu_ms": leg.median("cpu_ms"),
        "client_cpu_ms": leg.median("client_cpu_ms"),
        "p50_ms": leg.percentile_ms(50),
        "p99_ms": leg.percentile_ms(99),
        "calls": len(leg.latencies_ms),
        "foreign_cores": round(foreign_cores, 2),
        "disturbed": foreign_cores > FOREIGN_CORES,
        "by_round": leg.by_round("qps", digits=1),
    }


@dataclass
class Measured:
    """All measurements of one system over one data set."""

    peer: Peer
    place: Place
    built: dict[str, Any] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, float] = field(default_factory=dict)
    """Setting → recall@10."""
    chosen: dict[str, str] = field(default_factory=dict)
    """Target → the first setting that reaches it."""
    legs: dict[str, dict[str, Figures]] = field(default_factory=dict)
    """Target → kind of load → figures."""
    opened: Figures = field(default_factory=Figures)
    """Of each round: ``open_s``; ``memory_mb``, PSS of all processes after the load; ``server_mb``, the part of it
    that is not the clients', 0 for a library."""
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the document."""
        return {
            "what": self.peer.what,
            "licence": self.peer.licence,
            "about": self.described.get("about", ""),
            "build": {key: value for key, value in self.built.items() if key != "disk_mb"},
            "disk_mb": self.built.get("disk_mb"),
            "open_s": self.opened.median("open_s", 3),
            "memory_mb": self.opened.median("memory_mb", 1),
            "server_mb": self.opened.median("server_mb", 1) if any(self.opened["server_mb"]) else None,
            "sweep": {setting: round(value, 4) for setting, value in self.sweep.items()},
            "targets": {
                target: {
                    "setting": setting,
                    "recall": round(self.sweep[setting], 4),
                    "modes": {mode: to_json(leg) for mode, leg in self.legs.get(target, {}).items()},
                }
                for target, setting in self.chosen.items()
            },
            "problem": self.problem,
        }


def compare(systems: list[tuple[Peer, Place]], data: DataSet, plan: Plan) -> dict[str, Any]:
    """Build, tune and measure all systems; the document about it."""
    measured = [Measured(peer, place) for peer, place in systems]
    for one in measured:
        _attempt(one, lambda one=one: prepare(one, data, plan))
    for number, one in in_turns(measured, plan.rounds):
        if not one.problem:
            print(f"round {number + 1}: {one.peer.name}", flush=True)
            _attempt(one, lambda one=one: turn(one, data, plan))
    document = {one.peer.name: one.to_json() for one in measured}
    add_ratios(document, [one.peer.name for one in measured if one.peer.ceiling])
    return {**data.describe(), "systems": document}


def _attempt(one: Measured, work: Any) -> None:
    try:
        work()
    except Failed as error:
        one.problem = str(error)
        print(f"{one.peer.name} is left out: {error}", file=sys.stderr)


def prepare(one: Measured, data: DataSet, plan: Plan) -> None:
    """Build it and find its settings."""
    print(f"building {one.peer.name}", flush=True)
    one.built = build(one.place, data, plan.build_within_s)
    with opened(one.place, data.queries_file, data.truth_file, clients=1) as system:
        one.described = system.described
        one.sweep, one.chosen = tuned(system, plan)
    found = ", ".join(f"{target}: {step} ({one.sweep[step]:.3f})" for target, step in one.chosen.items())
    print(f"  {one.built['seconds']} s, {one.built['disk_mb']} MB on disk; {found or 'no target reached'}", flush=True)


def build(place: Place, data: DataSet, within_s: float) -> dict[str, Any]:
    """Fill a system in a separate process: seconds, memory, disk space. A system that was built before is reused."""
    note = place.folder / "built.json"
    if note.exists():
        kept: dict[str, Any] = json.loads(note.read_text())
        return kept
    shutil.rmtree(place.folder, ignore_errors=True)
    place.folder.mkdir(parents=True)
    with SystemProcess(place) as process:
        with PeakMemory(process.tree) as peak:
            built = process.ask("build", within_s=within_s, vectors=str(data.vectors_file))
        built["peak_mb"] = round(peak.mb, 1)
    built["disk_mb"] = disk_mb(place.folder)
    note.write_text(json.dumps(built))
    return built


def tuned(system: Opened, plan: Plan) -> tuple[dict[str, float], dict[str, str]]:
    """The tried settings with their recall, and the first one that reaches each target."""
    sweep: dict[str, float] = {}
    chosen: dict[str, str] = {}
    ladder = list(system.described["ladder"])
    for step in ladder:
        answer = system.first.ask(
            "recall", within_s=600, setting=step, per_call=_SWEEP_CALL, queries=plan.recall_queries
        )
        sweep[step] = answer["recall"]
        if step == OWN and len(ladder) > 1:
            chosen[OWN] = step
            continue  # each target gets a setting of its own
        for target in plan.targets:
            if sweep[step] >= target:
                chosen.setdefault(f"{target:g}", step)
        if all(f"{target:g}" in chosen for target in plan.targets):
            break
    return sweep, chosen


def turn(one: Measured, data: DataSet, plan: Plan) -> None:
    """Open the system, put each kind of load on it at each setting, close it."""
    with opened(one.place, data.queries_file, data.truth_file) as system:
        for target, setting in one.chosen.items():
            legs = one.legs.setdefault(target, {})
            for mode, (clients, per_call) in MODES.items():
                loaded = system.load(
                    setting, clients=clients, per_call=per_call, warmup_s=plan.warmup_s, seconds=plan.seconds
                )
                leg = legs.setdefault(mode, Figures())
                leg.add(
                    qps=loaded.qps,
                    cpu_ms=loaded.cpu_ms,
                    client_cpu_ms=loaded.client_cpu_ms,
                    foreign_cores=loaded.foreign_cores,
                )
                leg.latencies_ms += loaded.taken_ms
        memory_mb, server_mb = system.memory_mb()
        one.opened.add(open_s=system.described["open_s"], memory_mb=memory_mb, server_mb=server_mb)


def add_ratios(systems: dict[str, Any], ceilings: list[str]) -> None:
    """Add to each figure its ratio to the fastest bare FAISS at the same target; for embedserve also to its own index.

    Ratios are medians of those within a round. A system that searches "as it comes" is compared at the highest
    target that its recall reaches.
    """
    for name, one in systems.items():
        for target, reached in one["targets"].items():
            same_target = target
            if target == OWN:
                same_target = max((t for t in one["targets"] if t != OWN and reached["recall"] >= float(t)), default="")
            faiss = {
                bare: systems[bare]["targets"][same_target]["modes"]
                for bare in ceilings
                if same_target in systems[bare]["targets"]
            }
            kind = kind_of(one["about"])
            for mode, leg in reached["modes"].items():
                own = leg["by_round"]["qps"]
                with_mode = {bare: modes[mode]["by_round"]["qps"] for bare, modes in faiss.items() if mode in modes}
                if with_mode:
                    best = [max(values) for values in zip(*with_mode.values(), strict=False)]
                    leg["of_faiss"] = _ratio(own, best)
                same = [qps for bare, qps in with_mode.items() if kind_of(bare) == kind]
                if same and name.startswith("embedserve"):
                    leg["of_same_index"] = _ratio(own, same[0])


def kind_of(words: str) -> str:
    """The kind of index that a description names."""
    low = words.lower()
    return next((kind for kind in ("ivf", "hnsw") if kind in low), "flat")


def _ratio(own: list[float], other: list[float]) -> float | None:
    found = ratios(own, other)
    return round(median(found), 3) if found else None
