"""A preview of the augmentations: images as training caches them, and views of each, in one PNG.

Shapes: N images, V views of each, C = 3 channels, T side of the cached image, S side of the view.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from embedserve.atomic_write import check_writable
from embedserve.cores import usable_cores
from embedserve.errors import DataError, InvalidInput
from embedserve.types import Limits
from embedserve_training import augment
from embedserve_training.augment import PRESETS, Augmentation
from embedserve_training.data import cache, folders, survey
from embedserve_training.data.folders import ImageFolder, Noted, Skipped
from embedserve_training.plan.config import MIN_IMAGES, Settings, TrainConfig
from embedserve_training.plan.image_settings import preprocess_of
from embedserve_training.plan.plan import Facts, plan

_MIN_TILE_PX = 96
"""Smaller views are enlarged by an integer factor, so that their pixels can be seen."""
_GAP_PX = 4
_TEXT_PX = 13
_LINE_PX = 18
_WHITE, _BLACK, _GREY = (255, 255, 255), (0, 0, 0), (110, 110, 110)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The views of the images by one preset."""

    name: str
    recipes: tuple[Augmentation, ...]
    """One for all views, or two that alternate: for the first and the second view of a pair."""
    views_NVSSC: NDArray[np.uint8]
    """uint8 [N, V, S, S, 3]."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A preview that was drawn."""

    path: Path
    size_px: int
    """S."""
    images: tuple[str, ...]
    """The images drawn, relative to the folder, from top to bottom."""
    skipped: tuple[Skipped, ...]
    """Images that could not be read, and folders."""
    found: int
    """Image files found."""
    passed_over: Mapping[str, int]
    """Kind → files or folders that are no images."""
    augmentations: tuple[str, ...]
    notes: tuple[Noted, ...] = ()
    """What was decided for single images."""


def preview(
    folder: Path | Sequence[Path],
    out: Path,
    *,
    exclude: Sequence[str] = (),
    config: TrainConfig,
    images: int = 8,
    views: int = 6,
    every_preset: bool = False,
    overwrite: bool = False,
    limits: Limits | None = None,
    report: Callable[[str], None],
) -> Preview:
    """Draw images of a folder beside views of them, as a run with this config would see them.

    Args:
        folder: images, flat or nested; one folder or several, or lists of files as ``@NAME``.
        out: the PNG to write.
        exclude: patterns of files and folders to leave out.
        config: of the run; settings that it leaves open are chosen as for training.
        images: number of images, evenly spaced over the folder.
        views: views of each image.
        overwrite: replace the PNG if it exists.
        limits: on an image; larger ones are left out.
        every_preset: draw a group of rows for each preset, not only for that of the run.
        report: called with each line of text.

    Raises:
        DataError: the folder is missing or has no readable image, or ``out`` exists or cannot be written.
        InvalidInput: a value of the config is not valid, or ``out`` has no file name, or is inside the folder, where
            it would be the next one of the images.
    """
    if out.name in ("", ".."):
        raise InvalidInput(f"{str(out)!r} has no file name to write to", hint="name a PNG: -o preview.png")
    check_writable(out, overwrite=overwrite)
    files = replace(folders.scan(folder, exclude, report=report), limits=limits or Limits())
    read = [one for one in files.sources or (files.root,) if one.is_dir()]
    if any(parent.is_dir() and parent.samefile(one) for parent in out.resolve().parents for one in read):
        raise InvalidInput(
            f"{out} would be one of the images in {files.name} from then on",
            hint="write it elsewhere: -o ../preview.png",
        )
    facts = _facts(files)
    chosen = [replace(config, augmentation=name) for name in PRESETS] if every_preset else [config]
    runs = [plan(one, facts).settings for one in chosen]
    size_px = runs[0].size_px
    side_px = cache.cached_side_px(size_px, facts.median_side_px)
    # A set: of few images the same position may come twice.
    wanted = sorted({int(position) for position in np.linspace(0, len(files.paths) - 1, images)})
    notes: list[Noted] = []
    cached = cache.cached_spec(preprocess_of(runs[0], size_px), side_px)
    originals_NTTC, kept, skipped = folders.load_squares(files.subset(wanted), cached, workers=1, notes=notes)
    skipped = files.unreadable + skipped
    for entry in skipped:
        report(f"left out: {entry.path}: {entry.reason}")
    for note, count in Counter(entry.note for entry in notes).most_common():
        report(f"in {count} {'image' if count == 1 else 'images'}: {note}")
    groups = [_draw_views(settings, originals_NTTC, views) for settings in runs]
    _write(draw(originals_NTTC, groups), out)
    for group in groups:
        for line in captions(group):
            report(line)
    return Preview(
        path=out,
        size_px=size_px,
        images=tuple(files.paths[wanted[position]] for position in kept),
        skipped=skipped,
        found=len(files.paths),
        passed_over=files.passed_over,
        augmentations=tuple(group.name for group in groups),
        notes=tuple(notes),
    )


def _facts(files: ImageFolder) -> Facts:
    seen = survey.summarise(files)
    return Facts(
        images=max(len(files.paths), MIN_IMAGES),  # fewer are too few to train on, but not to preview
        median_side_px=seen.median_side_px,
        grey=seen.grey,
        cuda=torch.cuda.is_available(),
        mps=torch.backends.mps.is_available(),
        cores=usable_cores(),
        pictures=seen.pictures,
    )


