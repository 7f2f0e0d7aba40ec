"""`embedserve completion`: the script by which a shell completes commands and options."""

from __future__ import annotations

import click

_PLACES = {
    "bash": (
        "~/.local/share/bash-completion/completions/embedserve",
        "mkdir -p ~/.local/share/bash-completion/completions",
    ),
    "zsh": (
        "~/.zfunc/_embedserve",
        "mkdir -p ~/.zfunc, and in ~/.zshrc: fpath+=~/.zfunc; autoload -Uz compinit; compinit",
    ),
    "fish": ("~/.config/fish/completions/embedserve.fish", "mkdir -p ~/.config/fish/completions"),
}


@click.command("completion")
@click.argument("shell", type=click.Choice(sorted(_PLACES)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell, and where to put it.

    \b
    embedserve completion zsh > ~/.zfunc/_embedserve
    """
    from click.shell_completion import get_completion_class

    from embedserve.cli.terminal.output import say

    kind = get_completion_class(shell)
    assert kind is not None, "click supports the three shells"
    script = kind(context.find_root().command, {}, "embedserve", "_EMBEDSERVE_COMPLETE").source()
    click.echo(script)
    path, first = _PLACES[shell]
    say(f"# save it as {path}, and open a new shell:")
    say(f"#   {first}")
    say(f"#   embedserve completion {shell} > {path}")
