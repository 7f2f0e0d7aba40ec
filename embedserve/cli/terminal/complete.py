"""The collections of a server, for a shell that completes their names; imported only then."""

from __future__ import annotations

import os

import click
from click.shell_completion import CompletionItem

from embedserve.cli.terminal.options import connect

_TIMEOUT_S = 1.0


def collections(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Names and aliases that begin with the text; none, and no message, where the server does not answer."""
    try:
        names = _names(ctx)
    except Exception:  # a message would be written into the line that is being typed
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _names(ctx: click.Context) -> list[str]:
    server = ctx.params.get("server") or os.environ.get("EMBEDSERVE_SERVER") or "localhost:50051"
    with ctx.scope(cleanup=False), connect(server, timeout_s=_TIMEOUT_S) as client:
        return sorted(name for info in client.list_collections() for name in (info.name, *info.aliases))
