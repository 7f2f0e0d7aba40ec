"""A server under four times the load that it can answer.

    python benchmarks/overload.py                          a fixed-time encoder and a real one, in two minutes
    python benchmarks/overload.py --encoder my.onnx --times 8 --json out.json

First a closed loop measures the capacity of the server; then an open loop sends four times as many calls per second,
each with a deadline, whatever the answers. Measured are images answered in time (the goodput), latencies of answers and
of refusals, from when each call was due, and the server's memory. With the fixed-time encoder almost all CPU time is
that of the server and the client; with a real one, the server's worker threads and the client compete for the cores.
Exit code 1 if the server does not keep the promises of docs/serving.md.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from measuring.bare import PICTURES, encoder_of, jpeg
from measuring.child import Child, fixed_time_server, real_server
from measuring.document import document, write
from measuring.machine import cpu_s, memory_mb
from measuring.meter import Meter, Spent

from embedserve.client.access import access
from embedserve.loadtest import Measurements, closed_loop, open_loop, percentiles, requests, run, senders

FIXED = "fixed"
CLIENTS = 32
CONNECTIONS = 4
MIN_GOODPUT = 0.9
MAX_REFUSAL_MS = 50.0
MAX_GROWTH_MB = 32.0
"""Allowed growth from the first quarter of the overload to its end: noise of the allocator in a process of 100 MB."""


@dataclass(frozen=True)
class Case:
    """One server under load."""

    encoder: str
    queue: int
    """max_queue_images; 0 for the default."""


@dataclass(kw_only=True)
class Result:
    """The results of one server. Times in milliseconds; None if there were no calls."""

    encoder: str
    max_queue_images: int
    deadline_ms: float
    most_images_per_s: float
    offered_images_per_s: float
    goodput_images_per_s: float
    goodput: float
    """Share of the capacity."""
    accepted_p50_ms: float | None
    accepted_p99_ms: float | None
    refused_p50_ms: float | None
    refused_p99_ms: float | None
    refused_share_within_50_ms: float | None
    client_late_p50_ms: float
    client_late_p99_ms: float
    """How late the client sent its calls, which is included in the latencies above."""
    client_cpu_share: float
    server_cpu_share: float
    others_share: float
    """Of one core: client, server, all other processes of the machine."""
    codes: dict[str, int]
    messages: dict[str, str]
    """The first of each code."""
    memory_mb: list[float | None]
    """At the start of the overload, after its first quarter, and at its end."""
    peak_memory_mb: float | None
    violations: list[str]


def main() -> None:
    """Parse the arguments, measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description="A server under several times the load that it can answer.")
    parser.add_argument("--encoder", action="append", metavar="fixed|heavy|FILE", help="may be repeated (fixed, heavy)")
    parser.add_argument("--times", type=float, default=4.0, help="load, as a multiple of the capacity (4)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the overload (20)")
    parser.add_argument("--deadline-ms", type=float, default=1000.0, help="deadline of a call (1000)")
    parser.add_argument("--max-queue-images", type=int, action="append", help="may be repeated (1024, 32)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything that was measured to this file")
    arguments = parser.parse_args()
    if arguments.times <= 1 or arguments.seconds <= 0 or arguments.deadline_ms <= 0:
        parser.error("--times is more than 1; --seconds and --deadline-ms are more than 0")
    cases = [
        Case(encoder, queue)
        for encoder in arguments.encoder or [FIXED, "heavy"]
        for queue in arguments.max_queue_images or [1024, 32]
    ]
    print(HEAD, flush=True)
    results = []
    for case in cases:
        results.append(run(measure(case, arguments)))
        print(row(results[-1]), flush=True)
    violations = [
        f"{result.encoder}, queue {result.max_queue_images}: {v}" for result in results for v in result.violations
    ]
    write(
        document(
            "overload.py",
            times=arguments.times,
            seconds=arguments.seconds,
            deadline_ms=arguments.deadline_ms,
            violations=violations,
            results=[asdict(result) for result in results],
        ),
        arguments.json,
    )
    for violation in violations:
        print(f"VIOLATION  {violation}")
    if violations:
        raise SystemExit(1)


async def measure(case: Case, arguments: argparse.Namespace) -> Result:
    """Closed loop, then overload, on one server."""
    more = ["--max-queue-images", str(case.queue)]
    if case.encoder == FIXED:
        server, size = fixed_time_server("--ms", "10", *more), (64, 48)
    else:
        path, size = encoder_of(case.encoder)
        server = real_server(path, *more)
    with server as child:
        pictures = [jpeg(*size, seed) for seed in range(PICTURES)]
        load = requests.embed(pictures, 1)
        target = access(child.address)
        channels = await senders.connect(target, CONNECTIONS)
        try:
            patient = senders.unary(channels, load, target, timeout_s=30)
            most = await closed_loop(patient, min(CLIENTS, case.queue), max(arguments.seconds / 4, 2), warmup_s=2)
            memory = Memory(child)
            meter = Meter(lambda: {child.process.pid: cpu_s(child.process.pid)})
            meter.read()
            hurried = senders.unary(channels, load, target, timeout_s=arguments.deadline_ms / 1000)
            measured = await open_loop(
                hurried,
                arguments.times * most.images_per_s,
                arguments.seconds,
                warmup_s=2 * arguments.deadline_ms / 1000,
                max_outstanding=20_000,
                watch=memory.look,
            )
            meter.read()
        finally:
            await senders.close(channels)
    return result_of(case, arguments, most, measured, memory, meter.spent())


