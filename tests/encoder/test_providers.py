"""Which device runs an encoder: a named device works or is an error; auto falls back."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from embedserve.encoder import cuda_driver, providers, reference
from embedserve.encoder.providers import CPU, CUDA, TENSORRT, GpuSettings, Placement, place
from embedserve.encoder.session import Encoder
from embedserve.errors import EncoderFileError, SetupError
from tests.encoders import write_encoder_file

SETTINGS = GpuSettings(image_shape=(32, 32, 3), max_batch=8, fp16=False, cache_key="0123")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Forget what was cached about this machine, before and after a test pretends another one."""
    providers._problem.cache_clear()
    yield
    providers._problem.cache_clear()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``gpus(2)``: two GPUs on which CUDA and TensorRT work, except for ``problem``."""

    def pretend(count: int, problem: str | None = None) -> None:
        monkeypatch.setattr(cuda_driver, "gpu_count", lambda: count)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
        monkeypatch.setattr(providers, "_load_cuda_libraries", lambda: None)
        monkeypatch.setattr(providers, "_try", lambda provider: problem)

    return pretend


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.onnx")


# --- Choosing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("auto", Placement(CUDA, (0,))),
        ("cpu", Placement(CPU)),
        ("cuda", Placement(CUDA, (0,))),
        ("cuda:2", Placement(CUDA, (2,))),
        ("cuda:0,2", Placement(CUDA, (0, 2))),
        ("cuda:all", Placement(CUDA, (0, 1, 2))),
        ("tensorrt", Placement(TENSORRT, (0,))),
        ("tensorrt:1", Placement(TENSORRT, (1,))),
    ],
)
def test_a_device_stands_for_a_provider_and_gpus(gpus: Any, device: str, expected: Placement) -> None:
    gpus(3)
    assert place(device) == expected


@pytest.mark.parametrize(
    "device", ["", "gpu", "CUDA", "cpu:0", "auto:0", "cuda:", "cuda:x", "cuda:-1", "cuda:0,0", "cuda:0,", "cuda:0:1"]
)
def test_a_device_that_does_not_exist_is_refused_with_those_that_do(gpus: Any, device: str) -> None:
    gpus(3)
    with pytest.raises(SetupError, match="there is no device") as caught:
        place(device)
    assert "cuda:0,1" in caught.value.hint


def test_a_gpu_that_does_not_exist_is_refused_with_the_last_one(gpus: Any) -> None:
    gpus(2)
    with pytest.raises(SetupError, match="device cuda:1,2 was asked for, but the last GPU here is 1"):
        place("cuda:1,2")


def test_without_a_gpu_auto_is_the_cpu_without_a_note(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    monkeypatch.setattr(providers, "_has_gpu", lambda: False)
    assert place("auto") == Placement(CPU)


@pytest.mark.parametrize("device", ["cuda", "tensorrt", "cuda:0"])
def test_without_a_gpu_asking_for_one_is_an_error(gpus: Any, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    gpus(0)
    monkeypatch.setattr(providers, "_has_gpu", lambda: False)
    with pytest.raises(SetupError, match=f"device {device} was asked for, but there is no NVIDIA GPU") as caught:
        place(device)
    assert "--device cpu" in caught.value.hint


def test_a_gpu_that_onnxruntime_cannot_use_is_a_note_under_auto_and_an_error_by_name(
    gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1, problem="no kernel image is available")
    monkeypatch.setattr(providers, "_missing_library", lambda provider: "")
    assert place("auto") == Placement(CPU, note="CUDA does not start: no kernel image is available")
    with pytest.raises(SetupError, match="but CUDA does not start: no kernel image is available"):
        place("cuda")


def test_the_note_names_the_library_that_is_missing(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(1, problem="whatever onnxruntime says")
    monkeypatch.setattr(providers, "_missing_library", lambda provider: "libcudnn.so.9")
    assert place("auto").note == "CUDA does not start: libcudnn.so.9 cannot be loaded"


def test_hidden_gpus_are_reported_as_hidden(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    monkeypatch.setattr(providers, "_has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert place("auto").note == "the NVIDIA driver shows no GPU: CUDA_VISIBLE_DEVICES is ''"


def test_an_onnxruntime_without_cuda_is_reported(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(1)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(SetupError, match="built without CUDA"):
        place("cuda")


@pytest.mark.skipif(cuda_driver.gpu_count() > 0, reason="there is a GPU")
@pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason="onnxruntime is built without CUDA")
def test_the_real_message_of_onnxruntime_without_a_driver_becomes_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_driver, "gpu_count", lambda: 1)
    # Without the libraries of CUDA, which come with PyTorch, the first of them is missed before the driver.
    assert re.fullmatch(r"CUDA does not start: lib(cuda|cublasLt)\.so\.\d+ cannot be loaded", place("auto").note)
    said = capfd.readouterr()
    assert said.out + said.err == ""


# --- Sessions ------------------------------------------------------------------------------------------------------


class Sessions:
    """Replaces onnxruntime.InferenceSession: records its arguments, and always runs on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[list[Any]] = []
        self.broken: set[int] = set()
        real = onnxruntime.InferenceSession

        def make(model: Any, options: Any, providers: list[Any], **more: Any) -> Any:
            self.made.append(providers)
            session = real(model, options, providers=[CPU])
            first = providers[0]
            if isinstance(first, tuple):
                if int(first[1]["device_id"]) in self.broken:
                    raise RuntimeError("CUDA failure 2: out of memory\nstack")
                session.get_providers = lambda: [first[0]]
            return session

        monkeypatch.setattr(onnxruntime, "InferenceSession", make)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    return Sessions(monkeypatch)


