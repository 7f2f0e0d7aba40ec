"""Options and arguments that several commands share, each defined in one place."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from embedserve.errors import DataError, InvalidInput
from embedserve.types import Limits

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from embedserve.client import Client

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])


_FOR_THE_FIRST_S = 10.0
"""How long the other processes of torchrun wait for the first one's error; its end ends them at once."""


class GivenPath(click.Path):
    """A path; an empty one, as of a shell variable that is not set, does not stand for the current folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"path_type": Path, **options})

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Raises:
            InvalidInput: it is empty.
        """
        if value == "":
            name = param.get_error_hint(ctx) if param is not None and ctx is not None else "the path"
            raise InvalidInput(f"{name} is empty", hint="a variable of the shell may be unset; the current folder is .")
        return super().convert(value, param, ctx)


class Existing(GivenPath):
    """A path of something that exists; another one is wrong usage, said in one sentence with a hint.

    Args:
        wanted: what it has to be: "images", "folder", "run", "encoder" or another key of ``path_kinds``.
        what: what is missing otherwise, as in "encoder file".
        hint: how to get one, with "{path}" for the path.
        lists: ``@NAME`` is allowed too, a list of files that exists.
        optional: it need not exist.
    """

    def __init__(
        self, wanted: str, what: str = "", hint: str = "", *, lists: bool = False, optional: bool = False
    ) -> None:
        super().__init__()
        self._wanted, self._what, self._hint, self._lists, self._optional = wanted, what, hint, lists, optional

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Raises:
            InvalidInput: it is empty, nothing has this path, or something of another kind.
        """
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        found = path
        if self._lists and str(path).startswith("@"):
            from embedserve.folder.list_file import list_file

            found = list_file(path) or path
        if not os.path.lexists(found):
            if self._optional:
                return path
            if os.environ.get("LOCAL_RANK", "0") != "0":
                # Under torchrun the first process says it for all, and is ended as soon as another one ends.
                import time

                time.sleep(_FOR_THE_FIRST_S)
                raise click.exceptions.Exit(2)
            message = f"there is no {self._what} {value}" if self._what else f"{value} does not exist"
            raise InvalidInput(message, hint=self._hint.format(path=value) or f"paths are relative to {Path.cwd()}")
        from embedserve.cli.terminal import path_kinds

        if wrong := path_kinds.wrong(found, self._wanted if found is path else "list"):
            raise InvalidInput(f"{found} {wrong[0]}", hint=wrong[1])
        return path


existing_images = Existing("images", lists=True)
"""A file, a folder of images, or ``@NAME``: a list of image files."""
existing_folder = Existing("folder", lists=True)
"""A folder of images, or ``@NAME``: a list of image files."""
existing_encoder = Existing("encoder", "encoder file", "make one: embedserve export RUN -o {path}")
existing_run = Existing("run")
existing_file = Existing("file")


def server_option(command: _CommandT) -> _CommandT:
    """``--server`` and the options of the connection; each has one environment variable for all commands."""
    return click.option(
        "--server",
        default="localhost:50051",
        metavar="HOST:PORT",
        envvar="EMBEDSERVE_SERVER",
        show_envvar=True,
        help="The server's gRPC address. Several, with commas in between, get the calls in turn.",
    )(connection_options(command))


_CONNECTION = "embedserve.connection"


def connection_options(command: _CommandT) -> _CommandT:
    """Token and certificates of a connection. ``connect`` reads them from the context; commands do not receive them."""
    file = existing_file
    for name, kind, text in reversed(
        [
            (
                "--token-file",
                file,
                "File with the bearer token for the server. EMBEDSERVE_TOKEN can hold the token itself.",
            ),
            ("--tls", None, "Encrypt, and trust the CAs that this machine trusts."),
            ("--ca", file, "Encrypt, and trust only the CAs in this PEM file."),
            ("--client-cert", file, "Certificate in PEM for a server that requires one of clients."),
            ("--client-key", file, "Private key of --client-cert in PEM."),
            (
                "--allow-plain-token",
                None,
                "Send the token without TLS even to another machine, where it can be intercepted.",
            ),
        ]
    ):
        command = click.option(
            name,
            type=kind,
            is_flag=kind is None,
            default=False if kind is None else None,
            metavar=None if kind is None else "FILE",
            envvar=f"EMBEDSERVE_{name.removeprefix('--').replace('-', '_').upper()}",
            show_envvar=True,
            expose_value=False,
            callback=_remember,
            help=text,
        )(command)
    return command


def _remember(context: click.Context, param: click.Parameter, value: Any) -> None:
    # gRPC itself logs failed handshakes to standard error; our errors say it already. Read when gRPC is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    context.meta.setdefault(_CONNECTION, {})[param.name] = value


class CollectionName(click.ParamType[Any]):
    """The name or alias of a collection; the shell completes those of the server."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names and aliases that begin with the text; none where the server does not answer."""
        from embedserve.cli.terminal.complete import collections

        return collections(ctx, incomplete)


