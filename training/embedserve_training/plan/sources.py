"""Who has the last word on a setting: default < recipe < a person's recipe file < environment < flag.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any

from embedserve.errors import InvalidInput
from embedserve_training.plan import recipes
from embedserve_training.plan.config import RIVALS, TrainConfig, applies
from embedserve_training.plan.recipes import Recipe

DEFAULTS: dict[str, tuple[Any, str]] = {
    "bias_lr": (1.0, "as the other weights"),
    "decayed": ("matrices", ""),
    "clip_norm": (0.0, "gradients are not cut"),
    "warmup": (0.1, ""),
    "lr_drops": ("", "the rate falls along a cosine"),
    "lr_end": (0.0, ""),
    "whiten": (True, "better neighbours by cosine, see embedserve_training/networks/whitening.py"),
    "compile": (False, ""),
}
"""What holds unless a recipe or a person says otherwise, and what that means where it is not plain."""
_NEUTRAL: dict[type, Any] = {int: 0, float: 0.0, str: "", bool: False}
"""What stands in the settings for what the method does not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanEntry:
    """One effective value."""

    name: str
    value: Any
    source: str
    """"default", "auto" (chosen here), "recipe", "file" (a person's own recipe), "environment" or "flag"."""
    why: str = ""
    """How an automatic value came about, or where a recipe has it from."""


class SettingSources:
    """The values of one run, settled one by one; what is settled stays.

    Args:
        config: what the person said.
        from_environment: names of those settings of ``config`` that an environment variable said.
    """

    def __init__(self, config: TrainConfig, from_environment: Collection[str] = ()) -> None:
        self.config = config
        self.method = config.method
        self.from_environment = from_environment
        self.entries: dict[str, PlanEntry] = {}
        self._given_by_recipes: dict[str, PlanEntry] = {}
        self._recipes = 0

    def use(self, recipe: Recipe) -> None:
        """Take from a recipe what those before it leave open.

        Raises:
            InvalidInput: it is for another method.
        """
        if recipe.method != self.method:
            raise InvalidInput(
                f"the recipe {recipe.name} is for {recipe.method}, not for {self.method}",
                hint=f"add --method {recipe.method}, or choose another recipe",
            )
        before = set(self._given_by_recipes)
        source = "file" if recipe.own else "recipe"
        for name, value in recipe.values.items():
            if name in before or RIVALS.get(name) in before:
                continue
            why = recipe.sources.get(name, "")
            if self._recipes:
                why = f"{recipe.name}: {why}" if why else recipe.name
            self._given_by_recipes[name] = PlanEntry(name=name, value=value, source=source, why=why)
        self._recipes += 1

    def said(self, name: str) -> Any:
        """What the person said, None if nothing."""
        value = getattr(self.config, name)
        return None if value == "auto" else value

    def from_recipe(self, name: str) -> PlanEntry | None:
        """What the recipes say, None if nothing or if the person said what takes its place."""
        rival = RIVALS.get(name)
        return None if rival and self.said(rival) is not None else self._given_by_recipes.get(name)

    def value(self, name: str) -> Any:
        """A settled value."""
        return self.entries[name].value

    def put(self, name: str, value: Any, source: str, why: str = "") -> None:
        """Settle a value, whatever else was said."""
        self.entries[name] = PlanEntry(name=name, value=value, source=source, why=why)

    def given(self, name: str) -> bool:
        """Settle a value that the person or a recipe gives, or that the method does not have; False if neither does."""
        if name in self.entries:
            return True
        said, recipe = self.said(name), self.from_recipe(name)
        if not applies(name, self.method):
            self.put(name, _NEUTRAL[recipes.type_of(name)], "default")
        elif said is not None:
            self.put(name, said, self._who_said(name))
        elif recipe is not None:
            self.entries[name] = recipe
        else:
            return False
        return True

    def auto(self, name: str, value: Any, why: str) -> None:
        """Choose a value that nobody gave."""
        if not self.given(name):
            self.put(name, value, "auto", why)

    def at_most(self, name: str, limit: int, what: str) -> None:
        """Settle a value within a limit: a recipe's is lowered to it, with a word of it; a person's is refused.

        Raises:
            InvalidInput: the person's is beyond it.
        """
        said, recipe = self.said(name), self.from_recipe(name)
        if said is not None and said > limit:
            raise InvalidInput(
                f"{name} is {said}, but at most {limit} is possible: {what}",
                hint=f"--set {name}={limit}, or leave it out",
            )
        if said is None and recipe is not None and recipe.value > limit:
            self.put(name, limit, "auto", f"{what}; the recipe has {recipe.value}")
        else:
            self.auto(name, limit, what)

    def explain(self, name: str, why: str) -> None:
        """Add to the reason of a settled value."""
        entry = self.entries[name]
        self.entries[name] = replace(entry, why=f"{entry.why}; {why}" if entry.why else why)

    def settle(self, name: str) -> None:
        """The last resort for a value that neither person nor recipe give and that was not chosen.

        Raises:
            InvalidInput: it has no default either.
        """
        if self.given(name):
            return
        if name not in DEFAULTS:
            raise InvalidInput(f"no recipe gives {name} for {self.method}", hint=f"say it: --set {name}=…")
        value, why = DEFAULTS[name]
        self.put(name, value, "default", why)

    def _who_said(self, name: str) -> str:
        default = next(entry.default for entry in fields(TrainConfig) if entry.name == name)
        if self.said(name) == default:
            return "default"
        return "environment" if name in self.from_environment else "flag"
