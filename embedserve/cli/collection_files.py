"""Collections as files: `backup` and `restore` for embedserve itself, `export` and `import` for other programs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.options import json_option, server_option
from embedserve.errors import CollectionNotFound, DataError, EncoderMismatch, InvalidInput

if TYPE_CHECKING:
    from embedserve.cli.output import Progress
    from embedserve.cli.parquet_file import CollectionFile
    from embedserve.client import Client, ItemInput
    from embedserve.types import CollectionInfo

_overwrite_option = click.option("--overwrite", is_flag=True, help="Replace FILE if there is one already.")
_existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_new_file = click.Path(dir_okay=False, path_type=Path)
_AWAY_S = 120
"""So long a server may be away before this is given up."""


@click.command("backup")
@click.argument("name")
@click.argument("file", type=_new_file)
@_overwrite_option
@server_option
@json_option("One JSON document: the file, its sha256 and its size.")
def backup(name: str, file: Path, overwrite: bool, server: str, as_json: bool) -> None:
    """Write all of a collection, as it is at this moment, into FILE. NAME may be an alias.

    The collection is used meanwhile. FILE is there once it is complete and on disk.

    \b
    embedserve collection backup photos photos.backup
    """
    from embedserve.cli.options import connect
    from embedserve.cli.output import print_json, say

    waiting = "waiting: the server makes its copy, or does other checks, backups and restores first"
    with connect(server) as client, _Transfer(f"receiving {file.name}", None, waiting) as transfer:
        sha256 = client.backup_collection(
            name, file, overwrite=overwrite, on_progress=lambda received_bytes: transfer.tell(received_bytes or None)
        )
    size_bytes = file.stat().st_size
    if as_json:
        print_json({"collection": name, "file": str(file), "sha256": sha256, "size_bytes": size_bytes})
    else:
        say(f"wrote {file}: {size_bytes:,} bytes, sha256 {sha256}")


@click.command("restore")
@click.argument("name")
@click.argument("file", type=_existing_file)
@server_option
def restore(name: str, file: Path, server: str) -> None:
    """Make the collection NAME, which is not there yet, from a backup.

    It is there once all of FILE has been received, checked and written to disk; if anything is wrong, nothing is made.

    \b
    embedserve collection restore photos-2 photos.backup
    embedserve collection alias photos photos-2
    """
    from embedserve.cli.options import connect
    from embedserve.cli.output import say

    waiting = "waiting: as many checks, backups and restores as may run are under way"
    size_bytes = file.stat().st_size
    with connect(server) as client, _Transfer(f"sending {file.name}", size_bytes, waiting) as transfer:
        info = client.restore_collection(name, file, on_progress=transfer.tell)
    say(f"made {info.name}: {info.items:,} items, {info.dimension} numbers per vector, keeps {info.keep}")


@click.command("export")
@click.argument("name")
@click.argument("file", type=_new_file)
@_overwrite_option
@server_option
def export(name: str, file: Path, overwrite: bool, server: str) -> None:
    """Write the items of a collection into a Parquet file: id, vector, metadata and fingerprint of each.

    Metadata is one column with a JSON object. Thumbnails and originals are not exported; `backup` has them. An item
    that is there all the time is in the file once, even while others are written. Needs pyarrow.

    \b
    embedserve collection export photos photos.parquet
    """
    from contextlib import closing

    from embedserve.atomic_write import atomic_write
    from embedserve.cli.options import connect
    from embedserve.cli.output import progress, say
    from embedserve.cli.parquet_file import CollectionWriter, rows_at_a_time

    with connect(server, timeout_s=_AWAY_S) as client, atomic_write(file, overwrite=overwrite) as opened:
        info = client.get_collection(name)
        limits = client.server_info().limits
        # Metadata of the largest size and vectors as they are fill no more than half a message.
        row_bytes = 4 * info.dimension + limits.max_metadata_bytes
        page_size = min(
            limits.max_page_size, rows_at_a_time(info.dimension), limits.max_message_bytes // 2 // row_bytes
        )
        written = 0
        with closing(CollectionWriter(opened, info)) as writer, progress("exporting", info.items) as bar:
            for item in client.list_items(name, include_vectors=True, page_size=max(page_size, 1)):
                writer.write(item)
                written += 1
                bar.advance()
    say(f"wrote {file}: {written:,} items of {info.name}, {info.dimension} numbers per vector")


@click.command("import")
@click.argument("name")
@click.argument("file", type=_existing_file)
@click.option(
    "--fingerprint",
    default="",
    show_default=False,
    metavar="HEX",
    help="The encoder that made the vectors, where the file does not say.",
)
@click.option("--external", is_flag=True, help="The vectors are of no encoder of embedserve.")
@server_option
@json_option("One JSON document: how many items were written, and which failed.")
def import_(name: str, file: Path, fingerprint: str, external: bool, server: str, as_json: bool) -> None:
    """Write the rows of a Parquet file into a collection, which is made if it is not there.

    FILE is one of `embedserve collection export`, or has at least a column `id` and a column `vector` with lists of
    floats, and may have a column `metadata` with JSON objects. All rows are looked at before any is written; then items
    with the same ids are replaced, so that the same command goes on where it stopped. An item that is replaced loses
    the image that was kept of it, for FILE has none. Needs pyarrow.

    \b
    embedserve collection import photos-2 photos.parquet
    embedserve collection import texts texts.parquet --external
    """
    if fingerprint and external:
        raise click.UsageError("--fingerprint and --external contradict each other")

    from embedserve.cli.options import connect
    from embedserve.cli.output import print_json, printable, progress, say, say_failed
    from embedserve.cli.parquet_file import CollectionFile
    from embedserve.types import EXTERNAL

    with CollectionFile(file) as rows, connect(server, timeout_s=_AWAY_S) as client:
        bound_to = _bound_to(rows, file, EXTERNAL if external else fingerprint)
        info = _existing(client, name, rows, file, bound_to)
        with progress("checking", rows.rows) as bar:
            for _ in rows.check(client.server_info().limits):
                bar.advance()
        if rows.ignored:
            say(f"columns that are not read: {printable(', '.join(rows.ignored))}")
        if info is None:
            info = _make(client, name, rows, file, bound_to)
            say(f"made collection {info.name}")
        elif info.items and info.keep != "none":
            say(
                f"collection {info.name} keeps {info.keep} of images: an item whose id is in {printable(str(file))}"
                " is replaced and loses its image"
            )
        failed = []
        with progress(f"importing into {info.name}", rows.rows) as bar:
            results = client.add_each(
                info.name, _inputs(rows), encoder_fingerprint="" if info.external else info.fingerprint
            )
            for number, result in enumerate(results, start=1):
                bar.advance()
                if result.error is not None:
                    failed.append(
                        {"row": number, "id": result.id, "code": result.error.code, "error": str(result.error)}
                    )
                    say_failed(f"row {number}, {result.id}", result.error.message)
    written = rows.rows - len(failed)
    if as_json:
        print_json({"collection": info.name, "written": written, "failed": failed})
    else:
        say(f"wrote {written:,} of {rows.rows:,} rows into {info.name}")
    if failed:
        sys.exit(1)


class _Transfer:
    """A bar of the bytes of a file, from when its turn has come; before that one line that it waits.

    Args:
        label: what is done.
        total: bytes of the file; None where nobody knows yet.
        waiting: the line.
    """

    def __init__(self, label: str, total: int | None, waiting: str) -> None:
        self._label, self._total, self._waiting = label, total, waiting
        self._open = ExitStack()
        self._bar: Progress | None = None
        self._done = 0
        self._has_said = False

    def __enter__(self) -> _Transfer:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def tell(self, done: int | None) -> None:
        """So many bytes have gone through; None while it waits."""
        from embedserve.cli.output import byte_progress, say

        if done is None:
            if not self._has_said:
                say(self._waiting)
            self._has_said = True
            return
        if self._bar is None:
            self._bar = self._open.enter_context(byte_progress(self._label, self._total))
        self._bar.advance(done - self._done)
        self._done = done
        if done == self._total:
            self._bar.note("the server checks it")


def _bound_to(rows: CollectionFile, file: Path, given: str) -> str:
    """Fingerprint of what made the vectors of the file.

    Raises:
        EncoderMismatch: the file says otherwise than the options.
        InvalidInput: neither says anything.
    """
    said = rows.fingerprint()
    if said and given and said != given:
        raise EncoderMismatch(
            f"{file} holds vectors of encoder {said[:12]}, not of {given[:12]}", hint="leave the option out"
        )
    if not said and not given:
        raise InvalidInput(
            f"{file} does not say which encoder made its vectors",
            hint="give --fingerprint, as `embedserve collection info` names it, or --external",
        )
    return said or given


def _existing(client: Client, name: str, rows: CollectionFile, file: Path, bound_to: str) -> CollectionInfo | None:
    """The collection, if it is there and fits the file; None if it is not there.

    Raises:
        EncoderMismatch, DataError: it does not fit.
    """
    try:
        info = client.get_collection(name)
    except CollectionNotFound:
        return None
    if info.fingerprint != bound_to:
        raise EncoderMismatch(
            f"{file} holds vectors of encoder {bound_to[:12]}; collection {info.name} is bound to"
            f" {info.fingerprint[:12]}",
            hint="import it under another name",
        )
    if rows.rows and rows.dimension != info.dimension:
        raise DataError(
            f"{file} holds vectors of {rows.dimension} numbers; collection {info.name} of {info.dimension}",
            hint="import it under another name",
        )
    return info


def _make(client: Client, name: str, rows: CollectionFile, file: Path, bound_to: str) -> CollectionInfo:
    """A collection as the file describes it."""
    from embedserve.types import EXTERNAL

    if not rows.dimension:
        raise InvalidInput(f"{file} has no rows, so nothing says how long its vectors are")
    is_external = bound_to == EXTERNAL
    made_with: dict[str, Any] = {"keep": "none"}
    if (header := rows.header) is not None:
        made_with = {
            "keep": header.keep,
            "index": header.index,
            "target_recall": header.target_recall,
            "filter_keys": header.filter_keys,
            "encoder_name": header.encoder_name,
        }
    return client.create_collection(
        name,
        external=is_external,
        dimension=rows.dimension,
        encoder_fingerprint="" if is_external else bound_to,
        **made_with,
    )


def _inputs(rows: CollectionFile) -> Iterator[ItemInput]:
    from embedserve.client import ItemInput

    for item in rows.items():
        yield ItemInput(id=item.id, vector=item.vector, metadata=item.metadata)
