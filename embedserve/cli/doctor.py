"""`embedserve doctor`: checks of this machine, of an encoder file, or of a server."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from embedserve.cli.terminal.options import Finite, connection_options, existing_encoder
from embedserve.types import MAX_TIMEOUT_S


@dataclass(frozen=True)
class _Finding:
    subject: str
    text: str
    ok: bool = True


@click.command("doctor")
@click.argument("encoder", required=False, type=existing_encoder)
@click.option(
    "--device", default="auto", metavar="DEVICE", help="Where to run the encoder: auto, cpu, cuda, tensorrt, cuda:1."
)
@click.option("--server", metavar="HOST:PORT", help="Check a server instead.")
@connection_options
@click.option(
    "--wait", "wait_s", default=0.0, type=Finite(0, MAX_TIMEOUT_S), help="Seconds to wait until the server is ready."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
def command(encoder: Path | None, device: str, server: str | None, wait_s: float, as_json: bool) -> None:
    """Check this machine, an encoder file or a server, and print one line for each finding.

    With an encoder file, its eight reference images are embedded again and compared with the vectors in the file.
    Exits with 1 if a check fails.

    \b
    embedserve doctor
    embedserve doctor encoder.onnx
    embedserve doctor --server localhost:50051 --wait 30
    """
    from embedserve.cli.terminal.output import print_json

    if encoder is not None and server is not None:
        raise click.UsageError("give an encoder file or --server, not both")
    if server is not None:
        findings = _server(server, wait_s)
    else:
        findings = _machine() if encoder is None else _encoder(encoder, device)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark = click.style("ok  ", fg="green") if finding.ok else click.style("FAIL", fg="red", bold=True)
            click.echo(f"{mark}  {finding.subject:<12} {finding.text}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


def _machine() -> list[_Finding]:
    import platform

    import embedserve
    from embedserve import memory
    from embedserve.cores import usable_cores

    findings = [
        _Finding("embedserve", f"{embedserve.__version__} in {Path(embedserve.__file__).parent}"),
        _Finding("python", f"{platform.python_version()} on {platform.platform()}, {platform.machine()}"),
        _Finding("cores", f"{usable_cores()} usable"),
        _Finding("memory", f"{memory.usable_bytes() / 2**30:.1f} GiB usable"),
        _files(),
        _gpu(),
        _onnxruntime(),
    ]
    for package in ("faiss-cpu", "grpcio", "protobuf", "pillow", "numpy"):
        findings.append(_package(package))
    findings.append(_training())
    return findings


def _files() -> _Finding:
    from embedserve import descriptors
    from embedserve.types import Limits

    soft = descriptors.limit()
    descriptors.raise_limit()
    text = f"{descriptors.limit():,} may be open in a server; the shell's limit is {soft:,}"
    if warning := descriptors.warning(Limits().max_connections):
        text = f"{text}; {warning}"
    return _Finding("files", text)


def _gpu() -> _Finding:
    import shutil
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return _Finding("gpu", "none: no NVIDIA driver here; everything runs on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return _Finding("gpu", f"the NVIDIA driver does not respond: {error}", ok=False)
    return _Finding("gpu", "; ".join(answer.stdout.strip().splitlines()))


def _onnxruntime() -> _Finding:
    try:
        import onnxruntime
    except ImportError as error:
        return _Finding("onnxruntime", f"cannot be imported: {error}; pip install embedserve", ok=False)
    from embedserve.encoder.providers import cuda_problem

    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    problem = cuda_problem()
    cuda = "CUDA works" if problem is None else f"CUDA not used: {problem}"
    return _Finding("onnxruntime", f"{onnxruntime.__version__}, built with {', '.join(providers)}; {cuda}")


def _package(name: str) -> _Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return _Finding(name, version(name))
    except PackageNotFoundError:
        return _Finding(name, "is missing; pip install embedserve", ok=False)


def _training() -> _Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = [f"{package} {version(package)}" for package in ("torch", "torchvision", "onnx", "onnxscript")]
    except PackageNotFoundError as error:
        # Serving works without it, so it is not a failure.
        return _Finding("training", f"not installed ({error.name} is missing); pip install 'embedserve[train]'")
    return _Finding("training", ", ".join(found))


def _server(address: str, wait_s: float) -> list[_Finding]:
    import embedserve
    from embedserve.cli.terminal.options import connect

    with connect(address) as client:
        if wait_s:
            client.wait_ready(wait_s)
        info = client.server_info()
        findings = [
            _Finding("server", f"{address} is ready"),
            _Finding("version", f"{info.version}; this client has {embedserve.__version__}"),
            _Finding("encoder", f"{info.encoder.name}, {info.encoder.dimension} numbers per image"),
            _Finding("fingerprint", info.encoder.fingerprint),
            _Finding("provider", info.provider),
            _Finding("in flight", f"{info.images_in_flight} of at most {info.limits.max_queue_images} images"),
        ]
        if not info.has_collections:
            return [*findings, _Finding("collections", "none: the server was started without --data")]
        collections = client.list_collections()
    items = sum(collection.items for collection in collections)
    findings.append(_Finding("collections", f"{len(collections)} with {items:,} items"))
    for collection in collections:
        if not collection.external and collection.fingerprint != info.encoder.fingerprint:
            text = (
                f"{collection.name} is bound to another encoder: it can be searched by id and by vector, not by image"
            )
            findings.append(_Finding("binding", text))
    return findings


def _encoder(path: Path, device: str) -> list[_Finding]:
    from embedserve.encoder.session import Encoder, same_vector_cosine

    encoder = Encoder.open(path, device=device)
    metadata, rule = encoder.metadata, encoder.metadata.preprocess
    cosine = encoder.reference_cosine()
    least = same_vector_cosine(metadata)
    drift = "no drift" if cosine >= least else f"DRIFT: at least {least} is expected"
    return [
        _Finding("encoder", f"{metadata.name}: {metadata.method} {metadata.backbone} {metadata.precision}"),
        _Finding("fingerprint", encoder.fingerprint),
        _Finding("output", f"{metadata.dimension} numbers per image, unit norm"),
        _Finding("input", f"uint8 {rule.size_px} × {rule.size_px} × {metadata.channels}, {rule.filter}"),
        _Finding("pictures", rule.in_words()),
        _Finding("provider", encoder.provider + (f"; {encoder.note}" if encoder.note else "")),
        _Finding(
            "reference",
            f"8 images, lowest cosine to the file's vectors {cosine:.6f}: {drift}",
            ok=cosine >= least,
        ),
    ]
