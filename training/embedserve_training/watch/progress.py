"""Where a run is, as a line of text and as numbers."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, field

LINE_COLUMNS = 120
"""Width of the progress line where no terminal is narrower."""
_LEAST_COLUMNS = 80
_LEFT_OUT_FIRST = ("", "lr", "collapse", "std", "wait", "on", "off", "pos", "top1", "rate")
"""Fields that give way where a line is too long; the first is none."""


def line_columns() -> int:
    """Width of a line of text: that of the terminal, from 80 to 120 columns; 120 without one."""
    columns = shutil.get_terminal_size((LINE_COLUMNS, 24)).columns
    return min(max(columns, _LEAST_COLUMNS), LINE_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is. Losses and rates are means since the last report; what a method lacks is nan."""

    epoch: int
    """The current one, from 1."""
    epochs: int
    """Of the whole run; an estimate if the budget is in minutes."""
    estimated: bool
    """Whether ``epochs`` and ``steps`` are estimates."""
    step: int
    steps: int
    loss: float
    chance: float
    """The loss of embeddings without information."""
    collapse: float = math.nan
    """The loss of embeddings that are all equal."""
    rank: float
    """This and the next four are those of ``Health``."""
    dimension: int
    std: float = math.nan
    alignment: float = math.nan
    uniformity: float = math.nan
    lr: float
    images_per_s: float
    data_wait: float
    """Share of the time spent waiting for pixels, 0–1."""
    seconds: float
    """Spent training so far."""
    eta_s: float
    diagnostics: dict[str, float] = field(default_factory=dict)
    """Those of the method at the last step, such as ``pos``."""

    def line(self, columns: int = LINE_COLUMNS) -> str:
        """The progress line: fields keep their columns from line to line, and those that do not fit are left out."""
        tilde = "~" if self.estimated else ""
        of_all, of_dimension = f"{tilde}{self.epochs}", str(self.dimension)
        chance = format_loss(self.chance)
        fields = {
            "epoch": f"epoch {self.epoch:>{len(str(self.epochs))}}/{of_all}",
            "step": f"step {self.step:>{len(str(self.steps))}}",
            "loss": f"loss {format_loss(self.loss):>{len(chance)}} (chance {chance}",
            "collapse": f", collapse {format_loss(self.collapse)}" if self._collapse_differs_from_chance else "",
            **{name: f"{name} {_share(self.diagnostics[name])}" for name in self._shown_diagnostics},
            "rank": f"rank {self.rank:>{len(of_dimension)}.0f}/{of_dimension}",
            "std": "" if math.isnan(self.std) else f"std {_share(self.std)}",
            "lr": f"lr {f'{self.lr:.2g}'.removeprefix('0'):<5}",
            "rate": f"{self.images_per_s:.0f} img/s",
            "wait": f"data-wait {100 * self.data_wait:.0f} %",
            "eta": f"ETA {duration(self.eta_s)}",
        }
        for leave_out in _LEFT_OUT_FIRST:
            fields[leave_out] = ""
            line = _joined(fields)
            if len(line) <= columns:
                break
        return line

    @property
    def _shown_diagnostics(self) -> tuple[str, ...]:
        """The most telling diagnostics. Barlow Twins has no negatives, and its loss grows with the dimension."""
        for names in (("on", "off"), ("pos",), ("top1",)):
            if all(name in self.diagnostics for name in names):
                return names
        return ()

    @property
    def _collapse_differs_from_chance(self) -> bool:
        return abs(self.collapse - self.chance) > 0.01 * abs(self.chance)

    def numbers(self) -> dict[str, float]:
        """All numbers by name, without those that are not finite."""
        values = asdict(self)
        named: dict[str, float] = {**values.pop("diagnostics"), **values}
        return {name: value for name, value in named.items() if math.isfinite(value)}

    def to_json(self) -> str:
        """The same numbers as one line of JSON."""
        return json.dumps(self.numbers())


def _joined(fields: dict[str, str]) -> str:
    loss = f"{fields['loss']}{fields['collapse']})"
    parts = [loss if name == "loss" else text for name, text in fields.items() if text and name != "collapse"]
    return " ".join(parts)


def format_loss(value: float) -> str:
    """A loss with three decimals, or without any from 100 on."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _share(value: float) -> str:
    """A number within −1…1, in three columns unless it is negative, such as ".61" and "1.0"."""
    text = f"{value:.2f}".replace("0.", ".", 1)
    return text.replace("1.00", "1.0")


def duration(seconds: float) -> str:
    """A duration as text, such as "42s", "12m" or "3h05m"."""
    whole = round(max(seconds, 0))
    if whole < 100:
        return f"{whole}s"
    minutes = round(whole / 60)
    return f"{minutes}m" if minutes < 100 else f"{minutes // 60}h{minutes % 60:02d}m"


def long_duration(seconds: float) -> str:
    """A duration in a sentence, such as "42 seconds", "6.2 minutes", "5 hours" and "3 days"."""
    if seconds < 100:
        return counted(round(seconds), "second")
    units = (("minute", 60, 100), ("hour", 3600, 48), ("day", 86_400, math.inf))
    unit, number = next((unit, seconds / unit_s) for unit, unit_s, most in units if seconds / unit_s < most)
    return counted(round(number, 1) if number < 10 else round(number), unit)


def counted(number: float, noun: str, plural: str = "") -> str:
    """A number with its noun, such as "1 step", "2 steps" and "0.5 minutes"."""
    return f"{number:.10g} {noun if number == 1 else plural or f'{noun}s'}"
