"""How the tests of commands run a server and a command line."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes import FakeEncoder

from embedserve.server.app import Server
from embedserve.server.config import ServerConfig
from embedserve.types import Limits


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output as one JSON document."""
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        """Its output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Outcome]
"""Runs ``embedserve`` with the given arguments, as the shell does."""


@contextmanager
def serving(data: Path | None, encoder: FakeEncoder, limits: Limits | None = None) -> Iterator[str]:
    """Address of a real server, in a thread of this process, that runs until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server")
    thread.start()

    def do(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    async def start() -> Server:
        server = Server(ServerConfig(encoder=Path("unused"), data=data, port=0, limits=limits or Limits()))
        await server.listen()
        await server.load(encoder)
        return server

    try:
        server = do(start())
        try:
            yield f"127.0.0.1:{server.port}"
        finally:
            do(server.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
