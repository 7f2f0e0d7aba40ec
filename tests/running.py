"""Real servers for tests: one in a thread of this process, and one in a process of its own that can be killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedserve.encoder.session import ImageEncoder
from embedserve.server.app import Server
from embedserve.server.config import ServerConfig
from embedserve.server.telemetry.tracing import Traces
from embedserve.types import Limits


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
    **more: Any,
) -> Iterator[str]:
    """A server in a thread; gives its address, and stops it at the end as SIGTERM would.

    ``on_listening`` is called before anything is loaded; ``more`` are other fields of ServerConfig.
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
                grace_s=10,
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
        assert not thread.is_alive(), "the server did not stop"
        if failure:
            raise failure[0]


def wait_until(true: Callable[[], bool], timeout_s: float = 60) -> None:
    """For what a server does in its own time: a call is counted when its task ends, after its answer has arrived."""
    end = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"it did not become true within {timeout_s:g} s")
        threading.Event().wait(0.005)


class ServerProcess:
    """`embedserve serve` as a person would run it.

    Args:
        arguments: what it is given beside free ports.
        program: what Python is to run in the place of the package, as in ("-c", "…").
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
            if found := re.search(r"ready .*gRPC on (\S+)", line):
                self.address = found[1]
                if found := re.search(r"HTTP on (\S+)", line):
                    self.http_url = found[1]
                break

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: nothing can be flushed."""
        self._process.kill()
        self.wait()

    def terminate(self) -> int:
        """SIGTERM; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        """A signal that does not end it."""
        self._process.send_signal(number)

    def close_standard_error(self) -> None:
        """Nobody reads it any more, as when the terminal is closed."""
        assert self._process.stderr is not None
        self._process.stderr.close()

    def wait_for_line(self, part: str) -> None:
        """Until it says a line with this in it."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said.append(line.rstrip())
            if part in line:
                return
        raise AssertionError(f"it ended and did not say {part!r}: {self.said}")

    def wait(self) -> int:
        """Its exit code; what it still said is added to ``said``."""
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
