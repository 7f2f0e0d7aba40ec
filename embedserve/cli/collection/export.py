"""`embedserve collection` `export` and `import`: items as Parquet files, for other programs and from them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.options import (
    CollectionName,
    Existing,
    json_option,
    new_file,
    overwrite_option,
    server_option,
)
from embedserve.errors import CollectionNotFound, DataError, EncoderMismatch, InvalidInput

if TYPE_CHECKING:
    from embedserve.cli.collection.parquet_file import CollectionFile
    from embedserve.client import Client, ItemInput
    from embedserve.types import CollectionInfo

_GIVE_UP_AFTER_S = 120
"""How long a server may be unreachable before the command fails."""


@click.command("export")
@click.argument("name", type=CollectionName())
@click.argument("file", type=new_file)
@overwrite_option
@server_option
def export(name: str, file: Path, overwrite: bool, server: str) -> None:
    """Write the items of a collection to a Parquet file: id, vector, metadata and fingerprint of each.

    Metadata is one column with a JSON object. Thumbnails and originals are not exported; `backup` has them. An item
    that exists all the time is in the file once, even while others are written. Needs pyarrow.

    \b
    embedserve collection export photos photos.parquet
    """
    from contextlib import closing

    from embedserve.atomic_write import atomic_write
    from embedserve.cli.collection.parquet_file import CollectionWriter, rows_per_group
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import progress, say

    with connect(server, timeout_s=_GIVE_UP_AFTER_S) as client, atomic_write(file, overwrite=overwrite) as opened:
        info = client.get_collection(name)
        limits = client.server_info().limits
        # Metadata of the largest size and unpacked vectors fill no more than half a message.
        row_bytes = 4 * info.dimension + limits.max_metadata_bytes
        page_size = min(
            limits.max_page_size, rows_per_group(info.dimension), limits.max_message_bytes // 2 // row_bytes
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
@click.argument("file", type=Existing("parquet"))
@click.option(
    "--fingerprint",
    default="",
    show_default=False,
    metavar="HEX",
    help="The encoder that made the vectors, if the file does not name it.",
)
@click.option("--external", is_flag=True, help="The vectors were not made by an encoder of embedserve.")
@click.option(
    "--metadata-columns",
    "metadata_columns",
    multiple=True,
    metavar="A,B,…",
    help="Other columns that become metadata, or '*' for all that can: booleans, numbers, text, UUIDs, dates,"
    " timestamps, JSON, lists of text, and structs, whose fields become keys such as a.b.",
)
@server_option
@json_option("One JSON document: how many items were written, how many ids occur again, and which items failed.")
def import_(
    name: str,
    file: Path,
    fingerprint: str,
    external: bool,
    metadata_columns: tuple[str, ...],
    server: str,
    as_json: bool,
) -> None:
    """Write the rows of a Parquet file to a collection, which is created if it does not exist.

    FILE is one of `embedserve collection export`, or has at least a column `id` with text, integers or UUIDs and a
    column `vector` with lists of numbers, and may have a column `metadata` with JSON objects or structs. All rows are
    checked before any is written. Items with the same ids are replaced, so the same command continues where it stopped;
    of rows with the same id the last one counts. An item that is replaced loses its image, because FILE has none. Needs
    pyarrow.

    \b
    embedserve collection import photos-2 photos.parquet
    embedserve collection import texts texts.parquet --external
    embedserve collection import shop s.parquet --metadata-columns price,brand
    """
    if fingerprint and external:
        raise click.UsageError("--fingerprint and --external contradict each other")

    from embedserve.cli.collection.parquet_file import CollectionFile
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import print_json, printable, progress, say, say_failed
    from embedserve.types import EXTERNAL

    columns = _columns(metadata_columns)
    with CollectionFile(file, columns) as rows, connect(server, timeout_s=_GIVE_UP_AFTER_S) as client:
        made_by = _made_by(rows, file, EXTERNAL if external else fingerprint)
        info = _existing(client, name, rows, file, made_by)
        with progress("checking", rows.rows) as bar:
            for _ in rows.check(client.server_info().limits):
                bar.advance()
        if rows.ignored:
            say(f"columns that are not read: {printable(', '.join(rows.ignored))}; see --metadata-columns")
        if rows.metadata.unusable:
            say(f"columns that cannot be metadata: {printable(', '.join(rows.metadata.unusable))}")
        for note in sorted(rows.metadata.notes):
            say(printable(note))
        if info is None:
            info = _create(client, name, rows, file, made_by)
            say(f"created collection {info.name}")
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
        print_json({"collection": info.name, "written": written, "duplicates": rows.duplicates, "failed": failed})
    else:
        say(f"wrote {written:,} of {rows.rows:,} rows to {info.name}")
        if rows.duplicates:
            ids = "1 duplicate id" if rows.duplicates == 1 else f"{rows.duplicates:,} duplicate ids"
            say(f"{ids}: the later row counts")
    if failed:
        sys.exit(1)


COMMANDS = (export, import_)


def _columns(given: tuple[str, ...]) -> list[str]:
    """The names in ``--metadata-columns``, which may be repeated and may each list several."""
    names = [name.strip() for text in given for name in text.split(",")]
    if "" in names:
        raise click.BadParameter("a name is missing between two commas", param_hint="--metadata-columns")
    if "*" in names and len(names) > 1:
        raise click.BadParameter("'*' is all columns; give it alone", param_hint="--metadata-columns")
    return names


def _made_by(rows: CollectionFile, file: Path, given: str) -> str:
    """Fingerprint of the encoder that made the vectors of the file, or EXTERNAL.

    Raises:
        EncoderMismatch: the file contradicts the options.
        InvalidInput: neither names an encoder.
    """
    named = rows.fingerprint()
    if named and given and named != given:
        raise EncoderMismatch(
            f"{file} holds vectors of encoder {named[:12]}, not of {given[:12]}", hint="leave the option out"
        )
    if not named and not given:
        raise InvalidInput(
            f"{file} does not say which encoder made its vectors",
            hint="give --fingerprint, as `embedserve collection info` names it, or --external",
        )
    return named or given


def _existing(client: Client, name: str, rows: CollectionFile, file: Path, made_by: str) -> CollectionInfo | None:
    """The collection, if it exists and fits the file; None if it does not exist.

    Raises:
        EncoderMismatch, DataError: it does not fit.
    """
    try:
        info = client.get_collection(name)
    except CollectionNotFound:
        return None
    if info.fingerprint != made_by:
        raise EncoderMismatch(
            f"{file} holds vectors of encoder {made_by[:12]}; collection {info.name} is bound to"
            f" {info.fingerprint[:12]}",
            hint="import it under another name",
        )
    if rows.rows and rows.dimension != info.dimension:
        raise DataError(
            f"{file} holds vectors of {rows.dimension} numbers; collection {info.name} of {info.dimension}",
            hint="import it under another name",
        )
    return info


def _create(client: Client, name: str, rows: CollectionFile, file: Path, made_by: str) -> CollectionInfo:
    """A collection as the file describes it."""
    from embedserve.types import EXTERNAL

    if not rows.dimension:
        raise InvalidInput(f"{file} has no rows, so the length of its vectors is unknown")
    is_external = made_by == EXTERNAL
    settings: dict[str, Any] = {"keep": "none"}
    if (header := rows.header) is not None:
        settings = {
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
        encoder_fingerprint="" if is_external else made_by,
        **settings,
    )


def _inputs(rows: CollectionFile) -> Iterator[ItemInput]:
    from embedserve.client import ItemInput

    for item in rows.items():
        yield ItemInput(id=item.id, vector=item.vector, metadata=item.metadata)
