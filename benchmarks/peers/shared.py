"""What the peers share: the encoder file, the preprocessing, and their settings from the environment.

A peer differs only in how requests reach `embed` and how answers come back. Requests are a msgpack list of encoded
images; answers are the vectors as float32, one after the other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedserve.encoder import encoder_file
from embedserve.errors import ImageError
from embedserve.images import preprocess

PREFIX = "PEER_"

__all__ = ["PREFIX", "Encoder", "ImageError", "Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a peer; each is an environment variable, PEER_ and its name."""

    encoder: str = ""
    """The encoder file."""
    port: int = 0
    workers: int = 2
    """Processes, threads or replicas that run the encoder side by side."""
    intra_op: int = 1
    """onnxruntime threads of one run."""
    max_batch: int = 1
    """Requests in a batch at most; 1: no batches."""
    max_wait_ms: int = 0
    """How long a batch waits for more requests."""

    @classmethod
    def of_environment(cls) -> Settings:
        """The settings that this process was started with."""
        kinds: dict[str, Any] = {"str": str, "int": int}
        names = {field.name: kinds[str(field.type)] for field in fields(cls)}
        return cls(**{name: kind(os.environ[PREFIX + name.upper()]) for name, kind in names.items()})

    def to_environment(self) -> dict[str, str]:
        """The variables that ``of_environment`` reads."""
        return {PREFIX + field.name.upper(): str(getattr(self, field.name)) for field in fields(self)}


class Encoder:
    """The encoder file in an onnxruntime session, without spinning threads, and its preprocessing."""

    def __init__(self, settings: Settings) -> None:
        import onnxruntime

        file = encoder_file.read(settings.encoder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.intra_op
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(file.model, options, providers=["CPUExecutionProvider"])
        self._spec = file.metadata.preprocess

    def embed(self, images: list[bytes]) -> NDArray[np.float32]:
        """Encoded images → float32 [N, D].

        Raises:
            ImageError: one of them cannot be decoded.
        """
        squares = np.stack([preprocess.load(self._spec, image) for image in images])
        vectors: NDArray[np.float32] = self._session.run([encoder_file.OUTPUT], {encoder_file.INPUT: squares})[0]
        return vectors
