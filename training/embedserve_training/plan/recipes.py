"""Recipes: sets of settings in TOML, each value beside its source. This module imports no torch.

``training/recipes`` holds the recipes of the project: for each method the published ImageNet settings (``…-imagenet``),
settings for a torchvision network on one GPU (``…-gpu``) and for small-cnn on a CPU (``…-cpu``), and where the authors
published them, those for CIFAR-10 (``…-cifar``). A user's own file may give plain values: ``base_lr = 0.3`` instead of
``base_lr = { value = 0.3, source = "why" }``.
"""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any

from embedserve.errors import InvalidInput
from embedserve.nearest import meant
from embedserve.regular_file import read_text
from embedserve_training.plan.config import METHODS, TrainConfig, applies, check_values

_NEVER = ("method", "recipe", "seed", "workers", "device")
"""What a recipe cannot set: its method and name, and what belongs to the run and the machine."""
_OTHERS = f"methods are: {', '.join(METHODS)}"
_WORDS = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings to start from."""

    name: str
    title: str
    method: str
    values: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where a value comes from, for the values that state it."""
    own: bool = False
    """Whether it is a user's file rather than one of the project's."""


def folder() -> Path:
    """The folder of the project's recipes: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parents[1]
    installed = here / "recipes"
    return installed if installed.is_dir() else here.parent / "recipes"


def names() -> list[str]:
    """Names of the project's recipes, sorted."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(name: str) -> Recipe:
    """The recipe of this name, or in this TOML file.

    Raises:
        InvalidInput: it does not exist, or a value in it is not valid.
    """
    path = Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"
    if not name.endswith(".toml") and name not in names():
        hint = meant(name, names(), f"a TOML file, or one of: {', '.join(names())}")
        raise InvalidInput(f"there is no recipe {name!r}", hint=hint)
    try:
        document = tomllib.loads(read_text(path))
    except OSError as error:
        raise InvalidInput(f"the recipe {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the recipe {path} is not TOML: {error}") from error
    return _parse(document, path, own=name.endswith(".toml"))


def _parse(document: dict[str, Any], path: Path, *, own: bool) -> Recipe:
    method = document.pop("method", None)
    if method not in METHODS:
        problem = "does not say which method it is for" if method is None else f"is for the method {method!r}"
        raise InvalidInput(f"{path} {problem}", hint=f'it needs a line such as: method = "{METHODS[0]}"; {_OTHERS}')
    title = str(document.pop("title", path.stem))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, entry in document.items():
        if key in _NEVER or key not in _types():
            hint = meant(key, _settable(), f"settings are: {', '.join(_settable())}")
            raise InvalidInput(f"{path} sets {key!r}, which a recipe cannot set", hint=hint)
        if isinstance(entry, dict) and not {"value"} <= entry.keys() <= {"value", "source"}:
            raise InvalidInput(
                f"{path} gives {key} as {{ {', '.join(entry)} }}",
                hint=f'either {key} = VALUE or {key} = {{ value = VALUE, source = "why" }}',
            )
        value, source = (entry["value"], entry.get("source")) if isinstance(entry, dict) else (entry, None)
        values[key] = _typed(key, value, path)
        if source:
            sources[key] = str(source)
    _check(values, method, path)
    return Recipe(name=path.stem, title=title, method=method, values=values, sources=sources, own=own)


def _typed(key: str, value: Any, path: Path) -> Any:
    wanted = _types()[key]
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise InvalidInput(f"{path} sets {key} to {value!r}, which is not {_WORDS[wanted]}")
    return value


def _check(values: Mapping[str, Any], method: str, path: Path) -> None:
    try:
        check_values(SimpleNamespace(**{**dict.fromkeys(_types()), **values, "method": method}))
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.message}", hint=error.hint) from error
    for key in values:
        if not applies(key, method):
            raise InvalidInput(f"{path} sets {key}, which has no meaning for {method}", hint="leave that line out")


def _settable() -> list[str]:
    return sorted(set(_types()) - set(_NEVER))


@cache
def _types() -> dict[str, type]:
    """The type of each setting, without None."""
    hints = typing.get_type_hints(TrainConfig)
    found: dict[str, type] = {}
    for entry in fields(TrainConfig):
        annotation = hints[entry.name]
        if isinstance(annotation, UnionType):
            [annotation] = [part for part in annotation.__args__ if part is not NoneType]
        found[entry.name] = annotation
    return found


def type_of(name: str) -> type:
    """The type of a setting, without None."""
    return _types()[name]