def _draw_views(settings: Settings, originals_NTTC: NDArray[np.uint8], views: int) -> Group:
    """Views as in training, on the CPU: they are the same on every device."""
    recipes = augment.recipes_for(settings.augmentation, settings.crop_min)
    generator = torch.Generator().manual_seed(settings.seed)
    pixels_NTTC = torch.from_numpy(originals_NTTC)
    drawn = [
        augment.augment(pixels_NTTC, settings.size_px, recipes[view % len(recipes)], generator) for view in range(views)
    ]
    views_NVSSC = torch.stack(drawn, dim=1).permute(0, 1, 3, 4, 2).mul(255).round().byte().numpy()
    return Group(name=settings.augmentation, recipes=recipes, views_NVSSC=views_NVSSC)


# --- Drawing -------------------------------------------------------------------------------------------------------


def draw(originals_NTTC: NDArray[np.uint8], groups: Sequence[Group]) -> Image.Image:
    """The grid: for each group its captions, then one row per image, the original first and then its views."""
    size_px, count = groups[0].views_NVSSC.shape[2], groups[0].views_NVSSC.shape[1]
    tile = size_px * -(-_MIN_TILE_PX // size_px)
    step = tile + _GAP_PX
    width = step * (1 + count) + 4 * _GAP_PX
    font = ImageFont.load_default(_TEXT_PX)
    texts = [[line for caption in captions(group) for line in _wrapped(caption, width, font)] for group in groups]
    height = sum(_LINE_PX * (1 + len(lines)) + step * len(originals_NTTC) + 2 * _GAP_PX for lines in texts)
    canvas = Image.new("RGB", (width, height), _WHITE)
    pen = ImageDraw.Draw(canvas)
    top = _GAP_PX
    for group, lines in zip(groups, texts, strict=True):
        for line in lines:
            pen.text((_GAP_PX, top), line, _BLACK, font)
            top += _LINE_PX
        # The gap after the original is wider than those between views.
        lefts = [_GAP_PX, *(step * (1 + view) + 3 * _GAP_PX for view in range(count))]
        for left, heading in zip(lefts, ["original", *_headings(group)], strict=True):
            pen.text((left, top), heading, _GREY, font)
        top += _LINE_PX
        for original_TTC, views_VSSC in zip(originals_NTTC, group.views_NVSSC, strict=True):
            for left, pixels in zip(lefts, [original_TTC, *views_VSSC], strict=True):
                canvas.paste(_tile(pixels, tile), (left, top))
            top += step
        top += _GAP_PX
    return canvas


def _headings(group: Group) -> list[str]:
    """Headings of the views, with their place in the pair where the two views of a pair differ."""
    kinds = len(group.recipes)
    count = group.views_NVSSC.shape[1]
    return [
        f"view {view + 1}" + (f" ({'first' if view % 2 == 0 else 'second'})" if kinds > 1 else "")
        for view in range(count)
    ]


def _tile(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    image = Image.fromarray(pixels)
    integer_factor = side % len(pixels) == 0
    return image.resize((side, side), Image.Resampling.NEAREST if integer_factor else Image.Resampling.BICUBIC)


def _wrapped(text: str, width: int, font: Any) -> list[str]:
    """The text in lines no wider than the grid."""
    lines: list[str] = []
    for word in text.replace("–", "-").split(" "):  # Pillow's font has no en dash
        if lines and font.getlength(f"{lines[-1]} {word}") <= width - 2 * _GAP_PX:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _write(image: Image.Image, out: Path) -> None:
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("wb") as file:
            image.save(file, "PNG")
        partial.replace(out)
    except OSError as error:
        # If it could not be created, its folder may not exist either.
        with contextlib.suppress(OSError):
            partial.unlink()
        raise DataError(
            f"{out} cannot be written: {error.strerror or error}",
            hint="choose a path in a folder that exists and is writable: -o FILE",
        ) from error


# --- Captions ------------------------------------------------------------------------------------------------------


def captions(group: Group) -> list[str]:
    """One line for each recipe of a preset: its name and its operations, in the order of their application."""
    if len(group.recipes) == 1:
        return [f"{group.name}: {summary(group.recipes[0])}"]
    views = ("first view", "second view")
    return [f"{group.name}, {view}: {summary(one)}" for view, one in zip(views, group.recipes, strict=True)]


def summary(recipe: Augmentation) -> str:
    """The operations of a recipe, as in "crop 8–100 %, flip 50 %, blur 50 %"; shares are probabilities."""
    low, high = recipe.crop_scale
    parts = ["whole image" if low == 1 else f"crop {_percent(low, high)}"]
    if recipe.rotation:
        parts.append(f"rotation ±{recipe.rotation:g}°")
    for entry in fields(recipe):
        value = getattr(recipe, entry.name)
        if entry.name not in _DETAILS or not value:
            continue
        detail = _DETAILS[entry.name](recipe)
        parts.append(f"{entry.name.replace('_', ' ')} {100 * value:.3g} %" + (f" ({detail})" if detail else ""))
    return ", ".join(parts)


def _percent(low: float, high: float) -> str:
    return f"{100 * low:.3g} %" if low == high else f"{100 * low:.3g}–{100 * high:.3g} %"


def _jitter(recipe: Augmentation) -> str:
    strengths = {name: getattr(recipe, name) for name in ("brightness", "contrast", "saturation", "hue")}
    return ", ".join(f"{name} {value:g}" for name, value in strengths.items() if value)


_DETAILS: dict[str, Callable[[Augmentation], str]] = {
    **dict.fromkeys(
        ("flip", "vertical_flip", "quarter_turns", "grayscale", "channel_drop", "solarize", "sobel"), lambda _: ""
    ),
    "jitter": _jitter,
    "blur": lambda recipe: "sigma {:g}–{:g} px".format(*recipe.blur_sigma),
    "noise": lambda recipe: "sigma {:g}–{:g}".format(*recipe.noise_sigma),
    "cutout": lambda recipe: _percent(*recipe.cutout_area),
}
"""The operations with a probability, and the details of each that are shown."""
