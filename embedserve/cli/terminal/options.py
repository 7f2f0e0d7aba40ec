"""Options and arguments that several commands share, each defined in one place."""

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
    file = click.Path(path_type=Path)
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


def collection_option(command: _CommandT) -> _CommandT:
    """``--collection``: the collection, by name or alias."""
    return click.option(
        "--collection",
        required=True,
        metavar="NAME",
        envvar="EMBEDSERVE_COLLECTION",
        show_envvar=True,
        help="Name or alias of the collection.",
    )(command)


def json_option(text: str) -> Callable[[_CommandT], _CommandT]:
    """``--json``: output for programs."""
    return click.option("--json", "as_json", is_flag=True, help=text)


existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)
new_file = click.Path(dir_okay=False, path_type=Path)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")


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
        help="Only items whose metadata matches: key=value, key!=value, key>=n, key<=n, key>n, key<n, or key for"
        " items that have it. Several must all hold. Values are numbers, true, false or text; quotes make text.",
    )(command)


def require_terminal(yes: bool) -> None:
    """Make sure that a deletion can be confirmed: by ``--yes`` or at a terminal.

    Raises:
        UsageError: by neither.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("this deletes data, and there is no terminal to confirm at: give --yes")


def confirm(question: str, yes: bool) -> None:
    """Ask for confirmation, unless ``yes`` is given.

    Raises:
        Abort: the answer was no.
    """
    if not yes:
        click.confirm(question, abort=True, err=True)


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
    hint = "it must hold only the token"
    try:
        words = path.read_text(encoding="utf-8").split()
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
