"""The configuration of a server. Each field's sentence is also the help text of its flag."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from embedserve.types import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Every setting of `embedserve serve`."""

    encoder: Path
    data: Path | None = None
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 for every network."})
    port: int = field(default=50051, metadata={"help": "gRPC port; 0 for any free one."})
    http: bool = field(
        default=True, metadata={"help": "Answer HTTP too: /metrics for Prometheus, /healthz and /readyz for probes."}
    )
    http_port: int = field(default=8080, metadata={"help": "HTTP port, on the same address; 0 for any free one."})
    device: str = field(
        default="auto",
        metadata={
            "help": "Where the encoder runs: cpu, cuda, tensorrt, or auto for CUDA if it works here; cuda:1, cuda:0,1"
            " and cuda:all choose GPUs."
        },
    )
    gpu_memory_mib: int = field(
        default=0, metadata={"help": "Memory that the encoder may take on each GPU, in MiB; 0 for all."}
    )
    index_memory_mib: int = field(
        default=0,
        metadata={
            "help": "Memory that the index of a collection may take before codes replace its graph, in MiB; 0 for half"
            " of what the machine or the container has."
        },
    )
    threads: int = field(default=0, metadata={"help": "Cores for the encoder on the CPU; 0 for all."})
    decode_threads: int = field(
        default=0,
        metadata={
            "help": "Threads that decode images for a GPU; 0 for one per core. On the CPU the encoder's threads decode."
        },
    )
    max_batch: int = field(
        default=0, metadata={"help": "Images in a batch; 0 for the size that is measured to be best at the start."}
    )
    grace_s: float = field(default=30.0, metadata={"help": "Seconds that calls in flight get when the server stops."})
    reflection: bool = field(default=True, metadata={"help": "Answer gRPC server reflection."})
    tls_cert: Path | None = field(
        default=None,
        metadata={"help": "Certificate of the server in PEM, with its chain; reloaded when the file changes."},
    )
    tls_key: Path | None = field(default=None, metadata={"help": "Private key of --tls-cert in PEM."})
    tls_client_ca: Path | None = field(
        default=None, metadata={"help": "CAs in PEM; every client then needs a certificate signed by one of them."}
    )
    tokens: Path | None = field(
        default=None,
        metadata={"help": "File with lines `read TOKEN NAME` or `write TOKEN NAME`; every call then needs a token."},
    )
    insecure: bool = field(
        default=False,
        metadata={"help": "Listen for other machines even without TLS or without checking callers."},
    )
    traces: bool = field(
        default=False,
        metadata={"help": "Send OpenTelemetry traces to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names."},
    )
    log_format: Literal["text", "json"] = field(
        default="text", metadata={"help": "Log to standard error as text for people, or as JSON, one object per line."}
    )
    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="warning", metadata={"help": "Log from this level up: info adds calls that failed, debug all calls."}
    )
    limits: Limits = field(default_factory=Limits)
