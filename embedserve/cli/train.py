"""`embedserve train`: a folder of images → a run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.options import GivenPath, exclude_option, existing_folder, image_limit_options
from embedserve.cli.training import setting_options

if TYPE_CHECKING:
    from embedserve.types import Limits


@click.command("train")
@click.argument("folders", nargs=-1, required=True, type=existing_folder, metavar="FOLDER...")
@click.option("-o", "--out", type=GivenPath(), help="Run folder.  [default: runs/NAME-METHOD, NAME being FOLDER's]")
@exclude_option
@setting_options
@click.option("--dry-run", is_flag=True, help="Print the plan, each value with its source, and stop.")
@click.option("--fresh", is_flag=True, help="Start over even if the run folder holds a run.")
@click.option(
    "--stop-on-collapse", is_flag=True, help="End the run if its embeddings collapse; without it a warning is printed."
)
@image_limit_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document about the run at the end.")
def command(
    folders: tuple[Path, ...],
    out: Path | None,
    exclude: tuple[str, ...],
    settings: tuple[str, ...],
    dry_run: bool,
    fresh: bool,
    stop_on_collapse: bool,
    as_json: bool,
    limits: Limits,
    **flags: Any,
) -> None:
    """Train an encoder on a folder of images, without labels.

    The folder may be flat or nested; there may be several. @LIST stands for the image files that LIST names, one on
    each line. Files that cannot be read are named and skipped, and others are counted by kind. The plan is printed
    first.

    Ctrl-C stops with a checkpoint; the same command continues from there. Started by torchrun, as in torchrun
    --nproc-per-node 2 -m embedserve train photos/, several processes train one encoder.

    \b
    embedserve train photos/ --minutes 20 -o runs/photos
    embedserve train photos/ --epochs 100 --backbone resnet18 --dry-run
    embedserve train 2025/ 2026/ --exclude screenshots/
    embedserve train @chosen.txt
    """
    from collections import Counter
    from dataclasses import asdict

    from embedserve.cli.terminal.output import counted, print_json, say
    from embedserve.cli.training import read_settings, training_installed

    config, from_environment = read_settings(flags, settings)
    out = out or Path("runs") / f"{_name(folders[0])}-{config.method}"
    with training_installed():
        from embedserve_training.run.run import run_training

    result = run_training(
        folders,
        exclude=exclude,
        config=config,
        out=out,
        report=say,
        dry_run=dry_run,
        fresh=fresh,
        stop_on_collapse=stop_on_collapse,
        from_environment=from_environment,
        limits=limits,
    )
    if result.rank:  # process 0 reports for all
        sys.exit(130 if result.status == "stopped" else 0)
    if as_json:
        print_json(
            {
                "run": str(result.run),
                "status": result.status,
                "images": result.images,
                "skipped": [asdict(file) for file in result.skipped],
                "passed_over": result.passed_over,
                "notes": dict(Counter(entry.note for entry in result.notes).most_common()),
                "copies": asdict(result.copies) if result.copies else None,
                "steps": result.steps,
                "seconds": round(result.seconds, 1),
                "whitening_seconds": round(result.whitening_s, 1),
                "settings": result.plan.settings.to_json(),
            }
        )
    if result.status == "stopped":
        say(f"stopped at step {result.steps}; the same command continues from there")
        sys.exit(130)
    if result.status == "finished":
        steps, images = counted(result.steps, "step"), counted(result.images, "image")
        say(f"{result.run}: {steps} on {images} in {result.took}")
    if result.status != "planned":
        say(f"next: embedserve export {result.run} -o encoder.onnx")


def _name(source: Path) -> str:
    """The name of a folder, or of a list of files without its suffix."""
    from embedserve.folder.list_file import list_file

    listed = list_file(source)
    return source.resolve().name if listed is None else listed.stem
