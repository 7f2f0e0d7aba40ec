"""An embedserve server in a process of its own, as long as a block runs."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

STOP_WITHIN_S = 60.0


@dataclass
class Child:
    """A server that is ready."""

    process: subprocess.Popen[str]
    address: str
    http_url: str
    """Empty where there is no HTTP."""
    said: list[str] = field(default_factory=list)
    """What it has written to standard error."""

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


def real_server(encoder: Path, *arguments: str) -> contextlib.AbstractContextManager[Child]:
    """`embedserve serve` on the CPU."""
    ports = ["--port", "0", "--http-port", "0"]
    return started([sys.executable, "-m", "embedserve", "serve", str(encoder), "--device", "cpu", *ports, *arguments])


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[Child]:
    """The server from when it is ready; stopped at the end."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said: list[str] = []
        address = http_url = ""
        for line in process.stderr:
            said.append(line.rstrip())
            if found := re.search(r"ready .*gRPC on (\S+)", line):
                address = found[1]
                if found := re.search(r"HTTP on (\S+)", line):
                    http_url = found[1]
                break
        if not address:
            raise SystemExit("the server did not start:\n" + "\n".join(said))
        child = Child(process, address, http_url, said)
        lines = process.stderr
        # Read on, or a server that says much would wait for ever.
        reader = threading.Thread(target=lambda: said.extend(line.rstrip() for line in lines))
        reader.start()
        try:
            yield child
        finally:
            child.stop()
            reader.join()
