"""`embedserve train`."""

from __future__ import annotations

import click


@click.command("train")
def command() -> None:
    """To be written."""
