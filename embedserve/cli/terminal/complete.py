"""What a shell completes after an option: settings with few values, and the collections of a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_TIMEOUT_S = 1.0


class CollectionName(click.ParamType[Any]):
    """The name or alias of a collection; the shell completes those of the server."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Names and aliases that begin with the text; none, and no message, where the server does not answer."""
        from click.shell_completion import CompletionItem

        try:
            names = _names(ctx)
        except Exception:  # a message would be written into the line that is being typed
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _names(ctx: click.Context) -> list[str]:
    import os

    from embedserve.cli.terminal.options import connect

    server = ctx.params.get("server") or os.environ.get("EMBEDSERVE_SERVER") or "localhost:50051"
    with ctx.scope(cleanup=False), connect(server, timeout_s=_TIMEOUT_S) as client:
        return sorted(name for info in client.list_collections() for name in (info.name, *info.aliases))


def one_of(choices: Callable[[], Sequence[str]]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """A completion of click: those of the choices that begin with the text."""
    return lambda ctx, param, incomplete: [name for name in choices() if name.startswith(incomplete)]
