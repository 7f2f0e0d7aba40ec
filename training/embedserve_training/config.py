"""What a person may say about a run, what the run then uses, and where each value came from.

``TrainConfig`` holds what was said (None: choose for me), ``Settings`` what is used. ``plan`` leads from one to the
other and gives each value its source, so that nothing is chosen silently. This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from embedserve.errors import InvalidInput

OPTIMIZERS = ("adamw", "sgd", "lars")
AUGMENTATIONS = ("photo", "small")
SMALL_SIDE_PX = 64
"""Images below this side count as small: their own augmentations and network."""
MIN_IMAGES = 16


def _field(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """What a person says about a run; None leaves the choice to ``plan``."""

    method: str = _field("simclr", "Training method.")
    backbone: str | None = _field(
        None, "Network to train: small-cnn or a torchvision model (auto: small-cnn for small images, else resnet18)."
    )
    epochs: int | None = _field(None, "Passes over all images (100 unless minutes are given).")
    minutes: float | None = _field(None, "Minutes to train for; the schedule fits itself to them.")
    batch_size: int | None = _field(None, "Images per step (auto: by device and number of images).")
    size_px: int | None = _field(None, "Side of the square that the encoder sees (auto: from the images).")
    augmentation: str | None = _field(
        None, "Preset of augmentations: photo or small (auto: small for images below 64 px)."
    )
    crop_min: float | None = _field(
        None, "Least share of an image's area that a view shows, 0–1 (auto: as the preset has it)."
    )
    tau: float | None = _field(None, "Temperature of the contrastive loss (auto: by batch size).")
    projector_layers: int = _field(2, "Linear layers of the projection head.")
    projector_hidden: int = _field(0, "Width of the projection head's hidden layers; 0: that of the embedding.")
    projector_dim: int = _field(128, "Numbers that the loss compares.")
    optimizer: str | None = _field(None, "Optimiser: adamw, sgd or lars (auto: by batch size).")
    lr: float | None = _field(None, "Highest learning rate (auto: grows with the square root of the batch size).")
    weight_decay: float | None = _field(
        None, "Weight decay; batch-norm and biases are always left out (auto: by optimiser)."
    )
    warmup: float = _field(0.1, "Share of the run over which the learning rate rises, 0–1.")
    precision: str | None = _field(None, "Number format of the network: fp32 or bf16 (auto: bf16 on GPUs).")
    device: str = _field("auto", "Where to train: auto, cpu, cuda or mps.")
    workers: int | None = _field(None, "Threads that decode images (auto: one per core, up to 16).")
    seed: int = _field(0, "Seed of every random number of the run.")

    def __post_init__(self) -> None:
        if self.epochs is not None and self.minutes is not None:
            raise InvalidInput(
                f"both epochs = {self.epochs} and minutes = {self.minutes:g} were given", hint="give one of the two"
            )
        for name in ("epochs", "minutes", "lr", "tau", "workers", "projector_layers", "projector_dim"):
            _check(self, name, lambda value: value > 0 and math.isfinite(value), "greater than 0")
        _check(self, "batch_size", lambda value: value >= 2, "at least 2")
        _check(self, "size_px", lambda value: 8 <= value <= 4096, "within 8–4096")
        _check(self, "crop_min", lambda value: 0 < value <= 1, "within 0–1")
        _check(self, "warmup", lambda value: 0 <= value < 1, "within 0–1")
        _check(self, "weight_decay", lambda value: value >= 0 and math.isfinite(value), "at least 0")
        _check(self, "projector_hidden", lambda value: value >= 0, "at least 0")
        _check(self, "seed", lambda value: 0 <= value < 2**31, "within 0–2147483647")
        _check_choice(self, "augmentation", AUGMENTATIONS)
        _check_choice(self, "optimizer", OPTIMIZERS)
        _check_choice(self, "precision", ("fp32", "bf16"))
        _check_choice(self, "device", ("auto", "cpu", "cuda", "mps"))


def _check(config: TrainConfig, name: str, holds: Any, rule: str) -> None:
    value = getattr(config, name)
    if value is not None and not holds(value):
        raise InvalidInput(f"{name} is {value}; it has to be {rule}")


def _check_choice(config: TrainConfig, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value is not None and value not in choices:
        raise InvalidInput(f"{name} is {value!r}", hint=f"one of: {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a run uses: every field of ``TrainConfig`` with its effective value.

    Of ``epochs`` and ``minutes`` the one that is not the budget is zero.
    """

    method: str
    backbone: str
    epochs: int
    minutes: float
    batch_size: int
    size_px: int
    augmentation: str
    crop_min: float
    tau: float
    projector_layers: int
    projector_hidden: int
    projector_dim: int
    optimizer: str
    lr: float
    weight_decay: float
    warmup: float
    precision: str
    device: str
    workers: int
    seed: int

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Settings:
        """The settings in a run's plan or an encoder's metadata; fields of newer versions are ignored.

        Raises:
            TypeError: a field is missing.
        """
        known = {entry.name for entry in fields(cls)}
        return cls(**{name: value for name, value in document.items() if name in known})

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What ``plan`` needs to know of the images and the machine."""

    images: int
    median_side_px: int
    """Median of the images' shorter sides."""
    grey: bool = False
    """No image has any colour."""
    cuda: bool = False
    mps: bool = False
    cores: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanEntry:
    """One effective value."""

    name: str
    value: Any
    source: str
    """"default", "auto" or "flag"."""
    why: str = ""
    """How an automatic value came about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run will do."""

    settings: Settings
    entries: tuple[PlanEntry, ...]

    def lines(self) -> list[str]:
        """The plan for a person: one aligned line per value, without the budget that is not used."""
        shown = [entry for entry in self.entries if entry.value or entry.name not in ("epochs", "minutes")]
        width = max(len(entry.name) for entry in shown)
        values = [f"{entry.value:g}" if isinstance(entry.value, float) else str(entry.value) for entry in shown]
        value_width = max(len(value) for value in values)
        return [
            f"{entry.name:<{width}}  {value:<{value_width}}  {entry.source}{f': {entry.why}' if entry.why else ''}"
            for entry, value in zip(shown, values, strict=True)
        ]


