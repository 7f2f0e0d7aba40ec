"""Where the value of a setting comes from: default < recipe < the user's recipe file < environment < flag.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any

from embedserve.errors import InvalidInput
from embedserve_training.plan import recipes
from embedserve_training.plan.config import ALTERNATIVES, TrainConfig, applies
from embedserve_training.plan.recipes import Recipe

_NEUTRAL: dict[type, Any] = {int: 0, float: 0.0, str: "", bool: False}
"""Values of the settings that the method lacks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanEntry:
    """One effective value."""

    name: str
    value: Any
    source: str
    """"default", "auto" (chosen by ``defaults``), "recipe", "file" (the user's recipe), "environment" or "flag"."""
    why: str = ""
    """How an automatic value was chosen, or the source that a recipe states."""


class SettingSources:
    """The settings of one run, settled one by one; a settled value never changes.

    Args:
        config: what the user gave.
        from_environment: names of the settings of ``config`` that environment variables gave.
    """

    def __init__(self, config: TrainConfig, from_environment: Collection[str] = ()) -> None:
        self.config = config
        self.method = config.method
        self.from_environment = from_environment
        self.entries: dict[str, PlanEntry] = {}
        self._given_by_recipes: dict[str, PlanEntry] = {}
        self._recipes = 0

    def use(self, recipe: Recipe) -> None:
        """Take from a recipe the settings that the recipes before it leave open.

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
            if name in before or ALTERNATIVES.get(name) in before:
                continue
            why = recipe.sources.get(name, "")
            if self._recipes:
                why = f"{recipe.name}: {why}" if why else recipe.name
            self._given_by_recipes[name] = PlanEntry(name=name, value=value, source=source, why=why)
        self._recipes += 1

    def from_user(self, name: str) -> Any:
        """The value that the user gave; None if there is none."""
        value = getattr(self.config, name)
        return None if value == "auto" else value

    def from_recipe(self, name: str) -> PlanEntry | None:
        """The value that a recipe gives; None if none does, or if the user gave the setting that replaces it."""
        alternative = ALTERNATIVES.get(name)
        replaced = alternative is not None and self.from_user(alternative) is not None
        return None if replaced else self._given_by_recipes.get(name)

    def value(self, name: str) -> Any:
        """A settled value."""
        return self.entries[name].value

    def settle(self, name: str, value: Any, source: str, why: str = "") -> None:
        """Settle a value, whatever the user or a recipe gives."""
        self.entries[name] = PlanEntry(name=name, value=value, source=source, why=why)

    def settle_given(self, name: str) -> bool:
        """Settle a value that the user or a recipe gives, or that the method lacks; False if it is still open."""
        if name in self.entries:
            return True
        given, recipe = self.from_user(name), self.from_recipe(name)
        if not applies(name, self.method):
            self.settle(name, _NEUTRAL[recipes.type_of(name)], "default")
        elif given is not None:
            self.settle(name, given, self._source_of_given(name))
        elif recipe is not None:
            self.entries[name] = recipe
        else:
            return False
        return True

    def auto(self, name: str, value: Any, why: str) -> None:
        """Settle a value: the one that is given, or else this one."""
        if not self.settle_given(name):
            self.settle(name, value, "auto", why)

    def at_most(self, name: str, limit: int, what: str) -> None:
        """Settle a value within a limit: a recipe's is lowered to it, and the reason says so; a user's is refused.

        Raises:
            InvalidInput: the user's value exceeds the limit.
        """
        given, recipe = self.from_user(name), self.from_recipe(name)
        if given is not None and given > limit:
            raise InvalidInput(
                f"{name} is {given}, but at most {limit} is possible: {what}",
                hint=f"--set {name}={limit}, or leave it out",
            )
        if given is None and recipe is not None and recipe.value > limit:
            self.settle(name, limit, "auto", f"{what}; the recipe has {recipe.value}")
        else:
            self.auto(name, limit, what)

    def explain(self, name: str, why: str) -> None:
        """Extend the reason of a settled value."""
        entry = self.entries[name]
        self.entries[name] = replace(entry, why=f"{entry.why}; {why}" if entry.why else why)

    def _source_of_given(self, name: str) -> str:
        default = next(entry.default for entry in fields(TrainConfig) if entry.name == name)
        if self.from_user(name) == default:
            return "default"
        return "environment" if name in self.from_environment else "flag"
