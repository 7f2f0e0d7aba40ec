"""`embedserve embed`."""

from __future__ import annotations

import click


@click.command("embed")
def command() -> None:
    """To be written."""
