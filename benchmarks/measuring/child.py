"""An embedserve server in a separate process, for as long as a block runs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

START_WITHIN_S = 120.0
STOP_WITHIN_S = 60.0
REPOSITORY = Path(__file__).resolve().parents[2]


class StartFailed(SystemExit):
    """The server did not become ready. Not caught, it ends the program with its message."""


@dataclass
class Child:
    """A server that is ready."""

    process: subprocess.Popen[str]
    address: str
    http_url: str
    """Empty if there is no HTTP."""
    said: list[str] = field(default_factory=list)
    """Its lines on standard error."""

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def fixed_time_server(*arguments: str) -> contextlib.AbstractContextManager[Child]:
    """See ``fixed_time_server.py``."""
    return started([sys.executable, str(Path(__file__).with_name("fixed_time_server.py")), *arguments])


def real_server(
    encoder: Path, *arguments: str, device: str = "cpu", start_within_s: float = START_WITHIN_S
) -> contextlib.AbstractContextManager[Child]:
    """`embedserve serve` with this encoder file."""
    options = ["--device", device, "--port", "0", "--http-port", "0", *arguments]
    return started([sys.executable, "-m", "embedserve", "serve", str(encoder), *options], start_within_s)


@contextlib.contextmanager
def started(command: list[str], start_within_s: float = START_WITHIN_S) -> Iterator[Child]:
    """The server from when it is ready; stopped at the end.

    Raises:
        StartFailed: it ended, or was not ready in time; with its lines on standard error.
    """
    # So that it runs from a checkout without an installation.
    paths = [str(REPOSITORY), str(REPOSITORY / "training"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said: list[str] = []
        too_late = threading.Timer(start_within_s, process.kill)
        too_late.start()
        address = http_url = ""
        for line in process.stderr:
            said.append(line.rstrip())
            if found := re.search(r"ready .*gRPC on (\S+)", line):
                address = found[1]
                if found := re.search(r"HTTP on (\S+)", line):
                    http_url = found[1]
                break
        too_late.cancel()
        if not address:
            raise StartFailed("the server did not start:\n" + "\n".join(said))
        child = Child(process, address, http_url, said)
        lines = process.stderr
        # Read on, or a full pipe would block a server that logs much.
        reader = threading.Thread(target=lambda: said.extend(line.rstrip() for line in lines))
        reader.start()
        try:
            yield child
        finally:
            child.stop()
            reader.join()
