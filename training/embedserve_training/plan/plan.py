"""Every effective value of a run, and where it comes from. This module imports no torch.

The user's values precede those of a recipe (``sources``), and a recipe's those that are chosen from the images and the
machine (``defaults``). Nothing is chosen silently: each value has a source and, where needed, a reason.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

from embedserve_training.plan.config import Settings, TrainConfig, applies
from embedserve_training.plan.defaults import ONE_BATCH, Defaults
from embedserve_training.plan.defaults import Facts as Facts
from embedserve_training.plan.sources import PlanEntry as PlanEntry

_WIDEST = 30
"""Columns of the values; a longer value shifts the rest of its line to the right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The settings of a run and where they come from."""

    settings: Settings
    entries: tuple[PlanEntry, ...]
    passes: float | None = None
    """Passes over the images that are expected to fit into the minutes; None if not known."""

    def lines(self, columns: int = 116) -> list[str]:
        """The settings that the run uses as text, in columns: name, value, source and reason."""
        shown = [(entry, _shown(entry.value)) for entry in self.entries if _is_used(entry.name, self.settings)]
        name_width = max(len(entry.name) for entry, _ in shown)
        value_width = min(max(len(value) for _, value in shown), _WIDEST)
        lines = []
        for entry, value in shown:
            head = f"{entry.name:<{name_width}}  {value:<{value_width}}  "
            lines += textwrap.wrap(
                f"{entry.source}: {entry.why}" if entry.why else entry.source,
                columns,
                initial_indent=head,
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


def _is_used(name: str, settings: Settings) -> bool:
    """Whether a run with these settings uses this one."""
    if name in ("epochs", "minutes"):
        return bool(getattr(settings, name))
    if name in ("base_lr", "lr_scaling"):
        return bool(settings.base_lr)
    unused = {
        "accumulate": settings.method in ONE_BATCH,
        "projector_hidden": settings.projector_layers == 1,
        "pad_colour": settings.fit != "pad",
        "lr_end": settings.lr_drops != "",
    }
    return applies(name, settings.method) and not unused.get(name, False)


def plan(config: TrainConfig, facts: Facts, *, from_environment: Collection[str] = ()) -> Plan:
    """Every effective value of a run, with its source.

    Args:
        config: what the user gave.
        facts: about the images and the machine.
        from_environment: names of the settings of ``config`` that environment variables gave, rather than flags.

    Raises:
        InvalidInput: the recipe does not exist or is for another method, or values contradict each other.
    """
    defaults = Defaults(config, facts, from_environment)
    defaults.settle_all()
    entries = tuple(defaults.entries[entry.name] for entry in fields(Settings))
    settings = Settings(**{entry.name: entry.value for entry in entries})
    return Plan(settings=settings, entries=entries, passes=defaults.passes)