def test_an_encoder_on_two_gpus_has_a_session_on_each_and_two_runs_at_a_time(
    gpus: Any, sessions: Sessions, path: Path
) -> None:
    gpus(2)
    on_cpu = Encoder.open(path, device="cpu")
    sessions.made.clear()
    encoder = Encoder.open(path, device="cuda:all", max_batch=4)
    assert [made[0][1]["device_id"] for made in sessions.made] == ["0", "1"]
    assert (encoder.provider, encoder.parallel_runs, encoder.largest_batch) == (CUDA, 4, 4)
    images = reference.draw(32)
    np.testing.assert_array_equal(encoder.encode(images), on_cpu.encode(images))


def test_a_gpu_without_memory_for_the_encoder_is_not_used_under_auto(gpus: Any, sessions: Sessions, path: Path) -> None:
    gpus(1)
    sessions.broken = {0}
    encoder = Encoder.open(path, device="auto")
    assert encoder.provider == CPU
    assert encoder.note == "the encoder does not start on GPU 0: CUDA failure 2: out of memory"
    assert encoder.largest_batch is None


def test_a_gpu_without_memory_for_the_encoder_is_an_error_by_name(gpus: Any, sessions: Sessions, path: Path) -> None:
    gpus(2)
    sessions.broken = {1}
    with pytest.raises(SetupError, match=r"does not start on GPU 1: CUDA failure 2: out of memory(\n|$)"):
        Encoder.open(path, device="cuda:all")


def test_a_file_that_cannot_be_loaded_is_not_blamed_on_the_gpu(gpus: Any) -> None:
    with pytest.raises(EncoderFileError, match="onnxruntime cannot load the model"):
        providers.gpu_session(b"nonsense", CUDA, 0, SETTINGS)


