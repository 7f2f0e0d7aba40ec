"""A run → one self-describing encoder file, compared with PyTorch on images of the run before it is written.

Shapes: N images, S side in pixels, D values per embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from embedserve.encoder import encoder_file, reference
from embedserve.encoder.encoder_file import EncoderFile, EncoderMetadata
from embedserve.encoder.session import SAME_VECTOR_COSINE, Encoder
from embedserve.errors import EmbedserveError, ExportError, SetupError, TrainingError
from embedserve.images.preprocess import PreprocessSpec
from embedserve_training.export import fidelity
from embedserve_training.export.calibration import CalibrationSet, gather
from embedserve_training.export.precision import to_fp16, to_int8
from embedserve_training.run import run_folder, served
from embedserve_training.run.served import ServedEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

Report = Callable[[str], None]
OPSET = 18
"""Old enough for every supported onnxruntime, new enough for every operator in use."""
LIMITS: dict[str, dict[str, float]] = {
    "fp16": {"lowest_cosine": 0.999, "as_near_at_10": 0.999, "same_label": 0.99},
    "int8": {"mean_cosine": 0.95, "recall_at_10": 0.8},
}
"""Lower limits of fidelity. fp16 must find the same neighbours but for ties, whose order rounding changes; int8 trades
some neighbours for speed, which the report states, but not most of them."""
CHECKED_BATCHES = (1, 7)
"""Two sizes: a graph with a fixed batch size would agree at one of them only."""


def export(
    run: Path,
    out: Path,
    *,
    precision: str = "fp32",
    calibration: Path | None = None,
    force: bool = False,
    report: Report,
) -> EncoderFile:
    """Write the encoder of a run to one file, if and only if it computes what PyTorch computes.

    Args:
        run: a run folder, finished or stopped.
        out: the file to write, replaced atomically.
        precision: "fp32"; "fp16", for GPUs; or "int8", for CPUs. The last two are compared with PyTorch by the
            neighbours that they find.
        calibration: a folder of images to compare with, and for int8 to calibrate with; None: that of the run.
        force: write a less precise file even if its fidelity is below the limits.
        report: called with each line of text.

    Raises:
        TrainingError: the folder holds no run.
        DataError: the calibration folder holds no images.
        ExportError: the embeddings of the file would differ from those of PyTorch; nothing is written.
        EncoderFileError: ``out`` cannot be written.
    """
    stored = run_folder.read_plan(run)
    network = served.trained(run)
    spec = PreprocessSpec.from_json(dict(stored.preprocess))
    report(f"exporting {stored.settings.backbone}, {stored.settings.size_px} px, {network.backbone.dimension} numbers")
    if stored.settings.whiten and not network.is_whitened:
        report("warning: the run was killed and its images are gone, so the encoder has no whitening layer; train on")
    metadata = EncoderMetadata(
        name=run.resolve().name,
        dimension=network.backbone.dimension,
        preprocess=spec,
        method=stored.settings.method,
        backbone=stored.settings.backbone,
        training={**stored.settings.to_json(), "whiten": network.is_whitened},
        data={name: stored.data[name] for name in ("fingerprint", "images")},
        versions={**stored.versions, "onnx_opset": str(OPSET)},
        reference=served.embed(network, reference.draw(spec.size_px)),
    )
    file = encoder_file.pack(to_onnx(network, spec.size_px), metadata)
    samples = _samples(run)
    lowest = verify(file, network, samples)
    report(f"ONNX agrees with PyTorch on {len(samples)} images: lowest cosine {lowest:.6f}")
    if precision != "fp32":
        # Only of several there is a list.
        of_run = [Path(name) for name in stored.data.get("folders", [str(stored.data["folder"])])]
        exclude = () if calibration else stored.data.get("exclude", ())
        images = gather(
            calibration or of_run, spec, samples, must_exist=calibration is not None, exclude=exclude, report=report
        )
        file = _less_precise(file, precision, network, images, force=force, report=report)
    encoder_file.write(file, out)
    report(f"wrote {out}: {len(file.model) / 1e6:.1f} MB, fingerprint {file.fingerprint[:12]}…")
    return file


def _less_precise(
    exact: EncoderFile,
    precision: str,
    network: ServedEncoder,
    images: CalibrationSet,
    *,
    force: bool,
    report: Report,
) -> EncoderFile:
    """The encoder in fp16 or int8, compared with PyTorch.

    Raises:
        ExportError: its fidelity is below a limit.
    """
    if precision == "int8":
        report(f"calibrating with {len(images.calibration_NSSC)} images")
        model = to_int8(exact.model, images.calibration_NSSC)
    else:
        model = to_fp16(exact.model)
    metadata = replace(exact.metadata, precision=precision, reference=None)
    encoder = Encoder.from_file(encoder_file.pack(model, metadata), device="cpu")
    converted_ND = np.concatenate(
        [encoder.encode(images.held_out_NSSC[start : start + 16]) for start in range(0, len(images.held_out_NSSC), 16)]
    )
    measured = fidelity.compare(served.embed(network, images.held_out_NSSC), converted_ND, images.labels)
    report(f"{precision} compared with PyTorch on {measured.images} other images: {measured}")
    gain = fidelity.speed(encoder, Encoder.from_file(exact, device="cpu"), images.held_out_NSSC)
    on_gpus = "; it is for GPUs, and CPUs compute it in fp32" if precision == "fp16" else ""
    report(f"{precision} on this CPU: {gain:.2f} times the images per second of fp32{on_gpus}")
    if problem := _violation(measured, LIMITS[precision]):
        if not force:
            raise ExportError(f"{precision}: {problem}; no file was written", hint="--force writes it anyway")
        report(f"warning: {problem}; written anyway because of --force")
    # Of this graph, not of PyTorch: later they show whether the graph still computes the same.
    vectors = encoder.encode(reference.draw(metadata.preprocess.size_px))
    return encoder_file.pack(model, replace(metadata, reference=vectors, fidelity=measured.to_json()))


def _violation(measured: fidelity.Fidelity, limits: dict[str, float]) -> str:
    """The first limit that is violated, as text; empty if none is."""
    for name, limit in limits.items():
        value = getattr(measured, name)
        if value is not None and value < limit:
            return f"{name.replace('_', ' ')} is {value:.4f}, at least {limit} is required"
    return ""


def to_onnx(network: ServedEncoder, size_px: int) -> bytes:
    """The network as an ONNX model: uint8 ``images`` [N, S, S, 3] → float32 ``embeddings`` [N, D].

    Notes of the exporter are removed: they hold paths of this machine, and with them the same weights would not give
    the same bytes.

    Raises:
        SetupError: the packages for exporting are not installed.
        ExportError: ONNX cannot express a part of the network.
    """
    example = torch.zeros(2, size_px, size_px, 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside the exporter do not concern the user
            program = torch.onnx.export(
                network,
                (example,),
                input_names=[encoder_file.INPUT],
                output_names=[encoder_file.OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except ImportError as error:
        raise SetupError(f"exporting needs {error.name}", hint="pip install 'embedserve[train]'") from error
    except Exception as error:  # the exporter's errors have no common base
        raise ExportError(f"the network cannot be expressed in ONNX: {error}") from error
    if program is None:
        raise ExportError("PyTorch returned no ONNX program")
    model = program.model_proto
    _strip(model)
    return _serialised(model)


def _serialised(model: Any) -> bytes:
    """The bytes of an ONNX model.

    Raises:
        ExportError: they would be more than protobuf takes; ONNX keeps such weights in a second file, which the
            fingerprint of an encoder does not cover.
    """
    # Of the weights alone: protobuf cannot say how large a message is that it cannot write.
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > encoder_file.MAX_BYTES:
        raise ExportError(
            f"the encoder has {size / 1e9:.1f} GB; one file holds at most 2 GB",
            hint="train a smaller backbone; weights in a second file are refused, as no fingerprint would cover them",
        )
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


def _strip(model: Any) -> None:
    """Remove documentation and tool metadata from every part of an ONNX model, in place."""
    for holder in (model, model.graph, *model.functions):
        _clear(holder)
    graph = model.graph
    for group in (graph.node, graph.initializer, graph.input, graph.output, graph.value_info):
        for entry in group:
            _clear(entry)
    for function in model.functions:
        for entry in (*function.node, *function.value_info):
            _clear(entry)


def _clear(entry: Any) -> None:
    entry.doc_string = ""
    del entry.metadata_props[:]


def verify(file: EncoderFile, network: nn.Module, images_NSSC: NDArray[np.uint8]) -> float:
    """Lowest cosine between the embeddings of the file and of PyTorch, over all images and CHECKED_BATCHES.

    Raises:
        ExportError: it is below 0.9999, or the file does not run.
    """
    assert isinstance(network, ServedEncoder)
    expected_ND = served.embed(network, images_NSSC)
    lowest = 1.0
    try:
        encoder = Encoder.from_file(file, device="cpu")
        for batch in CHECKED_BATCHES:
            exported_ND = np.concatenate(
                [encoder.encode(images_NSSC[start : start + batch]) for start in range(0, len(images_NSSC), batch)]
            )
            lowest = min(lowest, reference.lowest_cosine(exported_ND, expected_ND))
        lowest = min(lowest, encoder.reference_cosine())
    except EmbedserveError as error:
        raise ExportError(f"the exported file does not run: {error.message}") from error
    if lowest < SAME_VECTOR_COSINE:
        raise ExportError(
            f"the exported graph differs from PyTorch: lowest cosine {lowest:.6f}, at least {SAME_VECTOR_COSINE} is"
            " required; no file was written"
        )
    return lowest


def _samples(run: Path) -> NDArray[np.uint8]:
    path = run / run_folder.SAMPLES
    try:
        samples: NDArray[np.uint8] = np.load(path)
    except (OSError, ValueError) as error:
        raise TrainingError(f"the sample images {path} cannot be read: {error}") from error
    return samples
