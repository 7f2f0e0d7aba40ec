"""`embedserve train`: a folder of images → a run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from embedserve.cli.terminal.options import existing
from embedserve.cli.training import setting_options


@click.command("train")
@click.argument("folder", type=existing)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/NAME-METHOD, NAME being FOLDER's]"
)
@setting_options
@click.option("--dry-run", is_flag=True, help="Print the plan, each value with its source, and stop.")
@click.option("--fresh", is_flag=True, help="Start over even if the run folder holds a run.")
@click.option(
    "--stop-on-collapse", is_flag=True, help="End the run if its embeddings collapse; without it a warning is printed."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document about the run at the end.")
def command(
    folder: Path,
    out: Path | None,
    settings: tuple[str, ...],
    dry_run: bool,
    fresh: bool,
    stop_on_collapse: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train an encoder on a folder of images, without labels.

    The folder may be flat or nested. Files that cannot be read are named and skipped. The plan is printed first.
    Ctrl-C stops with a checkpoint; the same command continues from there. Started by torchrun, as in torchrun
    --nproc-per-node 2 -m embedserve train photos/, several processes train one encoder.

    \b
    embedserve train photos/ --minutes 20 -o runs/photos
    embedserve train photos/ --epochs 100 --backbone resnet18 --dry-run
    """
    from dataclasses import asdict

    from embedserve.cli.terminal.output import counted, print_json, say
    from embedserve.cli.training import read_settings, training_installed

    config, from_environment = read_settings(flags, settings)
    out = out or Path("runs") / f"{folder.resolve().name}-{config.method}"
    with training_installed():
        from embedserve_training.run.run import run_training

    result = run_training(
        folder,
        config=config,
        out=out,
        report=say,
        dry_run=dry_run,
        fresh=fresh,
        stop_on_collapse=stop_on_collapse,
        from_environment=from_environment,
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
                "steps": result.steps,
                "seconds": round(result.seconds, 1),
                "settings": result.plan.settings.to_json(),
            }
        )
    if result.status == "stopped":
        say(f"stopped at step {result.steps}; the same command continues from there")
        sys.exit(130)
    if result.status == "finished":
        steps, images = counted(result.steps, "step"), counted(result.images, "image")
        say(f"{result.run}: {steps} on {images} in {counted(round(result.seconds / 60, 1), 'minute')}")
    if result.status != "planned":
        say(f"next: embedserve export {result.run} -o encoder.onnx")
