"""`embedserve collection` `list-items`, `get-items` and `delete-items`: what a collection holds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.options import confirm, json_option, require_terminal, server_option, where_option

if TYPE_CHECKING:
    from embedserve.types import Item


@click.command("list-items")
@click.argument("name")
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
@click.argument("name")
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


@click.command("delete-items")
@click.argument("name")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_option
def delete_items(name: str, ids: tuple[str, ...], yes: bool, server: str) -> None:
    """Delete items by id; an id that does not exist is not an error.

    \b
    embedserve collection delete-items photos shoes/12.jpg --yes
    """
    require_terminal(yes)

    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import printable, say

    confirm(f"Delete {'1 item' if len(ids) == 1 else f'{len(ids)} items'} from collection {printable(name)}?", yes)
    with connect(server) as client:
        deleted = client.delete_items(name, ids)
    say(f"deleted {deleted} of {len(ids)} items")


COMMANDS = (list_items, get_items, delete_items)


def _document(item: Item) -> dict[str, Any]:
    """What a program gets of an item."""
    from embedserve.cli.terminal.output import shortest

    document: dict[str, Any] = {
        "id": item.id,
        "metadata": item.metadata,
        "content_sha256": item.content_sha256.hex(),
    }
    if item.vector is not None:
        document["vector"] = shortest(item.vector)
    return document
