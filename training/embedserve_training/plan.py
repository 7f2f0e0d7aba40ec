"""Every effective value of a run, and where it came from. This module imports no torch.

A flag comes before the recipe, the recipe before what is chosen here from the images and the machine. Nothing is chosen
silently: each value has a source and, where it is not plain, a reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from embedserve.errors import InvalidInput
from embedserve_training import recipes
from embedserve_training.augment import PRESETS
from embedserve_training.config import SMALL_SIDE_PX, Settings, TrainConfig, applies
from embedserve_training.recipes import Recipe

_ONE_BATCH = {
    "simclr": "its negatives are the other images of the batch, so two half batches are not one whole batch",
    "barlow-twins": "its cross-correlation is taken over the whole batch, so two half batches are not one whole batch",
    "cpc": "its negatives are patches of the other images of the batch, so two half batches are not one whole batch",
}
"""Why gradients of these methods cannot be accumulated."""
_ALL_REMEMBERED = 200_000
"""Up to this many images Instance Discrimination compares to all of them; the sum over more costs too much."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanEntry:
    """One effective value."""

    name: str
    value: Any
    source: str
    """"default", "auto", "recipe" or "flag"."""
    why: str = ""
    """How an automatic value came about, or where a recipe has it from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run will do."""

    settings: Settings
    entries: tuple[PlanEntry, ...]

    def lines(self) -> list[str]:
        """The plan for a person: one aligned line per value, without what the run does not use."""
        method = self.settings.method
        shown = [
            entry
            for entry in self.entries
            if applies(entry.name, method) and (entry.value or entry.name not in ("epochs", "minutes"))
        ]
        width = max(len(entry.name) for entry in shown)
        values = [_shown(entry.value) for entry in shown]
        value_width = max(len(value) for value in values)
        return [
            f"{entry.name:<{width}}  {value:<{value_width}}  {entry.source}{f': {entry.why}' if entry.why else ''}"
            for entry, value in zip(shown, values, strict=True)
        ]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) or "–"


def plan(config: TrainConfig, facts: Facts) -> Plan:
    """Every effective value of a run, with its source.

    Raises:
        InvalidInput: the recipe is not there or for another method, or values do not go together.
    """
    return _Choices(config, facts).plan()


