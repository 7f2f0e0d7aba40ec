"""Real servers for tests: in a thread of this process, or in a process of their own that can be killed."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedserve.encoder.session import ImageEncoder
from embedserve.server.app import Server
from embedserve.server.config import ServerConfig
from embedserve.server.telemetry.tracing import Traces
from embedserve.types import Limits
from tests.waiting import wait_until as wait_until


@contextmanager
def serving(
    encoder: ImageEncoder,
    data: Path | None = None,
    *,
    limits: Limits | None = None,
    max_batch: int = 0,
    http: bool = False,
    traces: Traces | None = None,
    open_encoder: Callable[[], ImageEncoder] | None = None,
    on_listening: Callable[[Server], None] = lambda server: None,
    grace_s: float = 10,
    **more: Any,
) -> Iterator[str]:
    """Run a server in a thread and give its address; at the end it is stopped as SIGTERM would stop it.

    ``on_listening`` is called before the encoder is loaded; ``more`` holds other fields of ServerConfig.
    """
    started = threading.Event()
    address: list[str] = []
    failure: list[BaseException] = []

    async def life() -> None:
        server = Server(
            ServerConfig(
                encoder=Path("unused"),
                data=data,
                port=0,
                http=http,
                http_port=0,
                max_batch=max_batch,
                limits=limits or Limits(),
                grace_s=grace_s,
                **more,
            ),
            open_encoder=open_encoder,
            traces=traces,
        )
        await server.listen()
        try:
            on_listening(server)
            await server.load(encoder)
            address.append(f"127.0.0.1:{server.port}")
            stopping.append((asyncio.get_running_loop(), asyncio.Event()))
            started.set()
            await stopping[0][1].wait()
        finally:
            await server.stop()

    def run() -> None:
        try:
            asyncio.run(life())
        except BaseException as error:
            failure.append(error)
        finally:
            started.set()

    stopping: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    thread = threading.Thread(target=run, name="server")
    thread.start()
    started.wait(30)
    if failure:
        thread.join(10)
        raise failure[0]
    try:
        yield address[0]
    finally:
        loop, event = stopping[0]
        loop.call_soon_threadsafe(event.set)
        thread.join(30)
        assert not thread.is_alive(), f"the server did not stop:\n{_what_runs(loop)}"
        if failure:
            raise failure[0]


def _what_runs(loop: asyncio.AbstractEventLoop) -> str:
    """The stacks of all threads of this process, and of the tasks of an event loop."""
    said = io.StringIO()
    for number, frame in sys._current_frames().items():
        said.write(f"--- thread {number}\n{''.join(traceback.format_stack(frame))}")
    for task in asyncio.all_tasks(loop):
        said.write(f"--- {task!r}\n")
        task.print_stack(file=said)
    return said.getvalue()


class ServerProcess:
    """`embedserve serve`, as from a shell.

    Args:
        arguments: of the command, in addition to free ports.
        program: what Python runs instead of the package, as in ("-c", "…").
    """

    def __init__(self, *arguments: str, program: Sequence[str] = ("-m", "embedserve")) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *program, "serve", "--port", "0", "--http-port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stderr is not None
        self.said: list[str] = []
        self.address = ""
        self.http_url = ""
        for line in self._process.stderr:
            self.said.append(line.rstrip())
            if found := re.search(r'ready .*gRPC on (\S+)|"grpc": "([^"]+)"', line):
                self.address = found[1] or found[2]
                if found := re.search(r'HTTP on (\S+)|"http": "([^"]+)"', line):
                    self.http_url = found[1] or found[2]
                break

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None as long as it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """Send SIGKILL: nothing can be flushed."""
        self._process.kill()
        self.wait()

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal that does not end the process."""
        self._process.send_signal(number)

    def close_standard_error(self) -> None:
        """Stop reading, as when a terminal is closed."""
        assert self._process.stderr is not None
        self._process.stderr.close()

    def wait_for_line(self, part: str) -> None:
        """Read the log until a line contains ``part``."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said.append(line.rstrip())
            if part in line:
                return
        raise AssertionError(f"the server ended without a line with {part!r}: {self.said}")

    def wait(self) -> int:
        """The exit code; the rest of the log is added to ``said``."""
        try:
            assert self._process.stderr is not None
            if self._process.stderr.closed:
                return self._process.wait(timeout=30)
            _, rest = self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        self.said += rest.splitlines()
        return self._process.returncode

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
        assert self._process.stderr is not None
        self._process.stderr.close()
