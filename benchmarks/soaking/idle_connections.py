"""Idle connections without a token, more than the server may open files: every probe is answered.

    python benchmarks/soaking/idle_connections.py

The server may open 1,024 files and cannot raise the limit. First 1,100 and then 5,000 connections are opened to its
gRPC port, and 1,100 to its HTTP port, half of them silent and half after the first bytes of their protocol. They are
kept open, and of those that were closed a hundred a second are opened again, while probes over new connections and over
one that stays are asked without a pause: gRPC health, /healthz, /readyz and /metrics.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # so that it runs from a checkout without an installation

import grpc  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from measuring.bare import BUILT_IN, make_encoder  # noqa: E402
from measuring.child import Child, started  # noqa: E402

FILES = 1024
TOKEN = "idle-idle-idle-idle"
GRPC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HTTP = b"GET /healthz HTTP/1.1\r\n"
STEPS = (("gRPC", 1100), ("gRPC", 5000), ("HTTP", 1100))
SECONDS = 8.0
"""Of probing, for each step."""
AGAIN = 100
"""Connections opened each second in place of those that the server has closed."""
SLOWEST_S = 2.0
MOST_LINES = 60
_SERVE = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))
from embedserve.cli import run
run()
"""


class Probes:
    """Asks, and counts what is answered."""

    def __init__(self, child: Child) -> None:
        self.asked, self.answered = Counter[str](), Counter[str]()
        self.slowest_s = 0.0
        self.failures: Counter[str] = Counter()
        self._child = child
        self._kept = grpc.insecure_channel(child.address, [("grpc.use_local_subchannel_pool", 1)])

    def ask(self) -> None:
        """One of each kind."""
        self._count("gRPC health, kept connection", lambda: _check(self._kept))
        self._count("gRPC health, new connection", self._check_anew)
        for page in ("healthz", "readyz", "metrics"):
            self._count(f"/{page}", lambda page=page: self._get(page))  # type: ignore[misc]

    def close(self) -> None:
        """Close the connection that stayed."""
        self._kept.close()

    def _count(self, kind: str, probe: Callable[[], bool]) -> None:
        self.asked[kind] += 1
        begun = time.monotonic()
        try:
            self.answered[kind] += probe()
        except (OSError, grpc.RpcError) as error:
            said = str(error.details()) if isinstance(error, grpc.Call) else str(error)
            self.failures[f"{kind}: {said[:80]}"] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - begun)

    def _check_anew(self) -> bool:
        with grpc.insecure_channel(self._child.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            # As grpc_health_probe does: within milliseconds after thousands of connections, one more may be refused.
            return _check(channel, wait_for_ready=True)

    def _get(self, page: str) -> bool:
        request = urllib.request.Request(f"{self._child.http_url}/{page}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bool(answer.status == 200)


def _check(channel: grpc.Channel, *, wait_for_ready: bool = False) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return bool(stub.Check(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=wait_for_ready).status == 1)


class Idle:
    """Connections that say little or nothing."""

    def __init__(self, address: tuple[str, int], said: bytes) -> None:
        self._address, self._said = address, said
        self._open: list[socket.socket] = []
        self.opened = 0

    def top_up(self, count: int) -> None:
        """Open connections until there are as many, in place of those that the server has closed too."""
        alive = [one for one in self._open if not _is_closed(one)]
        self._open = alive
        missing = count - len(alive)
        for number in range(min(missing, AGAIN) if self.opened else missing):
            connection = socket.create_connection(self._address, timeout=10)
            connection.sendall(self._said if number % 2 else b"")
            connection.setblocking(False)
            self._open.append(connection)
            self.opened += 1

    def close(self) -> None:
        """Close all."""
        for connection in self._open:
            connection.close()


def _is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    connection.close()
    return True


def run(seconds: float = SECONDS) -> tuple[dict[str, Any], list[str]]:
    """The figures, and what went wrong."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    steps = [(port, min(count, hard - 512)) for port, count in STEPS]
    figures: dict[str, Any] = {"files_of_the_server": FILES, "steps": {}}
    with tempfile.TemporaryDirectory(prefix="idle") as folder:
        encoder, tokens = Path(folder) / "encoder.onnx", Path(folder) / "tokens"
        backbone, size_px, _ = BUILT_IN["light"]
        make_encoder(backbone, size_px, encoder)
        tokens.write_text(f"write {TOKEN} idle\n")
        tokens.chmod(0o600)
        arguments = ["serve", str(encoder), "--device", "cpu", "--port", "0", "--http-port", "0"]
        arguments += ["--data", f"{folder}/data", "--tokens", str(tokens)]
        with started([sys.executable, "-c", _SERVE.format(files=FILES), *arguments]) as child:
            ready_lines = len(child.said)
            probes = Probes(child)
            probes.ask()
            for port, count in steps:
                figures["steps"][f"{count} idle, {port}"] = _step(child, probes, port, count, seconds)
            probes.close()
        figures |= {
            "probes_asked": probes.asked.total(),
            "probes_answered": probes.answered.total(),
            "slowest_ms": round(probes.slowest_s * 1000, 1),
            "log_lines": len(child.said) - ready_lines,
            "exit_code": child.process.returncode,
        }
    return figures, _violations(figures, probes)


def _step(child: Child, probes: Probes, port: str, count: int, seconds: float) -> dict[str, Any]:
    asked, answered = probes.asked.total(), probes.answered.total()
    address = child.address if port == "gRPC" else child.http_url.removeprefix("http://")
    host, _, number = address.rpartition(":")
    most = 0
    with ExitStack() as open_ones:
        idle = Idle((host, int(number)), GRPC if port == "gRPC" else HTTP)
        open_ones.callback(idle.close)
        ends = time.monotonic() + seconds
        next_s = 0.0
        while (now := time.monotonic()) < ends:
            if now >= next_s:
                idle.top_up(count)
                next_s = time.monotonic() + 1
            probes.ask()
            most = max(most, len(list(Path(f"/proc/{child.process.pid}/fd").iterdir())))
    return {
        "connections_opened": idle.opened,
        "most_files": most,
        "probes_asked": probes.asked.total() - asked,
        "probes_answered": probes.answered.total() - answered,
    }


def _violations(figures: dict[str, Any], probes: Probes) -> list[str]:
    found = [f"{count} probes failed: {what}" for what, count in probes.failures.items()]
    if figures["probes_answered"] != figures["probes_asked"] and not found:
        found.append(f"{figures['probes_asked'] - figures['probes_answered']} probes were not answered with yes")
    if probes.slowest_s > SLOWEST_S:
        found.append(f"a probe took {probes.slowest_s:.1f} s")
    if figures["log_lines"] > MOST_LINES:
        found.append(f"the server wrote {figures['log_lines']} lines")
    if figures["exit_code"]:
        found.append(f"SIGTERM ended it with exit code {figures['exit_code']}")
    return found


def main() -> None:
    """Run it, print the figures, and exit with 1 if something went wrong."""
    figures, violations = run()
    print(json.dumps(figures, indent=2))
    for violation in violations:
        print(f"VIOLATION  {violation}")
    raise SystemExit(1 if violations else 0)


if __name__ == "__main__":
    main()
