"""`embedserve collection`."""

from __future__ import annotations

import click


@click.command("collection")
def command() -> None:
    """To be written."""
