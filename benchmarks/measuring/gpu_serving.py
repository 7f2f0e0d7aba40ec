"""An encoder on a GPU: a bare onnxruntime loop, embedserve's encoder, and the whole server over gRPC.

The bare loop copies each batch to the GPU, runs it through I/O binding and copies the vectors back, in as many threads
as the encoder has runs in flight. It decodes nothing. Decoding alone is measured too: the server can be no faster than
the slower of the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedserve.cores import usable_cores
from embedserve.encoder import encoder_file, providers, reference
from embedserve.encoder.session import Encoder
from embedserve.errors import EmbedserveError
from embedserve.images import preprocess
from embedserve.loadtest import CallFailed, threaded_closed_loop
from measuring.bare import jpeg
from measuring.child import StartFailed, real_server
from measuring.machine import memory_mb
from measuring.rounds import Figures, in_turns, percentile, ratios

BATCHES = (1, 8, 32, 64)
PRECISIONS = ("fp32", "fp16")
PICTURES = 64
TURNS = 3
CLIENTS, PER_CALL = 32, 16
_START_WITHIN_S = 90.0


def problem(device: str) -> str | None:
    """Why this cannot be measured on this machine, or None."""
    try:
        import grpc  # noqa: F401
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed"
    return providers.cuda_problem() if device == "cuda" else None


def serving(
    case: str,
    network: Any,
    size_px: int,
    *,
    device: str,
    seconds: float,
    until: float,
    gpu_memory_mib: Callable[[], float] | None = None,
) -> Iterator[dict[str, Any]]:
    """One result for each precision.

    Args:
        case: its name.
        network: a ServedEncoder with random weights, on the CPU.
        size_px: side of its images.
        device: "cuda" or "cpu".
        seconds: how long each figure is measured; the server's three times as long.
        until: no part begins later than this, on time.monotonic's clock.
        gpu_memory_mib: returns the memory in use on the GPU.
    """
    pictures = [jpeg(size_px * 8 // 7, size_px * 8 // 7, seed) for seed in range(PICTURES)]
    spec = preprocess.PreprocessSpec(size_px=size_px, resize_px=size_px * 8 // 7, filter="bicubic")
    squares = np.stack([preprocess.load(spec, picture) for picture in pictures])
    decoding = round(_rate(lambda: preprocess.load(spec, pictures[0]), usable_cores(), 1, seconds), 1)
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            path = Path(folder) / f"{precision}.onnx"
            result: dict[str, Any] = {"case": case, "precision": precision, "device": device}
            if time.monotonic() > until:
                yield {**result, "skipped": "no time was left"}
                continue
            try:
                _write(network, spec, precision, path)
                result["decoding_images_per_s"] = decoding
                result |= _in_process(path, squares, device, seconds)
                result["server"] = _server(path, pictures, device, 3 * seconds, gpu_memory_mib)
                _compare(result)
            except (EmbedserveError, OSError, RuntimeError, ValueError, CallFailed, StartFailed) as error:
                result["skipped"] = f"{type(error).__name__}: {error}"
            print(f"{case}, {precision}: {result}", file=sys.stderr)
            yield result


def _write(network: Any, spec: preprocess.PreprocessSpec, precision: str, path: Path) -> None:
    """Write the encoder file, with PyTorch's vectors of the reference images."""
    from embedserve_training.export.export import to_onnx
    from embedserve_training.export.precision import to_fp16
    from embedserve_training.run import served

    expected = served.embed(network, reference.draw(spec.size_px))
    metadata = encoder_file.EncoderMetadata(
        name="random", dimension=expected.shape[1], preprocess=spec, precision=precision, reference=expected
    )
    model = to_onnx(network, spec.size_px)
    encoder_file.write(encoder_file.pack(to_fp16(model) if precision == "fp16" else model, metadata), path)