def test_tensorrt_falls_back_to_cuda_and_keeps_one_engine_for_all_sizes(
    monkeypatch: pytest.MonkeyPatch, sessions: Sessions, path: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    providers.gpu_session(str(path), TENSORRT, 3, SETTINGS)
    [[(first, options), (second, _), last]] = sessions.made
    assert [first, second, last] == [TENSORRT, CUDA, CPU]
    assert options["device_id"] == "3"
    assert options["trt_profile_min_shapes"] == "images:1x32x32x3"
    assert options["trt_profile_max_shapes"] == "images:8x32x32x3"
    assert options["trt_engine_cache_path"] == str(tmp_path / "embedserve/tensorrt/0123")
    assert options["trt_fp16_enable"] == "0"


def test_the_gpus_memory_is_limited_only_if_asked_for(sessions: Sessions, path: Path) -> None:
    providers.gpu_session(str(path), CUDA, 0, SETTINGS)
    limited = GpuSettings(image_shape=(32, 32, 3), max_batch=8, fp16=True, memory_limit_bytes=1 << 30)
    providers.gpu_session(str(path), CUDA, 0, limited)
    [[(_, free), _], [(_, bound), _]] = sessions.made
    assert "gpu_mem_limit" not in free
    assert bound["gpu_mem_limit"] == "1073741824"


# --- The driver ----------------------------------------------------------------------------------------------------


class Driver:
    """Two GPUs and memory of the C library, through the functions of libcuda that are used."""

    def __init__(self) -> None:
        self.depth = 0
        self.kept: dict[int, Any] = {}
        self.refuse = False
        self.flags = 0

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = 2
        return 0

    def cuDeviceGet(self, out: Any, number: Any) -> int:
        out._obj.value = number.value
        return 0

    def cuDevicePrimaryCtxRetain(self, out: Any, device: Any) -> int:
        out._obj.value = 4096 + device.value
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        self.depth += 1
        return 0

    def cuCtxPopCurrent_v2(self, out: Any) -> int:
        self.depth -= 1
        return 0

    def cuMemHostAlloc(self, out: Any, size: Any, flags: Any) -> int:
        assert self.depth == 1
        if self.refuse:
            return 2
        block = ctypes.create_string_buffer(b"\xff" * size.value, size.value)
        self.kept[ctypes.addressof(block)] = block
        self.flags = flags.value
        out._obj.value = ctypes.addressof(block)
        return 0

    def cuMemFreeHost(self, pointer: Any) -> int:
        assert self.depth == 1
        del self.kept[pointer.value]
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    fake = Driver()
    monkeypatch.setattr(cuda_driver, "_driver", lambda: fake)
    cuda_driver._primary_context.cache_clear()
    yield fake
    cuda_driver._primary_context.cache_clear()


def test_pinned_memory_is_zero_and_freed_with_the_last_array_over_it(driver: Driver) -> None:
    memory = cuda_driver.pinned(64, 0)
    view = memory[32:].view(np.float32)
    assert (len(driver.kept), driver.flags, memory.sum()) == (1, 1, 0)
    del memory
    assert len(driver.kept) == 1
    assert view.sum() == 0
    del view
    assert (len(driver.kept), driver.depth) == (0, 0)


def test_if_no_memory_can_be_pinned_it_is_ordinary_memory(driver: Driver) -> None:
    driver.refuse = True
    memory = cuda_driver.pinned(64, 0)
    assert (memory.nbytes, memory.sum(), driver.depth, driver.kept) == (64, 0, 0, {})


def test_without_a_driver_there_are_no_gpus_and_memory_is_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "_driver", lambda: None)
    assert cuda_driver.gpu_count() == 0
    assert cuda_driver.pinned(16, 0).nbytes == 16


def test_the_driver_counts_the_gpus(driver: Driver) -> None:
    assert cuda_driver.gpu_count() == 2


# --- Real GPUs -----------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(providers.cuda_problem() is not None, reason=f"no CUDA: {providers.cuda_problem()}")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_on_the_gpu_batches_of_any_size_give_the_vectors_of_the_cpu(path: Path, count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    on_gpu, on_cpu = (Encoder.open(path, device=device, max_batch=8) for device in ("cuda", "cpu"))
    assert on_gpu.provider == CUDA
    assert reference.lowest_cosine(on_gpu.encode(images), on_cpu.encode(images)) > 0.9999


@pytest.mark.gpu
@needs_gpu
def test_memory_is_really_pinned_and_can_be_freed() -> None:
    for _ in range(3):
        memory = cuda_driver.pinned(1 << 20, 0)
        memory[:] = 7
        assert memory.sum() == 7 << 20
        assert memory.base is not None
