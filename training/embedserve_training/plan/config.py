"""The settings that a user may give for a run, and those that the run uses. This module imports no torch.

``TrainConfig`` holds what the user gave (None: not given), ``Settings`` what is used; ``plan`` turns one into the
other. Both have the same fields; the sentence beside each is its help text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from embedserve.errors import InvalidInput
from embedserve_training.augment import PRESETS
from embedserve_training.plan.image_settings import BEFORE, COLOURS, FITS, check_images
from embedserve_training.plan.sizes import SMALL_SIDE_PX

METHODS = ("simclr", "moco", "barlow-twins", "instance-discrimination", "cpc")
OPTIMIZERS = ("adamw", "sgd", "lars")
AUGMENTATIONS = tuple(PRESETS)
DEVICES = ("auto", "cpu", "cuda", "mps")
BACKBONES = (
    *("small-cnn", "resnet18", "resnet34", "resnet50"),
    *("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny"),
)
"""Those that a shell completes; torchvision has more."""
MIN_IMAGES = 16

_PROJECTING = ("simclr", "moco", "barlow-twins", "instance-discrimination")


def _field(default: Any, help_text: str, methods: tuple[str, ...] = METHODS) -> Any:
    return field(default=default, metadata={"help": help_text, "methods": methods})


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The settings that the user gives; None leaves the choice to the recipe and the plan."""

    method: str = _field("simclr", f"Training method: {', '.join(METHODS)}.")
    recipe: str | None = _field(
        None,
        "Set of settings to start from: a name such as simclr-imagenet, or a TOML file (auto: by method and network).",
    )
    backbone: str | None = _field(
        None,
        "Network to train: small-cnn or a torchvision model (auto: small-cnn for images below 64 px, on a CPU below"
        " 128 px or where time is short; else resnet18).",
    )
    epochs: int | None = _field(None, "Passes over all images (100 unless minutes are given).")
    minutes: float | None = _field(None, "Minutes to train for; the schedule fits itself to them.")
    batch_size: int | None = _field(None, "Images per step, over all processes (auto: by device and number of images).")
    accumulate: int | None = _field(
        None,
        "Parts in which a batch is computed one after another, to save memory; for moco and"
        " instance-discrimination only.",
    )
    size_px: int | None = _field(
        None, "Side of the square that the encoder sees (auto: from the images, and on a CPU from the minutes)."
    )
    fit: str | None = _field(
        None,
        "How a picture that is not square meets the square: crop (its centre), squeeze (the whole, with another aspect)"
        " or pad (the whole, with a border of pad_colour) (auto: crop).",
    )
    pad_colour: str | None = _field(
        None, "Colour of what pad adds: white, black, grey, #rrggbb or r,g,b (auto: that of the images' borders)."
    )
    colour: str | None = _field(
        None, "srgb: convert colours to sRGB where a file has another profile; stored: take its numbers as they are."
    )
    value_range: str | None = _field(
        None,
        "What becomes black and white of images with more than 8 bits: full (all that the bits can hold), tag (what the"
        " file says) or two numbers, as in 0,4095 (auto: from the images).",
    )
    bands: str | None = _field(
        None, "Which bands are red, green and blue, or grey, counted from 1, as in 4,3,2 (auto: as the file says)."
    )
    augmentation: str | None = _field(
        None,
        f"Preset of augmentations: {', '.join(AUGMENTATIONS)} (auto: small for images of up to {SMALL_SIDE_PX} px).",
    )
    crop_min: float | None = _field(
        None, "Smallest share of an image's area that a view shows, 0–1 (auto: that of the preset)."
    )
    tau: float | None = _field(
        None, "Temperature of the contrastive loss.", ("simclr", "moco", "instance-discrimination")
    )
    projector_layers: int | None = _field(None, "Linear layers of the projection head.", _PROJECTING)
    projector_hidden: int | None = _field(
        None, "Width of the projection head's hidden layers; 0: that of the embedding.", _PROJECTING
    )
    projector_dim: int | None = _field(None, "Dimension of the vectors that the loss compares.", _PROJECTING)
    queue_size: int | None = _field(
        None, "Keys of earlier images that serve as negatives; at most half the number of images.", ("moco",)
    )
    key_momentum: float | None = _field(
        None, "Momentum of the key encoder, 0–1: the share of its weights that a step keeps.", ("moco",)
    )
    symmetric: bool | None = _field(None, "Whether each view is query and key in turn.", ("moco",))
    bn_splits: int | None = _field(
        None,
        "Parts of a process's batch that batch-norm normalises separately, as if each were on its own GPU.",
        ("moco",),
    )
    off_diagonal: float | None = _field(
        None, "Weight of the off-diagonal of the cross-correlation, λ.", ("barlow-twins",)
    )
    noise_samples: int | None = _field(
        None,
        "Other images that each image is compared with, drawn at random; 0: all of them.",
        ("instance-discrimination",),
    )
    bank_momentum: float | None = _field(
        None,
        "Momentum of the memory bank, 0–1: the share of a stored embedding that a step keeps.",
        ("instance-discrimination",),
    )
    proximal: float | None = _field(
        None,
        "Weight of the term that pulls an embedding towards the stored one of its image.",
        ("instance-discrimination",),
    )
    patch_px: int | None = _field(None, "Side of the overlapping patches that an image is cut into.", ("cpc",))
    patch_grid: int | None = _field(None, "Patches along each side of the image.", ("cpc",))
    predict_steps: int | None = _field(None, "Rows of patches that are predicted.", ("cpc",))
    directions: int | None = _field(
        None, "Directions to predict in: 1 (downwards), 2 (and upwards) or 4 (and sideways).", ("cpc",)
    )
    optimizer: str | None = _field(None, f"Optimiser: {', '.join(OPTIMIZERS)}.")
    lr: float | None = _field(None, "Highest learning rate; instead of base_lr and lr_scaling.")
    base_lr: float | None = _field(None, "Highest learning rate at 256 images per step.")
    lr_scaling: str | None = _field(None, "How base_lr grows with the batch: sqrt, linear or none.")
    bias_lr: float | None = _field(
        None, "Learning rate of biases and batch-norm as a share of that of the other weights."
    )
    weight_decay: float | None = _field(None, "Weight decay.")
    decayed: str | None = _field(
        None, "What weight decay applies to: matrices (and filters), or all (biases and batch-norm too)."
    )
    clip_norm: float | None = _field(
        None, "Largest gradient norm; a larger gradient is scaled down to it. 0: no limit."
    )
    warmup: float | None = _field(None, "Share of the run over which the learning rate rises, 0–1.")
    lr_drops: str | None = _field(
        None,
        "Shares of the run after which the learning rate is divided by ten, as in 0.6,0.8; empty: it falls"
        " along a cosine.",
    )
    lr_end: float | None = _field(None, "Learning rate at the end of the cosine as a share of the highest.")
    whiten: bool | None = _field(
        None,
        "Whether the encoder ends with a linear layer, fitted to the training images without labels, after which"
        " all directions have the same variance (auto: yes).",
    )
    precision: str | None = _field(None, "Number format of the network: fp32 or bf16 (auto: bf16 on GPUs).")
    compile: bool | None = _field(
        None, "Compile the network first (torch.compile): it takes minutes, then steps are faster."
    )
    device: str = _field("auto", "Where to train: auto, cpu, cuda or mps.")
    workers: int | None = _field(None, "Threads that decode images (auto: one per core, up to 16).")
    seed: int = _field(0, "Seed of every random number of the run.")

    def __post_init__(self) -> None:
        _check_choice(self, "method", METHODS)
        check_values(self)
        for entry in fields(self):
            given = getattr(self, entry.name)
            if given != entry.default and self.method not in entry.metadata["methods"]:
                raise InvalidInput(
                    f"{entry.name} has no meaning for {self.method}",
                    hint=f"it belongs to {', '.join(entry.metadata['methods'])}; leave it out, or choose that --method",
                )


