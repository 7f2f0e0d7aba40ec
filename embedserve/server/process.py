"""The process of a server: signals in, lines for the operator out."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress

from embedserve import descriptors
from embedserve.cores import usable_cores
from embedserve.encoder.session import Encoder
from embedserve.engine.engine import Engine
from embedserve.engine.pools import started_pool
from embedserve.errors import EmbedserveError
from embedserve.server.app import Server
from embedserve.server.config import ServerConfig
from embedserve.server.lifecycle import memory
from embedserve.server.telemetry.logs import Notice

_MORE_THREADS = 4
"""Than cores, for work that is handed to a thread: as many as asyncio itself would start in the course of time."""

_log = logging.getLogger("embedserve.server")


def run(config: ServerConfig, *, say: Callable[[Notice], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends the process at once.

    Raises:
        EmbedserveError: the server could not start.
    """
    descriptors.raise_limit()
    memory.few_arenas()
    asyncio.run(_run(config, say))


async def _run(config: ServerConfig, say: Callable[[Notice], None]) -> None:
    stopping = asyncio.Event()

    def say_if_possible(notice: Notice) -> None:
        with suppress(OSError):  # standard error may be closed, which changes nothing else
            say(notice)

    def stop(name: str) -> None:
        if stopping.is_set():
            os._exit(130)
        stopping.set()
        text = f"{name}: finishing calls in flight (at most {config.grace_s:g} s)"
        fields = {"signal": name, "grace_s": config.grace_s}
        say_if_possible(Notice(text, "stopping: finishing calls in flight", fields))

    loop = asyncio.get_running_loop()
    loop.set_default_executor(started_pool(usable_cores() + _MORE_THREADS, "work"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    server = Server(config)
    await server.listen()
    replacing: set[asyncio.Task[None]] = set()

    def replace_encoder() -> None:
        task = loop.create_task(_replace_encoder(server))
        replacing.add(task)
        task.add_done_callback(replacing.discard)

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, replace_encoder)
    try:
        loading = asyncio.create_task(server.load())
        interrupted = asyncio.create_task(stopping.wait())
        await asyncio.wait([loading, interrupted], return_when=asyncio.FIRST_COMPLETED)
        # An interrupted load runs to its end: it holds the data directory.
        engine = await loading
        if not stopping.is_set():
            await _say_ready(config, server, engine, say_if_possible)
        await interrupted
    finally:
        await server.stop()
    say_if_possible(Notice("stopped", "stopped"))


async def _replace_encoder(server: Server) -> None:
    try:
        await server.replace_encoder()
    except EmbedserveError as error:
        fields = {"error": error.code, "reason": error.message, "hint": error.hint}
        _log.error("encoder not replaced", extra={"fields": fields})
    except Exception:
        _log.exception("encoder not replaced: bug")


async def _say_ready(config: ServerConfig, server: Server, engine: Engine, say: Callable[[Notice], None]) -> None:
    for notice in [*_of_encoder(engine), *await _of_collections(config, engine), *_of_callers(config, server)]:
        say(notice)
    host = f"[{config.host}]" if ":" in config.host and not config.host.startswith("[") else config.host
    fields = {"grpc": f"{host}:{server.port}"} | ({"http": server.http_url} if server.http_url else {})
    http = f"  HTTP on {server.http_url}" if server.http_url else ""
    # Clients take this address as it is.
    say(Notice(f"ready        gRPC on {host}:{server.port}{http}", "ready", fields))


def _of_encoder(engine: Engine) -> list[Notice]:
    metadata, encoder = engine.encoder.metadata, engine.encoder
    max_batch = engine.embedder.batcher.max_batch
    fields = {
        "name": metadata.name,
        "dimension": metadata.dimension,
        "size_px": metadata.preprocess.size_px,
        "provider": encoder.provider,
        "max_batch": max_batch,
        "fingerprint": encoder.fingerprint,
    }
    text = (
        f"encoder      {metadata.name}  {metadata.dimension} numbers per image  {metadata.preprocess.size_px} px"
        f"  {encoder.provider}, batches up to {max_batch}  {encoder.fingerprint[:12]}"
    )
    rule = metadata.preprocess.in_words()
    notices = [Notice(text, "encoder", fields), Notice(f"pictures     {rule}", "pictures", {"rule": rule})]
    if isinstance(encoder, Encoder) and encoder.note:
        message = "on the CPU although there is a GPU"
        notices.append(Notice(f"warning      {message}: {encoder.note}", message, {"reason": encoder.note}, True))
    return notices


async def _of_collections(config: ServerConfig, engine: Engine) -> list[Notice]:
    if config.data is None:
        return [Notice("collections  none: started without --data", "no collections: started without --data")]
    collections = await engine.collections.list_all()
    items = sum(info.items for info in collections)
    fields = {"count": len(collections), "items": items, "path": str(config.data)}
    notices = [Notice(f"collections  {len(collections)} with {items:,} items in {config.data}", "collections", fields)]
    for info in collections:
        if not info.external and info.fingerprint != engine.encoder.fingerprint:
            text = (
                f"warning      collection {info.name!r} is bound to another encoder ({info.fingerprint[:12]}):"
                " it answers vectors and ids, not images"
            )
            message = "a collection is bound to another encoder: it answers vectors and ids, not images"
            notices.append(Notice(text, message, {"collection": info.name, "fingerprint": info.fingerprint}, True))
    return notices


def _of_callers(config: ServerConfig, server: Server) -> list[Notice]:
    security = server.security
    notices = [Notice(f"callers      {security.summary}", "callers", {"may_call": security.summary})]
    if security.warning:
        notices.append(Notice(f"warning      {security.warning}", security.warning, {}, True))
    if files := descriptors.warning(config.limits.max_connections):
        fields = {"files": descriptors.limit(), "reason": files}
        notices.append(Notice(f"warning      {files}", "few files may be open", fields, True))
    return notices
