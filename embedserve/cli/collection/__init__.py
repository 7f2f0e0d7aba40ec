"""`embedserve collection`: a group whose subcommands are imported when one of them, or the group's help, is needed.

`embedserve --help` needs only the group's own sentence. One file holds the commands for one noun, in ``COMMANDS``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import MutableMapping
from importlib import import_module
from typing import Any

import click

from embedserve.cli.terminal.usage import Group

_MODULES = ("collections", "aliases", "items", "check", "backup", "export")

RENAMED = {"alias": "set-alias", "items": "list-items", "get": "get-items", "remove": "delete-items"}
"""Old name of a command → its name, which is that of the RPC and of the client's method."""


class _CollectionGroup(Group):
    """A group that imports its subcommands when click first looks at them.

    All of them at once, so that suggestions for a misspelt name, completion and the help see every name.
    """

    _commands: MutableMapping[str, click.Command]
    _loaded: bool

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """Name → command, without the old names: what help, completion and suggestions offer."""
        if not self._loaded:
            self._loaded = True
            for module in _MODULES:
                for command in import_module(f"{__name__}.{module}").COMMANDS:
                    self.add_command(command)
        return self._commands

    @commands.setter
    def commands(self, commands: MutableMapping[str, click.Command]) -> None:
        self._commands, self._loaded = commands, False

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, or of an old name."""
        if new_name := RENAMED.get(cmd_name):
            return _deprecated(self.commands[new_name], cmd_name)
        return super().get_command(ctx, cmd_name)


def _deprecated(command: click.Command, old_name: str) -> click.Command:
    """The command under its old name: hidden, and with a line on standard error that names the new one."""
    old = copy.copy(command)
    old.name, old.hidden = old_name, True
    notice = f"Use `embedserve collection {command.name}`."
    # Not click's own notice, which it puts behind the last word of the help: behind an example.
    old.help = f"An old name. {notice}\n\n{inspect.cleandoc(command.help or '')}"

    def call(*arguments: Any, **options: Any) -> Any:
        click.echo(f"DeprecationWarning: The command {old_name!r} is deprecated. {notice}", err=True)
        assert command.callback is not None
        return command.callback(*arguments, **options)

    old.callback = call
    return old


@click.group("collection", cls=_CollectionGroup)
def command() -> None:
    """Create, list, check, copy and delete collections, and look at their items.

    \b
    embedserve collection list
    embedserve collection info photos
    embedserve collection backup photos photos.backup
    """