class _Choices:
    """The values of one run, in the order in which they depend on each other."""

    def __init__(self, config: TrainConfig, facts: Facts) -> None:
        self.config = config
        self.facts = facts
        self.method = config.method
        self.recipe = Recipe(name="", title="", method=config.method)
        self.entries: dict[str, PlanEntry] = {}

    def plan(self) -> Plan:
        if self.config.recipe is not None:
            self.recipe = self._load(self.config.recipe)
        self._device()
        self._shape()
        self._fill_recipe()
        self._views()
        self._budget()
        self._batch()
        self._method()
        self._optimisation()
        for entry in fields(TrainConfig):
            self._settle(entry.name)
        entries = tuple(self.entries[entry.name] for entry in fields(TrainConfig))
        return Plan(settings=Settings(**{entry.name: entry.value for entry in entries}), entries=entries)

    # --- Where a value comes from ----------------------------------------------------------------------------------

    def _load(self, name: str) -> Recipe:
        recipe = recipes.load(name)
        if recipe.method != self.method:
            raise InvalidInput(
                f"the recipe {name} is for {recipe.method}, not for {self.method}",
                hint=f"add --method {recipe.method}, or choose another recipe",
            )
        return recipe

    def _fill_recipe(self) -> None:
        """Take what the chosen recipe leaves open from the one for this network."""
        kind = "cpu" if self._value("backbone") == "small-cnn" else "gpu"
        usual = self._load(f"{self.method}-{kind}")
        self._auto("recipe", usual.name, f"for {self._value('backbone')}")
        chosen = set(self.recipe.values)
        left_open = {name for name in usual.values if name not in chosen}
        for one, other in (("lr", "base_lr"), ("epochs", "minutes")):
            left_open -= {one} if other in chosen else set()
            left_open -= {other} if one in chosen else set()
        self.recipe = replace(
            self.recipe,
            values={**self.recipe.values, **{name: usual.values[name] for name in left_open}},
            sources={**{name: usual.sources.get(name, "") for name in left_open}, **self.recipe.sources},
        )

    def _set(self, name: str, value: Any, source: str, why: str = "") -> None:
        self.entries[name] = PlanEntry(name=name, value=value, source=source, why=why)

    def _said(self, name: str) -> Any:
        """What the person said, None if nothing."""
        value = getattr(self.config, name)
        return None if value == "auto" else value

    def _given(self, name: str) -> bool:
        """Settle a value that the person or the recipe gives; False if neither does."""
        if name in self.entries:
            return True
        if not applies(name, self.method):
            self._set(name, _NEUTRAL[recipes.type_of(name)], "default")
        elif self._said(name) is not None:
            default = next(entry.default for entry in fields(TrainConfig) if entry.name == name)
            self._set(name, self._said(name), "default" if self._said(name) == default else "flag")
        elif name in self.recipe.values:
            self._set(name, self.recipe.values[name], "recipe", self.recipe.sources.get(name, ""))
        else:
            return False
        return True

    def _auto(self, name: str, value: Any, why: str) -> None:
        """Choose a value that nobody gave."""
        if not self._given(name):
            self._set(name, value, "auto", why)

    def _settle(self, name: str) -> None:
        """The last resort for a value that neither person nor recipe give and that nothing here chose."""
        if self._given(name):
            return
        if name not in _DEFAULTS:
            raise InvalidInput(f"no recipe gives {name} for {self.method}", hint=f"say it: --set {name}=…")
        self._set(name, _DEFAULTS[name], "default")

    def _value(self, name: str) -> Any:
        return self.entries[name].value

    # --- The choices -----------------------------------------------------------------------------------------------

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
        self._auto("backbone", "small-cnn" if size < SMALL_SIDE_PX else "resnet18", f"images of {size} px")

    def _views(self) -> None:
        size = self._value("size_px")
        published = {"simclr": "photo", "moco": "moco-v2", "instance-discrimination": "moco-v1"}
        preset = "small" if size < SMALL_SIDE_PX else published.get(self.method, self.method)
        self._auto("augmentation", preset, f"images of {size} px")
        # Without colour, and with 28 pixels, a crop of 8 % leaves next to nothing to recognise. Fashion-MNIST, 3,000
        # images, small-cnn, share of the same label among the 10 nearest: after 84,000 images seen 68.9 % with crops
        # from 8 %, 71.3 % from 30 %, 72.2 % from 50 %; with the network as it is now, after 59,000 images, 73.7 % from
        # 40 % and 72.9 % from 60 %.
        if self._value("augmentation") == "small" and self.facts.grey:
            self._auto("crop_min", 0.4, "small images without colour")
        else:
            preset = self._value("augmentation")
            self._auto("crop_min", min(view.crop_scale[0] for view in PRESETS[preset]), f"that of {preset}")

    def _budget(self) -> None:
        if self.config.minutes is not None:
            self._set("minutes", self.config.minutes, "flag")
            self._set("epochs", 0, "auto", "the budget is in minutes")
            return
        if self.config.epochs is None and "minutes" in self.recipe.values:
            self._given("minutes")
            self._set("epochs", 0, "auto", "the budget is in minutes")
            return
        self._auto("epochs", 100, "no budget was given")
        self._set("minutes", 0.0, "auto", "the budget is in epochs")

    def _batch(self) -> None:
        images, processes = self.facts.images, self.facts.processes
        said = self.config.batch_size
        if said is not None and said > images:
            raise InvalidInput(
                f"batch_size is {said}, but there are {images} images",
                hint=f"--batch-size {_power_of_two(images / 2)}, or leave it out",
            )
        on_cpu, small = self._value("device") == "cpu", self._value("size_px") < SMALL_SIDE_PX
        # On a CPU the time for a step grows with the batch, so smaller ones take more steps in the same time; a GPU is
        # idle most of the time with few small images.
        usual = self.recipe.values.get("batch_size", 128 if on_cpu else 512 if small else 256)
        limit = _power_of_two(images / 4)
        if said is None and limit < usual:
            self._set("batch_size", limit, "auto", f"at least four steps for {images} images")
        else:
            self._auto("batch_size", usual, f"images of {self._value('size_px')} px on {self._value('device')}")
        self._auto("accumulate", 1, "the whole batch at once")
        batch, parts = self._value("batch_size"), self._value("accumulate")
        if parts > 1 and self.method in _ONE_BATCH:
            raise InvalidInput(
                f"accumulate is {parts}, but {self.method} needs its batch as a whole: {_ONE_BATCH[self.method]}",
                hint="use more processes (torchrun) or a smaller --batch-size",
            )
        if batch % (processes * parts) or batch // (processes * parts) < 2:
            raise InvalidInput(
                f"batch_size is {batch}, which {processes} processes with {parts} parts each cannot share evenly",
                hint="each part needs the same number of images, at least 2",
            )

    def _method(self) -> None:
        images, method = self.facts.images, self.method
        part = self._value("batch_size") // (self.facts.processes * self._value("accumulate"))
        if method == "moco":
            self._at_most("queue_size", max(images // 2, 1), f"half of {images} images")
            # Each part of the batch that batch-norm sees needs some images, and as many as the others.
            self._at_most("bn_splits", _divisor(part, self.recipe.values.get("bn_splits", 1)), f"{part} images")
            if part % self._value("bn_splits"):
                raise InvalidInput(f"bn_splits is {self._value('bn_splits')}, which does not divide {part} images")
        if method == "instance-discrimination":
            few = images <= _ALL_REMEMBERED
            self._auto("noise_samples", 0 if few else 4096, f"{images} images")
        if method == "cpc":
            self._patches()

    def _patches(self) -> None:
        size = self._value("size_px")
        small = size < SMALL_SIDE_PX
        self._auto("patch_grid", 5 if small else 7, f"images of {size} px")
        self._auto("patch_px", max(round(size * 3 / 7), 10) if small else size // 4, f"images of {size} px")
        grid, patch = self._value("patch_grid"), self._value("patch_px")
        if patch > size:
            raise InvalidInput(f"patch_px is {patch}, but images have {size} px")
        self._at_most("predict_steps", grid - 1, f"a grid of {grid} rows")

    def _at_most(self, name: str, limit: int, what: str) -> None:
        """A recipe's value is lowered to the limit, with a word of it; a person's is refused."""
        said = getattr(self.config, name)
        if said is not None and said > limit:
            raise InvalidInput(f"{name} is {said}, but at most {limit} is possible: {what}")
        wanted = self.recipe.values.get(name, limit)
        if said is None and wanted > limit:
            self._set(name, limit, "auto", f"{what}; the recipe has {wanted}")
        else:
            self._auto(name, limit, what)

    def _optimisation(self) -> None:
        batch = self._value("batch_size")
        if self.config.lr is not None:
            self._set("base_lr", 0.0, "auto", "lr was given")
            self._set("lr_scaling", "none", "auto", "lr was given")
            self._given("lr")
            return
        if not self._given("base_lr") and not self._given("lr"):
            self._settle("lr")
        self._auto("lr_scaling", "sqrt", "worth 5 points at small batches (arXiv 2002.05709, table B.1)")
        if self._given("lr"):
            self._set("base_lr", self._value("lr"), "auto", "lr was given")
            return
        base, scaling = self._value("base_lr"), self._value("lr_scaling")
        lr, rule = {
            "sqrt": (base * math.sqrt(batch / 256), f"{base:g} · √(batch / 256)"),
            "linear": (base * batch / 256, f"{base:g} · batch / 256"),
            "none": (base, "as base_lr"),
        }[scaling]
        self._set("lr", lr, "auto", rule)


_DEFAULTS: dict[str, Any] = {
    "bias_lr": 1.0,
    "decayed": "matrices",
    "clip_norm": 0.0,
    "warmup": 0.1,
    "lr_drops": "",
    "lr_end": 0.0,
}
"""What holds unless a recipe or a person says otherwise."""
_NEUTRAL: dict[type, Any] = {int: 0, float: 0.0, str: "", bool: False}
"""What stands in the settings for what the method does not have."""


def _power_of_two(limit: float) -> int:
    """The greatest power of two that is at most ``limit``, and at least 2."""
    return int(max(2, 2 ** math.floor(math.log2(max(limit, 2)))))


def _divisor(count: int, wanted: int) -> int:
    """The greatest number of equal parts of ``count``, at most ``wanted``, that leaves at least 4 in each; or 1."""
    return max((parts for parts in range(1, wanted + 1) if count % parts == 0 and count // parts >= 4), default=1)
