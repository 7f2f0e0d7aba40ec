"""The servers of the comparison: how each is started, called and configured."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from peers.shared import Settings

from measuring.clients import (
    Client,
    Failed,
    GrpcClient,
    HttpClient,
    InferenceClient,
    Refused,
    TooLate,
    msgpack_body,
    multipart_body,
)
from measuring.machine import Tree

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = REPOSITORY / "benchmarks/peers"
START_WITHIN_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server of the comparison."""

    name: str
    command: Callable[[str, Settings], list[str]]
    """Interpreter of the peers and settings → command line."""
    client: Callable[[str], Client]
    """Address → a client."""
    protocol: str
    licence: str
    packages: tuple[str, ...]
    """Required packages, the server itself first."""
    best: dict[str, Settings] = field(default_factory=dict)
    """Encoder → the settings with the most images/s for the least CPU time; found with --tune."""
    tried: tuple[Settings, ...] = ()
    batching: Settings | None = None
    """Settings under which requests of several clients share a batch; None: it never or always batches."""
    folder: str | None = ""
    """Its subfolder in the environment of the peers; None: it runs in the environment of embedserve."""
    environment: Callable[[Settings], dict[str, str]] = lambda _: {}
    """Additional environment variables of its process."""
    streams: bool = False
    note: str = ""

    def python(self, peers: Path) -> Path:
        """The interpreter of the environment that it runs in."""
        return Path(sys.executable) if self.folder is None else peers / self.folder / "bin/python"

    def settings(self, encoder: str) -> Settings:
        """The settings for an encoder; for another file, those for the heavy one."""
        return self.best.get(encoder) or self.best.get("heavy") or Settings()


def _mlserver(python: str, _settings: Settings) -> list[str]:
    return [str(Path(python).with_name("mlserver")), "start", "."]


def _mlserver_environment(settings: Settings) -> dict[str, str]:
    return {
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_GRPC_PORT": str(settings.port),
        "MLSERVER_HTTP_PORT": str(free_port()),
        "MLSERVER_METRICS_PORT": str(free_port()),
        "MLSERVER_GRPC_MAX_MESSAGE_LENGTH": str(1 << 28),
        "MLSERVER_PARALLEL_WORKERS": str(settings.workers),
        "MLSERVER_DEBUG": "false",
        "MLSERVER_MODEL_NAME": "embed",
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_runtime.Embed",
        "MLSERVER_MODEL_MAX_BATCH_SIZE": str(settings.max_batch if settings.max_batch > 1 else 0),
        "MLSERVER_MODEL_MAX_BATCH_TIME": str(settings.max_wait_ms / 1000),
    }


def script(name: str) -> Callable[[str, Settings], list[str]]:
    """The command of a peer that is a Python file."""
    return lambda python, settings: [python, str(PEERS / name)]


def _embedserve(_python: str, settings: Settings) -> list[str]:
    command = [sys.executable, "-m", "embedserve", "serve", settings.encoder, "--port", str(settings.port), "--no-http"]
    return [*command, "--http-port", "0", "--device", "cpu"]


def _mosec(python: str, settings: Settings) -> list[str]:
    options = ["--address", "127.0.0.1", "--port", str(settings.port), "--log-level", "error"]
    return [python, str(PEERS / "mosec_server.py"), *options, "--timeout", "60000", "--max-request-size", str(1 << 28)]


def _bentoml(python: str, settings: Settings) -> list[str]:
    program = str(Path(python).with_name("bentoml"))
    options = ["--working-dir", str(PEERS), "--host", "127.0.0.1", "--port", str(settings.port)]
    return [program, "serve", "bentoml_service:Embed", *options]


SIDE_BY_SIDE = Settings(workers=2, intra_op=1)
ONE_BATCHED = Settings(workers=1, intra_op=2, max_batch=8, max_wait_ms=2)
TWO_BATCHED = Settings(workers=2, intra_op=1, max_batch=8, max_wait_ms=2)
TRIED = (SIDE_BY_SIDE, ONE_BATCHED, TWO_BATCHED)
# Batches cost images/s with the heavy encoder; with the light one they save hand-overs between processes.
BEST = {"heavy": SIDE_BY_SIDE, "light": TWO_BATCHED}
ALWAYS_SINGLE = {"heavy": SIDE_BY_SIDE, "light": SIDE_BY_SIDE}

