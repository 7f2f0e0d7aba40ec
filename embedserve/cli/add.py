"""`embedserve add`."""

from __future__ import annotations

import click


@click.command("add")
def command() -> None:
    """To be written."""