def plan(config: TrainConfig, facts: Facts) -> Plan:
    """Every effective value of a run, with its source.

    Raises:
        InvalidInput: the batch is larger than the data.
    """
    auto = _Choices(config, facts).choose()
    values: dict[str, Any] = {}
    entries: list[PlanEntry] = []
    for entry in fields(TrainConfig):
        said = getattr(config, entry.name)
        if entry.name in auto:
            values[entry.name], why = auto[entry.name]
            entries.append(PlanEntry(name=entry.name, value=values[entry.name], source="auto", why=why))
        else:
            values[entry.name] = said
            entries.append(
                PlanEntry(name=entry.name, value=said, source="default" if said == entry.default else "flag")
            )
    return Plan(settings=Settings(**values), entries=tuple(entries))


class _Choices:
    """The automatic values, each with a reason; later ones build on earlier ones."""

    def __init__(self, config: TrainConfig, facts: Facts) -> None:
        self.config = config
        self.facts = facts
        self.chosen: dict[str, tuple[Any, str]] = {}

    def choose(self) -> dict[str, tuple[Any, str]]:
        self._device()
        self._shape()
        self._budget()
        self._batch()
        self._optimisation()
        return self.chosen

    def _value(self, name: str) -> Any:
        return self.chosen[name][0] if name in self.chosen else getattr(self.config, name)

    def _auto(self, name: str, value: Any, why: str) -> None:
        if getattr(self.config, name) in (None, "auto"):
            self.chosen[name] = (value, why)

    def _device(self) -> None:
        if self.facts.cuda:
            self._auto("device", "cuda", "a CUDA GPU is there")
        elif self.facts.mps:
            self._auto("device", "mps", "Apple's GPU is there")
        else:
            self._auto("device", "cpu", "no GPU is there")
        cuda = self._value("device") == "cuda"
        self._auto("precision", "bf16" if cuda else "fp32", "device " + self._value("device"))
        self._auto("workers", min(self.facts.cores, 16), f"{self.facts.cores} cores")

    def _shape(self) -> None:
        side, on_cpu = self.facts.median_side_px, self._value("device") == "cpu"
        # A multiple of 32, the stride of the usual networks, that asks for no more pixels than there are.
        size = max(side, 16) if side < SMALL_SIDE_PX else min(side // 32 * 32, 96 if on_cpu else 224)
        limited = ", training on the CPU" if on_cpu and size == 96 else ""
        self._auto("size_px", size, f"median side {side} px{limited}")
        size = self._value("size_px")
        small = size < SMALL_SIDE_PX
        self._auto("backbone", "small-cnn" if small else "resnet18", f"images of {size} px")
        self._auto("augmentation", "small" if small else "photo", f"images of {size} px")
        # Without colour, and with 28 pixels, a crop of 8 % leaves next to nothing to recognise. Fashion-MNIST, 3,000
        # images, small-cnn, share of the same label among the 10 nearest: after 84,000 images seen 68.9 % with crops
        # from 8 %, 71.3 % from 30 %, 72.2 % from 50 %; with the network as it is now, after 59,000 images, 73.7 % from
        # 40 % and 72.9 % from 60 %.
        if self._value("augmentation") == "small" and self.facts.grey:
            self._auto("crop_min", 0.4, "small images without colour")
        else:
            self._auto("crop_min", 0.08, f"as published for {self._value('augmentation')}")

    def _budget(self) -> None:
        if self.config.minutes is not None:
            self.chosen["epochs"] = (0, "the budget is in minutes")
        elif self.config.epochs is not None:
            self.chosen["minutes"] = (0.0, "the budget is in epochs")
        else:
            self.chosen["epochs"] = (100, "no budget was given")
            self.chosen["minutes"] = (0.0, "the budget is in epochs")

    def _batch(self) -> None:
        images = self.facts.images
        if self.config.batch_size is not None and self.config.batch_size > images:
            raise InvalidInput(
                f"batch_size is {self.config.batch_size}, but there are {images} images",
                hint=f"--batch-size {_power_of_two(images / 2)}, or leave it out",
            )
        on_cpu, small = self._value("device") == "cpu", self._value("size_px") < SMALL_SIDE_PX
        # On a CPU the time for a step grows with the batch, so smaller ones take more steps in the same time; a GPU is
        # idle most of the time with few small images.
        usual = 128 if on_cpu else 512 if small else 256
        batch = min(usual, _power_of_two(images / 4))
        usually = f"images of {self._value('size_px')} px on {self._value('device')}"
        why = usually if batch == usual else f"at least four steps for {images} images"
        self._auto("batch_size", batch, why)

    def _optimisation(self) -> None:
        batch = self._value("batch_size")
        self._auto("tau", 0.2 if batch < 1024 else 0.1, f"batch of {batch}")
        self._auto("optimizer", "lars" if batch >= 1024 else "adamw", f"batch of {batch}")
        optimizer = self._value("optimizer")
        # The square root is worth 5 points over the linear rule at 256 images (arXiv 2002.05709, table B.1). LARS has
        # the published factor: 0.075 · √batch. AdamW's for small-cnn is measured: Fashion-MNIST, 3,000 images, batch of
        # 128, 59,000 images seen, kNN 77.1 % at 0.0014, 78.5 % at 0.004, 79.1 % at 0.01. Deeper networks get a usual,
        # more careful one; that of SGD is not measured.
        small_cnn = self._value("backbone") == "small-cnn"
        at_256 = {"lars": 1.2, "sgd": 0.3, "adamw": 0.01 if small_cnn else 0.002}[optimizer]
        rule = f"{at_256:g} · √(batch / 256) for {optimizer}" + (" and small-cnn" if small_cnn else "")
        self._auto("lr", at_256 * math.sqrt(batch / 256), rule)
        self._auto("weight_decay", {"lars": 1e-4, "sgd": 1e-4, "adamw": 0.05}[optimizer], f"usual for {optimizer}")


def _power_of_two(limit: float) -> int:
    """The greatest power of two that is at most ``limit``, and at least 2."""
    return int(max(2, 2 ** math.floor(math.log2(max(limit, 2)))))
