"""Where an encoder can run on this machine, and onnxruntime's execution providers and sessions for it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from embedserve.encoder import cuda_driver
from embedserve.errors import EncoderFileError, SetupError

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
DEVICES_HINT = "auto, cpu, cuda, tensorrt; several GPUs as cuda:0,1 or cuda:all"
_NAMES = {CUDA: "CUDA", TENSORRT: "TensorRT"}
# One node, y = x. Made with onnx.helper, a package that serving does not need.
_SMALLEST_MODEL = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01pZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01b\x0f'
    b"\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
_SILENT, _WARNING = 4, 2


@dataclass(frozen=True)
class Placement:
    """Where an encoder runs."""

    provider: str
    gpus: tuple[int, ...] = ()
    """Numbers of the GPUs, as CUDA counts them; empty on the CPU."""
    note: str = ""
    """Why an existing GPU is not used; empty if it is used or there is none."""


@dataclass(frozen=True, kw_only=True)
class GpuSettings:
    """What a session on a GPU needs to know about its encoder."""

    image_shape: tuple[int, int, int]
    """(S, S, C)."""
    max_batch: int
    fp16: bool
    """Whether the encoder file is in half precision."""
    memory_limit_bytes: int = 0
    """Memory that onnxruntime may take on each GPU; 0 for all."""
    cache_key: str = ""
    """Name of the folder that keeps TensorRT's engines for this encoder."""


def place(device: str) -> Placement:
    """The provider and the GPUs that a device stands for on this machine.

    Args:
        device: "auto" for the first GPU if CUDA works and otherwise the CPU, "cpu", "cuda" or "tensorrt" for the first
            GPU, or with numbers of GPUs, as in "cuda:1", "cuda:0,1" and "cuda:all".

    Raises:
        SetupError: there is no such device, or it was named and does not work.
    """
    kind, colon, gpus = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "tensorrt") or (colon and kind in ("auto", "cpu")):
        raise SetupError(f"there is no device {device!r}", hint=DEVICES_HINT)
    if kind == "cpu":
        return Placement(CPU)
    provider = TENSORRT if kind == "tensorrt" else CUDA
    problem = _problem(provider)
    if problem is None:
        return Placement(provider, _numbers(device, gpus if colon else "0"))
    if kind == "auto":
        return Placement(CPU, note=problem if _has_gpu() else "")
    raise SetupError(f"device {device} was asked for, but {problem}", hint="--device cpu works everywhere")


def cuda_problem() -> str | None:
    """Why onnxruntime cannot use a CUDA GPU here; None if a trial has worked."""
    return _problem(CUDA)


