"""Options that several client-side commands share, each spelled and explained in one place."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from embedserve.errors import DataError, InvalidInput

if TYPE_CHECKING:
    from embedserve.client import Client

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])


def server_option(command: _CommandT) -> _CommandT:
    """``--server``: where the server is, with the options of the connection; environment variables for all commands."""
    return click.option(
        "--server",
        default="localhost:50051",
        metavar="HOST:PORT",
        envvar="EMBEDSERVE_SERVER",
        show_envvar=True,
        help="The server's gRPC address.",
    )(connection_options(command))


_CONNECTION = "embedserve.connection"


def connection_options(command: _CommandT) -> _CommandT:
    """Token and certificates of a connection. ``connect`` finds them by itself; commands are not given them."""
    file = click.Path(path_type=Path)
    for name, kind, text in reversed(
        [
            (
                "--token-file",
                file,
                "File with the token that the server asks for. EMBEDSERVE_TOKEN can hold the token.",
            ),
            ("--tls", None, "Encrypt, and believe the CAs that this machine believes."),
            ("--ca", file, "Encrypt, and believe only the CAs in this PEM file."),
            ("--client-cert", file, "Certificate in PEM for a server that asks clients for one."),
            ("--client-key", file, "Private key of --client-cert in PEM."),
            ("--allow-plain-token", None, "Send the token without TLS to another machine too; it can be overheard."),
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
    # gRPC writes of its own to standard error why a handshake failed; we say it ourselves. It is not loaded yet.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    context.meta.setdefault(_CONNECTION, {})[param.name] = value


def collection_option(command: _CommandT) -> _CommandT:
    """``--collection``: which collection, by name or alias."""
    return click.option(
        "--collection",
        required=True,
        metavar="NAME",
        envvar="EMBEDSERVE_COLLECTION",
        show_envvar=True,
        help="Name or alias of the collection.",
    )(command)


def json_option(text: str) -> Callable[[_CommandT], _CommandT]:
    """``--json``: for programs."""
    return click.option("--json", "as_json", is_flag=True, help=text)


class Condition(click.ParamType[Any]):
    """A condition on metadata, as ``--where`` takes it; converted to a filter."""

    name = "condition"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The filter that the text describes."""
        from embedserve.cli.conditions import parse_condition

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
        help="Only items whose metadata fits: key=value, key!=value, key>=n, key<=n, key>n, key<n, or key for"
        " items that have it. Several must all hold. Values are numbers, true, false or text; quotes make text.",
    )(command)


def require_terminal(yes: bool) -> None:
    """Refuse to remove anything unasked: without ``--yes`` there must be a terminal to ask at.

    Raises:
        UsageError: there is neither.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("this removes data, and there is no terminal to ask at: give --yes")


def confirm(question: str, yes: bool) -> None:
    """Ask before something is removed, unless ``yes`` says not to.

    Raises:
        Abort: the answer was no.
    """
    if not yes:
        click.confirm(question, abort=True, err=True)


def connection() -> dict[str, Any]:
    """What the options of the connection say, as arguments of ``Client`` and ``AsyncClient``.

    Raises:
        DataError: the token's file cannot be read, or holds something else.
    """
    given: dict[str, Any] = dict(click.get_current_context().meta.get(_CONNECTION, {}))
    token_file = given.pop("token_file", None)
    token = os.environ.get("EMBEDSERVE_TOKEN", "") if token_file is None else _read_token(token_file)
    return {**given, "token": token.strip()}


def _read_token(path: Path) -> str:
    hint = "it has to hold the token alone"
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"the token file {path} cannot be read: {why}", hint=hint) from error
    if len(words) != 1:
        raise DataError(f"the token file {path} has {len(words)} words", hint=hint)
    return words[0]


def connect(server: str, *, timeout_s: float = 60) -> Client:
    """A client for the server, with what the options of the connection say."""
    from embedserve.client import Client

    return Client(server, timeout_s=timeout_s, **connection())
