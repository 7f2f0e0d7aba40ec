"""The settings that neither the user nor a chosen recipe gives: chosen from the images, the machine and the network.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from embedserve.errors import InvalidInput
from embedserve_training.augment import PRESETS
from embedserve_training.plan import cost, recipes, sizes
from embedserve_training.plan.config import TrainConfig, drops
from embedserve_training.plan.image_facts import PictureFacts, crop_min_of_padded, crop_reason, value_range
from embedserve_training.plan.sources import SettingSources

ONE_BATCH = {
    "simclr": "its negatives are the other images of the batch, so two half batches do not equal one batch",
    "barlow-twins": "its cross-correlation is taken over the batch, so two half batches do not equal one batch",
    "cpc": "its negatives are patches of the other images of the batch, so two half batches do not equal one batch",
}
"""Methods whose gradients cannot be accumulated, and why."""
_PRESETS = {
    "simclr": "photo",
    "moco": "moco-v2",
    "barlow-twins": "barlow-twins",
    "instance-discrimination": "moco-v1",
    "cpc": "moco-v1",
}
"""The preset of each method for images that are not small: the published one. CPC's makes all images grey, so its
encoder would never see the colours that it is later given; it gets the preset for methods with a single view."""
FIXED: dict[str, tuple[Any, str]] = {
    "bias_lr": (1.0, "as the other weights"),
    "decayed": ("matrices", ""),
    "clip_norm": (0.0, "gradients are not clipped"),
    "warmup": (0.1, ""),
    "lr_drops": ("", "the rate falls along a cosine"),
    "lr_end": (0.0, ""),
    "whiten": (True, "better neighbours by cosine, see embedserve_training/networks/whitening.py"),
    "compile": (False, ""),
}
"""Defaults that depend on nothing, each with a reason where one is needed."""
_NO_SAMPLING_UP_TO = 200_000
"""Up to this many images Instance Discrimination compares with all of them; the sum over more costs too much."""
_LARGEST_AUTO_BATCH = 1024
"""Largest batch that is chosen for several processes: the published learning rates do not hold for much larger ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What ``plan`` needs to know about the images and the machine."""

    images: int
    median_side_px: int
    """Median of the images' shorter sides."""
    grey: bool = False
    """Whether no image has colour."""
    cuda: bool = False
    mps: bool = False
    cores: int = 1
    processes: int = 1
    """Processes that train together."""
    pictures: PictureFacts = field(default_factory=PictureFacts)
    """Shapes, borders, value ranges and bands of the images."""
    files: int = 0
    """Image files found, readable or not, by which time is estimated before they are decoded; 0: as ``images``."""
    gflop_per_s: float = 0.0
    """Measured speed of training in one process; 0: not measured, and no choice depends on time."""