def applies(name: str, method: str) -> bool:
    """Whether a setting has a meaning for a method."""
    return any(entry.name == name and method in entry.metadata["methods"] for entry in fields(TrainConfig))


def drops(lr_drops: str) -> tuple[float, ...]:
    """The shares of the run in an ``lr_drops`` setting, in increasing order.

    Raises:
        InvalidInput: it is not a list of increasing shares.
    """
    try:
        shares = tuple(float(part) for part in lr_drops.split(",") if part.strip())
    except ValueError:
        shares = (math.nan,)
    if not all(0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
        raise InvalidInput(f"lr_drops is {lr_drops!r}; it must be increasing shares of the run, as in 0.6,0.8")
    return shares


ALTERNATIVES = {"epochs": "minutes", "minutes": "epochs", "lr": "base_lr", "base_lr": "lr"}
"""Pairs of settings of which one replaces the other."""


def check_values(config: Any) -> None:
    """Check that each value of a TrainConfig, or of a recipe's settings, is within its range; None is not checked.

    Raises:
        InvalidInput: one is not, or two are given of which one replaces the other.
    """
    for one, other in (("epochs", "minutes"), ("lr", "base_lr"), ("lr", "lr_scaling")):
        values = getattr(config, one), getattr(config, other)
        if None not in values:
            raise InvalidInput(
                f"both {one} = {values[0]} and {other} = {values[1]} were given", hint="give one of the two"
            )
    positive = (
        "epochs", "minutes", "lr", "base_lr", "bias_lr", "tau", "workers", "projector_layers", "projector_dim",
        "accumulate", "queue_size", "bn_splits", "off_diagonal", "patch_px", "predict_steps",
    )  # fmt: skip
    for name in positive:
        _check(config, name, lambda value: value > 0 and math.isfinite(value), "greater than 0")
    for name in ("weight_decay", "clip_norm", "proximal", "projector_hidden", "noise_samples"):
        _check(config, name, lambda value: value >= 0 and math.isfinite(value), "at least 0")
    for name in ("key_momentum", "bank_momentum", "lr_end"):
        _check(config, name, lambda value: 0 <= value <= 1, "within 0–1")
    _check(config, "batch_size", lambda value: value >= 2, "at least 2")
    _check(config, "patch_grid", lambda value: value >= 2, "at least 2")
    _check(config, "size_px", lambda value: 8 <= value <= 4096, "within 8–4096")
    _check(config, "crop_min", lambda value: 0 < value <= 1, "within 0–1")
    _check(config, "warmup", lambda value: 0 <= value < 1, "within 0–1")
    _check(config, "seed", lambda value: 0 <= value < 2**31, "within 0–2147483647")
    _check(config, "directions", lambda value: value in (1, 2, 4), "1, 2 or 4")
    _check_choice(config, "fit", FITS)
    _check_choice(config, "colour", COLOURS)
    check_images(config)
    _check_choice(config, "augmentation", AUGMENTATIONS)
    _check_choice(config, "optimizer", OPTIMIZERS)
    _check_choice(config, "lr_scaling", ("sqrt", "linear", "none"))
    _check_choice(config, "decayed", ("matrices", "all"))
    _check_choice(config, "precision", ("fp32", "bf16"))
    _check_choice(config, "device", DEVICES)
    if config.lr_drops is not None:
        drops(config.lr_drops)


def _check(config: Any, name: str, holds: Callable[[Any], bool], rule: str) -> None:
    value = getattr(config, name)
    if value is not None and not holds(value):
        raise InvalidInput(f"{name} is {value}; it must be {rule}")


def _check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value is not None and value not in choices:
        from embedserve.nearest import meant  # kept out of what --help loads

        raise InvalidInput(f"{name} is {value!r}", hint=meant(str(value), choices, f"one of: {', '.join(choices)}"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a run uses: every field of ``TrainConfig`` with its effective value.

    Of ``epochs`` and ``minutes`` the one that is not the budget is zero, and so is every setting that the method lacks.
    """

    method: str
    recipe: str
    backbone: str
    epochs: int
    minutes: float
    batch_size: int
    accumulate: int
    size_px: int
    fit: str
    pad_colour: str
    colour: str
    value_range: str
    bands: str
    augmentation: str
    crop_min: float
    tau: float
    projector_layers: int
    projector_hidden: int
    projector_dim: int
    queue_size: int
    key_momentum: float
    symmetric: bool
    bn_splits: int
    off_diagonal: float
    noise_samples: int
    bank_momentum: float
    proximal: float
    patch_px: int
    patch_grid: int
    predict_steps: int
    directions: int
    optimizer: str
    lr: float
    base_lr: float
    lr_scaling: str
    bias_lr: float
    weight_decay: float
    decayed: str
    clip_norm: float
    warmup: float
    lr_drops: str
    lr_end: float
    whiten: bool
    precision: str
    compile: bool
    device: str
    workers: int
    seed: int

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Settings:
        """The settings in a run's plan or an encoder's metadata; fields of newer versions are ignored.

        Those about images are missing in documents from before them; they are then what was done without them.

        Raises:
            TypeError: a field is missing.
        """
        known = {entry.name for entry in fields(cls)}
        return cls(**{name: value for name, value in {**BEFORE, **document}.items() if name in known})

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)
