"""Wrong usage in the style of all errors, and lists of commands whose sentences are whole."""

from __future__ import annotations

import inspect

import click


class Group(click.Group):
    """A group whose help shows the first sentence of each command whole, folded at words where it is long."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands; click's own cuts sentences at the width of the terminal."""
        rows = []
        for name in self.list_commands(ctx):
            found = self.get_command(ctx, name)
            if found is not None and not found.hidden:
                rows.append((name, first_sentence(found)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def first_sentence(command: click.Command) -> str:
    """The first sentence of a command's help, on one line."""
    paragraph = inspect.cleandoc(command.help or "").split("\n\n")[0]
    sentence, stop, _ = " ".join(paragraph.split()).partition(". ")
    return f"{sentence}." if stop else sentence


def sentence_and_hint(error: click.ClickException) -> tuple[str, str]:
    """Click's error as a message and a hint, as our own errors have them."""
    message = error.format_message().strip().removesuffix(".")
    if message[:1].isupper() and message[1:2].islower():
        message = message[0].lower() + message[1:]
    context = error.ctx if isinstance(error, click.UsageError) else None
    return message, f"{context.command_path} --help" if context is not None else ""
