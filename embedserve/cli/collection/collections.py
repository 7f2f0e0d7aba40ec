"""`embedserve collection` `list`, `info`, `create` and `delete`: whole collections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.options import (
    CollectionName,
    Finite,
    confirm,
    json_option,
    require_terminal,
    server_option,
)

if TYPE_CHECKING:
    from embedserve.types import CollectionInfo


@click.command("list")
@server_option
@json_option("One JSON document: the collections.")
def list_(server: str, as_json: bool) -> None:
    """List all collections.

    \b
    embedserve collection list
    """
    from embedserve.cli.collection.text import encoder_text, size_text
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import print_json, say
    from embedserve.cli.terminal.table import print_table

    with connect(server) as client:
        collections = client.list_collections()
    if as_json:
        print_json([_document(info) for info in collections])
    elif collections:
        print_table(
            ["name", "items", "encoder", "keeps", "aliases", "disk"],
            [
                [
                    info.name,
                    f"{info.items:,}",
                    encoder_text(info),
                    info.keep,
                    ", ".join(info.aliases),
                    size_text(info.disk_bytes),
                ]
                for info in collections
            ],
            right=(1, 5),
        )
    else:
        say("no collections yet; create one: embedserve add FOLDER --collection NAME")


@click.command("info")
@click.argument("name", type=CollectionName())
@server_option
@json_option("One JSON document: the collection.")
def info_(name: str, server: str, as_json: bool) -> None:
    """Describe a collection and its index. NAME may be an alias.

    \b
    embedserve collection info photos
    """
    from embedserve.cli.collection.text import encoder_text, index_text, recall_text, size_text, time_text
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import print_json, print_line

    with connect(server) as client:
        info = client.get_collection(name)
    if as_json:
        print_json(_document(info))
        return
    for label, text in (
        ("name", info.name),
        ("aliases", ", ".join(info.aliases) or "none"),
        ("items", f"{info.items:,}"),
        ("encoder", encoder_text(info)),
        ("fingerprint", info.fingerprint),
        ("dimension", f"{info.dimension} numbers per vector"),
        ("keeps", info.keep),
        ("index", f"{info.index} (requested: {info.index_spec})"),
        ("recall@10", recall_text(info)),
        ("in index", index_text(info)),
        ("filter keys", ", ".join(info.filter_keys) or "none declared"),
        ("created", time_text(info.created_unix_s)),
        ("disk", size_text(info.disk_bytes)),
    ):
        print_line(f"{label:<12} {text}")


@click.command("create")
@click.argument("name")
@click.option(
    "--keep",
    type=click.Choice(["none", "thumbnails", "originals"]),
    default="thumbnails",
    help="What to keep of images beside their vectors.",
)
@click.option(
    "--index",
    default="auto",
    metavar="KIND",
    help='What answers searches: "exact", "hnsw" or "ivf", with parameters as in hnsw:m=32 or ivf:nlist=1024; "auto"'
    " chooses by the number of items, and changes with it.",
)
@click.option(
    "--target-recall",
    type=Finite(0, 1, min_open=True),
    default=0.95,
    help="Share of the ten nearest items that approximate search is tuned to find.",
)
@click.option(
    "--filter-key",
    "filter_keys",
    multiple=True,
    metavar="KEY",
    help="Metadata key to index, so that conditions on it need not read all items; may be repeated.",
)
@click.option("--external", is_flag=True, help="Vectors come from outside; not bound to any encoder.")
@click.option(
    "--encoder-fingerprint",
    default="",
    show_default=False,
    metavar="HEX",
    help="Bind it to another encoder than the server's: items and queries are vectors that name it.",
)
@click.option(
    "--encoder-name", default="", show_default=False, metavar="NAME", help="Name of that encoder, for display."
)
@click.option(
    "--dimension",
    type=click.IntRange(0, 65536),
    default=0,
    help="Numbers in a vector; with --external and --encoder-fingerprint.",
)
@server_option
def create(
    name: str,
    keep: str,
    index: str,
    target_recall: float,
    filter_keys: tuple[str, ...],
    external: bool,
    encoder_fingerprint: str,
    encoder_name: str,
    dimension: int,
    server: str,
) -> None:
    """Create an empty collection. `embedserve add` creates the collection that it needs by itself.

    \b
    embedserve collection create photos --filter-key label --filter-key price
    embedserve collection create photos --index hnsw:m=32 --target-recall 0.99
    embedserve collection create texts --external --dimension 384
    """
    if external and encoder_fingerprint:
        raise click.UsageError("--external and --encoder-fingerprint contradict each other")
    if external and not dimension:
        raise click.UsageError("--external needs --dimension")
    if encoder_name and not encoder_fingerprint:
        raise click.UsageError("--encoder-name needs --encoder-fingerprint")

    from embedserve.cli.collection.text import encoder_text
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import say

    with connect(server) as client:
        info = client.create_collection(
            name,
            keep=keep,
            external=external,
            dimension=dimension,
            index=index,
            target_recall=target_recall,
            filter_keys=filter_keys,
            encoder_fingerprint=encoder_fingerprint,
            encoder_name=encoder_name,
        )
    say(f"created {info.name}: {encoder_text(info)}, {info.dimension} numbers per vector, keeps {info.keep}")


@click.command("delete")
@click.argument("name", type=CollectionName())
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_option
def delete(name: str, yes: bool, server: str) -> None:
    """Delete a collection with all its items, and the aliases that point to it. NAME may not be an alias.

    \b
    embedserve collection delete photos --yes
    """
    require_terminal(yes)

    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import counted, printable, say

    with connect(server) as client:
        if not yes:
            info = client.get_collection(name)
            confirm(f"Delete collection {info.name} with {counted(info.items, 'item')}?", yes)
        client.delete_collection(name)
    say(f"deleted {printable(name)}")


COMMANDS = (list_, info_, create, delete)


def _document(info: CollectionInfo) -> dict[str, Any]:
    """What a program gets of a collection."""
    from dataclasses import asdict

    # The key stays "dead" for the programs that read it.
    return {"dead" if key == "deleted" else key: value for key, value in asdict(info).items()}
