"""What the training commands share: the optional dependency, and settings as flags."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from embedserve.errors import InvalidInput, SetupError

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])

_EXTRA = {"torch", "torchvision", "onnx", "onnxscript"}

_FLAGS = (
    "method",
    "recipe",
    "backbone",
    "epochs",
    "minutes",
    "batch_size",
    "size_px",
    "fit",
    "augmentation",
    "compile",
    "device",
    "workers",
    "seed",
)
"""Settings with a flag of their own; all others are set by ``--set``."""


@contextmanager
def training_installed() -> Iterator[None]:
    """Turn a missing training dependency into one sentence.

    Raises:
        SetupError: PyTorch or a package for export is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise SetupError(
            f"training needs {'PyTorch' if error.name == 'torch' else error.name}, which is not installed",
            hint="pip install 'embedserve[train]'",
        ) from error


def setting_options(command: _CommandT) -> _CommandT:
    """A flag for each common setting, and ``--set`` for the rest; the help texts are those of the settings."""
    config = _config_class()
    rest = ", ".join(entry.name for entry in fields(config) if entry.name not in _FLAGS)
    command = click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        envvar="EMBEDSERVE_TRAIN_SET",
        help=f"Any other setting: {rest}.",
    )(command)
    for name in reversed([entry.name for entry in fields(config) if entry.name in _FLAGS]):
        command = setting_option(name)(command)
    return command


def setting_option(name: str) -> Callable[[_CommandT], _CommandT]:
    """The flag of one setting, with the setting's own help text."""
    [entry] = [entry for entry in fields(_config_class()) if entry.name == name]
    flag, kind = name.replace("_", "-"), _type_of(name)
    return click.option(
        f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
        type=kind,
        default=None,
        shell_complete=lambda ctx, param, start: [value for value in _choices(name) if value.startswith(start)],
        help=entry.metadata["help"],
    )


def _choices(name: str) -> Sequence[str]:
    """The values of a setting that a shell completes; none for numbers. PyTorch is not imported for it."""
    from embedserve_training.plan import config, image_settings, recipes

    known: dict[str, Callable[[], Sequence[str]]] = {
        "method": lambda: config.METHODS,
        "backbone": lambda: config.BACKBONES,
        "augmentation": lambda: config.AUGMENTATIONS,
        "fit": lambda: image_settings.FITS,
        "device": lambda: config.DEVICES,
        "recipe": recipes.names,
    }
    return known[name]() if name in known else ()


def make_config(flags: dict[str, Any], settings: Sequence[str]) -> Any:
    """The TrainConfig of flags and ``--set`` texts; other settings keep their defaults.

    Raises:
        InvalidInput: a text is not KEY=VALUE, a key is unknown, or a value has the wrong type.
    """
    from embedserve.nearest import meant

    config = _config_class()
    known = {entry.name for entry in fields(config)}
    values = {name: value for name, value in flags.items() if value is not None}
    for text in settings:
        _, equals, value = text.partition("=")
        key = _key(text)
        if not equals or key not in known:
            what = f"there is no setting {key!r}" if equals else f"{text!r} is not KEY=VALUE"
            raise InvalidInput(what, hint=meant(key, known, f"settings are: {', '.join(sorted(known))}"))
        values[key] = _parsed(key, value.strip())
    return config(**values)


def read_settings(flags: dict[str, Any], settings: Sequence[str]) -> tuple[Any, frozenset[str]]:
    """Like ``make_config``, with the names of the settings that came from environment variables.

    A flag on the command line overrides a ``--set`` from the environment; a ``--set`` on the command line overrides
    any flag.

    Raises:
        InvalidInput: as ``make_config``.
    """
    source = click.get_current_context().get_parameter_source
    of_environment = {
        name for name, value in flags.items() if value is not None and source(name) is ParameterSource.ENVIRONMENT
    }
    if source("settings") is not ParameterSource.ENVIRONMENT:
        return make_config(flags, settings), frozenset(of_environment - {_key(text) for text in settings})
    kept = [text for text in settings if flags.get(_key(text)) is None or _key(text) in of_environment]
    return make_config(flags, kept), frozenset(of_environment | {_key(text) for text in kept})


def _key(text: str) -> str:
    return text.partition("=")[0].strip().replace("-", "_")


def _parsed(key: str, text: str) -> Any:
    kind = _type_of(key)
    if kind is bool:
        # bool("false") is True, so the texts are listed.
        known = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
        if text.lower() not in known:
            raise InvalidInput(f"{key} is {text!r}", hint="say yes or no")
        return known[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise InvalidInput(f"{key} is {text!r}, which is not of type {kind.__name__}") from None


def _config_class() -> Any:
    # Imports only the standard library: cheap enough for `--help`.
    from embedserve_training.plan.config import TrainConfig

    return TrainConfig


def _type_of(name: str) -> type:
    annotation = typing.get_type_hints(_config_class())[name]
    if isinstance(annotation, types.UnionType):
        [annotation] = [part for part in annotation.__args__ if part is not types.NoneType]
    assert isinstance(annotation, type)
    return annotation