def _in_process(path: Path, squares: Any, device: str, seconds: float) -> dict[str, Any]:
    """Images/s of the bare loop, of plain ``session.run``, and of the encoder, in turns, for each size of batch."""
    begun = time.perf_counter()
    encoder = Encoder.open(path, device=device, max_batch=max(BATCHES))
    found: dict[str, Any] = {
        "seconds_to_open": round(time.perf_counter() - begun, 1),
        "cosine_to_pytorch": round(encoder.reference_cosine(), 6),
        "largest_batch": encoder.largest_batch,
        "runs_in_flight": encoder.parallel_runs,
        **{name: {} for name in ("bare", "session_run", "encoder", "encoder_over_bare")},
    }
    threads = encoder.parallel_runs
    session = _session(path, device)
    for batch in BATCHES:
        images = np.ascontiguousarray(squares[:batch])
        legs: dict[str, list[Callable[[], Any]]] = {
            "bare": [_bound(session, images, encoder.metadata.dimension, device) for _ in range(threads)],
            "session_run": [partial(session.run, None, {"images": images})] * threads,
            "encoder": [partial(encoder.encode, images)] * threads,
        }
        rates = Figures()
        for _, name in in_turns(list(legs), TURNS):
            rates.add(**{name: _rate_of(legs[name], batch, seconds / TURNS)})
        for name in legs:
            found[name][str(batch)] = rates.median(name, 1)
        found["encoder_over_bare"][str(batch)] = round(statistics.median(ratios(rates["encoder"], rates["bare"])), 3)
    return found


def _session(path: Path, device: str) -> Any:
    import onnxruntime

    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    names = ["CUDAExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(path), options, providers=names)


def _bound(session: Any, images: Any, dimension: int, device: str) -> Callable[[], Any]:
    """One run: copy to the device, compute there, copy back."""
    from onnxruntime import OrtValue

    pixels = OrtValue.ortvalue_from_shape_and_type(images.shape, np.uint8, device, 0)
    vectors = OrtValue.ortvalue_from_shape_and_type((len(images), dimension), np.float32, device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input("images", pixels)
    binding.bind_ortvalue_output("embeddings", vectors)

    def run() -> Any:
        pixels.update_inplace(images)
        session.run_with_iobinding(binding)
        return vectors.numpy()

    return run


def _rate(run: Callable[[], Any], threads: int, batch: int, seconds: float) -> float:
    return _rate_of([run] * threads, batch, seconds)


def _rate_of(runs: list[Callable[[], Any]], batch: int, seconds: float) -> float:
    """Images/s of these runs, each repeated in a thread, once all of them are warm."""

    def client(number: int) -> Callable[[int], int]:
        run = runs[number]
        for _ in range(3):
            run()

        def call(_: int) -> int:
            run()
            return batch

        return call

    return threaded_closed_loop(client, len(runs), seconds).steady_images_per_s


def _server(
    path: Path, pictures: list[bytes], device: str, seconds: float, gpu_memory_mib: Callable[[], float] | None
) -> dict[str, Any]:
    """Images/s of `embedserve serve` with calls of 16 images and with a stream, and its memory."""
    before = gpu_memory_mib() if gpu_memory_mib else 0.0
    begun = time.perf_counter()
    with real_server(path, device=device, start_within_s=_START_WITHIN_S) as server:
        started_s = time.perf_counter() - begun
        found = asyncio.run(_load(server.address, pictures, seconds))
        found |= {
            "seconds_to_ready": round(started_s, 1),
            "peak_memory_mb": memory_mb(server.process.pid, "VmHWM"),
            "gpu_memory_mib": round(gpu_memory_mib() - before) if gpu_memory_mib else None,
        }
    return found


async def _load(address: str, pictures: list[bytes], seconds: float) -> dict[str, Any]:
    from measuring.clients import GrpcClient
    from measuring.loads import Images, closed, latencies_ms, streamed

    client, images = GrpcClient(address), Images(pictures, PER_CALL)
    try:
        calls = await closed(client, images, clients=CLIENTS, seconds=seconds)
        stream = await streamed(client, images, seconds=seconds)
    finally:
        await client.close()
    return {
        f"{PER_CALL}_per_call": round(calls.steady_images_per_s, 1),
        "p50_ms": percentile(latencies_ms(calls), 50),
        "p99_ms": percentile(latencies_ms(calls), 99),
        "stream": round(stream.steady_images_per_s, 1),
    }


def _compare(result: dict[str, Any]) -> None:
    """The server's images/s over the limit set by decoding and the GPU."""
    limit = min(result["decoding_images_per_s"], max(result["bare"].values()))
    result["limit_images_per_s"] = limit
    result["server_over_limit"] = {
        leg: round(result["server"][leg] / limit, 3) for leg in (f"{PER_CALL}_per_call", "stream")
    }
