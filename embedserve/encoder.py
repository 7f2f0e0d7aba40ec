"""An encoder that runs: an encoder file in an onnxruntime session."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedserve import encoder_file, reference
from embedserve.errors import EncoderFileError, InternalError, SetupError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedserve.encoder_file import EncoderMetadata

SAME_VECTOR_COSINE = 0.9999
"""Two embeddings of one image are the same if their cosine is at least this."""


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
    """An encoder file in an onnxruntime session."""

    metadata: EncoderMetadata
    fingerprint: str
    provider: str
    parallel_runs: int
    _session: Any

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto", threads: int = 0) -> Encoder:
        """Read an encoder file and make it ready to run.

        Args:
            path: the encoder file.
            device: "cpu", "cuda", or "auto" for CUDA where it works and the CPU elsewhere.
            threads: cores to use on the CPU; 0 for all that this process may use. Each run takes one: side by side
                they reach 43.5 images/s where one run on two cores reaches 36.9 (ResNet-18, 224 px, 2 cores).

        Raises:
            EncoderFileError: the file is no encoder, or its graph is not what its metadata says.
            SetupError: "cuda" was asked for and does not work here.
        """
        return cls.from_file(encoder_file.read(path), device=device, threads=threads)

    @classmethod
    def from_file(cls, file: encoder_file.EncoderFile, *, device: str = "auto", threads: int = 0) -> Encoder:
        """The same as ``open`` for a file in memory."""
        session = _make_session(file.model, device)
        _check_graph(session, file.metadata)
        provider = str(session.get_providers()[0])
        cores = threads or usable_cores()
        return cls(
            metadata=file.metadata,
            fingerprint=file.fingerprint,
            provider=provider,
            parallel_runs=cores if provider == "CPUExecutionProvider" else 2,
            _session=session,
        )

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, S, S, C] → float32 [N, D] with unit norm. May be called from several threads.

        Raises:
            InternalError: the graph failed, or gave numbers that are not finite.
        """
        import numpy as np

        try:
            vectors: NDArray[np.float32] = self._session.run([encoder_file.OUTPUT], {encoder_file.INPUT: images})[0]
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


def usable_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cuda_problem() -> str | None:
    """Why onnxruntime cannot use a CUDA GPU here; None if nothing speaks against it."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime is built without CUDA (onnxruntime-gpu has it)"
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return "there is no NVIDIA GPU"
    return None


def _make_session(model: bytes, device: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Batches vary in size: without this the memory plan of every size seen would be kept.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    problem = None if device == "cpu" else cuda_problem()
    if device == "cuda" and problem is not None:
        raise SetupError(f"device cuda was asked for, but {problem}", hint="--device cpu works everywhere")
    cuda = device != "cpu" and problem is None
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise EncoderFileError(f"onnxruntime cannot load the model: {error}") from error
    # Where CUDA's own libraries are missing, onnxruntime only logs that and goes on with the CPU.
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise SetupError(
            "device cuda was asked for, but CUDA's libraries do not load here",
            hint="install CUDA and cuDNN for this onnxruntime, or use --device cpu, which works everywhere",
        )
    return session


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