SERVERS = {
    server.name: server
    for server in [
        Server(
            name="embedserve",
            command=_embedserve,
            client=GrpcClient,
            protocol="gRPC",
            licence="Apache-2.0",
            packages=(),
            folder=None,
            streams=True,
            note="as `embedserve serve encoder.onnx --device cpu` starts it",
        ),
        Server(
            name="mosec",
            command=_mosec,
            client=lambda address: HttpClient(address, "/inference", msgpack_body),
            protocol="HTTP, msgpack",
            licence="Apache-2.0",
            packages=("mosec", "msgpack"),
            best=BEST,
            tried=TRIED,
            batching=TWO_BATCHED,
        ),
        Server(
            name="LitServe",
            command=script("litserve_server.py"),
            client=lambda address: HttpClient(address, "/predict", msgpack_body),
            protocol="HTTP, msgpack",
            licence="Apache-2.0",
            packages=("litserve", "msgpack", "pyzmq"),
            best=BEST,
            tried=TRIED,
            batching=TWO_BATCHED,
        ),
        Server(
            name="BentoML",
            command=_bentoml,
            client=lambda address: HttpClient(address, "/embed", multipart_body),
            protocol="HTTP, multipart",
            licence="Apache-2.0",
            packages=("bentoml",),
            best=ALWAYS_SINGLE,
            tried=TRIED,
            batching=TWO_BATCHED,
        ),
        Server(
            name="Ray Serve",
            environment=lambda _: {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
            note="with RAY_SERVE_THROUGHPUT_OPTIMIZED=1",
            command=script("ray_app.py"),
            client=lambda address: HttpClient(address, "/embed", msgpack_body),
            protocol="HTTP, msgpack",
            licence="Apache-2.0",
            packages=("ray", "msgpack"),
            best=BEST,
            tried=TRIED,
            batching=TWO_BATCHED,
        ),
        Server(
            name="MLServer",
            command=_mlserver,
            client=InferenceClient,
            protocol="gRPC, Open Inference Protocol",
            licence="Apache-2.0",
            packages=("mlserver",),
            folder="mlserver",
            environment=_mlserver_environment,
            best=BEST,
            tried=TRIED,
            batching=TWO_BATCHED,
        ),
        Server(
            name="grpc.aio",
            command=script("grpc_aio_server.py"),
            client=GrpcClient,
            protocol="gRPC",
            licence="Apache-2.0",
            packages=("grpcio",),
            folder=None,
            best=ALWAYS_SINGLE,
            tried=(SIDE_BY_SIDE, Settings(workers=1, intra_op=2), Settings(workers=4, intra_op=1)),
            note="benchmarks/peers/grpc_aio_server.py, about 50 lines",
        ),
    ]
}


@dataclass
class Running:
    """A server that is ready."""

    server: Server
    settings: Settings
    tree: Tree
    address: str
    process: asyncio.subprocess.Process
    started_s: float
    """From the start of its process to its first answer."""

    def client(self) -> Client:
        """A new client."""
        return self.server.client(self.address)


@contextlib.asynccontextmanager
async def running(server: Server, settings: Settings, peers: Path, image: bytes) -> AsyncIterator[Running]:
    """The server in a separate process, from its first answer on; at the end all its processes are killed.

    ``peers`` is the environment in which the peers are installed.

    Raises:
        Failed: it did not answer within START_WITHIN_S.
    """
    settings = replace(settings, port=free_port())
    mark = f"benchmark-{uuid.uuid4().hex}"
    environment = {
        **os.environ,
        **settings.to_environment(),
        **server.environment(settings),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(PEERS)]),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_USAGE_STATS_ENABLED": "0",
        "EMBEDSERVE_BENCHMARK": mark,
    }
    address = f"127.0.0.1:{settings.port}"
    # The folder receives the sockets, logs and uploads that a server leaves behind.
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="peer", ignore_cleanup_errors=True) as own:
        environment |= {"TMPDIR": own, "RAY_TMPDIR": own}
        begun = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *server.command(str(server.python(peers)), settings),
            env=environment,
            cwd=own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        tree = Tree(process.pid, mark)
        try:
            try:
                await _first_answer(server, address, process, image)
            except Failed as error:
                log.seek(0)
                said = log.read().decode(errors="replace")[-3000:]
                raise Failed(f"{server.name} did not start: {error}\n{said}") from None
            yield Running(server, settings, tree, address, process, time.perf_counter() - begun)
        finally:
            await _stop(process, tree)


async def _first_answer(server: Server, address: str, process: asyncio.subprocess.Process, image: bytes) -> None:
    """Send an image until it is answered."""
    last: Exception | None = None
    deadline = time.perf_counter() + START_WITHIN_S
    while time.perf_counter() < deadline:
        if process.returncode is not None:
            raise Failed(f"exit code {process.returncode}")
        if _listens(address):
            client = server.client(address)
            try:
                await client.call([image], timeout_s=10)
            except (Failed, Refused, TooLate) as error:
                last = error
            else:
                return
            finally:
                await client.close()
        await asyncio.sleep(0.02)
    raise Failed(f"no answer within {START_WITHIN_S:.0f} s: {last}")


def _listens(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, int(port))) == 0


async def _stop(process: asyncio.subprocess.Process, tree: Tree) -> None:
    """SIGTERM, then SIGKILL for the processes that are left."""
    everything = set(tree.pids())
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 20)
    await kill(everything, tree)
    if process.returncode is None:
        await process.wait()


async def kill(everything: set[int], tree: Tree) -> None:
    """Kill what is left of a server: the processes found before, and those that carry its mark."""
    for _ in range(50):
        left = [pid for pid in everything | set(tree.pids()) if _is_of(pid, tree, everything)]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.1)


def _is_of(pid: int, tree: Tree, everything: set[int]) -> bool:
    """Whether a process is alive and belongs to the server: it was found before, or is marked."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and (pid in everything or pid in tree.pids())


def free_port() -> int:
    """A free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
