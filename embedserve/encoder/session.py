"""An encoder that runs: an encoder file in onnxruntime sessions, on the CPU or on GPUs."""

from __future__ import annotations

import logging
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

_log = logging.getLogger("embedserve.encoder")

SAME_VECTOR_COSINE = 0.9999
"""Two embeddings of an image count as the same if their cosine is at least this."""
_ROUNDED_VECTOR_COSINE = 0.999
"""The same for encoders in fp16 and int8, where another device rounds differently in every layer."""
_GPU_BATCH = 64


class ImageEncoder(Protocol):
    """What the engine needs of an encoder. ``Encoder`` implements it; tests use a fake."""

    @property
    def metadata(self) -> EncoderMetadata:
        """The self-description of the encoder."""

    @property
    def fingerprint(self) -> str:
        """sha256 over graph, weights and preprocessing."""

    @property
    def provider(self) -> str:
        """The execution provider, as in "CPUExecutionProvider"."""

    @property
    def parallel_runs(self) -> int:
        """How many parallel calls of ``encode`` use the device fully."""

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
    """Why an existing GPU is not used; empty if it is used or there is none."""
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
        """Read an encoder file and make it ready to run, without blocking other threads.

        Args:
            path: the encoder file.
            device: see ``providers.place``.
            threads: cores to use on the CPU; 0 for all that this process may use. Each run takes one.
            max_batch: most images in a run on a GPU; 0 for 64.
            gpu_memory_bytes: memory that onnxruntime may take on each GPU; 0 for all.

        Raises:
            EncoderFileError: the file is not an encoder, or its graph does not match its metadata.
            SetupError: a GPU was named and does not work here.
        """
        path = Path(path)
        before = _state_of(path)
        file = encoder_file.read(path)
        metadata, fingerprint = file.metadata, file.fingerprint
        # onnxruntime reads the file itself, which avoids a second copy and does not hold the GIL.
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
        """The same as ``open``, for an encoder file in memory."""
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
            # The way to run a session with the least overhead: 8.6 µs for a graph of three nodes. I/O binding takes
            # 16 µs and OrtValues 42 µs; binding once and copying in and out takes 7.2 µs.
            vectors: NDArray[np.float32] = session.run([encoder_file.OUTPUT], {encoder_file.INPUT: images})[0]
            return vectors

        return cls(metadata, fingerprint, providers.CPU, threads or usable_cores(), placement.note, run)

    @property
    def largest_batch(self) -> int | None:
        """Most images in a run on a GPU, fewer than configured if it ran out of memory; None on the CPU."""
        return None if self._slots is None else self._slots.largest_batch

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, S, S, C] → float32 [N, D] with unit norm. May be called from several threads.

        Raises:
            InternalError: the graph failed, or its output is not finite.
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
        """Lowest cosine between the vectors of the eight reference images and those in the file; 1 without drift.

        Raises:
            EncoderFileError: the file has no reference vectors.
        """
        if self.metadata.reference is None:
            raise EncoderFileError("the encoder file has no reference vectors", hint="export it again")
        ours = self.encode(reference.draw(self.metadata.preprocess.size_px))
        return reference.lowest_cosine(ours, self.metadata.reference)


def check_reference(encoder: ImageEncoder) -> None:
    """Embed the eight reference images and compare them with the vectors in the encoder's file.

    A file without reference vectors, which ``embedserve export`` does not make, is logged.

    Raises:
        EncoderFileError: the vectors have drifted: on this machine, or with these weights, the encoder computes
            something else than at export.
    """
    metadata = encoder.metadata
    if metadata.reference is None:
        fields = {"encoder": metadata.name}
        _log.warning("no reference vectors in the encoder file: drift would go unnoticed", extra={"fields": fields})
        return
    cosine = reference.lowest_cosine(encoder.encode(reference.draw(metadata.preprocess.size_px)), metadata.reference)
    least = same_vector_cosine(metadata)
    if cosine < least:
        raise EncoderFileError(
            f"encoder {metadata.name} does not reproduce the reference vectors of its file on {encoder.provider}:"
            f" lowest cosine {cosine:.6f}, at least {least} is expected",
            hint="is the file damaged, or a package or driver new? embedserve doctor FILE --device cpu compares;"
            " otherwise export it again",
        )


def same_vector_cosine(metadata: EncoderMetadata) -> float:
    """The lowest cosine at which vectors of two devices count as the same for this encoder."""
    return SAME_VECTOR_COSINE if metadata.precision == "fp32" else _ROUNDED_VECTOR_COSINE


def _start_on_gpus(
    model: str | bytes, metadata: EncoderMetadata, placement: providers.Placement, settings: providers.GpuSettings
) -> RunSlots:
    """Warm sessions on all the GPUs.

    Raises:
        SetupError: one does not start, or has no memory for a single image.
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
    """Whether onnxruntime can open the path: it accepts only UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """A value that changes when the file does; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None  # reading it reports the error
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
