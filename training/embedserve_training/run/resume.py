"""What a run that was stopped needs in order to go on: the same settings, processes and images."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from embedserve.errors import TrainingError
from embedserve.folder.list_file import list_file
from embedserve_training.data.folders import ImageFolder
from embedserve_training.plan.config import TrainConfig
from embedserve_training.plan.plan import Plan, PlanEntry
from embedserve_training.run import image_list, run_folder
from embedserve_training.run.run_folder import StoredPlan
from embedserve_training.watch.progress import counted

MAY_CHANGE = ("workers",)
"""Settings that do not change what a run comes to, to the bit."""


def earlier_run(out: Path, config: TrainConfig) -> StoredPlan | None:
    """The plan of the run in a folder, None if there is none.

    A setting that was left open and is now given the value that the plan chose is no change.

    Raises:
        TrainingError: it was started with another config.
    """
    if not (out / run_folder.CHECKPOINT).exists():
        return None
    before = run_folder.read_plan(out)
    # By way of JSON, as the stored one.
    now, chosen = json.loads(json.dumps(asdict(config))), before.settings.to_json()
    left_open = {entry.name: entry.default for entry in fields(TrainConfig)}
    then = {**left_open, **before.config}
    differing = [
        name
        for name in now
        if name not in MAY_CHANGE
        and now[name] != then[name]
        and not (then[name] == left_open[name] and name in chosen and now[name] == chosen[name])
    ]
    if differing:
        changes = ", ".join(f"{name} was {then[name]} and is {now[name]}" for name in differing)
        raise TrainingError(
            f"{out} holds a run of another configuration: {changes}",
            hint="continue with the same values, start over with --fresh, or use another folder: -o FOLDER",
        )
    return before


def plan_of(before: StoredPlan, config: TrainConfig) -> Plan:
    """The plan that a run was started with, but for what may change since; nothing is chosen or measured again."""
    given = {name: getattr(config, name) for name in MAY_CHANGE if getattr(config, name) is not None}
    settings = replace(before.settings, **given)
    entries = [
        PlanEntry(name=name, value=value, source="flag" if name in given else before.sources.get(name, "default"))
        for name, value in settings.to_json().items()
    ]
    return Plan(settings=settings, entries=tuple(entries))


def check_same_processes(before: StoredPlan, processes: int, out: Path) -> None:
    """Check that a run goes on with as many processes: batch-norm, and the parts that it normalises, depend on it.

    Raises:
        TrainingError: it does not.
    """
    then = int(before.data.get("processes", 1))
    if then != processes:
        raise TrainingError(
            f"the run in {out} was started with {counted(then, 'process', 'processes')}, not with {processes}",
            hint=f"continue with {then}, or start over with --fresh",
        )


def check_same_images(
    before: StoredPlan,
    fingerprint: str,
    digests: Mapping[str, str],
    *,
    name: str,
    exclude: Sequence[str],
    out: Path,
) -> None:
    """Check that a run goes on with the same images.

    Args:
        before: the run.
        fingerprint: of the images now.
        digests: name → hex digits of the sha256 of each image now.
        name: of the folders, for the message.
        exclude: patterns of files and folders that are left out now.
        out: the run folder.

    Raises:
        TrainingError: images are new, gone or changed; it names some, if the run has a list.
    """
    if fingerprint == before.data["fingerprint"]:
        return
    changes = image_list.changes_since(out, digests) if digests else None
    what = (
        f"the images in {name} have changed since the run in {out} was started: {changes}"
        if changes and str(changes)
        else f"the images in {name} are not those that the run in {out} was started with"
    )
    hint = "start over with --fresh, or use another folder for the run: -o FOLDER"
    then = before.data.get("exclude", [])
    if list(exclude) != then:
        hint = f"it was started {f'with --exclude {shlex.join(then)}' if then else 'without --exclude'}; or {hint}"
    raise TrainingError(what, hint=hint)


def remember_folders(before: StoredPlan, files: ImageFolder, out: Path) -> None:
    """Write into the plan where the images are now, if they have moved: export may look for them there."""
    where = places(files)
    if any(before.data.get(key) != value for key, value in where.items()):
        run_folder.write_plan(replace(before, data={**before.data, **where}), out)


def places(files: ImageFolder) -> dict[str, Any]:
    """Where the images of a run are, for its plan."""
    several = {"folders": [_absolute(source) for source in files.sources]} if len(files.sources) > 1 else {}
    return {"folder": _absolute(files.root), **several}


def _absolute(source: Path) -> str:
    listed = list_file(source)
    return str(source.resolve()) if listed is None else f"@{listed.resolve()}"
