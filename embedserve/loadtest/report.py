"""Report on runs: figures for programs; a table, a plot and verdicts for readers."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedserve.cores import usable_cores
from embedserve.loadtest.latencies import histogram, percentiles
from embedserve.loadtest.measurements import NOT_SENT, OK, STOPPED, UNANSWERED, Measurements
from embedserve.loadtest.plot import latency_html, latency_svg

PERCENTS = (50, 90, 99, 99.9, 100)
_NAMES = ("p50", "p90", "p99", "p99_9", "max")

CLIENT_BUSY = 0.8
"""Share of a core above which this process, limited to one core by Python, is the bottleneck."""
KEEPS_UP = 0.97
"""Share of the offered load that must be answered; a few calls are always in flight when the window ends."""
_EXPLAINED = {
    NOT_SENT: "due while the limit on calls in flight was reached",
    UNANSWERED: "given up: no answer long after the run",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run and its parameters."""

    measured: Measurements
    clients: int | None = None
    """Calls in flight of a closed loop; None for an open one."""
    rate: float | None = None
    """Images per second of an open loop; None for a closed one."""
    of_capacity: float | None = None
    """The rate as a share of the highest rate of the closed loops, if it was given as one."""
    noun: str = "images"
    """What is counted: "images", "queries" or "items"."""
    per_call: int = 1

    @property
    def label(self) -> str:
        """Its name in the table and the plot."""
        if self.clients is not None:
            return "1 client" if self.clients == 1 else f"{self.clients} clients"
        share = f" ({self.of_capacity:.0%})" if self.of_capacity is not None else ""
        return f"{amount(self.rate or 0)}/s{share}"


def figures(run: Run) -> dict[str, Any]:
    """Everything that was measured in a run, as a JSON document; latencies in milliseconds."""
    measured = run.measured
    latencies_ms = measured.latencies_ms()
    failures = {code: count for code, count in measured.codes().items() if code != OK}
    late_ms = percentiles(measured.late_ms(), [50, 99])
    return {
        "label": run.label,
        "loop": "closed" if run.clients is not None else "open",
        "clients": run.clients,
        "rate_asked_per_s": run.rate,
        "of_capacity": run.of_capacity,
        "warmup_s": measured.warmup_s,
        "seconds": round(measured.seconds, 3),
        "cut_short": measured.cut_short or None,
        "images_per_s": _rounded(measured.images_per_s),
        "calls_per_s": _rounded(measured.calls_per_s),
        "offered_images_per_s": _rounded(measured.due_calls_per_s * run.per_call) if run.rate is not None else None,
        "calls": sum(measured.codes().values()),
        "calls_answered": len(latencies_ms),
        "latency_ms": {
            **_percentiles(latencies_ms),
            "mean": _rounded(float(latencies_ms.mean())) if len(latencies_ms) else None,
            "histogram": [[bound_ms, count] for bound_ms, count in histogram(latencies_ms)],
        },
        "server_median_ms": {part: _rounded(value) for part, value in measured.server_ms().items()},
        "errors": {
            code: {
                "calls": count,
                "latency_ms": _percentiles(measured.latencies_ms(code)),
                "message": measured.messages.get(code) or _EXPLAINED.get(code, ""),
            }
            for code, count in failures.items()
        },
        "failed_images": measured.failed_images(),
        "client": {
            "cpu_share": _rounded(measured.client_cpu_share),
            "late_ms": {"p50": _rounded(late_ms[0]), "p99": _rounded(late_ms[1])},
        },
    }


