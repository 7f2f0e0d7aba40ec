"""Every effective value of a run, and where it came from. This module imports no torch.

What a person says comes before a recipe (``layers``), and a recipe before what is chosen from the images and the
machine (``choices``). Nothing is chosen silently: each value has a source and, where it is not plain, a reason.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

from embedserve_training.plan.config import Settings, TrainConfig, applies
from embedserve_training.plan.defaults import ONE_BATCH, Choices
from embedserve_training.plan.defaults import Facts as Facts
from embedserve_training.plan.sources import PlanEntry as PlanEntry

_LINE, _WIDEST = 116, 30
"""Columns of a line of the plan, and of its values; longer ones push what follows to the right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run will do."""

    settings: Settings
    entries: tuple[PlanEntry, ...]

    def lines(self) -> list[str]:
        """The plan for a person, in columns: name, value, source and reason; without what the run does not use."""
        shown = [(entry, _shown(entry.value)) for entry in self.entries if _counts(entry.name, self.settings)]
        name_width = max(len(entry.name) for entry, _ in shown)
        value_width = min(max(len(value) for _, value in shown), _WIDEST)
        lines = []
        for entry, value in shown:
            begin = f"{entry.name:<{name_width}}  {value:<{value_width}}  "
            lines += textwrap.wrap(
                f"{entry.source}: {entry.why}" if entry.why else entry.source,
                _LINE,
                initial_indent=begin,
                subsequent_indent=" " * (name_width + value_width + 4),
                break_on_hyphens=False,
            )
        return lines


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) or "–"


def _counts(name: str, settings: Settings) -> bool:
    """Whether a run with these settings makes any use of one of them."""
    if name in ("epochs", "minutes"):
        return bool(getattr(settings, name))
    if name in ("base_lr", "lr_scaling"):
        return bool(settings.base_lr)
    unused = {
        "accumulate": settings.method in ONE_BATCH,
        "projector_hidden": settings.projector_layers == 1,
        "lr_end": settings.lr_drops != "",
    }
    return applies(name, settings.method) and not unused.get(name, False)


def plan(config: TrainConfig, facts: Facts, *, from_environment: Collection[str] = ()) -> Plan:
    """Every effective value of a run, with its source.

    Args:
        config: what the person said.
        facts: of the images and the machine.
        from_environment: settings of ``config`` that an environment variable said and not a flag.

    Raises:
        InvalidInput: the recipe is not there or for another method, or values do not go together.
    """
    choices = Choices(config, facts, from_environment)
    choices.settle_all()
    entries = tuple(choices.entries[entry.name] for entry in fields(Settings))
    return Plan(settings=Settings(**{entry.name: entry.value for entry in entries}), entries=entries)
