"""`embedserve search`: the items of a collection that look most like an image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from embedserve.cli.terminal.options import (
    Finite,
    GivenPath,
    collection_option,
    json_option,
    server_option,
    where_option,
)


@click.command("search")
@click.argument("image", required=False, type=GivenPath(exists=True, dir_okay=False, allow_dash=True, path_type=None))
@collection_option
@click.option("--like", "item_id", metavar="ID", help="Search by this item of the collection instead of an image.")
@click.option("-k", default=10, type=click.IntRange(1), help="Maximum number of hits.")
@click.option("--min-score", type=Finite(-1, 1), help="Only hits with at least this cosine.")
@where_option
@click.option("--group-by", default="", metavar="KEY", help="At most one hit for each value of this metadata key.")
@click.option("--exact", is_flag=True, help="Compare with every item, bypassing approximate structures.")
@click.option(
    "--target-recall",
    type=Finite(0, 1, min_open=True),
    help="Share of the ten nearest items that approximate search finds.  [default: the collection's]",
)
@click.option("--ef", type=click.IntRange(1, 65536), help="HNSW only: candidates to keep during the search.")
@click.option("--nprobe", type=click.IntRange(1, 65536), help="IVF only: lists to scan.")
@server_option
@json_option("One JSON document: the hits with rank, id, score and metadata.")
def command(
    image: str | None,
    collection: str,
    item_id: str | None,
    k: int,
    min_score: float | None,
    conditions: tuple[Any, ...],
    group_by: str,
    exact: bool,
    target_recall: float | None,
    ef: int | None,
    nprobe: int | None,
    server: str,
    as_json: bool,
) -> None:
    """Find the items that look most like IMAGE; "-" reads the image from standard input.

    The score is the cosine similarity, from -1 to 1; higher is closer. At most one of --exact, --target-recall, --ef
    and --nprobe sets how much of the index is examined.

    \b
    embedserve search query.jpg --collection photos
    embedserve search query.jpg --collection photos --where "price<=80"
    embedserve search query.jpg --collection photos --where "label in (a, b)"
    embedserve search --like shoes/12.jpg --collection photos --json
    embedserve search query.jpg --collection photos --target-recall 0.99
    """
    if (image is None) == (item_id is None):
        raise click.UsageError("give either IMAGE or --like ID")
    if exact + sum(given is not None for given in (target_recall, ef, nprobe)) > 1:
        raise click.UsageError("give at most one of --exact, --target-recall, --ef and --nprobe")

    from embedserve.cli.terminal.conditions import all_of
    from embedserve.cli.terminal.no_hits import why_nothing
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import metadata_text, print_json, printable, say
    from embedserve.cli.terminal.table import print_table

    data: bytes | Path | None = None
    if image is not None:
        data = sys.stdin.buffer.read() if image == "-" else Path(image)
    with connect(server) as client:
        hits = client.search(
            collection,
            image=data,
            id=item_id,
            k=k,
            min_score=min_score,
            filter=all_of(conditions),
            group_by=group_by,
            exact=exact,
            target_recall=target_recall,
            ef=ef or 0,
            nprobe=nprobe or 0,
        )
        reason = "" if hits or as_json else why_nothing(client, collection, conditions)
    if as_json:
        rows = [
            {"rank": rank, "id": hit.id, "score": hit.score, "metadata": hit.metadata}
            for rank, hit in enumerate(hits, start=1)
        ]
        print_json({"collection": collection, "hits": rows})
    elif hits:
        print_table(
            ["rank", "score", "id", "metadata"],
            [
                [str(rank), f"{hit.score:.4f}", hit.id, metadata_text(hit.metadata)]
                for rank, hit in enumerate(hits, start=1)
            ],
            right=(0, 1),
        )
    else:
        if not reason and min_score is not None:
            reason = f"no item{' that matches' if conditions else ''} has a score of at least {min_score:.15g}"
        say(f"no hits: {printable(reason)}" if reason else "no hits")
