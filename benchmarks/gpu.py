"""Images per second on one GPU: training (step only and end to end), encoding and serving, each beside its ceiling.

    python benchmarks/gpu.py [--out results.json] [--seconds 8] [--only serving]

Needs torch, numpy and pillow. torchvision's ResNet-18 is used where it is installed, else the same network built here;
encoding runs in onnxruntime if that has CUDA and the onnx packages are installed, else in torch. Downloads nothing: the
images are synthetic, drawn on this machine, and say nothing about accuracy.
Without a CUDA GPU it prints one line and exits 0.

"Step only" trains on one batch of views that is already on the GPU: no loading, no augmentation. It is the ceiling.
"End to end" is what the trainer does in a step: take a batch from the decoded images, draw its views, step. An image
counts once, not once per view. All five methods run in bf16 with the plan's choices for one GPU; two of them again with
the network compiled. Results are written as they become available.

Serving is measured if onnxruntime has CUDA and the packages of the server are installed: a bare onnxruntime loop with
I/O binding, embedserve's encoder, and the whole server over gRPC with calls of 16 images and with a stream, in fp32 and
fp16. Clients and server share the machine. `--device cpu` runs this part on the CPU, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "training"),
    str(ROOT / "benchmarks"),
]  # so that it runs from a checkout without an installation

from embedserve_training.plan.config import METHODS  # noqa: E402

REPEATS = 3
IMAGES = 8192


@dataclass(frozen=True)
class Case:
    """A network at a size."""

    name: str
    backbone: str
    size_px: int
    cached_px: int
    """Side of a decoded image."""
    compiled: tuple[str, ...]
    """Methods that are also measured compiled: compiling takes longer than measuring."""


CASES = [
    Case("ResNet-18, 224 px", "resnet18", 224, 258, compiled=()),
    Case("ResNet-18 with 3 × 3 stem, 32 px", "resnet18", 32, 32, compiled=("simclr", "moco")),
]
ON_THE_CPU = Case("small-cnn, 32 px", "small-cnn", 32, 32, compiled=())
SERVING_S = 90
"""No part of serving begins later than this: most of its time goes to finding the fastest algorithms for each batch."""
ENOUGH_S = 270
"""No network is compiled later than this, so that `make gpu` stays below ten minutes."""
ENCODE_BATCHES = (1, 8, 64, 256)


def main() -> int:
    """Run and print what this machine can run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--seconds", type=float, default=1.5, help="measured seconds per repeat (default 1.5)")
    parser.add_argument("--only", choices=["training", "serving"], help="one part only")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: serving, with a small network")
    arguments = parser.parse_args()
    on_gpu, started = arguments.device == "cuda", time.monotonic()
    try:
        import torch
    except ImportError:
        print("skipped: PyTorch is not installed")
        return 0
    if on_gpu and not torch.cuda.is_available():
        print("skipped: no CUDA GPU")
        return 0
    results: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "hardware": hardware(arguments.device),
        "versions": versions(),
        "images": f"{IMAGES} synthetic images drawn on the machine; decoding from disk is not measured",
        "training": [],
        "encoding": [],
        "serving": [],
    }

    def add(kind: str, result: dict[str, Any]) -> None:
        # Written at once, so that results are kept if the time runs out.
        results[kind].append(result)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")

    if on_gpu and arguments.only != "serving":
        for case in CASES:
            for method in METHODS:
                add("training", training(case, method, arguments.seconds, compiled=False))
            add("encoding", encoding(case, arguments.seconds))
    if arguments.only != "training":
        until = time.monotonic() + SERVING_S
        for case in CASES if on_gpu else [ON_THE_CPU]:
            for result in serving(case, arguments.device, arguments.seconds / 3, until):
                add("serving", result)
    if on_gpu and arguments.only != "serving":  # last, since compiling takes longest
        for case in CASES:
            for method in case.compiled:
                if time.monotonic() - started > ENOUGH_S:
                    skipped = {"case": case.name, "method": method, "compiled": True, "skipped": "no time was left"}
                    add("training", skipped)
                    continue
                add("training", training(case, method, arguments.seconds, compiled=True))
    print(json.dumps(results, indent=2, ensure_ascii=False))
    return 0


