"""`embedserve completion`."""

from __future__ import annotations

import click


@click.command("completion")
def command() -> None:
    """To be written."""