class Defaults(SettingSources):
    """All settings of one run, settled in the order in which they depend on each other.

    Args:
        config: what the user gave.
        facts: about the images and the machine.
        from_environment: names of the settings of ``config`` that environment variables gave, rather than flags.
    """

    def __init__(self, config: TrainConfig, facts: Facts, from_environment: Collection[str]) -> None:
        super().__init__(config, from_environment)
        self.facts = facts
        self.passes: float | None = None
        """Passes over the images that are expected to fit into the minutes; None if not known."""

    def settle_all(self) -> None:
        """Settle every setting.

        Raises:
            InvalidInput: the recipe does not exist or is for another method, or values contradict each other.
        """
        chosen = self.from_user("recipe")
        if chosen is not None:
            self.use(recipes.load(chosen))
        self._device()
        self._budget()
        self._shape()
        self._usual_recipe()
        self._images()
        self._views()
        self._batch()
        self._method()
        self._learning_rate()
        for entry in fields(TrainConfig):
            self._settle_fixed(entry.name)
        self._check_schedule()

    def _device(self) -> None:
        if self.facts.cuda:
            self.auto("device", "cuda", "there is a CUDA GPU")
        elif self.facts.mps:
            self.auto("device", "mps", "there is an Apple GPU")
        else:
            self.auto("device", "cpu", "there is no GPU")
        cuda = self.value("device") == "cuda"
        self.auto("precision", "bf16" if cuda else "fp32", "device " + self.value("device"))
        cores = self.facts.cores
        self.auto("workers", min(cores, 16), f"{cores} core{'s' if cores > 1 else ''}")

    def _shape(self) -> None:
        """Settle the side and the network: by the images, and by the minutes where the speed of the CPU is known."""
        side, on_cpu = self.facts.median_side_px, self.value("device") == "cpu"
        if self.settle_given("size_px"):
            size = self.value("size_px")
            self.auto("backbone", sizes.network_for(size, on_cpu=on_cpu), f"images of {size} px")
            self.passes = self._passes(self.value("backbone"), size)
            return
        given = self.settle_given("backbone")
        backbone = self.value("backbone") if given else sizes.network_for(side, on_cpu=on_cpu)
        size = sizes.usual_side_px(side, backbone, on_cpu=on_cpu)
        why = f"median side {side} px"
        if on_cpu and size < side:
            why += ", training on the CPU"
        choices = [(backbone, size)]
        if not given or backbone == sizes.SMALL_CNN:
            choices += [(sizes.SMALL_CNN, smaller) for smaller in sizes.smaller_sides_px(size)]
        passes = [self._passes(*choice) for choice in choices]
        enough = (index for index, count in enumerate(passes) if count is None or count >= cost.PASSES)
        chosen = next(enough, len(choices) - 1)
        self.passes = passes[chosen]
        (network, size), usual = choices[chosen], passes[0]
        if self.passes is not None:
            why += f"; about {_passes_in(self.passes, self.value('minutes'))}"
        self.settle("size_px", size, "auto", why)
        why = f"images of {size} px"
        if network != backbone and usual is not None:
            why += f"; {backbone} would make about {_passes_in(usual, self.value('minutes'))}"
        self.auto("backbone", network, why)

    def _passes(self, backbone: str, size_px: int) -> float | None:
        """Passes over the images that fit into the minutes; None if that is not known."""
        facts, minutes = self.facts, self.value("minutes")
        if not minutes or not facts.gflop_per_s or self.value("device") != "cpu":
            return None
        return cost.passes_in(
            minutes,
            self.method,
            backbone,
            size_px,
            images=facts.files or facts.images,
            gflop_per_s=facts.gflop_per_s * facts.processes,
        )

    def _usual_recipe(self) -> None:
        """Use the recipe for this network, where the chosen one leaves settings open."""
        backbone = self.value("backbone")
        usual = recipes.load(f"{self.method}-{'cpu' if backbone == sizes.SMALL_CNN else 'gpu'}")
        self.auto("recipe", usual.name, f"for {backbone}")
        if self.from_user("recipe") != usual.name:
            self.use(usual)

    def _images(self) -> None:
        """Settle how the samples of a file become the square that the encoder sees."""
        seen = self.facts.pictures
        self.auto("fit", "crop", crop_reason(seen))
        if self.value("fit") != "pad":
            if (given := self.from_user("pad_colour")) is not None:
                raise InvalidInput(
                    f"pad_colour is {given!r}, but fit is {self.value('fit')}", hint="add --fit pad, or leave it out"
                )
            self.settle("pad_colour", "white", "auto", "nothing is padded")
        else:
            plain = seen.border_colour
            self.auto("pad_colour", plain or "white", "that of most borders" if plain else "borders have no one colour")
        self.auto("colour", "srgb", "profiles are followed" + seen.noted("profile", "colour", "sRGB"))
        self.auto("value_range", *value_range(seen))
        self.auto("bands", "", "as the files say" + seen.noted("band"))

    def _views(self) -> None:
        size = self.value("size_px")
        small = sizes.is_small(size)
        self.auto("augmentation", "small" if small else _PRESETS[self.method], f"images of {size} px")
        # A crop of 8 % of a grey image of 28 pixels shows almost nothing. Fashion-MNIST, 3,000 images, small-cnn, share
        # of the same label among the 10 nearest: after 84,000 images 68.9 % with crops from 8 %, 71.3 % from 30 %,
        # 72.2 % from 50 %; with today's network, after 59,000 images, 73.7 % from 40 % and 72.9 % from 60 %.
        if self.value("augmentation") == "small" and self.facts.grey:
            self.auto("crop_min", 0.4, "small images without colour")
        else:
            preset = self.value("augmentation")
            self.auto("crop_min", min(view.crop_scale[0] for view in PRESETS[preset]), f"that of {preset}")
        least = crop_min_of_padded(self.facts.pictures.longest_aspect) if self.value("fit") == "pad" else 0.0
        if self.from_user("crop_min") is None and self.value("crop_min") < least:
            self.settle("crop_min", least, "auto", "with less a view could be nothing but padding")

    def _budget(self) -> None:
        if self.from_user("minutes") is not None or self.from_recipe("minutes") is not None:
            self.settle_given("minutes")
            self.settle("epochs", 0, "auto", "the budget is in minutes")
        else:
            self.auto("epochs", 100, "no budget was given")
            self.settle("minutes", 0.0, "auto", "the budget is in epochs")

    # --- The batch and its parts -----------------------------------------------------------------------------------

    def _batch(self) -> None:
        self.auto("accumulate", 1, "the whole batch at once")
        parts = self.value("accumulate")
        if parts > 1 and self.method in ONE_BATCH:
            raise InvalidInput(
                f"accumulate is {parts}, but {self.method} needs the whole batch at once: {ONE_BATCH[self.method]}",
                hint="use more processes (torchrun) or a smaller --batch-size",
            )
        images, processes = self.facts.images, self.facts.processes
        shares = processes * parts
        sharing = f"{processes} process{'es' if processes > 1 else ''}" + (
            f" with {parts} parts each" if parts > 1 else ""
        )
        if images < 2 * shares:
            raise InvalidInput(
                f"{images} images are too few for {sharing}: each needs at least 2",
                hint="use fewer of them",
            )
        given = self.from_user("batch_size")
        if given is None:
            self._choose_batch(shares, sharing)
        elif given > images:
            raise InvalidInput(
                f"batch_size is {given}, but there are {images} images",
                hint=f"--batch-size {_shared(_power_of_two(images / 2), shares)}, or leave it out",
            )
        elif given % shares or given < 2 * shares:
            raise InvalidInput(
                f"batch_size is {given}, which {sharing} cannot share evenly with at least 2 images each",
                hint=f"--batch-size {_shared(given, shares)}",
            )
        else:
            self.settle_given("batch_size")
        if processes > 1:
            self.explain("batch_size", f"{self.value('batch_size') // processes} on each of {processes} processes")

    def _choose_batch(self, shares: int, sharing: str) -> None:
        """The batch of the recipe, or the usual one; smaller where an epoch would have fewer than four steps."""
        images, processes, recipe = self.facts.images, self.facts.processes, self.from_recipe("batch_size")
        on_cpu, small = self.value("device") == "cpu", sizes.is_small(self.value("size_px"))
        # On a CPU the time of a step grows with the batch, so a smaller batch gives more steps in the same time; a GPU
        # is mostly idle with few small images.
        usual = 128 if on_cpu else 512 if small else 256
        wanted = recipe.value if recipe else min(usual * processes, max(usual, _LARGEST_AUTO_BATCH))
        limit = _power_of_two(images / 4)
        batch = _shared(min(wanted, limit), shares)
        if recipe and batch == wanted:
            self.settle_given("batch_size")
            return
        why = f"images of {self.value('size_px')} px on {self.value('device')}"
        if limit < wanted:
            why = f"at least four steps for {images} images"
        elif batch != wanted:
            why = f"{sharing} share it evenly"
        self.settle("batch_size", batch, "auto", f"{why}; the recipe has {wanted}" if recipe else why)

    # --- Settings of one method ------------------------------------------------------------------------------------

    def _method(self) -> None:
        images = self.facts.images
        if self.method == "moco":
            # With a longer queue an image's own earlier key is among its negatives (facebookresearch/moco#146).
            self.at_most("queue_size", max(images // 2, 1), f"half of {images} images")
            self._splits(self.value("batch_size") // (self.facts.processes * self.value("accumulate")))
        if self.method == "instance-discrimination":
            few = images <= _NO_SAMPLING_UP_TO
            self.auto("noise_samples", 0 if few else 4096, f"all of {images} images" if few else f"{images} images")
        if self.method == "cpc":
            self._patches()

    def _splits(self, images: int) -> None:
        """Settle the number of parts in which batch-norm normalises the images that a process computes at once."""
        given, recipe = self.from_user("bn_splits"), self.from_recipe("bn_splits")
        if given is not None and (images % given or images < 2 * given):
            raise InvalidInput(
                f"bn_splits is {given}, but {images} images cannot be cut into that many equal parts of at least 2",
                hint=f"--set bn_splits={_divisor(images, given)}, or leave it out",
            )
        if given is not None or recipe is None:
            self.auto("bn_splits", 1, "the whole batch at once")
            return
        # Each process normalises its own images, and keys are shuffled over all processes.
        wanted = max(recipe.value // self.facts.processes, 1)
        splits = _divisor(images, wanted)
        if splits == recipe.value:
            self.settle_given("bn_splits")
        elif splits == wanted:
            self.settle(
                "bn_splits", splits, "auto", f"the recipe's {recipe.value} over {self.facts.processes} processes"
            )
        else:
            self.settle("bn_splits", splits, "auto", f"equal parts of {images} images; the recipe has {recipe.value}")

    def _patches(self) -> None:
        size = self.value("size_px")
        small = sizes.is_small(size)
        self.auto("patch_grid", 5 if small else 7, f"images of {size} px")
        patch = min(max(round(size * 3 / 7), 10), size) if small else size // 4
        self.auto("patch_px", patch, f"images of {size} px")
        if self.value("patch_px") > size:
            raise InvalidInput(
                f"patch_px is {self.value('patch_px')}, but images have {size} px", hint=f"--set patch_px={patch}"
            )
        grid = self.value("patch_grid")
        self.at_most("predict_steps", grid - 1, f"a grid of {grid} rows")

    # --- The learning rate -----------------------------------------------------------------------------------------

    def _learning_rate(self) -> None:
        if self.from_user("lr") is not None or self.from_recipe("lr") is not None:
            if self.from_user("lr_scaling") is not None:
                raise InvalidInput(
                    f"lr_scaling is {self.from_user('lr_scaling')}, but the recipe gives lr itself",
                    hint="give the rate to scale: --set base_lr=…",
                )
            self.settle_given("lr")
            self.settle("base_lr", 0.0, "auto", "lr was given")
            self.settle("lr_scaling", "none", "auto", "lr was given")
            return
        self._settle_fixed("base_lr")
        self.auto(
            "lr_scaling", "sqrt", "5 points better than linear for SimCLR at 256 images (arXiv 2002.05709, table B.1)"
        )
        base, scaling, batch = self.value("base_lr"), self.value("lr_scaling"), self.value("batch_size")
        lr, rule = {
            "sqrt": (base * math.sqrt(batch / 256), f"{base:g} · √({batch} / 256)"),
            "linear": (base * batch / 256, f"{base:g} · {batch} / 256"),
            "none": (base, "as base_lr"),
        }[scaling]
        self.settle("lr", lr, "auto", rule)

    def _settle_fixed(self, name: str) -> None:
        """Settle a value that is given, or else its fixed default.

        Raises:
            InvalidInput: there is neither.
        """
        if self.settle_given(name):
            return
        if name not in FIXED:
            raise InvalidInput(f"no recipe gives {name} for {self.method}", hint=f"give it: --set {name}=…")
        value, why = FIXED[name]
        self.settle(name, value, "default", why)

    def _check_schedule(self) -> None:
        shares, warmup = drops(self.value("lr_drops")), self.value("warmup")
        if shares and shares[0] <= warmup:
            raise InvalidInput(
                f"the learning rate rises until {warmup:g} of the run (warmup), but drops at {shares[0]:g} (lr_drops)",
                hint="--set warmup=0",
            )


def _passes_in(passes: float, minutes: float) -> str:
    count = f"{passes:.0f}" if passes >= cost.PASSES else f"{passes:.2g}"
    return f"{count} {'pass' if count == '1' else 'passes'} in {minutes:g} {'minute' if minutes == 1 else 'minutes'}"


def _power_of_two(limit: float) -> int:
    """The largest power of two up to ``limit``, at least 2."""
    return int(max(2, 2 ** math.floor(math.log2(max(limit, 2)))))


def _shared(count: int, shares: int) -> int:
    """The largest number up to ``count`` that can be shared evenly, with at least 2 in each share."""
    return max(count // shares, 2) * shares


def _divisor(count: int, wanted: int) -> int:
    """The largest number of equal parts of ``count``, at most ``wanted``, with at least 4 in each; or 1."""
    return max((parts for parts in range(1, wanted + 1) if count % parts == 0 and count // parts >= 4), default=1)
