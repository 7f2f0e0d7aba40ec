"""`embedserve collection set-alias`: other names of collections."""

from __future__ import annotations

import click

from embedserve.cli.terminal.options import CollectionName, server_option


@click.command("set-alias")
@click.argument("alias")
@click.argument("name", type=CollectionName(), required=False)
@click.option("--remove", is_flag=True, help="Remove the alias.")
@server_option
def set_alias(alias: str, name: str | None, remove: bool, server: str) -> None:
    """Point ALIAS to the collection NAME, at once for every reader; or remove it.

    \b
    embedserve collection set-alias photos photos-2
    embedserve collection set-alias photos --remove
    """
    # An empty NAME, as of a shell variable that is not set, must not remove the alias.
    if remove == bool(name) or name == "":
        raise click.UsageError("give either NAME or --remove")

    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import printable, say

    with connect(server) as client:
        client.set_alias(alias, name or "")
    said = (
        f"removed alias {printable(alias)}" if remove else f"alias {printable(alias)} points to {printable(name or '')}"
    )
    say(said)


COMMANDS = (set_alias,)
