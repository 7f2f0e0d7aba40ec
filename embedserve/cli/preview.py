"""`embedserve preview`: the views that training draws of a folder of images, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.options import (
    GivenPath,
    exclude_option,
    existing_folder,
    image_limit_options,
    overwrite_option,
)
from embedserve.cli.training import setting_option

if TYPE_CHECKING:
    from embedserve.types import Limits


@click.command("preview")
@click.argument("folders", nargs=-1, required=True, type=existing_folder, metavar="FOLDER...")
@click.option(
    "-o",
    "--out",
    type=GivenPath(),
    default=Path("preview.png"),
    help="PNG to write.",
)
@overwrite_option
@exclude_option
@setting_option("augmentation")
@click.option("--all", "every_preset", is_flag=True, help="One group of rows for each preset.")
@setting_option("method")
@setting_option("recipe")
@setting_option("size_px")
@setting_option("fit")
@click.option("--images", type=click.IntRange(1, 64), help="Images, one in each row.  [default: 8, or 2 with --all]")
@click.option("--views", type=click.IntRange(1, 32), default=6, help="Views of each image.")
@setting_option("seed")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other setting of train, such as crop_min."
)
@image_limit_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document about the picture.")
def command(
    folders: tuple[Path, ...],
    out: Path,
    overwrite: bool,
    exclude: tuple[str, ...],
    every_preset: bool,
    images: int | None,
    views: int,
    settings: tuple[str, ...],
    as_json: bool,
    limits: Limits,
    **flags: Any,
) -> None:
    """Draw images of a folder and views of them, which the encoder will learn to map to similar vectors.

    Each row is an image as training stores it, then augmented views of it. Without --augmentation they are those that
    `embedserve train` would use for the folder. What distinguishes your images must survive in every view; what does
    not matter should vary. Otherwise try another preset.

    \b
    embedserve preview photos/ -o preview.png
    embedserve preview scans/ --augmentation xray --set crop_min=0.5
    embedserve preview photos/ --all --images 3
    """
    from collections import Counter

    from embedserve.cli.terminal.output import print_json, say
    from embedserve.cli.training import make_config, training_installed

    if every_preset and flags["augmentation"]:
        raise click.UsageError("--all draws every preset: leave out --augmentation")
    config = make_config(flags, settings)
    with training_installed():
        from embedserve_training.preview import preview

    result = preview(
        folders,
        out,
        exclude=exclude,
        config=config,
        images=images or (2 if every_preset else 8),
        views=views,
        every_preset=every_preset,
        overwrite=overwrite,
        limits=limits,
        report=say,
    )
    if as_json:
        print_json(
            {
                "path": str(result.path),
                "size_px": result.size_px,
                "augmentations": list(result.augmentations),
                "images": list(result.images),
                "found": result.found,
                "passed_over": result.passed_over,
                "notes": dict(Counter(entry.note for entry in result.notes).most_common()),
                "skipped": [{"path": file.path, "reason": file.reason} for file in result.skipped],
            }
        )
    shown = "1 image" if len(result.images) == 1 else f"{len(result.images)} images"
    say(f"{out}: {shown}, {views} {'view' if views == 1 else 'views'} of each, {result.size_px} px")
