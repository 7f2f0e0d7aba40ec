"""The baselines that need PyTorch: the network of a run before training, and the same network trained on labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from embedserve.errors import InvalidInput
from embedserve_training.evaluate.bench import Bench
from embedserve_training.evaluate.subjects import Embed, Subject
from embedserve_training.evaluate.table import Figure, Row

if TYPE_CHECKING:
    from embedserve.images.preprocess import PreprocessSpec
    from embedserve_training.plan.config import Settings
    from embedserve_training.run.served import ServedEncoder

_NO_TORCH = "PyTorch is not installed"
_NO_SETTINGS = "the encoder file does not say how its network is made"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network before training, once for each seed."""

    backbone: str
    alone: bool
    """Whether it is the only network of the evaluation."""
    spec: PreprocessSpec
    settings: tuple[Settings, ...]
    encoders: tuple[ServedEncoder, ...]

    def name(self, what: str) -> str:
        """The name of a row about it."""
        return what if self.alone else f"{what} {self.backbone}"

    def embeds(self, encoders: Sequence[ServedEncoder]) -> list[tuple[Embed, PreprocessSpec]]:
        """How each of these encoders embeds, and its preprocessing."""
        return [(_embed_with(encoder), self.spec) for encoder in encoders]


def _embed_with(encoder: ServedEncoder) -> Embed:
    from embedserve_training.run import served

    return lambda pixels_NSSC: served.embed(encoder, pixels_NSSC)


def found_networks(groups: Sequence[Sequence[Subject]]) -> tuple[list[Network], list[Row]]:
    """The networks that the subjects started with, each once, and a row with the reason for each unavailable one."""
    found: dict[tuple[bytes, ...], Network] = {}
    left_out: dict[str, Row] = {}
    for group in groups:
        settings = tuple(subject.settings for subject in group if subject.settings)
        if not settings:
            left_out.setdefault(_NO_SETTINGS, Row.left_out("untrained", _NO_SETTINGS))
            continue
        try:
            from embedserve_training.run import served

            encoders = tuple(served.untrained(one) for one in settings)
        except ImportError:
            left_out.setdefault(_NO_TORCH, Row.left_out("untrained", _NO_TORCH))
            continue
        except InvalidInput as error:
            left_out.setdefault(error.message, Row.left_out("untrained", error.message))
            continue
        network = Network(
            backbone=settings[0].backbone, alone=True, spec=group[0].spec, settings=settings, encoders=encoders
        )
        found.setdefault(tuple(_digest(encoder) for encoder in encoders), network)
    alone = len(found) == 1
    return [replace(network, alone=alone) for network in found.values()], list(left_out.values())


def _digest(encoder: ServedEncoder) -> bytes:
    """Equal for networks with equal weights: two methods may start with the same one."""
    digest = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.digest()


def untrained_rows(bench: Bench, network: Network) -> list[Row]:
    """The network before training, as it is and with the whitening layer of a trained encoder.

    Whitening needs no training and gains many points by itself: a comparison with an encoder that has it and a network
    that has not would mistake the gain for learning.
    """
    from embedserve_training.networks.whitening import fit_to_images
    from embedserve_training.run.served import ServedEncoder

    pixels_NSSC, size_px = bench.loaded(network.spec).train_NSSC, network.spec.size_px
    whitened = [
        ServedEncoder(encoder.backbone, fit_to_images(encoder.backbone, pixels_NSSC, size_px)).eval()
        for encoder in network.encoders
    ]
    return [
        bench.row(
            network.name("untrained"), network.embeds(network.encoders), "the same network and seed before training"
        ),
        bench.row(network.name("untrained, whitened"), network.embeds(whitened), "the same with a whitening layer"),
    ]


def supervised_row(bench: Bench, network: Network, epochs: int) -> Row:
    """The same network trained on the labels of the images to search in."""
    from embedserve_training.evaluate.supervised import train_supervised

    loaded = bench.loaded(network.spec)
    encoders: list[ServedEncoder] = []
    right: list[float] = []
    for settings in network.settings:
        encoder = train_supervised(
            settings, loaded.train_NSSC, loaded.train_labels_N, epochs=epochs, report=bench.report
        )
        encoders.append(encoder)
        right.append(float((encoder.classify(loaded.test_MSSC) == loaded.test_labels_M).mean()))
    own = Figure.of(right)
    deviation = "" if own.std is None else f" ± {100 * own.std:.1f}"
    passes = f"{epochs} {'epoch' if epochs == 1 else 'epochs'}"
    note = f"trained on the labels for {passes}; its own classifier is right for {100 * own.mean:.1f}{deviation} %"
    return bench.row(network.name("supervised"), network.embeds(encoders), note)
