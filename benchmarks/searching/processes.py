"""A system in separate processes: starting, requests, CPU time, memory, ending."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from measuring.machine import Tree, pss_mb
from measuring.meter import Meter

REPOSITORY = Path(__file__).resolve().parents[2]
_END_WITHIN_S = 60.0


class Failed(Exception):
    """A system failed, or did not answer in time."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how the processes of a system run."""

    name: str
    python: Path
    implementation: str
    """MODULE:CLASS."""
    folder: Path
    """Folder that it is built into."""
    options: dict[str, Any] = field(default_factory=dict)


class SystemProcess:
    """A process that runs a system, or is a client of one."""

    def __init__(self, place: Place) -> None:
        self.place = place
        mark = f"benchmark-{uuid.uuid4().hex}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed by end()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "benchmarks"), str(REPOSITORY)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "SEARCH_BENCHMARK": mark,
            "ANONYMIZED_TELEMETRY": "False",
            "LANCE_LOG": "error",
        }
        self._process = subprocess.Popen(
            [
                str(place.python),
                "-m",
                "searching.worker",
                place.implementation,
                str(place.folder),
                json.dumps(place.options),
            ],
            env=environment,
            cwd=place.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self.tree = Tree(self._process.pid, mark)
        self._unread = b""

    def send(self, do: str, **arguments: Any) -> None:
        """Send a request without waiting for the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"{self.place.name} has ended: {self.said()}") from None

    def answer(self, within_s: float) -> dict[str, Any]:
        """The answer to the oldest request.

        Raises:
            Failed: it is an error, or did not come in time.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + within_s
        while b"\n" not in self._unread:
            readable, _, _ = select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))
            if not readable:
                raise Failed(f"{self.place.name}: no answer within {within_s:.0f} s")
            data = os.read(self._process.stdout.fileno(), 1 << 20)
            if not data:
                raise Failed(f"{self.place.name} has ended: {self.said()}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.place.name}: {answer['error']}")
        return answer

    def ask(self, do: str, within_s: float = 120.0, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        self.send(do, **arguments)
        return self.answer(within_s)

    def said(self) -> str:
        """The end of its standard error."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]

    def end(self) -> None:
        """Close its input; processes that are alive after a while are killed."""
        everything = set(self.tree.pids())
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_WITHIN_S)
        for _ in range(50):
            left = [pid for pid in self.tree.pids() if pid in everything or pid != self.tree.root]
            if not left and self._process.poll() is not None:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


@contextlib.contextmanager
def opened(place: Place, queries: Path, truth: Path, *, clients: int = 2) -> Iterator[Opened]:
    """The system, ready to answer, with processes of clients beside it if it is a server."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(SystemProcess(place))
        first.ask("ask_with", queries=str(queries), truth=str(truth))
        described = first.ask("open", within_s=600)
        others = []
        if described["own_processes"]:
            for _ in range(clients - 1):
                other = stack.enter_context(SystemProcess(place))
                other.ask("ask_with", queries=str(queries), truth=str(truth))
                other.ask("connect", address=described["address"])
                others.append(other)
        try:
            yield Opened(first, others, described)
        finally:
            for process in (*others, first):
                with contextlib.suppress(Failed):
                    process.ask("close")


@dataclass
class Opened:
    """A system that is ready."""

    first: SystemProcess
    """Holds the library; or has started the server and is one of its clients."""
    others: list[SystemProcess]
    described: dict[str, Any]
    """Its description from when it was opened."""

    @property
    def processes(self) -> list[SystemProcess]:
        """The processes that search."""
        return [self.first, *self.others]

    def cpu(self) -> dict[int, float]:
        """CPU seconds of every process."""
        spent: dict[int, float] = {}
        for process in self.processes:
            spent |= process.tree.cpu()
        return spent

    def clients_cpu_s(self) -> float:
        """CPU seconds of the processes that search; for a library these are all."""
        return sum(process.tree.cpu().get(process.tree.root, 0.0) for process in self.processes)

    def memory_mb(self) -> tuple[float, float]:
        """Memory of all processes, and of those that do not search: the server's; 0 for a library."""
        searching = [process.tree.root for process in self.processes]
        sizes = {pid: pss_mb(pid) for process in self.processes for pid in process.tree.pids()}
        return sum(sizes.values()), sum(size for pid, size in sizes.items() if pid not in searching)

    def load(self, setting: str, *, clients: int, per_call: int, warmup_s: float, seconds: float) -> Loaded:
        """A closed loop; the clients of a server are spread over its client processes."""
        used = self.processes if clients > 1 else self.processes[:1]
        at = time.time() + 0.05
        meter, clients_before_s = Meter(self.cpu), self.clients_cpu_s()
        meter.read()
        for process in used:
            process.send(
                "load",
                setting=setting,
                clients=clients // len(used),
                per_call=per_call,
                warmup_s=warmup_s,
                seconds=seconds,
                at=at,
            )
        answers = [process.answer(120 + warmup_s + seconds) for process in used]
        meter.read()
        spent = meter.spent()
        queries = sum(answer["queries"] for answer in answers)
        return Loaded(
            qps=sum(answer["qps"] for answer in answers),
            taken_ms=[taken for answer in answers for taken in answer["taken_ms"]],
            cpu_ms=1000 * spent.measured_s / queries,
            client_cpu_ms=1000 * (self.clients_cpu_s() - clients_before_s) / queries,
            foreign_cores=spent.foreign_cores,
        )


@dataclass(frozen=True)
class Loaded:
    """The results of a closed loop."""

    qps: float
    taken_ms: list[float]
    """Milliseconds of each call of the window."""
    cpu_ms: float
    """CPU time per query of all processes of the system, including its clients."""
    client_cpu_ms: float
    """Of that, the client processes; for a library these are all."""
    foreign_cores: float
    """Cores that other processes kept busy."""
