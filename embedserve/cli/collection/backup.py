"""`embedserve collection` `backup` and `restore`: a whole collection in one file, for embedserve itself."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.collection.check import WAITING
from embedserve.cli.terminal.options import (
    CollectionName,
    Existing,
    json_option,
    new_file,
    overwrite_option,
    server_option,
)

if TYPE_CHECKING:
    from embedserve.cli.terminal.output import Progress


@click.command("backup")
@click.argument("name", type=CollectionName())
@click.argument("file", type=new_file)
@overwrite_option
@server_option
@json_option("One JSON document: the file, its sha256 and its size.")
def backup(name: str, file: Path, overwrite: bool, server: str, as_json: bool) -> None:
    """Write all of a collection, as it is at this moment, to FILE. NAME may be an alias.

    The collection stays in use meanwhile. FILE appears when it is complete and on disk.

    \b
    embedserve collection backup photos photos.backup
    """
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import print_json, say

    waiting = "waiting: the server makes its copy, or finishes other checks, backups and restores first"
    with connect(server) as client, _TransferProgress(f"receiving {file.name}", None, waiting) as transfer:
        sha256 = client.backup_collection(
            name, file, overwrite=overwrite, on_progress=lambda received_bytes: transfer.show(received_bytes or None)
        )
    size_bytes = file.stat().st_size
    if as_json:
        print_json({"collection": name, "file": str(file), "sha256": sha256, "size_bytes": size_bytes})
    else:
        say(f"wrote {file}: {size_bytes:,} bytes, sha256 {sha256}")


@click.command("restore")
@click.argument("name")
@click.argument("file", type=Existing("backup"))
@server_option
def restore(name: str, file: Path, server: str) -> None:
    """Create the collection NAME, which must not exist yet, from a backup.

    It appears when all of FILE has been received, checked and written to disk; if anything fails, nothing is created.

    \b
    embedserve collection restore photos-2 photos.backup
    embedserve collection set-alias photos photos-2
    """
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import counted, say

    size_bytes = file.stat().st_size
    with connect(server) as client, _TransferProgress(f"sending {file.name}", size_bytes, WAITING) as transfer:
        info = client.restore_collection(name, file, on_progress=transfer.show)
    say(f"created {info.name}: {counted(info.items, 'item')}, {info.dimension} numbers per vector, keeps {info.keep}")


COMMANDS = (backup, restore)


class _TransferProgress:
    """A bar of the bytes of a file once the transfer has begun; before that, one line that says what it waits for.

    Args:
        label: what is done.
        total: bytes of the file; None if unknown.
        waiting: the line.
    """

    def __init__(self, label: str, total: int | None, waiting: str) -> None:
        self._label, self._total, self._waiting = label, total, waiting
        self._open = ExitStack()
        self._bar: Progress | None = None
        self._done = 0
        self._said_waiting = False

    def __enter__(self) -> _TransferProgress:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def show(self, done: int | None) -> None:
        """Show how many bytes have gone through; None while the transfer waits."""
        from embedserve.cli.terminal.output import byte_progress, say

        if done is None:
            if not self._said_waiting:
                say(self._waiting)
            self._said_waiting = True
            return
        if self._bar is None:
            self._bar = self._open.enter_context(byte_progress(self._label, self._total))
        self._bar.advance(done - self._done)
        self._done = done
        if done == self._total:
            self._bar.note("the server checks it")
