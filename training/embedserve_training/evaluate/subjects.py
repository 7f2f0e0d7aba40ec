"""The subjects of an evaluation: run folders and encoder files, grouped where they differ only in their seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve_training.plan.config import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedserve.images.preprocess import PreprocessSpec

Embed = Callable[["NDArray[np.uint8]"], "NDArray[np.float32]"]
"""uint8 [N, S, S, 3] → vectors [N, D]."""

_IRRELEVANT = ("seed", "device", "workers", "compile")
"""Settings that do not tell encoders apart."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One encoder, ready to embed."""

    path: Path
    embed: Embed
    spec: PreprocessSpec
    backbone: str
    settings: Settings | None
    """None if the encoder file does not hold the settings of its training."""
    data: str
    """Fingerprint of the training images; empty if unknown."""
    not_whitened: Embed | None = None
    """The same without its whitening layer; None for a file, and without such a layer."""

    @property
    def name(self) -> str:
        """The run folder or file."""
        return self.path.resolve().name


def open_subject(path: Path) -> Subject:
    """The encoder of a run folder, at its last checkpoint, or of an encoder file.

    Raises:
        TrainingError: the run folder holds no run.
        EncoderFileError: the file is not an encoder.
    """
    return _open_run(path) if path.is_dir() else _open_file(path)


def groups(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """The subjects, grouped where they differ only in their seed, in the order of the first of each group.

    Two with the same seed are never in one group: a deviation over copies of one encoder would be meaningless.
    """
    found: dict[str, list[Subject]] = {}
    for subject in subjects:
        key = f"alone {len(found)}"
        if subject.settings is not None:
            values: dict[str, Any] = subject.settings.to_json()
            seed = values["seed"]
            for name in _IRRELEVANT:
                values.pop(name, None)
            key = json.dumps([values, subject.spec.to_json(), subject.data], sort_keys=True)
            if any(other.settings and other.settings.seed == seed for other in found.get(key, [])):
                key = f"{key} again {len(found)}"
        found.setdefault(key, []).append(subject)
    return list(found.values())


def _open_run(run: Path) -> Subject:
    from embedserve.images.preprocess import PreprocessSpec
    from embedserve_training.run import run_folder, served

    plan = run_folder.read_plan(run)
    encoder = served.trained(run)
    plain = served.ServedEncoder(encoder.backbone).eval() if encoder.is_whitened else None
    return Subject(
        path=run,
        embed=lambda pixels_NSSC: served.embed(encoder, pixels_NSSC),
        spec=PreprocessSpec.from_json(dict(plan.preprocess)),
        backbone=plan.settings.backbone,
        settings=plan.settings,
        data=str(plan.data.get("fingerprint", "")),
        not_whitened=(lambda pixels_NSSC: served.embed(plain, pixels_NSSC)) if plain else None,
    )


def _open_file(path: Path) -> Subject:
    from embedserve.encoder.session import Encoder, check_reference

    encoder = Encoder.open(path)
    check_reference(encoder)
    metadata = encoder.metadata
    try:
        settings = Settings.from_json(metadata.training)
    except TypeError:
        settings = None

    def embed(pixels_NSSC: NDArray[np.uint8]) -> NDArray[np.float32]:
        starts = range(0, len(pixels_NSSC), 64)
        return np.concatenate([encoder.encode(pixels_NSSC[start : start + 64]) for start in starts])

    return Subject(
        path=path,
        embed=embed,
        spec=metadata.preprocess,
        backbone=metadata.backbone,
        settings=settings,
        data=str(metadata.data.get("fingerprint", "")),
    )
