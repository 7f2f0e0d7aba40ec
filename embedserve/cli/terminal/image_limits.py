"""The limits on an image as options of the commands that decode images in this process; the server's own defaults."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from embedserve.types import Limits

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])
_NAMES = ("max_image_pixels", "max_image_bytes", "max_image_side_px")


def image_limit_options(command: _CommandT) -> _CommandT:
    """``--max-image-pixels``, ``--max-image-bytes`` and ``--max-image-side-px``, given to the command as ``limits``."""

    @functools.wraps(command)
    def with_limits(*args: Any, **values: Any) -> Any:
        return command(*args, limits=Limits(**{name: values.pop(name) for name in _NAMES}), **values)

    for name in reversed(_NAMES):
        [field] = [entry for entry in fields(Limits) if entry.name == name]
        with_limits = click.option(
            f"--{name.replace('_', '-')}",
            default=field.default,
            type=click.IntRange(1, 2**32 - 1),
            help=f"{field.metadata['help']} As of `serve`; larger images are left out.",
        )(with_limits)
    return with_limits  # type: ignore[return-value]  # the command's parameters, but for these
