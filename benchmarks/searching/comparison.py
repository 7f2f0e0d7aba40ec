"""All systems over one data set: each is built and tuned once, then they take turns."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from searching.catalogue import Peer
from searching.data import DataSet
from searching.processes import Failed, Loaded, Opened, PeakMemory, Place, SystemProcess, disk_mb, opened
from searching.report import FOREIGN_CORES

MODES = {"single": (1, 1), "eight": (8, 1), "batch": (1, 64)}
"""Kind of load → clients, queries in a call."""

OWN = "as it comes"
"""The first step of a system that searches for the recall it is tuned to when nothing is said."""

_SWEEP_CALL = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how often is measured."""

    rounds: int
    seconds: float
    warmup_s: float
    targets: tuple[float, ...]
    recall_queries: int
    build_within_s: float


@dataclass
class Leg:
    """One kind of load on one system at one setting: a value for each round."""

    qps: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    client_cpu_ms: list[float] = field(default_factory=list)
    foreign_cores: list[float] = field(default_factory=list)
    taken_ms: list[float] = field(default_factory=list)
    """Of every call of all rounds."""

    def add(self, loaded: Loaded) -> None:
        """One more round."""
        self.qps.append(loaded.qps)
        self.cpu_ms.append(loaded.cpu_ms)
        self.client_cpu_ms.append(loaded.client_cpu_ms)
        self.foreign_cores.append(loaded.foreign_cores)
        self.taken_ms += loaded.taken_ms

    def to_json(self) -> dict[str, Any]:
        """Medians over the rounds, percentiles over the calls."""
        p50, p99 = np.percentile(self.taken_ms, [50, 99])
        return {
            "qps": round(median(self.qps), 1),
            "cpu_ms": round(median(self.cpu_ms), 4),
            "client_cpu_ms": round(median(self.client_cpu_ms), 4),
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
            "calls": len(self.taken_ms),
            "foreign_cores": round(max(self.foreign_cores), 2),
            "disturbed": max(self.foreign_cores) > FOREIGN_CORES,
            "by_round": {"qps": [round(qps, 1) for qps in self.qps]},
        }


@dataclass
class Measured:
    """All that is known of one system over one data set."""

    peer: Peer
    place: Place
    built: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, float] = field(default_factory=dict)
    """Setting → recall@10."""
    chosen: dict[str, str] = field(default_factory=dict)
    """Target → the first setting that reaches it."""
    legs: dict[str, dict[str, Leg]] = field(default_factory=dict)
    """Target → kind of load → figures."""
    open_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    """PSS of all processes after the load of a round."""
    server_mb: list[float] = field(default_factory=list)
    """Of that, what is not the clients'; 0 for a library."""
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the document."""
        return {
            "what": self.peer.what,
            "licence": self.peer.licence,
            "about": self.told.get("about", ""),
            "build": {key: value for key, value in self.built.items() if key != "disk_mb"},
            "disk_mb": self.built.get("disk_mb"),
            "open_s": round(median(self.open_s), 3) if self.open_s else None,
            "memory_mb": round(median(self.memory_mb), 1) if self.memory_mb else None,
            "server_mb": round(median(self.server_mb), 1) if any(self.server_mb) else None,
            "sweep": {setting: round(value, 4) for setting, value in self.sweep.items()},
            "targets": {
                target: {
                    "setting": setting,
                    "recall": round(self.sweep[setting], 4),
                    "modes": {mode: leg.to_json() for mode, leg in self.legs.get(target, {}).items()},
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
    for number in range(plan.rounds):
        shift = number % len(measured)
        for one in measured[shift:] + measured[:shift]:
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
        one.told = system.told
        one.sweep, one.chosen = tuned(system, plan)
    found = ", ".join(f"{target}: {step} ({one.sweep[step]:.3f})" for target, step in one.chosen.items())
    print(f"  {one.built['seconds']} s, {one.built['disk_mb']} MB on disk; {found or 'no target reached'}", flush=True)


def build(place: Place, data: DataSet, within_s: float) -> dict[str, Any]:
    """Fill a system in a process of its own: seconds, memory, disk space. What was built before is taken as it is."""
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
    """The settings that were tried with their recall, and the first that reaches each target."""
    sweep: dict[str, float] = {}
    chosen: dict[str, str] = {}
    ladder = list(system.told["ladder"])
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
    """Open it, put each kind of load on it at each setting, close it."""
    with opened(one.place, data.queries_file, data.truth_file) as system:
        one.open_s.append(system.told["open_s"])
        for target, setting in one.chosen.items():
            legs = one.legs.setdefault(target, {})
            for mode, (clients, per_call) in MODES.items():
                loaded = system.load(
                    setting, clients=clients, per_call=per_call, warmup_s=plan.warmup_s, seconds=plan.seconds
                )
                legs.setdefault(mode, Leg()).add(loaded)
        memory, server = system.memory_mb()
        one.memory_mb.append(memory)
        one.server_mb.append(server)


def add_ratios(systems: dict[str, Any], ceilings: list[str]) -> None:
    """To each figure its ratio to the fastest bare FAISS at the same target; embedserve's also to that with its index.

    Ratios are medians of those within a round. What searches "as it comes" is compared at the highest target that its
    recall reaches.
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
    """The kind of index that some words are about."""
    low = words.lower()
    return next((kind for kind in ("ivf", "hnsw") if kind in low), "flat")


def _ratio(own: list[float], other: list[float]) -> float | None:
    ratios = [ours / theirs for ours, theirs in zip(own, other, strict=False) if theirs]
    return round(median(ratios), 3) if ratios else None