def hardware(device: str) -> dict[str, Any]:
    """The machine of the measurement."""
    import torch

    from embedserve.cores import usable_cores

    if device == "cpu":
        return {"gpu": None, "cores": usable_cores(), "machine": platform.machine()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "cores": usable_cores(),
        "machine": platform.machine(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that compute."""
    import importlib.metadata

    import torch

    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in ("torch", "torchvision", "onnxruntime-gpu", "onnxruntime", "onnx"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def measure(step: Callable[[], Any], images_per_step: int, seconds: float) -> dict[str, float]:
    """Images per second over REPEATS windows of ``seconds``, after a warm-up: median, least and greatest."""
    import torch

    for _ in range(20):
        step()
    torch.cuda.synchronize()
    rates = []
    for _ in range(REPEATS):
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(5):
                step()
            torch.cuda.synchronize()
            count += 5
        rates.append(count * images_per_step / (time.perf_counter() - started))
    return {
        "images_per_s": round(statistics.median(rates), 1),
        "least": round(min(rates), 1),
        "greatest": round(max(rates), 1),
    }


def synthetic(side: int) -> Any:
    """Smooth colour pictures with noise: uint8 [N, T, T, 3] on the GPU."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator("cuda").manual_seed(0)
    parts = []
    for _ in range(IMAGES // 256):
        coarse = torch.rand(256, 3, 8, 8, device="cuda", generator=generator)
        smooth = F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
        noise = torch.rand(smooth.shape, device="cuda", generator=generator)
        parts.append(((0.9 * smooth + 0.1 * noise) * 255).byte().permute(0, 2, 3, 1))
    return torch.cat(parts).contiguous()


def network(name: str, size_px: int) -> Any:
    """The backbone; without torchvision, the same ResNet-18 made of our own residual block."""
    import torch
    from torch import nn

    from embedserve_training.networks import backbones
    from embedserve_training.plan.sizes import is_small

    torch.manual_seed(0)
    try:
        return backbones.build(name, size_px)
    except ImportError:
        small = is_small(size_px)
        layers: list[Any] = [nn.Conv2d(3, 64, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)]
        layers += [nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
        layers += [] if small else [nn.MaxPool2d(3, 2, 1)]
        before = 64
        for stage, width in enumerate((64, 128, 256, 512)):
            block = backbones.Residual
            layers += [block(before, width, stride=2 if stage else 1), block(width, width, stride=1)]
            before = width
        body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return backbones.Backbone(body, name, 512)


def training(case: Case, method_name: str, seconds: float, compiled: bool) -> dict[str, Any]:
    """One method in bf16: step only, and end to end."""
    import torch

    from embedserve_training import methods
    from embedserve_training.distributed.collectives import SINGLE_PROCESS
    from embedserve_training.plan.config import TrainConfig
    from embedserve_training.plan.plan import Facts, plan
    from embedserve_training.run import optim
    from embedserve_training.run.gradient import BatchGradient

    size_px = case.size_px
    config = TrainConfig(
        method=method_name, backbone=case.backbone, size_px=size_px, device="cuda", epochs=1, compile=compiled
    )
    settings = plan(config, Facts(images=IMAGES, median_side_px=case.cached_px, cuda=True)).settings
    torch.backends.cudnn.benchmark = True
    kind = methods.METHODS[method_name]
    method: Any = kind.from_settings(settings, network(case.backbone, size_px), IMAGES, SINGLE_PROCESS)
    method = method.to("cuda", memory_format=torch.channels_last).train()
    optimizer = optim.build(settings, method)
    optim.set_lr(optimizer, 1e-4)
    gradient = BatchGradient(method, settings)  # compiles, if asked for
    pixels_NTTC = synthetic(case.cached_px)
    generator = torch.Generator().manual_seed(0)
    batch, count = settings.batch_size, 0

    def indices() -> Any:
        # Every image once in a batch, as in an epoch: a memory bank is written to by index.
        return torch.randperm(IMAGES, generator=generator)[:batch].to("cuda")

    def finish() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()

    ready = [torch.rand(batch, 3, size_px, size_px, device="cuda").to(memory_format=torch.channels_last)] * kind.views
    same = indices()

    def step_only() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            output = method(ready, same, generator)
        output.loss.backward()
        finish()

    def end_to_end() -> None:
        nonlocal count
        chosen = indices()
        gradient.of(pixels_NTTC[chosen], chosen, count)
        finish()
        count += 1

    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step_only()
    torch.cuda.synchronize()
    first_step_s = time.perf_counter() - started
    ceiling = measure(step_only, batch, seconds)
    whole = measure(end_to_end, batch, seconds)
    result = {
        "case": case.name,
        "method": method_name,
        "compiled": compiled,
        "batch": batch,
        "optimizer": settings.optimizer,
        "precision": settings.precision,
        "first_step_s": round(first_step_s, 1),
        "step_only": ceiling,
        "end_to_end": whole,
        "end_to_end_over_step_only": round(whole["images_per_s"] / ceiling["images_per_s"], 3),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }
    print(f"{case.name}, {method_name}: {result}", file=sys.stderr)
    return result


def encoding(case: Case, seconds: float) -> dict[str, Any]:
    """The encoder as it is served: uint8 images in host memory in, unit vectors in host memory out."""
    import torch

    from embedserve_training.run.served import ServedEncoder

    size_px = case.size_px
    served = ServedEncoder(network(case.backbone, size_px)).eval()
    images = synthetic(case.cached_px)[: max(ENCODE_BATCHES), :size_px, :size_px].cpu().numpy()
    session, why_not = onnx_session(served, size_px)
    if session is not None:
        runs_in = "onnxruntime, CUDAExecutionProvider, fp32"

        def encode(batch: int) -> Any:
            return session.run(None, {"images": images[:batch]})

    else:
        runs_in = f"torch, fp32 (onnxruntime not used: {why_not})"
        on_gpu = served.to(device="cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]

        def encode(batch: int) -> Any:
            with torch.inference_mode():
                return on_gpu(torch.from_numpy(images[:batch]).to("cuda")).cpu()

    rates = {str(batch): measure(partial(encode, batch), batch, seconds / 4) for batch in ENCODE_BATCHES}
    result = {"case": case.name, "runs_in": runs_in, "by_batch": rates}
    print(f"{case.name}: {result}", file=sys.stderr)
    return result


def serving(case: Case, device: str, seconds: float, until: float) -> Iterator[dict[str, Any]]:
    """The encoder in a bare loop, in embedserve and behind its server; or why that cannot be measured here."""
    import torch

    from embedserve_training.run.served import ServedEncoder

    why_not = None
    try:
        from measuring import gpu_serving

        why_not = gpu_serving.problem(device)
    except ImportError as error:  # a machine for training may lack packages of the server
        why_not = f"{error.name} is not installed"
    if why_not is not None:
        print(f"{case.name}, serving: skipped: {why_not}", file=sys.stderr)
        yield {"case": case.name, "skipped": why_not}
        return

    def used_mib() -> float:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20

    if device == "cuda":
        torch.cuda.empty_cache()  # the server needs the memory that training has cached
    yield from gpu_serving.serving(
        case.name,
        ServedEncoder(network(case.backbone, case.size_px)).eval(),
        case.size_px,
        device=device,
        seconds=seconds,
        until=until,
        gpu_memory_mib=used_mib if device == "cuda" else None,
    )


def onnx_session(served: Any, size_px: int) -> tuple[Any, str]:
    """The network in onnxruntime on CUDA, or None and the reason."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        return None, f"{error.name} is not installed"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return None, "no CUDA provider"
    from embedserve_training.export.export import to_onnx

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # the CUDA libraries that came with torch
    session = onnxruntime.InferenceSession(to_onnx(served, size_px), providers=["CUDAExecutionProvider"])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        return None, "the CUDA provider does not load"
    return session, ""


if __name__ == "__main__":
    sys.exit(main())
