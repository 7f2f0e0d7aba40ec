"""Options that several client-side commands share, each spelled and explained in one place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from embedserve.errors import InvalidInput

if TYPE_CHECKING:
    from embedserve.client import Client

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])


def server_option(command: _CommandT) -> _CommandT:
    """``--server``: where the server is; one environment variable for all commands."""
    return click.option(
        "--server",
        default="localhost:50051",
        metavar="HOST:PORT",
        envvar="EMBEDSERVE_SERVER",
        show_envvar=True,
        help="The server's gRPC address.",
    )(command)


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


def connect(server: str, *, timeout_s: float = 60) -> Client:
    """A client for the server."""
    from embedserve.client import Client

    return Client(server, timeout_s=timeout_s)