def collection_option(command: _CommandT) -> _CommandT:
    """``--collection``: the collection, by name or alias."""
    return click.option(
        "--collection",
        required=True,
        type=CollectionName(),
        metavar="NAME",
        envvar="EMBEDSERVE_COLLECTION",
        show_envvar=True,
        help="Name or alias of the collection.",
    )(command)


def json_option(text: str) -> Callable[[_CommandT], _CommandT]:
    """``--json``: output for programs."""
    return click.option("--json", "as_json", is_flag=True, help=text)


new_file = GivenPath(dir_okay=False)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")


class Finite(click.FloatRange):
    """A finite number within a range; click's own lets nan pass every range, and inf every open one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that the text stands for."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class Condition(click.ParamType[Any]):
    """A condition on metadata, as given to ``--where``; converted to a filter."""

    name = "condition"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The filter that the text describes."""
        from embedserve.cli.terminal.conditions import parse_condition

        if not isinstance(value, str):
            return value
        try:
            return parse_condition(value)
        except InvalidInput as error:
            self.fail(f"{error.message}; {error.hint}" if error.hint else error.message, param, ctx)


def where_option(command: _CommandT) -> _CommandT:
    """``--where``: conditions on metadata."""
    return click.option(
        "--where",
        "conditions",
        multiple=True,
        type=Condition(),
        metavar="CONDITION",
        help='Only items whose metadata matches: key=value, key!=value, "key in (a, b)", key>=bound, key<=bound,'
        " key>bound, key<bound, or key for items that have it. Several must all hold. A bound is a number, or else a"
        " text such as 2026-11-24. A value is a number, true, false or text; without quotes it also equals a text that"
        " is spelt the same.",
    )(command)


class _Exclude(click.ParamType[Any]):
    """A pattern of files and folders to leave out, checked."""

    name = "pattern"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The pattern as it was typed."""
        from embedserve.folder.exclude import Exclude

        try:
            Exclude([value])
        except InvalidInput as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)
        return value


def exclude_option(command: _CommandT) -> _CommandT:
    """``--exclude``: files and folders to leave out."""
    return click.option(
        "--exclude",
        multiple=True,
        type=_Exclude(),
        metavar="PATTERN",
        help="Leave out what matches in folders, as in a .gitignore file: '*.gif' or 'thumbs/' at any depth,"
        " 'a/b/*.png' from the folder on, '**' for any number of folders. May be repeated; in quotes, or the shell"
        " expands it.",
    )(command)


_IMAGE_LIMITS = ("max_image_pixels", "max_image_bytes", "max_image_side_px")


def image_limit_options(command: _CommandT) -> _CommandT:
    """``--max-image-pixels``, ``--max-image-bytes`` and ``--max-image-side-px``, given to the command as ``limits``.

    Of commands that decode images in this process; the defaults are the server's.
    """

    @functools.wraps(command)
    def with_limits(*args: Any, **values: Any) -> Any:
        return command(*args, limits=Limits(**{name: values.pop(name) for name in _IMAGE_LIMITS}), **values)

    for name in reversed(_IMAGE_LIMITS):
        [field] = [entry for entry in fields(Limits) if entry.name == name]
        with_limits = click.option(
            f"--{name.replace('_', '-')}",
            default=field.default,
            type=click.IntRange(1, 2**32 - 1),
            help=f"{field.metadata['help']} As of `serve`; larger images are left out.",
        )(with_limits)
    return with_limits  # type: ignore[return-value]  # the command's parameters, but for these


def require_terminal(yes: bool) -> None:
    """Make sure that a deletion can be confirmed: by ``--yes`` or at a terminal.

    Raises:
        UsageError: by neither.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("this deletes data, and there is no terminal to confirm at: give --yes")


def confirmed(question: str, yes: bool) -> bool:
    """Whether the answer to a question is yes; it is not asked if ``yes`` is given."""
    return yes or click.confirm(question, err=True)


def confirm(question: str, yes: bool) -> None:
    """Ask for confirmation of a deletion, unless ``yes`` is given.

    Raises:
        Exit: the answer was no; with 1, and a line that says so.
    """
    if not confirmed(question, yes):
        click.echo("nothing deleted", err=True)
        raise click.exceptions.Exit(1)


def connection() -> dict[str, Any]:
    """The options of the connection as arguments of ``Client`` and ``AsyncClient``.

    Raises:
        DataError: the token file cannot be read, or does not hold one token.
    """
    given: dict[str, Any] = dict(click.get_current_context().meta.get(_CONNECTION, {}))
    token_file = given.pop("token_file", None)
    token = os.environ.get("EMBEDSERVE_TOKEN", "") if token_file is None else _read_token(token_file)
    return {**given, "token": token.strip()}


def _read_token(path: Path) -> str:
    from embedserve.regular_file import read_text

    hint = "it must hold only the token"
    try:
        words = read_text(path).split()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"the token file {path} cannot be read: {why}", hint=hint) from error
    if len(words) != 1:
        raise DataError(f"the token file {path} has {len(words)} words", hint=hint)
    return words[0]


def connect(server: str, *, timeout_s: float = 60) -> Client:
    """A client for the server, with the options of the connection."""
    from embedserve.client import Client

    return Client(server, timeout_s=timeout_s, **connection())
