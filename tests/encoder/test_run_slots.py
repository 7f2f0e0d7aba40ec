"""Slots: batches padded to fixed sizes, buffers reused, work that goes round, and less at a time when memory is short.

The sessions are real ones on the CPU, through the same bindings as on a GPU, or stand-ins that fail when told to.
"""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedserve.encoder.run_slots import RunSlots, sizes

SHAPE = (4, 4, 3)
Images = NDArray[np.uint8]


class Session:
    """Mean colours, in numpy, through the interface of onnxruntime that slots use."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.memory_for = 1 << 30
        self.before_run: Any = lambda: None

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding) -> None:
        images, vectors = binding.images, binding.vectors
        self.before_run()
        self.batches.append(len(images))
        if len(images) > self.memory_for:
            raise RuntimeError("[ONNXRuntimeError] Failed to allocate memory for requested buffer of size 4096")
        vectors[:] = images.mean(axis=(1, 2))


class Binding:
    """The arrays at the addresses that were bound."""

    images: Images
    vectors: NDArray[np.float32]

    def bind_input(self, name: str, *where: Any) -> None:
        assert name == "images"
        self.images = _array(*where)

    def bind_output(self, name: str, *where: Any) -> None:
        assert name == "embeddings"
        self.vectors = _array(*where)


def _array(device: str, number: int, dtype: Any, shape: tuple[int, ...], address: int) -> Any:
    import ctypes

    assert (device, number) == ("cpu", 0)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


def slots(*sessions: Any, max_batch: int = 8) -> RunSlots:
    return RunSlots(
        sessions,
        image_shape=SHAPE,
        dimension=3,
        max_batch=max_batch,
        memory=lambda size_bytes: np.zeros(size_bytes, np.uint8),
    )


def images(count: int, seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def expected(batch: Images) -> NDArray[np.float32]:
    return batch.mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def real_session() -> onnxruntime.InferenceSession:
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["embeddings"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *SHAPE])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    out = io.BytesIO()
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), out)
    return onnxruntime.InferenceSession(out.getvalue(), providers=["CPUExecutionProvider"])


# --- Sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_batch", "expected_sizes"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (48, [1, 2, 4, 8, 16, 32, 48])],
)
def test_sizes_are_powers_of_two_and_the_largest(max_batch: int, expected_sizes: list[int]) -> None:
    assert sizes(max_batch) == expected_sizes


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8)])
def test_a_batch_is_padded_to_the_next_size(count: int, size: int) -> None:
    session = Session()
    batch = images(count)
    np.testing.assert_array_equal(slots(session).encode(batch), expected(batch))
    assert session.batches == [size]


def test_a_batch_that_is_too_large_takes_several_runs_and_keeps_its_order() -> None:
    session = Session()
    batch = images(19)
    np.testing.assert_array_equal(slots(session).encode(batch), expected(batch))
    assert session.batches == [8, 8, 4]


# --- Buffers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_a_real_session_gives_what_it_gives_without_slots(
    real_session: onnxruntime.InferenceSession, count: int
) -> None:
    batch = images(count)
    bound = slots(real_session).encode(batch)
    np.testing.assert_array_equal(bound, real_session.run(None, {"images": batch})[0])


def test_returned_vectors_do_not_change_with_the_next_run(
    real_session: onnxruntime.InferenceSession,
) -> None:
    some = slots(real_session)
    first = some.encode(images(8, seed=1))
    for seed in range(2, 6):
        some.encode(images(8, seed=seed))
    np.testing.assert_array_equal(first, real_session.run(None, {"images": images(8, seed=1)})[0])


def test_images_that_are_not_contiguous_in_memory_work_as_well(
    real_session: onnxruntime.InferenceSession,
) -> None:
    batch = images(8)[::2, :, ::-1]
    np.testing.assert_allclose(slots(real_session).encode(batch), expected(batch), rtol=1e-5)


def test_many_threads_each_get_their_own_vectors(real_session: onnxruntime.InferenceSession) -> None:
    some = slots(real_session, max_batch=4)
    batches = [images(1 + seed % 7, seed) for seed in range(200)]
    with ThreadPoolExecutor(8) as pool:
        for batch, vectors in zip(batches, pool.map(some.encode, batches), strict=True):
            np.testing.assert_allclose(vectors, expected(batch), rtol=1e-5)


# --- Several GPUs --------------------------------------------------------------------------------------------------


def test_each_session_has_two_slots_and_runs_rotate() -> None:
    sessions = [Session(), Session(), Session()]
    some = slots(*sessions)
    assert some.count == 6
    for _ in range(9):
        some.encode(images(1))
    assert [len(session.batches) for session in sessions] == [3, 3, 3]


def test_two_runs_are_in_a_session_at_once_and_never_three() -> None:
    session = Session()
    both = threading.Barrier(2)
    running, most = 0, 0
    lock = threading.Lock()

    def enter() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(timeout=20)
        with lock:
            running -= 1

    session.before_run = enter
    some = slots(session)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(some.encode, [images(1)] * 6))
    assert most == 2


def test_a_failed_run_releases_its_slot() -> None:
    session = Session()
    some = slots(session)

    def fail() -> None:
        raise RuntimeError("CUDA failure 700")

    session.before_run = fail
    for _ in range(5):
        with pytest.raises(RuntimeError, match="700"):
            some.encode(images(2))
    session.before_run = lambda: None
    np.testing.assert_array_equal(some.encode(images(2)), expected(images(2)))
    assert some.largest_batch == 8


# --- Memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [images(8), images(20)], ids=len)
def test_without_memory_for_a_batch_it_is_halved_for_good_and_no_image_is_lost(batch: Images) -> None:
    session = Session()
    session.memory_for = 2
    some = slots(session)
    np.testing.assert_array_equal(some.encode(batch), expected(batch))
    assert some.largest_batch == 2
    session.batches.clear()
    some.encode(batch)
    assert set(session.batches) == {2}


def test_without_memory_for_one_image_the_run_fails() -> None:
    session = Session()
    session.memory_for = 0
    with pytest.raises(RuntimeError, match="Failed to allocate"):
        slots(session).encode(images(4))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory ; GPU=0",
        "Available memory of 12 is smaller than requested bytes of 1024",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_every_message_about_missing_memory_is_recognised(text: str) -> None:
    session = Session()
    failed = threading.Event()

    def fail_once() -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError(text)

    session.before_run = fail_once
    some = slots(session)
    np.testing.assert_array_equal(some.encode(images(8)), expected(images(8)))
    assert some.largest_batch == 4


def test_warm_up_runs_every_size_in_every_slot_and_finds_the_largest_that_fits() -> None:
    session = Session()
    some = slots(session)
    some.warm_up()
    assert sorted(session.batches) == [1, 1, 2, 2, 4, 4, 8, 8]

    small = Session()
    small.memory_for = 4
    some = slots(small)
    some.warm_up()
    assert some.largest_batch == 4