class Memory:
    """The server's resident memory, sampled during the load."""

    def __init__(self, child: Child) -> None:
        self._pid = child.process.pid
        self.seen = [self._now()]

    def look(self, _: Measurements) -> None:
        """Called twice a second."""
        self.seen.append(self._now())

    def _now(self) -> float:
        return memory_mb(self._pid, "VmRSS") or 0.0


def result_of(
    case: Case,
    arguments: argparse.Namespace,
    most: Measurements,
    measured: Measurements,
    memory: Memory,
    spent: Spent,
) -> Result:
    """The figures, and the promises that they break."""
    answered, refused = measured.latencies_ms(), measured.latencies_ms("OVERLOADED")
    late = percentiles(measured.late_ms(), [50, 99])
    quarter, end = memory.seen[len(memory.seen) // 4], max(memory.seen[-3:])
    goodput = measured.images_per_s / most.images_per_s
    p50, p99 = percentiles(answered, [50, 99])
    refused_p50, refused_p99 = percentiles(refused, [50, 99])
    violations = []
    if goodput < MIN_GOODPUT:
        violations.append(f"goodput {goodput:.2f} of the capacity; at least {MIN_GOODPUT} is promised")
    if not p99 <= arguments.deadline_ms:
        violations.append(f"p99 of accepted calls is {p99:.0f} ms; the deadline is {arguments.deadline_ms:.0f} ms")
    if not refused_p50 <= MAX_REFUSAL_MS:
        violations.append(f"a refusal takes {refused_p50:.0f} ms (p50); {MAX_REFUSAL_MS:.0f} ms are promised")
    if end - quarter > MAX_GROWTH_MB:
        violations.append(f"memory grew from {quarter:.0f} to {end:.0f} MB")
    return Result(
        encoder=case.encoder,
        max_queue_images=case.queue,
        deadline_ms=arguments.deadline_ms,
        most_images_per_s=round(most.images_per_s, 1),
        offered_images_per_s=round(measured.due_calls_per_s, 1),
        goodput_images_per_s=round(measured.images_per_s, 1),
        goodput=round(goodput, 3),
        accepted_p50_ms=shown(p50),
        accepted_p99_ms=shown(p99),
        refused_p50_ms=shown(refused_p50),
        refused_p99_ms=shown(refused_p99),
        refused_share_within_50_ms=round(float((refused <= MAX_REFUSAL_MS).mean()), 4) if len(refused) else None,
        client_late_p50_ms=round(late[0], 2),
        client_late_p99_ms=round(late[1], 2),
        client_cpu_share=round(measured.client_cpu_share, 2),
        server_cpu_share=round(spent.measured_s / spent.seconds, 2),
        others_share=round(spent.foreign_cores, 2),
        codes=measured.codes(),
        messages=measured.messages,
        memory_mb=[memory.seen[0], quarter, end],
        peak_memory_mb=max(memory.seen),
        violations=violations,
    )


def shown(value: float) -> float | None:
    """The value for JSON, which has no NaN: None instead."""
    return None if value != value else round(value, 2)


HEAD = (
    f"{'encoder':<10}{'queue':>6}{'most/s':>8}{'sent/s':>8}{'goodput':>9}{'answered p50/p99 ms':>21}"
    f"{'refused p50/p99 ms':>20}{'client late p99':>16}{'memory MB':>18}{'others':>8}  codes"
)


def row(result: Result) -> str:
    """One line of the table."""

    def pair(p50: float | None, p99: float | None) -> str:
        return f"{'–' if p50 is None else f'{p50:.0f}'} / {'–' if p99 is None else f'{p99:.0f}'}"

    memory = " → ".join(f"{value:.0f}" for value in result.memory_mb if value is not None)
    return (
        f"{Path(result.encoder).name:<10}{result.max_queue_images:>6}{result.most_images_per_s:>8.0f}"
        f"{result.offered_images_per_s:>8.0f}{result.goodput:>9.2f}"
        f"{pair(result.accepted_p50_ms, result.accepted_p99_ms):>21}"
        f"{pair(result.refused_p50_ms, result.refused_p99_ms):>20}{result.client_late_p99_ms:>16.1f}"
        f"{memory:>18}{result.others_share:>8.2f}  {result.codes}"
    )


if __name__ == "__main__":
    main()
