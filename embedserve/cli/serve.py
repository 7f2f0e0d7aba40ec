"""`embedserve serve`: the server."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedserve.cli.terminal.options import Existing, Finite, existing_encoder, existing_file
from embedserve.server.config import ServerConfig
from embedserve.types import MAX_TIMEOUT_S, Limits

if TYPE_CHECKING:
    from embedserve.server.telemetry import logs

_HELP = {field.name: field.metadata.get("help", "") for field in (*fields(ServerConfig), *fields(Limits))}

_FILE = existing_file


@click.command("serve")
@click.argument("encoder", type=existing_encoder)
@click.option(
    "--data", type=Existing("data", optional=True), help="Directory of the collections; without it there are none."
)
@click.option("--host", default="127.0.0.1", help=_HELP["host"])
@click.option("--port", default=50051, type=click.IntRange(0, 65535), help=_HELP["port"])
@click.option("--http-port", default=8080, type=click.IntRange(0, 65535), help=_HELP["http_port"])
@click.option("--http/--no-http", default=True, help=_HELP["http"])
@click.option("--device", default="auto", metavar="DEVICE", help=_HELP["device"])
@click.option("--gpu-memory-mib", default=0, type=click.IntRange(0), help=_HELP["gpu_memory_mib"])
@click.option("--index-memory-mib", default=0, type=click.IntRange(0), help=_HELP["index_memory_mib"])
@click.option("--threads", default=0, type=click.IntRange(0), help=_HELP["threads"])
@click.option("--decode-threads", default=0, type=click.IntRange(0), help=_HELP["decode_threads"])
@click.option("--max-batch", default=0, type=click.IntRange(0), help=_HELP["max_batch"])
@click.option("--max-image-pixels", default=Limits().max_image_pixels, help=_HELP["max_image_pixels"])
@click.option("--max-queue-images", default=Limits().max_queue_images, help=_HELP["max_queue_images"])
@click.option(
    "--limit",
    "more_limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other limit, by its name in errors and GetServerInfo, such as max_images=16; may be repeated.",
)
@click.option("--grace-s", default=30.0, type=Finite(0, MAX_TIMEOUT_S), help=_HELP["grace_s"])
@click.option("--reflection/--no-reflection", default=True, help=_HELP["reflection"])
@click.option("--tls-cert", type=_FILE, metavar="FILE", help=_HELP["tls_cert"])
@click.option("--tls-key", type=_FILE, metavar="FILE", help=_HELP["tls_key"])
@click.option("--tls-client-ca", type=_FILE, metavar="FILE", help=_HELP["tls_client_ca"])
@click.option("--tokens", type=_FILE, metavar="FILE", help=_HELP["tokens"])
@click.option("--insecure", is_flag=True, help=_HELP["insecure"])
@click.option("--traces", is_flag=True, help=_HELP["traces"])
@click.option("--log-format", default="text", type=click.Choice(["text", "json"]), help=_HELP["log_format"])
@click.option(
    "--log-level",
    default="warning",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help=_HELP["log_level"],
)
def command(
    encoder: Path,
    data: Path | None,
    host: str,
    port: int,
    http_port: int,
    http: bool,
    device: str,
    gpu_memory_mib: int,
    index_memory_mib: int,
    threads: int,
    decode_threads: int,
    max_batch: int,
    max_image_pixels: int,
    max_queue_images: int,
    more_limits: tuple[str, ...],
    grace_s: float,
    reflection: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    tokens: Path | None,
    insecure: bool,
    traces: bool,
    log_format: logs.Format,
    log_level: logs.Level,
) -> None:
    """Serve embeddings and search over gRPC.

    SIGTERM or Ctrl-C stops it after the calls in flight have been answered.

    \b
    embedserve serve encoder.onnx --data data/
    embedserve serve encoder.onnx                  embeddings only, no collections
    embedserve serve encoder.onnx --tls-cert c.pem --tls-key k.pem --tokens t.txt
    """
    # Otherwise gRPC logs a line for every client whose handshake fails.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Each search uses one thread, with one search per core: more threads of OpenMP and OpenBLAS would take cores from
    # the encoder. Both variables are read once, when FAISS and numpy are loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from embedserve.server.process import run
    from embedserve.server.telemetry import logs

    config = ServerConfig(
        encoder=encoder,
        data=data,
        host=host,
        port=port,
        http=http,
        http_port=http_port,
        device=device,
        gpu_memory_mib=gpu_memory_mib,
        index_memory_mib=index_memory_mib,
        threads=threads,
        decode_threads=decode_threads,
        max_batch=max_batch,
        grace_s=grace_s,
        reflection=reflection,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        tokens=tokens,
        insecure=insecure,
        traces=traces,
        log_format=log_format,
        log_level=log_level,
        limits=Limits(
            **{"max_image_pixels": max_image_pixels, "max_queue_images": max_queue_images, **_parse(more_limits)}
        ),
    )
    log = logs.Log(config.log_format, config.log_level)
    log.start()
    try:
        run(config, say=log.say)
    except Exception as error:
        if config.log_format == "text":
            raise
        raise click.exceptions.Exit(log.fail(error)) from error
    finally:
        log.close()


def _parse(limits: tuple[str, ...]) -> dict[str, int]:
    """Name → value.

    Raises:
        BadParameter: an unknown limit, or a value that is not an integer.
    """
    from embedserve.nearest import nearest

    known = [field.name for field in fields(Limits)]
    parsed = {}
    for text in limits:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} has no value: NAME=NUMBER", param_hint="--limit")
        if name not in known:
            close = nearest(name, known)
            meant = f"did you mean {close}?" if close else f"there are {', '.join(known)}"
            raise click.BadParameter(f"there is no limit {name!r}; {meant}", param_hint="--limit")
        if not value.isdecimal():
            raise click.BadParameter(f"{name} is {value!r}, which is not an integer", param_hint="--limit")
        parsed[name] = int(value)
    return parsed
