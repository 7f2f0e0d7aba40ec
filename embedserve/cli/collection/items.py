"""`embedserve collection` `list-items`, `get-items`, `count-items`, `delete-items` and `update-metadata`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.options import (
    CollectionName,
    confirm,
    json_option,
    require_terminal,
    server_option,
    where_option,
)

if TYPE_CHECKING:
    from embedserve.types import Item, MetadataValue


@click.command("list-items")
@click.argument("name", type=CollectionName())
@where_option
@click.option("--limit", type=click.IntRange(1), help="Maximum number of items; all by default.")
@server_option
@json_option("JSON lines: one item with id, metadata and sha256 of its image on each.")
def list_items(name: str, conditions: tuple[Any, ...], limit: int | None, server: str, as_json: bool) -> None:
    """List the items of a collection in the order of their ids, one on each line.

    \b
    embedserve collection list-items photos --where label=shoe --limit 20
    embedserve collection list-items photos --json > items.jsonl
    """
    from itertools import islice

    from embedserve.cli.terminal.conditions import all_of
    from embedserve.cli.terminal.no_hits import why_nothing
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import metadata_text, print_json, print_line, printable, say

    with connect(server) as client:
        page_size = min(limit or 500, 500)
        item = None
        for item in islice(client.list_items(name, filter=all_of(conditions), page_size=page_size), limit):
            if as_json:
                print_json(_document(item))
            else:
                print_line(f"{item.id}  {metadata_text(item.metadata)}".rstrip())
        if item is None and not as_json:
            reason = why_nothing(client, name, conditions)
            say(f"no items: {printable(reason)}" if reason else "no items")


@click.command("get-items")
@click.argument("name", type=CollectionName())
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--vectors", is_flag=True, help="Show vectors too.")
@server_option
@json_option("JSON lines: one item on each.")
def get_items(name: str, ids: tuple[str, ...], vectors: bool, server: str, as_json: bool) -> None:
    """Show items by id. Exits with 1 if one of them does not exist.

    \b
    embedserve collection get-items photos shoes/12.jpg
    """
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import metadata_text, print_json, print_line, say_failed

    with connect(server) as client:
        found = client.get_items(name, ids, include_vectors=vectors)
    for id, item in zip(ids, found, strict=True):
        if item is None:
            say_failed(id, f"collection {name} has no item with this id")
        elif as_json:
            print_json(_document(item))
        else:
            print_line(f"id        {item.id}")
            print_line(f"metadata  {metadata_text(item.metadata) or 'none'}")
            print_line(f"sha256    {item.content_sha256.hex() or 'none: it came as a vector'}")
            if item.vector is not None:
                print_line(f"vector    {' '.join(str(number) for number in item.vector)}")
    if None in found:
        sys.exit(1)


@click.command("count-items")
@click.argument("name", type=CollectionName())
@where_option
@server_option
def count_items(name: str, conditions: tuple[Any, ...], server: str) -> None:
    """Count the items of a collection, or those that match.

    \b
    embedserve collection count-items photos --where label=shoe
    """
    from embedserve.cli.terminal.conditions import all_of
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import print_line

    with connect(server) as client:
        print_line(str(client.count_items(name, all_of(conditions))))


@click.command("delete-items")
@click.argument("name", type=CollectionName())
@click.argument("ids", nargs=-1, metavar="[ID]...")
@where_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_option
def delete_items(name: str, ids: tuple[str, ...], conditions: tuple[Any, ...], yes: bool, server: str) -> None:
    """Delete items by id, or all that match. An id that does not exist is not an error.

    Items that match are deleted a thousand at a time; if that is interrupted, some are gone, and the same command
    deletes the rest.

    \b
    embedserve collection delete-items photos shoes/12.jpg --yes
    embedserve collection delete-items photos --where label=shoe
    """
    if bool(ids) == bool(conditions):
        raise click.UsageError("give either ids or --where, which chooses all items that match")
    require_terminal(yes)

    from embedserve.cli.terminal.conditions import all_of
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import printable, say

    if ids:
        confirm(f"Delete {_items(len(ids))} from collection {printable(name)}?", yes)
        with connect(server) as client:
            say(f"deleted {client.delete_items(name, ids)} of {len(ids)} items")
        return
    condition = all_of(conditions)
    with connect(server) as client:
        if not yes:
            count = client.count_items(name, condition)
            if not count:
                say("no items match")
                return
            confirm(f"Delete {_items(count)} from collection {printable(name)}?", yes)
        say(f"deleted {_items(client.delete_items(name, filter=condition))}")


@click.command("update-metadata")
@click.argument("name", type=CollectionName())
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option(
    "--set",
    "values",
    multiple=True,
    metavar="KEY=VALUE",
    help="Value to set; other keys keep theirs. Values are numbers, true, false or text; quotes make text. May be"
    " repeated; a key twice makes a list of texts.",
)
@click.option("--remove", "keys", multiple=True, metavar="KEY", help="Key to remove; may be repeated.")
@click.option("--replace", is_flag=True, help="Remove all keys that are not set.")
@server_option
def update_metadata(
    name: str, ids: tuple[str, ...], values: tuple[str, ...], keys: tuple[str, ...], replace: bool, server: str
) -> None:
    """Change the metadata of items, and nothing else of them. Exits with 1 if one of them cannot be changed.

    \b
    embedserve collection update-metadata photos a.jpg --set price=30 --remove new
    """
    if not (values or keys or replace):
        raise click.UsageError("give what is to change: --set KEY=VALUE, --remove KEY or --replace")
    metadata = _metadata(values)

    from embedserve.changes import MetadataChange
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import say, say_failed

    changes = [MetadataChange(id, metadata, keys, replace) for id in ids]
    with connect(server) as client:
        results = client.update_metadata(name, changes, errors="keep")
    failed = [result for result in results if result.error is not None]
    for result in failed:
        say_failed(result.id, str(result.error))
    say(f"changed {_items(len(results) - len(failed))}")
    if failed:
        sys.exit(1)


COMMANDS = (list_items, get_items, count_items, delete_items, update_metadata)


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count:,} items"


def _metadata(texts: Sequence[str]) -> dict[str, MetadataValue]:
    """The metadata that ``--set`` gives.

    Raises:
        InvalidInput: a value is a number that no item can have.
        UsageError: one is not KEY=VALUE, or several values of a key are not all texts.
    """
    from embedserve.cli.terminal import spelling
    from embedserve.cli.terminal.conditions import parse_value
    from embedserve.errors import InvalidInput

    given: dict[str, list[str | int | float | bool]] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise click.UsageError(f"--set takes KEY=VALUE, and {text!r} is not")
        value = value.strip()
        try:
            spelling.number(value)
        except InvalidInput as error:
            hint = f"in quotes it is kept as text: --set '{key.strip()}=\"{value[:40]}\"'"
            raise InvalidInput(f"--set {key.strip()}: {error.message}", hint=hint) from None
        given.setdefault(key.strip(), []).append(parse_value(value))
    metadata: dict[str, MetadataValue] = {}
    for key, values in given.items():
        elements = [value for value in values if isinstance(value, str)]
        if len(values) > 1 and len(elements) < len(values):
            raise click.UsageError(
                f"--set gives {key} several values, and not all are texts: lists have texts only; quotes make text"
            )
        metadata[key] = elements if len(values) > 1 else values[0]
    return metadata


def _document(item: Item) -> dict[str, Any]:
    """What a program gets of an item."""
    from embedserve.cli.terminal.output import shortest

    document: dict[str, Any] = {
        "id": item.id,
        "metadata": dict(sorted(item.metadata.items())),
        "content_sha256": item.content_sha256.hex(),
    }
    if item.vector is not None:
        document["vector"] = shortest(item.vector)
    return document
