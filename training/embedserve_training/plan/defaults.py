"""What a run uses where nobody says it: chosen from the images, the machine and the recipe for the network.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields

from embedserve.errors import InvalidInput
from embedserve_training.augment import PRESETS
from embedserve_training.plan import recipes
from embedserve_training.plan.config import SMALL_SIDE_PX, TrainConfig, drops
from embedserve_training.plan.sources import SettingSources

ONE_BATCH = {
    "simclr": "its negatives are the other images of the batch, so two half batches are not one whole batch",
    "barlow-twins": "its cross-correlation is taken over the whole batch, so two half batches are not one whole batch",
    "cpc": "its negatives are patches of the other images of the batch, so two half batches are not one whole batch",
}
"""Why gradients of these methods cannot be accumulated."""
_PRESETS = {
    "simclr": "photo",
    "moco": "moco-v2",
    "barlow-twins": "barlow-twins",
    "instance-discrimination": "moco-v1",
    "cpc": "moco-v1",
}
"""The preset of each method for images that are not small: the published one. CPC's makes all images grey, so its
encoder would never have seen the colours that it is served; it gets the one for methods with a single view."""
_ALL_REMEMBERED = 200_000
"""Up to this many images Instance Discrimination compares to all of them; the sum over more costs too much."""
_MOST_BY_ITSELF = 1024
"""Several processes get no larger batch than this unless it is said: published rates hold for a while only."""


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
    processes: int = 1
    """Processes that train together."""


class Choices(SettingSources):
    """The values of one run, in the order in which they depend on each other.

    Args:
        config: what the person said.
        facts: of the images and the machine.
        from_environment: settings of ``config`` that an environment variable said and not a flag.
    """

    def __init__(self, config: TrainConfig, facts: Facts, from_environment: Collection[str]) -> None:
        super().__init__(config, from_environment)
        self.facts = facts

    def settle_all(self) -> None:
        """Settle every setting.

        Raises:
            InvalidInput: the recipe is not there or for another method, or values do not go together.
        """
        chosen = self.said("recipe")
        if chosen is not None:
            self.use(recipes.load(chosen))
        self._device()
        self._shape()
        self._usual_recipe()
        self._views()
        self._budget()
        self._batch()
        self._method()
        self._learning_rate()
        for entry in fields(TrainConfig):
            self.settle(entry.name)
        self._check_schedule()

    def _device(self) -> None:
        if self.facts.cuda:
            self.auto("device", "cuda", "a CUDA GPU is there")
        elif self.facts.mps:
            self.auto("device", "mps", "Apple's GPU is there")
        else:
            self.auto("device", "cpu", "no GPU is there")
        cuda = self.value("device") == "cuda"
        self.auto("precision", "bf16" if cuda else "fp32", "device " + self.value("device"))
        cores = self.facts.cores
        self.auto("workers", min(cores, 16), f"{cores} core{'s' if cores > 1 else ''}")

    def _shape(self) -> None:
        side, on_cpu = self.facts.median_side_px, self.value("device") == "cpu"
        # A multiple of 32, the stride of the usual networks, that asks for no more pixels than there are.
        size = max(side, 16) if side < SMALL_SIDE_PX else min(side // 32 * 32, 96 if on_cpu else 224)
        limited = ", training on the CPU" if on_cpu and size == 96 else ""
        self.auto("size_px", size, f"median side {side} px{limited}")
        size = self.value("size_px")
        self.auto("backbone", "small-cnn" if size < SMALL_SIDE_PX else "resnet18", f"images of {size} px")

    def _usual_recipe(self) -> None:
        """Take what the chosen recipe leaves open from the one for this network."""
        backbone = self.value("backbone")
        usual = recipes.load(f"{self.method}-{'cpu' if backbone == 'small-cnn' else 'gpu'}")
        self.auto("recipe", usual.name, f"for {backbone}")
        if self.said("recipe") != usual.name:
            self.use(usual)

    def _views(self) -> None:
        size = self.value("size_px")
        small = size < SMALL_SIDE_PX
        self.auto("augmentation", "small" if small else _PRESETS[self.method], f"images of {size} px")
        # Without colour, and with 28 pixels, a crop of 8 % leaves next to nothing to recognise. Fashion-MNIST, 3,000
        # images, small-cnn, share of the same label among the 10 nearest: after 84,000 images seen 68.9 % with crops
        # from 8 %, 71.3 % from 30 %, 72.2 % from 50 %; with the network as it is now, after 59,000 images, 73.7 % from
        # 40 % and 72.9 % from 60 %.
        if self.value("augmentation") == "small" and self.facts.grey:
            self.auto("crop_min", 0.4, "small images without colour")
        else:
            preset = self.value("augmentation")
            self.auto("crop_min", min(view.crop_scale[0] for view in PRESETS[preset]), f"that of {preset}")

    def _budget(self) -> None:
        if self.said("minutes") is not None or self.from_recipe("minutes") is not None:
            self.given("minutes")
            self.put("epochs", 0, "auto", "the budget is in minutes")
        else:
            self.auto("epochs", 100, "no budget was given")
            self.put("minutes", 0.0, "auto", "the budget is in epochs")

    # --- The batch, and who computes which part of it --------------------------------------------------------------

    def _batch(self) -> None:
        self.auto("accumulate", 1, "the whole batch at once")
        parts = self.value("accumulate")
        if parts > 1 and self.method in ONE_BATCH:
            raise InvalidInput(
                f"accumulate is {parts}, but {self.method} needs its batch as a whole: {ONE_BATCH[self.method]}",
                hint="use more processes (torchrun) or a smaller --batch-size",
            )
        images, processes = self.facts.images, self.facts.processes
        shares = processes * parts
        sharing = f"{processes} process{'es' if processes > 1 else ''}" + (
            f" with {parts} parts each" if parts > 1 else ""
        )
        if images < 2 * shares:
            raise InvalidInput(
                f"{images} images are too few for {sharing}, of which each needs at least 2",
                hint="use fewer of them",
            )
        said = self.said("batch_size")
        if said is None:
            self._choose_batch(shares, sharing)
        elif said > images:
            raise InvalidInput(
                f"batch_size is {said}, but there are {images} images",
                hint=f"--batch-size {_shared(_power_of_two(images / 2), shares)}, or leave it out",
            )
        elif said % shares or said < 2 * shares:
            raise InvalidInput(
                f"batch_size is {said}, which {sharing} cannot share evenly, at least 2 images in each",
                hint=f"--batch-size {_shared(said, shares)}",
            )
        else:
            self.given("batch_size")
        if processes > 1:
            self.explain("batch_size", f"{self.value('batch_size') // processes} on each of {processes} processes")

    def _choose_batch(self, shares: int, sharing: str) -> None:
        """As many as the recipe has, or as is usual, if there are enough images for four steps per epoch."""
        images, processes, recipe = self.facts.images, self.facts.processes, self.from_recipe("batch_size")
        on_cpu, small = self.value("device") == "cpu", self.value("size_px") < SMALL_SIDE_PX
        # On a CPU the time for a step grows with the batch, so smaller ones take more steps in the same time; a GPU is
        # idle most of the time with few small images.
        usual = 128 if on_cpu else 512 if small else 256
        wanted = recipe.value if recipe else min(usual * processes, max(usual, _MOST_BY_ITSELF))
        limit = _power_of_two(images / 4)
        batch = _shared(min(wanted, limit), shares)
        if recipe and batch == wanted:
            self.given("batch_size")
            return
        why = f"images of {self.value('size_px')} px on {self.value('device')}"
        if limit < wanted:
            why = f"at least four steps for {images} images"
        elif batch != wanted:
            why = f"{sharing} share it evenly"
        self.put("batch_size", batch, "auto", f"{why}; the recipe has {wanted}" if recipe else why)

    # --- What belongs to one method --------------------------------------------------------------------------------

    def _method(self) -> None:
        images = self.facts.images
        if self.method == "moco":
            # A longer queue holds the image's own earlier key among the negatives (facebookresearch/moco#146).
            self.at_most("queue_size", max(images // 2, 1), f"half of {images} images")
            self._splits(self.value("batch_size") // (self.facts.processes * self.value("accumulate")))
        if self.method == "instance-discrimination":
            few = images <= _ALL_REMEMBERED
            self.auto("noise_samples", 0 if few else 4096, f"all of {images} images" if few else f"{images} images")
        if self.method == "cpc":
            self._patches()

    def _splits(self, images: int) -> None:
        """In how many parts batch-norm sees the images that a process computes at once."""
        said, recipe = self.said("bn_splits"), self.from_recipe("bn_splits")
        if said is not None and (images % said or images < 2 * said):
            raise InvalidInput(
                f"bn_splits is {said}, but {images} images cannot be cut into so many equal parts of at least 2",
                hint=f"--set bn_splits={_divisor(images, said)}, or leave it out",
            )
        if said is not None or recipe is None:
            self.auto("bn_splits", 1, "the whole batch at once")
            return
        # Each process is a part of its own, and keys are shuffled over all of them.
        wanted = max(recipe.value // self.facts.processes, 1)
        splits = _divisor(images, wanted)
        if splits == recipe.value:
            self.given("bn_splits")
        elif splits == wanted:
            self.put("bn_splits", splits, "auto", f"the recipe's {recipe.value} over {self.facts.processes} processes")
        else:
            self.put("bn_splits", splits, "auto", f"equal parts of {images} images; the recipe has {recipe.value}")

    def _patches(self) -> None:
        size = self.value("size_px")
        small = size < SMALL_SIDE_PX
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
        if self.said("lr") is not None or self.from_recipe("lr") is not None:
            if self.said("lr_scaling") is not None:
                raise InvalidInput(
                    f"lr_scaling is {self.said('lr_scaling')}, but the recipe gives lr itself",
                    hint="say what is to be scaled: --set base_lr=…",
                )
            self.given("lr")
            self.put("base_lr", 0.0, "auto", "lr was given")
            self.put("lr_scaling", "none", "auto", "lr was given")
            return
        self.settle("base_lr")
        self.auto(
            "lr_scaling", "sqrt", "5 points better than linear for SimCLR at 256 images (arXiv 2002.05709, table B.1)"
        )
        base, scaling, batch = self.value("base_lr"), self.value("lr_scaling"), self.value("batch_size")
        lr, rule = {
            "sqrt": (base * math.sqrt(batch / 256), f"{base:g} · √({batch} / 256)"),
            "linear": (base * batch / 256, f"{base:g} · {batch} / 256"),
            "none": (base, "as base_lr"),
        }[scaling]
        self.put("lr", lr, "auto", rule)

    def _check_schedule(self) -> None:
        shares, warmup = drops(self.value("lr_drops")), self.value("warmup")
        if shares and shares[0] <= warmup:
            raise InvalidInput(
                f"the learning rate rises until {warmup:g} of the run (warmup), but drops at {shares[0]:g} (lr_drops)",
                hint="--set warmup=0",
            )


def _power_of_two(limit: float) -> int:
    """The greatest power of two that is at most ``limit``, and at least 2."""
    return int(max(2, 2 ** math.floor(math.log2(max(limit, 2)))))


def _shared(count: int, shares: int) -> int:
    """The greatest number up to ``count`` that can be shared evenly, with at least 2 in each share."""
    return max(count // shares, 2) * shares


def _divisor(count: int, wanted: int) -> int:
    """The greatest number of equal parts of ``count``, at most ``wanted``, that leaves at least 4 in each; or 1."""
    return max((parts for parts in range(1, wanted + 1) if count % parts == 0 and count // parts >= 4), default=1)
