"""`embedserve collection`: make, show, check and remove collections, and look at their items."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli import collection_files
from embedserve.cli.options import confirm, json_option, require_terminal, server_option, where_option

if TYPE_CHECKING:
    from embedserve.cli.output import Progress
    from embedserve.types import CheckProgress, CollectionInfo, Item, Recall


@click.group("collection")
def command() -> None:
    """Make, show, check, copy and remove collections, and look at their items.

    \b
    embedserve collection list
    embedserve collection info photos
    embedserve collection backup photos photos.backup
    """


for _file_command in (
    collection_files.backup,
    collection_files.restore,
    collection_files.export,
    collection_files.import_,
):
    command.add_command(_file_command)


@command.command("list")
@server_option
@json_option("One JSON document: the collections.")
def list_(server: str, as_json: bool) -> None:
    """List all collections.

    \b
    embedserve collection list
    """
    from embedserve.cli.options import connect
    from embedserve.cli.output import print_json, print_table, say

    with connect(server) as client:
        collections = client.list_collections()
    if as_json:
        print_json([_collection_document(info) for info in collections])
    elif collections:
        print_table(
            ["name", "items", "encoder", "keeps", "aliases", "disk"],
            [
                [
                    info.name,
                    f"{info.items:,}",
                    _encoder_text(info),
                    info.keep,
                    ", ".join(info.aliases),
                    _size_text(info.disk_bytes),
                ]
                for info in collections
            ],
            right=(1, 5),
        )
    else:
        say("no collections yet; make one: embedserve add FOLDER --collection NAME")


@command.command("info")
@click.argument("name")
@server_option
@json_option("One JSON document: the collection.")
def info_(name: str, server: str, as_json: bool) -> None:
    """Say what a collection is and holds. NAME may be an alias.

    \b
    embedserve collection info photos
    """
    from embedserve.cli.options import connect
    from embedserve.cli.output import print_json, print_line

    with connect(server) as client:
        info = client.get_collection(name)
    if as_json:
        print_json(_collection_document(info))
        return
    for label, text in (
        ("name", info.name),
        ("aliases", ", ".join(info.aliases) or "none"),
        ("items", f"{info.items:,}"),
        ("encoder", _encoder_text(info)),
        ("fingerprint", info.fingerprint),
        ("dimension", f"{info.dimension} numbers per vector"),
        ("keeps", info.keep),
        ("index", f"{info.index} (asked for: {info.index_spec})"),
        ("recall@10", _recall_text(info)),
        ("in index", _parts_text(info)),
        ("filter keys", ", ".join(info.filter_keys) or "none declared"),
        ("made", _time_text(info.created_unix_s)),
        ("disk", _size_text(info.disk_bytes)),
    ):
        print_line(f"{label:<12} {text}")


@command.command("create")
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
    help='What answers searches: "exact", "hnsw" or "ivf", with parameters as in hnsw:m=32 or ivf:nlist=1024; "auto" is'
    " what suits the number of items, and changes with it.",
)
@click.option(
    "--target-recall",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.95,
    help="Of the ten nearest items, the part that approximate search is to find.",
)
@click.option(
    "--filter-key",
    "filter_keys",
    multiple=True,
    metavar="KEY",
    help="Metadata key to keep an index of, so that conditions on it need not read all items; may be given again.",
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
    "--encoder-name", default="", show_default=False, metavar="NAME", help="Name of that encoder, for people."
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
    """Make an empty collection. `embedserve add` makes the collection that it needs by itself.

    \b
    embedserve collection create photos --keep originals --filter-key label --filter-key price
    embedserve collection create photos --index hnsw:m=32 --target-recall 0.99
    embedserve collection create texts --external --dimension 384
    """
    if external and encoder_fingerprint:
        raise click.UsageError("--external and --encoder-fingerprint contradict each other")
    if external and not dimension:
        raise click.UsageError("--external needs --dimension")
    if encoder_name and not encoder_fingerprint:
        raise click.UsageError("--encoder-name needs --encoder-fingerprint")

    from embedserve.cli.options import connect
    from embedserve.cli.output import say

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
    say(f"made {info.name}: {_encoder_text(info)}, {info.dimension} numbers per vector, keeps {info.keep}")


@command.command("check")
@click.argument("name")
@server_option
@json_option("One JSON document: what was checked, the recall, and the problems.")
def check(name: str, server: str, as_json: bool) -> None:
    """Check everything that the server keeps of a collection, while it is used. NAME may be an alias.

    Every item is read and compared with its checksum, and every file of the index with its hash; every item is searched
    for by its own vector; and recall is measured. What is wrong with the index is made again from the items. Exits
    with 1 if there are problems.

    \b
    embedserve collection check photos
    """
    from dataclasses import asdict

    from embedserve.cli.options import connect
    from embedserve.cli.output import print_json, print_line

    with connect(server) as client, _Stages() as stages:
        report = client.check_collection(name, stages.tell)
    if as_json:
        print_json({"collection": name, **asdict(report)})
    else:
        print_line(f"items        {report.items:,} read and compared with their checksums")
        print_line(f"segments     {report.segments:,} compared with their hashes")
        print_line(f"searched     {report.searched:,} items by their own vectors")
        print_line(f"recall@10    {_measured_text(report.recall) if report.recall else 'every search is exact'}")
        print_line(f"problems     {len(report.problems) or 'none'}")
        for problem in report.problems:
            print_line(f"             {problem}")
    if report.problems:
        sys.exit(1)


@command.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_option
def delete(name: str, yes: bool, server: str) -> None:
    """Remove a collection with all its items, and the aliases that point to it. NAME is no alias.

    \b
    embedserve collection delete photos --yes
    """
    require_terminal(yes)

    from embedserve.cli.options import connect
    from embedserve.cli.output import printable, say

    with connect(server) as client:
        if not yes:
            info = client.get_collection(name)
            confirm(f"Remove collection {info.name} with {info.items:,} items?", yes)
        client.delete_collection(name)
    say(f"removed {printable(name)}")


@command.command("alias")
@click.argument("alias")
@click.argument("name", required=False)
@click.option("--remove", is_flag=True, help="Remove the alias.")
@server_option
def alias_(alias: str, name: str | None, remove: bool, server: str) -> None:
    """Point ALIAS to the collection NAME, at once for every reader; or remove it.

    \b
    embedserve collection alias photos photos-2
    embedserve collection alias photos --remove
    """
    # An empty NAME, as of a shell variable that is not set, must not remove the alias.
    if remove == bool(name) or name == "":
        raise click.UsageError("give either NAME or --remove")

    from embedserve.cli.options import connect
    from embedserve.cli.output import printable, say

    with connect(server) as client:
        client.set_alias(alias, name or "")
    say(f"removed alias {printable(alias)}" if remove else f"{printable(alias)} is {printable(name or '')} from now on")


@command.command("items")
@click.argument("name")
@where_option
@click.option("--limit", type=click.IntRange(1), help="Items at most; without it all.")
@server_option
@json_option("JSON lines: one item with id, metadata and sha256 of its image on each.")
def items(name: str, conditions: tuple[Any, ...], limit: int | None, server: str, as_json: bool) -> None:
    """List the items of a collection in the order of their ids, one on each line.

    \b
    embedserve collection items photos --where label=shoe --limit 20
    embedserve collection items photos --json > items.jsonl
    """
    from itertools import islice

    from embedserve.cli.conditions import all_of
    from embedserve.cli.options import connect
    from embedserve.cli.output import metadata_text, print_json, print_line

    with connect(server) as client:
        page_size = min(limit or 500, 500)
        for item in islice(client.list_items(name, filter=all_of(conditions), page_size=page_size), limit):
            if as_json:
                print_json(_item_document(item))
            else:
                print_line(f"{item.id}  {metadata_text(item.metadata)}".rstrip())


@command.command("get")
@click.argument("name")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--vectors", is_flag=True, help="Show vectors too.")
@server_option
@json_option("JSON lines: one item on each.")
def get(name: str, ids: tuple[str, ...], vectors: bool, server: str, as_json: bool) -> None:
    """Show items by id. Exits with 1 if one of them is not there.

    \b
    embedserve collection get photos shoes/12.jpg
    """
    from embedserve.cli.options import connect
    from embedserve.cli.output import metadata_text, print_json, print_line, say_failed

    with connect(server) as client:
        found = client.get_items(name, ids, include_vectors=vectors)
    for id, item in zip(ids, found, strict=True):
        if item is None:
            say_failed(id, f"collection {name} has no item with this id")
        elif as_json:
            print_json(_item_document(item))
        else:
            print_line(f"id        {item.id}")
            print_line(f"metadata  {metadata_text(item.metadata) or 'none'}")
            print_line(f"sha256    {item.content_sha256.hex() or 'none: it came as a vector'}")
            if item.vector is not None:
                print_line(f"vector    {' '.join(str(number) for number in item.vector)}")
    if None in found:
        sys.exit(1)


@command.command("remove")
@click.argument("name")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_option
def remove(name: str, ids: tuple[str, ...], yes: bool, server: str) -> None:
    """Remove items by id; an id that is not there is no error.

    \b
    embedserve collection remove photos shoes/12.jpg --yes
    """
    require_terminal(yes)

    from embedserve.cli.options import connect
    from embedserve.cli.output import printable, say

    confirm(f"Remove {'1 item' if len(ids) == 1 else f'{len(ids)} items'} from collection {printable(name)}?", yes)
    with connect(server) as client:
        removed = client.delete_items(name, ids)
    say(f"removed {removed} of {len(ids)} items")


def _collection_document(info: CollectionInfo) -> dict[str, Any]:
    from dataclasses import asdict

    # The key stays "dead" for the programs that read it.
    return {"dead" if key == "deleted" else key: value for key, value in asdict(info).items()}


def _item_document(item: Item) -> dict[str, Any]:
    from embedserve.cli.output import shortest

    document: dict[str, Any] = {
        "id": item.id,
        "metadata": item.metadata,
        "content_sha256": item.content_sha256.hex(),
    }
    if item.vector is not None:
        document["vector"] = shortest(item.vector)
    return document


class _Stages:
    """A progress bar for each stage of a check."""

    def __init__(self) -> None:
        self._bar = ExitStack()
        self._progress: Progress | None = None
        self._last: CheckProgress | None = None

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._finish()
        self._bar.__exit__(*error)

    def tell(self, step: CheckProgress) -> None:
        """How far the check is."""
        from embedserve.cli.output import progress, say

        last = self._last
        if last is None or last.stage != step.stage:
            self._finish()
            self._bar.close()
            self._progress, last = None, None
            if step.stage == "waiting":
                say("waiting: as many checks, backups and restores as may run are under way")
            else:
                self._progress = self._bar.enter_context(progress(f"checking {step.stage}", step.total))
        if self._progress is not None:
            self._progress.advance(step.done - (0 if last is None else last.done))
        self._last = step

    def _finish(self) -> None:
        """The stage is over, whatever was told of it last."""
        if self._progress is not None and self._last is not None:
            self._progress.advance(self._last.total - self._last.done)


def _encoder_text(info: CollectionInfo) -> str:
    return "external" if info.external else f"{info.encoder_name} ({info.fingerprint[:12]})"


def _recall_text(info: CollectionInfo) -> str:
    """What is known of it, as in "0.973 of 100 queries of clients, measured …; target 0.95"."""
    target = f"target {info.target_recall:g}"
    if info.recall is None:
        return f"{'every search is exact' if info.index.startswith('exact') else 'not measured yet'}; {target}"
    below = " (below)" if info.recall.value < info.target_recall else ""
    return f"{_measured_text(info.recall)}; {target}{below}"


def _measured_text(recall: Recall) -> str:
    whose = "queries of clients" if recall.real else "of its own vectors as queries"
    return f"{recall.value:.3f} with {recall.queries} {whose}, measured {_time_text(recall.measured_unix_s)}"


def _parts_text(info: CollectionInfo) -> str:
    """How much of the collection is where."""
    parts = [
        f"{info.segments} sealed parts",
        f"{info.unsealed:,} items compared one by one",
        f"{info.deleted:,} deleted rows",
    ]
    return ", ".join([*parts, "being built"] if info.building else parts)


def _time_text(unix_s: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(unix_s).astimezone().isoformat(sep=" ", timespec="seconds")


def _size_text(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
