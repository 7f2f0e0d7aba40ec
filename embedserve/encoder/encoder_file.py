"""The encoder file: one ``.onnx`` with everything that is needed to use it correctly.

An ordinary ONNX model (input ``images`` uint8 [N, S, S, C] RGB, output ``embeddings`` float32 [N, D] with unit norm)
whose ``metadata_props["embedserve"]`` holds one JSON document. This module reads, writes and fingerprints such files;
``session.py`` runs them.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedserve.encoder import envelope
from embedserve.encoder.envelope import Envelope
from embedserve.encoder.outside_data import first_outside
from embedserve.encoder.reference import COUNT as REFERENCE_COUNT
from embedserve.errors import EncoderFileError, NotAnEncoder
from embedserve.images.preprocess import PreprocessSpec
from embedserve.regular_file import regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 1
MAX_BYTES = (1 << 31) - 1
"""Most bytes of an encoder file: protobuf takes no more in one message."""
KEY = "embedserve"
INPUT, OUTPUT = "images", "embeddings"


@dataclass(frozen=True, kw_only=True)
class EncoderMetadata:
    """The self-description of an encoder file."""

    name: str
    dimension: int
    """D: numbers in an embedding."""
    channels: int = 3
    """C: colour channels of the input."""
    preprocess: PreprocessSpec
    method: str = ""
    """How it was trained, as in "simclr"."""
    backbone: str = ""
    precision: str = "fp32"
    """"fp32", "fp16" or "int8": precision of the network; input and output are the same for all."""
    fidelity: dict[str, Any] = field(default_factory=dict)
    """How well vectors and neighbours survive the lower precision, as measured at export."""
    training: dict[str, Any] = field(default_factory=dict)
    """The complete configuration of the training run."""
    data: dict[str, Any] = field(default_factory=dict)
    """Fingerprint and number of the training images."""
    versions: dict[str, str] = field(default_factory=dict)
    licence: str = ""
    reference: NDArray[np.float32] | None = None
    """float32 [8, D]: embeddings of ``reference.draw(size_px)`` at export."""

    def to_json(self) -> dict[str, Any]:
        """The metadata as a JSON document."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "dimension": self.dimension,
            "channels": self.channels,
            "preprocess": self.preprocess.to_json(),
            "method": self.method,
            "backbone": self.backbone,
            "precision": self.precision,
            "training": self.training,
            "data": self.data,
            "versions": self.versions,
            "licence": self.licence,
        }
        if self.fidelity:
            document["fidelity"] = self.fidelity
        if self.reference is not None:
            packed = self.reference.astype("<f4").tobytes()
            document["reference_f32_base64"] = base64.b64encode(packed).decode("ascii")
        return document

    @classmethod
    def from_json(cls, document: Any) -> EncoderMetadata:
        """The metadata that a JSON document describes.

        Raises:
            EncoderFileError: its format is newer, or something is missing or contradictory.
        """
        import numpy as np

        if not isinstance(document, dict) or not isinstance(document.get("format"), int):
            raise EncoderFileError("the encoder's self-description is not understood")
        if document["format"] > FORMAT:
            raise EncoderFileError(
                f"the encoder file has format {document['format']}; this embedserve reads up to {FORMAT}",
                hint="upgrade: pip install -U embedserve",
            )
        try:
            dimension = int(document["dimension"])
            reference = None
            if "reference_f32_base64" in document:
                packed = base64.b64decode(document["reference_f32_base64"], validate=True)
                reference = np.frombuffer(packed, dtype="<f4").reshape(REFERENCE_COUNT, dimension)
            return cls(
                name=str(document["name"]),
                dimension=dimension,
                channels=int(document["channels"]),
                preprocess=PreprocessSpec.from_json(document["preprocess"]),
                method=str(document.get("method", "")),
                backbone=str(document.get("backbone", "")),
                precision=str(document.get("precision", "fp32")),
                fidelity=dict(document.get("fidelity", {})),
                training=dict(document.get("training", {})),
                data=dict(document.get("data", {})),
                versions=dict(document.get("versions", {})),
                licence=str(document.get("licence", "")),
                reference=reference,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise EncoderFileError(f"the encoder's self-description is incomplete: {why}") from error


@dataclass(frozen=True, kw_only=True)
class EncoderFile:
    """An encoder file in memory."""

    model: bytes
    """The ONNX model, with its metadata."""
    metadata: EncoderMetadata
    fingerprint: str
    """sha256 over graph, weights and PreprocessSpec, as 64 hexadecimal digits."""


def read(path: str | Path) -> EncoderFile:
    """Read an encoder file and compute its fingerprint from its content.

    Raises:
        EncoderFileError: there is no such file, it is not an ONNX model, or has no metadata of ours.
    """
    path = Path(path)
    try:
        with open(path, "rb", opener=regular) as opened:
            if os.fstat(opened.fileno()).st_size > MAX_BYTES:
                raise EncoderFileError(f"{path} has more than 2 GiB, which no ONNX file of one part has")
            model = opened.read()
    except FileNotFoundError:
        raise EncoderFileError(
            f"there is no encoder file {path}", hint=f"make one: embedserve export RUN -o {path}"
        ) from None
    except OSError as error:
        raise EncoderFileError(f"the encoder file {path} cannot be read: {error.strerror}") from error
    envelope = _parse(model, str(path))
    text = dict(envelope.properties).get(KEY)
    if text is None:
        raise NotAnEncoder(
            f"{path} is an ONNX model, but not one that embedserve exported",
            hint="encoder files are made by: embedserve export RUN -o encoder.onnx",
        )
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EncoderFileError(f"the self-description in {path} is damaged: {error}") from error
    metadata = EncoderMetadata.from_json(document)
    return EncoderFile(model=model, metadata=metadata, fingerprint=_fingerprint(envelope, metadata.preprocess))


def pack(model: bytes, metadata: EncoderMetadata) -> EncoderFile:
    """Put metadata into an ONNX model in memory, replacing any that it has.

    Raises:
        EncoderFileError: the bytes are not an ONNX model.
    """
    envelope = _parse(model, "the model")
    text = json.dumps(metadata.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    properties = [entry for entry in envelope.properties if entry[0] != KEY]
    return EncoderFile(
        model=envelope.with_properties([*properties, (KEY, text)]),
        metadata=metadata,
        fingerprint=_fingerprint(envelope, metadata.preprocess),
    )


def write(file: EncoderFile, path: str | Path) -> None:
    """Write an encoder file atomically: the path always holds either the old file or the complete new one.

    A new file has the permissions of the umask, since the server that reads it is often another user; one that is
    replaced keeps its own.

    Raises:
        EncoderFileError: the folder does not exist or is not writable.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as out:
            if path.is_file():
                os.fchmod(out.fileno(), stat.S_IMODE(path.stat().st_mode))
            out.write(file.model)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise EncoderFileError(
            f"{path} cannot be written: {error.strerror}", hint="choose a path in a folder that exists and is writable"
        ) from error


def _parse(model: bytes, what: str) -> Envelope:
    """The envelope of a model that is complete.

    Raises:
        EncoderFileError: the bytes are not an ONNX model, or a part of it is in another file.
    """
    try:
        parsed = envelope.parse(model)
        if outside := first_outside(parsed):
            raise EncoderFileError(
                f"{what} keeps {outside} in another file, which its fingerprint would not cover",
                hint="make it one file, in Python with the package onnx: onnx.save(onnx.load(OLD), NEW,"
                " save_as_external_data=False)",
            )
        return parsed
    except ValueError:
        raise NotAnEncoder(
            f"{what} is not an ONNX model", hint="encoder files are made by: embedserve export RUN -o encoder.onnx"
        ) from None


def _fingerprint(envelope: Envelope, preprocess: PreprocessSpec) -> str:
    digest = hashlib.sha256()
    rule = json.dumps(preprocess.to_json(), sort_keys=True, separators=(",", ":")).encode()
    # The length before each part distinguishes different splits of the same bytes.
    parts: list[bytes | memoryview] = [*envelope.opset_import, *envelope.functions, envelope.graph, rule]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