@dataclass(frozen=True, kw_only=True)
class Report:
    """All runs of a command, with their subject."""

    runs: Sequence[Run]
    what: str
    """Which call, as in "embed, 8 in each call"."""
    inputs: str
    """A description of what was sent."""
    server: Mapping[str, Any]
    """The server's own description."""
    options: Mapping[str, Any]
    """The options of the command."""
    allowed: Collection[str] = ()
    """Codes of accepted failures."""
    same_machine: bool = False
    """True if client and server share the cores."""

    @cached_property
    def figures(self) -> list[dict[str, Any]]:
        """The figures of each run."""
        return [figures(run) for run in self.runs]

    @property
    def interrupted(self) -> bool:
        """True if the user ended the last run."""
        return any(run.measured.cut_short == STOPPED for run in self.runs)

    @property
    def noun(self) -> str:
        """What is counted."""
        return self.runs[0].noun if self.runs else "images"

    def document(self, command: Sequence[str]) -> dict[str, Any]:
        """Everything, for a program."""
        return {
            "kind": "embedserve bench serve",
            "format": 1,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": list(command),
            "client": _this_process(),
            "server": dict(self.server),
            "what": self.what,
            "inputs": self.inputs,
            "counted": self.noun,
            "options": dict(self.options),
            "runs": self.figures,
            "verdicts": self.verdicts(),
            "allowed": sorted(self.allowed),
            "failed": self.not_allowed(),
            "ok": not self.not_allowed(),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and one row for each run."""
        runs = self.figures
        columns: list[tuple[str, list[str]]] = [("", [run["label"] for run in runs])]
        if any(run["loop"] == "open" for run in runs):
            columns.append(("offered/s", [amount(run["offered_images_per_s"]) for run in runs]))
        columns.append((f"{self.noun}/s", [amount(run["images_per_s"]) for run in runs]))
        if any(run.per_call > 1 for run in self.runs):
            columns.append(("calls/s", [amount(run["calls_per_s"]) for run in runs]))
        for name, percent in zip(_NAMES, PERCENTS, strict=True):
            values = [run["latency_ms"][name] if _means_something(percent, run) else None for run in runs]
            columns.append((f"{name.replace('_', '.')} ms", [amount(value) for value in values]))
        for part, header in (("decode", "decode"), ("queue", "queue"), ("inference", "encoder"), ("store", "store")):
            medians = [run["server_median_ms"].get(part) for run in runs]
            if any(medians):
                columns.append((f"{header} ms", [amount(value) for value in medians]))
        columns.append(("failed", [_share(run["calls"] - run["calls_answered"], run["calls"]) for run in runs]))
        columns.append(("client CPU", [f"{run['client']['cpu_share'] or 0:.0%}" for run in runs]))
        rows = zip(*(cells for _, cells in columns), strict=True)
        return [header for header, _ in columns], [list(row) for row in rows]

    def errors(self) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
        """For each run and each code that its calls failed with: the run's figures, the code, the failure's figures."""
        return [(run, code, error) for run in self.figures for code, error in run["errors"].items()]

    def error_table(self) -> tuple[list[str], list[list[str]]]:
        """Headers, and one row for each code of each run."""
        rows = [
            [
                run["label"],
                code,
                f"{error['calls']:,}",
                _share(error["calls"], run["calls"]),
                amount(error["latency_ms"]["p50"]),
                amount(error["latency_ms"]["p99"]),
                error["message"],
            ]
            for run, code, error in self.errors()
        ]
        return ["", "failed with", "calls", "share", "p50 ms", "p99 ms", "first message"], rows

    def not_allowed(self) -> dict[str, int]:
        """Calls of all runs that failed with a code that is not accepted, by code."""
        counts: Counter[str] = Counter()
        for _, code, error in self.errors():
            if code not in self.allowed:
                counts[code] += error["calls"]
        return dict(counts)

    def verdicts(self) -> list[str]:
        """Conclusions from the figures, of one or two sentences each."""
        runs = self.figures
        said = [_capacity(runs, self.noun)] if any(run["loop"] == "closed" for run in runs) else []
        said += [_kept_up(run, self.noun) for run in runs if run["loop"] == "open" and run["calls"]]
        busy = [run for run in runs if (run["client"]["cpu_share"] or 0) > CLIENT_BUSY]
        if busy:
            names = ", ".join(f"{run['label']} ({run['client']['cpu_share']:.0%})" for run in busy)
            said.append(
                f"This client took more than {CLIENT_BUSY:.0%} of a core: {names}. Those figures are the client's, not"
                " the server's; run several clients at once, or use larger calls (--per-call)."
            )
        if self.same_machine and runs:
            said.append("Client and server shared the cores of one machine; apart, the server does more.")
        return said

    def svg(self) -> str:
        """The plot of the latencies."""
        curves = [(run.label, run.measured.latencies_ms()) for run in self.runs]
        encoder = self.server.get("encoder", {}).get("name", "")
        subtitle = ", ".join(filter(None, [encoder, str(self.server.get("provider", "")), self.inputs]))
        return latency_svg(curves, f"Latency of {self.what}", subtitle)

    def html(self) -> str:
        """A page with the plot, the table and the verdicts."""
        head, rows = self.table()
        return latency_html(self.svg(), f"Latency of {self.what}", [head, *rows], self.verdicts())


def _capacity(runs: Sequence[dict[str, Any]], noun: str) -> str:
    closed = [run for run in runs if run["loop"] == "closed"]
    best = max(closed, key=lambda run: run["images_per_s"])
    if not best["calls_answered"]:
        return f"No call was answered with {' or '.join(run['label'] for run in closed)}."
    said = f"Most: {amount(best['images_per_s'])} {noun}/s with {best['label']}, {_tail(best)}."
    near = min(
        (run for run in closed if run["images_per_s"] >= 0.95 * best["images_per_s"]), key=lambda r: r["clients"]
    )
    if near is not best:
        said += f" {near['label']} already give 95 % of it, {_tail(near)}."
    elif len(closed) > 1 and best["clients"] == max(run["clients"] for run in closed):
        said += " More clients may give more."
    return said


def _kept_up(run: dict[str, Any], noun: str) -> str:
    offered, achieved = run["offered_images_per_s"], run["images_per_s"]
    failed = run["calls"] - run["calls_answered"]
    refused = f"; {_share(failed, run['calls'])} of the calls failed" if failed else ""
    if achieved >= KEEPS_UP * offered:
        return (
            f"At {run['label']} the server kept up: p50 {amount(run['latency_ms']['p50'])} ms, {_tail(run)}{refused}."
        )
    return (
        f"At {run['label']} it did not keep up: {amount(achieved)} of {amount(offered)} {noun}/s were answered,"
        f" {_tail(run)}{refused}."
    )


def _tail(run: dict[str, Any]) -> str:
    name, words = ("p99", "p99") if _means_something(99, run) else ("max", "slowest")
    value = run["latency_ms"][name]
    return "no latency" if value is None else f"{words} {amount(value)} ms"


def _means_something(percent: float, run: dict[str, Any]) -> bool:
    """False if there are too few calls: of 50, the slowest would stand for every percentile above 98."""
    return percent == 100 or run["calls_answered"] * (100 - percent) >= 100 - 1e-6


def _this_process() -> dict[str, Any]:
    packages = {package: version(package) for package in ("embedserve", "grpcio", "protobuf")}
    return {
        "machine": f"{platform.platform()}, {platform.machine()}",
        "cores": usable_cores(),
        "versions": {"python": platform.python_version(), **packages},
    }


def _percentiles(values: NDArray[np.float64]) -> dict[str, float | None]:
    return {name: _rounded(value) for name, value in zip(_NAMES, percentiles(values, PERCENTS), strict=True)}


def _rounded(value: float) -> float | None:
    """Five digits; None for NaN and infinity, which JSON does not have."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def amount(value: float | None) -> str:
    """A figure with three significant digits, or all digits before the point."""
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _share(part: int, whole: int) -> str:
    if not part:
        return "0"
    share = part / whole
    return f"{share:.1%}" if share >= 0.001 else "< 0.1%"
