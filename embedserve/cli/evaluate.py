"""`embedserve evaluate`."""

from __future__ import annotations

import click


@click.command("evaluate")
def command() -> None:
    """To be written."""
