"""An encoder that runs: an encoder file in an onnxruntime session, on the CPU or on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedserve.cores import usable_cores
from embedserve.encoder import cuda_driver, encoder_file, providers, reference
from embedserve.encoder.run_slots import RunSlots
from embedserve.errors import EncoderFileError, InternalError, SetupError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedserve.encoder.encoder_file import EncoderMetadata

SAME_VECTOR_COSINE = 0.9999
"""Two embeddings of one image are the same if their cosine is at least this."""
_ROUNDED_VECTOR_COSINE = 0.999
"""The same for encoders in fp16 and int8, where another device rounds otherwise, layer for layer."""
_GPU_BATCH = 64


class ImageEncoder(Protocol):
    """What the engine needs of an encoder. ``Encoder`` is the real one; tests bring a fake."""

    @property
    def metadata(self) -> EncoderMetadata:
        """What the encoder is."""

    @property
    def fingerprint(self) -> str:
        """sha256 over graph, weights and preprocessing."""

    @property
    def provider(self) -> str:
        """What runs it, as in "CPUExecutionProvider"."""

    @property
    def parallel_runs(self) -> int:
        """How many calls of ``encode`` side by side use the device fully."""

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, S, S, C] → float32 [N, D] with unit norm. May be called from several threads."""


@dataclass(frozen=True)
class Encoder:
    """An encoder file in one onnxruntime session, or in one on each of several GPUs."""

    metadata: EncoderMetadata
    fingerprint: str
    provider: str
    parallel_runs: int
    note: str
    """Why there is a GPU and it is not used; empty if that is not so."""
    _run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    _slots: RunSlots | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        threads: int = 0,
        max_batch: int = 0,
        gpu_memory_bytes: int = 0,
    ) -> Encoder:
        """Read an encoder file and make it ready to run. Other threads go on meanwhile.

        Args:
            path: the encoder file.
            device: see ``providers.place``.
            threads: cores to use on the CPU; 0 for all that this process may use. Each run takes one.
            max_batch: images in a run on a GPU at most; 0 for 64.
            gpu_memory_bytes: what onnxruntime may take of each GPU's memory; 0 for all.

        Raises:
            EncoderFileError: the file is no encoder, or its graph is not what its metadata says.
            SetupError: a GPU was asked for and does not work here.
        """
        path = Path(path)
        before = _state_of(path)
        file = encoder_file.read(path)
        metadata, fingerprint = file.metadata, file.fingerprint
        # onnxruntime reads the file by itself, which needs no second copy of it and holds no GIL.
        model = str(path) if _is_text(path) else file.model
        del file
        encoder = cls._start(
            model,
            metadata,
            fingerprint,
            device=device,
            threads=threads,
            max_batch=max_batch,
            gpu_memory_bytes=gpu_memory_bytes,
        )
        if _state_of(path) != before:
            raise EncoderFileError(
                f"{path} changed while it was loaded",
                hint="write a new encoder beside it and rename it; `embedserve export` does",
            )
        return encoder

    @classmethod
    def from_file(cls, file: encoder_file.EncoderFile, *, device: str = "auto", threads: int = 0) -> Encoder:
        """The same as ``open`` for a file in memory."""
        return cls._start(file.model, file.metadata, file.fingerprint, device=device, threads=threads)

    @classmethod
    def _start(
        cls,
        model: str | bytes,
        metadata: EncoderMetadata,
        fingerprint: str,
        *,
        device: str,
        threads: int,
        max_batch: int = 0,
        gpu_memory_bytes: int = 0,
    ) -> Encoder:
        placement = providers.place(device)
        if placement.provider != providers.CPU:
            size_px = metadata.preprocess.size_px
            settings = providers.GpuSettings(
                image_shape=(size_px, size_px, metadata.channels),
                max_batch=max_batch or _GPU_BATCH,
                fp16=metadata.precision == "fp16",
                memory_limit_bytes=gpu_memory_bytes,
                cache_key=fingerprint[:16],
            )
            try:
                slots = _start_on_gpus(model, metadata, placement, settings)
            except SetupError as error:
                if device != "auto":
                    raise
                placement = providers.Placement(providers.CPU, note=error.message)
            else:
                return cls(metadata, fingerprint, placement.provider, slots.count, "", slots.encode, slots)
        session = providers.cpu_session(model, fp16=metadata.precision == "fp16")
        _check_graph(session, metadata)

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            # Of all the ways to run a session the one with the least to do per call: 8.6 µs for a graph of three
            # nodes, where I/O binding takes 16 and OrtValues 42; binding once and copying in and out takes 7.2.
            vectors: NDArray[np.float32] = session.run([encoder_file.OUTPUT], {encoder_file.INPUT: images})[0]
            return vectors

        return cls(metadata, fingerprint, providers.CPU, threads or usable_cores(), placement.note, run)

    @property
    def largest_batch(self) -> int | None:
        """Images that go through a GPU at once, fewer than asked for if its memory did not suffice; None on the CPU."""
        return None if self._slots is None else self._slots.largest_batch

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, S, S, C] → float32 [N, D] with unit norm. May be called from several threads.

        Raises:
            InternalError: the graph failed, or gave numbers that are not finite.
        """
        import numpy as np

        try:
            vectors = self._run(images)
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise InternalError("onnxruntime could not run the encoder") from error
        if not np.isfinite(vectors).all():
            raise InternalError("the encoder gave numbers that are not finite")
        return vectors

    def reference_cosine(self) -> float:
        """Lowest cosine of the eight reference images to what the file promises; 1 where nothing has drifted.

        Raises:
            EncoderFileError: the file carries no reference vectors.
        """
        if self.metadata.reference is None:
            raise EncoderFileError("the encoder file carries no reference vectors", hint="export it again")
        ours = self.encode(reference.draw(self.metadata.preprocess.size_px))
        return reference.lowest_cosine(ours, self.metadata.reference)


def same_vector_cosine(metadata: EncoderMetadata) -> float:
    """The least cosine at which two devices are said to give the same vectors with this encoder."""
    return SAME_VECTOR_COSINE if metadata.precision == "fp32" else _ROUNDED_VECTOR_COSINE


def _start_on_gpus(
    model: str | bytes, metadata: EncoderMetadata, placement: providers.Placement, settings: providers.GpuSettings
) -> RunSlots:
    """Sessions on all the GPUs, warm.

    Raises:
        SetupError: one of them does not start, or has no memory for a single image.
    """
    sessions = [providers.gpu_session(model, placement.provider, gpu, settings) for gpu in placement.gpus]
    _check_graph(sessions[0], metadata)
    slots = RunSlots(
        sessions,
        image_shape=settings.image_shape,
        dimension=metadata.dimension,
        max_batch=settings.max_batch,
        memory=lambda size_bytes: cuda_driver.pinned(size_bytes, placement.gpus[0]),
    )
    try:
        slots.warm_up()
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise SetupError(
            f"the encoder does not run on the GPU: {providers.first_line(error)}",
            hint="nvidia-smi shows whether it is free; --device cpu works everywhere",
        ) from error
    return slots


def _is_text(path: Path) -> bool:
    """Whether onnxruntime can be given the path: it takes UTF-8 only."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file does."""
    try:
        status = path.stat()
    except OSError:
        return None  # whoever reads it says so
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check_graph(session: Any, metadata: EncoderMetadata) -> None:
    if any(isinstance(node.shape[0], int) for node in session.get_inputs() if node.shape):
        raise EncoderFileError("the graph takes batches of one size only", hint="export it with a dynamic batch size")
    inputs = [(node.name, node.type, node.shape[1:]) for node in session.get_inputs()]
    outputs = [(node.name, node.type, node.shape[1:]) for node in session.get_outputs()]
    size, channels = metadata.preprocess.size_px, metadata.channels
    if inputs != [(encoder_file.INPUT, "tensor(uint8)", [size, size, channels])]:
        raise EncoderFileError(f"the graph takes {inputs}, not uint8 [N, {size}, {size}, {channels}]")
    if outputs != [(encoder_file.OUTPUT, "tensor(float)", [metadata.dimension])]:
        raise EncoderFileError(f"the graph gives {outputs}, not float32 [N, {metadata.dimension}]")