def cpu_session(model: str | bytes, *, fp16: bool = False) -> Any:
    """A session each of whose runs takes one thread.

    Args:
        model: the path of an ONNX model, or its bytes. A path is better: bytes are copied with the GIL held, which
            stops all other threads for 10 to 20 ms for a ResNet-18, and the session keeps them.
        fp16: whether it is in half precision. Such a graph does not get the NCHWc layout: it would be faster by a
            third, but onnxruntime 1.31 crashes the process on a vision transformer.

    Raises:
        EncoderFileError: onnxruntime cannot load it.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(
            model, _options(), providers=[CPU], disabled_optimizers=["NchwcTransformer"] if fp16 else None
        )
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise EncoderFileError(f"onnxruntime cannot load the model: {error}") from error
    _trim_heap()
    return session


def gpu_session(model: str | bytes, provider: str, gpu: int, settings: GpuSettings) -> Any:
    """A session on one GPU; operators that TensorRT or CUDA lacks run on the next provider.

    Raises:
        SetupError: it does not start there.
        EncoderFileError: onnxruntime cannot load the model, not even on the CPU.
    """
    import onnxruntime

    providers: list[Any] = [(CUDA, _cuda_options(gpu, settings)), CPU]
    if provider == TENSORRT:
        providers.insert(0, (TENSORRT, _tensorrt_options(gpu, settings)))
    try:
        # Without onnxruntime's fallback, which continues on the CPU and only prints that it does.
        session = onnxruntime.InferenceSession(model, _options(), providers=providers, enable_fallback=0)
        started = session.get_providers()[0] == provider
        reason = f"{_NAMES[provider]} did not start"
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        started, reason = False, first_line(error)
    if started:
        return session
    cpu_session(model, fp16=settings.fp16)  # if this fails as well, the file is the cause
    raise SetupError(
        f"the encoder does not start on GPU {gpu}: {reason}",
        hint="nvidia-smi shows whether it is free; --device cpu works everywhere",
    )


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # One single-threaded run per core in parallel: 43.5 images/s, where one run on two cores reaches 36.9.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Batches vary in size, and onnxruntime would keep the memory plan of every size.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # What is fingerprinted is ONNX; onnxruntime's own format, which it would recognize, is not.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _cuda_options(gpu: int, settings: GpuSettings) -> dict[str, str]:
    options = {
        "device_id": str(gpu),
        # By default the arena doubles, and holds GPU memory that is not used.
        "arena_extend_strategy": "kSameAsRequested",
        # The fastest algorithm is searched for every batch size. There are few, and all run during warm-up.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
    }
    if settings.memory_limit_bytes:
        options["gpu_mem_limit"] = str(settings.memory_limit_bytes)
    return options


def _tensorrt_options(gpu: int, settings: GpuSettings) -> dict[str, str]:
    shape = "x".join(map(str, settings.image_shape))
    folder = _cache_folder() / "tensorrt" / settings.cache_key
    return {
        "device_id": str(gpu),
        "trt_fp16_enable": str(int(settings.fp16)),
        # Building an engine takes minutes: one for all batch sizes, kept for the next start on the same GPU model.
        "trt_profile_min_shapes": f"images:1x{shape}",
        "trt_profile_opt_shapes": f"images:{settings.max_batch}x{shape}",
        "trt_profile_max_shapes": f"images:{settings.max_batch}x{shape}",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "embedserve"


def _numbers(device: str, gpus: str) -> tuple[int, ...]:
    count = cuda_driver.gpu_count()
    if gpus == "all":
        return tuple(range(count))
    numbers = tuple(int(number) if number.isdecimal() else -1 for number in gpus.split(","))
    if -1 in numbers or len(set(numbers)) < len(numbers):
        raise SetupError(f"there is no device {device!r}", hint=DEVICES_HINT)
    if max(numbers) >= count:
        raise SetupError(
            f"device {device} was asked for, but the last GPU here is {count - 1}",
            hint="nvidia-smi lists them; CUDA_VISIBLE_DEVICES hides some",
        )
    return numbers


def _has_gpu() -> bool:
    return cuda_driver.gpu_count() > 0 or any(Path("/dev").glob("nvidia[0-9]*"))


@cache
def _problem(provider: str) -> str | None:
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return f"this onnxruntime is built without {_NAMES[provider]} (onnxruntime-gpu has it)"
    if not _has_gpu():
        return "there is no NVIDIA GPU"
    if not cuda_driver.gpu_count():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f"CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else f"{cuda_driver.LIBRARY} does not load"
        return f"the NVIDIA driver shows no GPU: {why}"
    _load_cuda_libraries()
    reason = _try(provider)
    if reason is None:
        return None
    library = _missing_library(provider)
    return f"{_NAMES[provider]} does not start: " + (f"{library} cannot be loaded" if library else reason)


def _load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from where PyTorch or pip put them; those of the system are found without help."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()


def _try(provider: str) -> str | None:
    """Start the provider with the smallest model; the reason why it does not start, or None."""
    import onnxruntime

    # It reports what is missing on standard error, over several lines; the caller prints one line.
    onnxruntime.set_default_logger_severity(_SILENT)
    try:
        session = onnxruntime.InferenceSession(_SMALLEST_MODEL, _options(), providers=[provider], enable_fallback=0)
        return None if provider in session.get_providers() else "onnxruntime does not say why"
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        return first_line(error)
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def _missing_library(provider: str) -> str:
    """The library that is missing to load the provider; empty if none is.

    To be called after ``_try``: the provider's library must not be loaded before onnxruntime has prepared for it.
    """
    import onnxruntime

    name = provider.removesuffix("ExecutionProvider").lower()
    try:
        ctypes.CDLL(str(Path(onnxruntime.__file__).parent / f"capi/libonnxruntime_providers_{name}.so"))
    except OSError as error:
        return str(error).partition(":")[0]
    return ""


def first_line(error: Exception) -> str:
    """The message of an onnxruntime error, without its source location and stack."""
    return str(error).strip().partition("\n")[0]


def _trim_heap() -> None:
    """Return to the system what loading has freed: of 146 MB after loading a ResNet-18, 52 MB are left."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
