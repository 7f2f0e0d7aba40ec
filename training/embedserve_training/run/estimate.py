"""What a run will come to, once its first steps have been timed: a line of text where the user may want another budget.

The plan is printed before anything is trained. A budget that allows too little, or takes far longer than expected, is
best corrected within the first minute.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from embedserve_training.plan import cost
from embedserve_training.plan.config import Settings
from embedserve_training.plan.cost import PASSES
from embedserve_training.plan.sizes import RESNET, SMALL_CNN, STRIDE_PX, is_small, smaller_sides_px
from embedserve_training.run.budget import Budget, Spent
from embedserve_training.watch.progress import counted, long_duration

AFTER_STEPS, AFTER_S = 3, 5.0
"""So many steps are timed, or as many as take so long; the first of a run, which may be slow, does not count."""
_MUCH = 1.5
"""Ratio of what was planned to what was measured that is worth a line."""
_WORTH_SAYING_S, _LONG_S = 600.0, 3600.0


class FirstSteps:
    """The time of a run's first steps, without the very first, which may be slow, as with compilation."""

    def __init__(self) -> None:
        self._from: Spent | None = None
        self._told = False

    def step_s(self, spent: Spent) -> float:
        """Seconds per step once enough of them are timed, for one call; else 0."""
        if self._from is None:
            self._from = spent
        steps, seconds = spent.step - self._from.step, spent.seconds - self._from.seconds
        if self._told or not steps or (steps < AFTER_STEPS and seconds < AFTER_S):
            return 0.0
        self._told = True
        return max(seconds, 1e-9) / steps


def correction(
    settings: Settings, budget: Budget, step_s: float, *, planned_passes: float | None, now: datetime
) -> str:
    """The line, or "" if the run goes as planned.

    Args:
        settings: of the run.
        budget: of the run.
        step_s: seconds per step, measured.
        planned_passes: passes over the images that the plan expects; None if it expects nothing.
        now: local time.
    """
    if settings.epochs:
        return _of_epochs(settings, budget, step_s, now)
    steps = budget.training_s / step_s
    passes = steps / budget.steps_per_epoch
    differs = planned_passes is not None and not 1 / _MUCH <= passes / planned_passes <= _MUCH
    few = passes < PASSES
    if not (few or differs):
        return ""
    line = (
        f"about {counted(max(round(steps), 1), 'step')}, {_number(passes)} {'pass' if passes == 1 else 'passes'} over"
        f" the images, will fit in {counted(settings.minutes, 'minute')}"
    )
    if differs and planned_passes is not None:
        line += f"; the plan expected {_number(planned_passes)} passes"
    return line + (_way_out(settings, steps, budget) if few else "")


def _of_epochs(settings: Settings, budget: Budget, step_s: float, now: datetime) -> str:
    seconds = settings.epochs * budget.steps_per_epoch * step_s
    if seconds < _WORTH_SAYING_S:
        return ""
    end = now + timedelta(seconds=seconds)
    when = f"{end:%H:%M}" if end.date() == now.date() else f"{end:%H:%M} on {end.day} {end:%B}"
    line = f"{counted(settings.epochs, 'epoch')} will take about {long_duration(seconds)}, until {when}"
    if seconds <= _LONG_S:
        return line
    return f"{line}; --fresh --minutes 30 ends after half an hour, with a schedule that fits"


def _way_out(settings: Settings, steps: float, budget: Budget) -> str:
    """What would give eight passes: a smaller side or network on a CPU, or else more minutes."""
    wanted = PASSES * budget.steps_per_epoch
    if settings.device == "cpu":
        choices = _cheaper(settings)
        enough = [choice for choice in choices if steps * choice[1] >= wanted]
        if enough or choices:
            flags, gain = enough[0] if enough else max(choices, key=lambda choice: choice[1])
            if gain >= _MUCH:
                return f"; --fresh {flags} would give about {counted(round(steps * gain), 'step')}"
    minutes = settings.minutes * wanted / steps
    return f"; --fresh --minutes {max(round(minutes), 1)} would give {PASSES} passes"


def _cheaper(settings: Settings) -> list[tuple[str, float]]:
    """Flags of cheaper choices, the least change first, with the number of times as many steps that each gives."""
    size, backbone = settings.size_px, settings.backbone
    now = cost.gflop_per_view(backbone, size)
    choices = []
    for side in smaller_sides_px(size) if backbone == SMALL_CNN or is_small(size) else _strides_below(size):
        then = cost.gflop_per_view(backbone, side)
        # A ResNet's stem for small images costs more than it saves.
        if is_small(side) and not is_small(size) and backbone not in (SMALL_CNN, RESNET):
            continue
        gain = now / then if now and then else (size / side) ** 2
        choices.append((f"--size-px {side}", gain))
    if backbone != SMALL_CNN and now:
        for side in smaller_sides_px(size + 1):
            then = cost.gflop_per_view(SMALL_CNN, side)
            choices.append((f"--backbone {SMALL_CNN} --size-px {side}", now / then if then else 0.0))
    return choices


def _strides_below(size_px: int) -> list[int]:
    return list(range((size_px - 1) // STRIDE_PX * STRIDE_PX, 0, -STRIDE_PX))


def _number(passes: float) -> str:
    return (
        f"{passes:.0f}" if passes >= PASSES else f"{passes:.1g}" if passes < 1 else f"{passes:.1f}".removesuffix(".0")
    )
