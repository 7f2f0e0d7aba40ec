"""`embedserve add`: the images of folders into a collection; the same command again continues where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.options import collection_option, json_option, server_option
from embedserve.errors import (
    CollectionNotFound,
    DataError,
    EmbedserveError,
    EncoderMismatch,
    FailedPrecondition,
    InvalidInput,
)

if TYPE_CHECKING:
    from embedserve.cli.terminal.output import Progress
    from embedserve.client import Client, ItemInput
    from embedserve.types import CollectionInfo, Item

_LOOKUP_IDS = 500
"""Ids in one lookup of what the collection holds."""

_HASH_THREADS = 4
"""Threads that hash files."""


@dataclass(frozen=True)
class _File:
    """An image file, and the id and metadata of its item."""

    id: str
    path: Path
    metadata: Mapping[str, Any]


@dataclass
class _Counts:
    """What happened to the files."""

    added: int = 0
    changed: int = 0
    known: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """Images that were sent and written."""
        return self.added + self.changed

    def fail(self, path: Path, error: EmbedserveError, id: str = "") -> None:
        """Note a file that could not be added."""
        why = error.message.removeprefix(f"{path} ")
        self.failed.append({"path": str(path), "id": id, "code": error.code, "error": why, "hint": error.hint})

    def __str__(self) -> str:
        return f"added {self.added}, changed {self.changed}, known {self.known}, failed {len(self.failed)}"


@click.command("add")
@click.argument(
    "folders",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER...",
)
@collection_option
@click.option(
    "--keep",
    type=click.Choice(["none", "thumbnails", "originals"]),
    help="What a collection that is created now keeps of images.  [default: thumbnails]",
)
@click.option(
    "--metadata",
    "table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE.csv",
    help="Metadata of the images: a column `path`, relative to the folder, and a column for each key.",
)
@server_option
@json_option("One JSON document: how many were added, changed or known already, and which failed.")
def command(
    folders: tuple[Path, ...], collection: str, keep: str | None, table: Path | None, server: str, as_json: bool
) -> None:
    """Add all images in folders to a collection, which is created if it does not exist.

    An item's id is the path of its file within FOLDER. Its metadata are `folder`, the path without the file's name,
    `label`, the first part of that, and the columns of the table. Files that the collection already holds unchanged are
    not sent again, so the same command continues where an earlier one stopped. Other metadata of existing items is
    kept.

    Files that cannot be used are named and skipped; the exit code is then 1.

    \b
    embedserve add photos/ --collection photos
    embedserve add photos/ --collection photos --metadata photos.csv --keep originals
    """
    import time

    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import print_json, progress, rate_text, say, say_failed

    counts = _Counts()
    files = _find(folders, counts)
    if table is not None:
        files = _with_table(files, table)
    begun = time.monotonic()
    with connect(server, timeout_s=120) as client:  # survives a restart of the server
        info = _collection(client, collection, keep)
        try:
            with progress(f"adding to {info.name}", len(files)) as bar:
                _add(client, info, files, counts, bar)
        except (EmbedserveError, KeyboardInterrupt):
            if counts.sent:
                so_far = rate_text(counts.sent, time.monotonic() - begun)
                say(f"stopped: {counts}, {so_far}; the same command continues from here")
            raise
    seconds = time.monotonic() - begun
    for failure in counts.failed:
        say_failed(failure["path"], failure["error"])
    say(f"{counts}, {rate_text(counts.sent, seconds)}")
    if as_json:
        print_json(
            {
                "collection": info.name,
                "added": counts.added,
                "changed": counts.changed,
                "known": counts.known,
                "failed": counts.failed,
                "seconds": round(seconds, 3),
                "images_per_s": round(counts.sent / seconds, 1),
            }
        )
    elif not counts.failed:
        say(f"next: embedserve search IMAGE --collection {collection}")
    if counts.failed:
        sys.exit(1)


# --- Files and their metadata ---


def _find(folders: Sequence[Path], counts: _Counts) -> list[_File]:
    """The images of the folders, sorted by folder and path.

    Raises:
        DataError: a folder has no images.
        InvalidInput: two files would have the same id.
    """
    from embedserve.cli.files import no_images, scan

    files: dict[str, _File] = {}
    for folder in folders:
        found = scan(folder)
        if not found.images and not found.unreadable:
            raise no_images(folder, found)
        for path, why in found.unreadable:
            counts.fail(path, DataError(f"{path} cannot be read: {why}"))
        for path in found.images:
            relative = path.relative_to(folder)
            file = _File(relative.as_posix(), path, _metadata_of(relative))
            other = files.setdefault(file.id, file)
            if other is not file:
                raise InvalidInput(
                    f"{other.path} and {path} would both get the id {file.id!r}",
                    hint="add the folder that contains both folders, or use two collections",
                )
    return list(files.values())


def _metadata_of(relative: Path) -> dict[str, str]:
    if len(relative.parts) == 1:
        return {}
    return {"label": relative.parts[0], "folder": relative.parent.as_posix()}


def _with_table(files: Sequence[_File], table: Path) -> list[_File]:
    """The files with the metadata of the table, which overrides that of the folders.

    Raises:
        InvalidInput: the table is malformed.
    """
    from dataclasses import replace

    from embedserve.cli.metadata_table import read_table
    from embedserve.cli.terminal.output import printable, say

    read = read_table(table)
    for note in read.notes:
        say(printable(note))
    rows = read.rows
    unused = rows.keys() - {file.id for file in files}
    if unused:
        example = printable(min(unused))
        say(f"{len(unused)} of {len(rows)} rows in {table} match no image, such as {example!r}")
    return [replace(file, metadata={**file.metadata, **rows.get(file.id, {})}) for file in files]


# --- Adding ---


def _collection(client: Client, name: str, keep: str | None) -> CollectionInfo:
    """The collection, created if it does not exist."""
    from embedserve.cli.terminal.output import say

    try:
        info = client.get_collection(name)
    except CollectionNotFound:
        info = client.create_collection(name, keep=keep or "thumbnails")
        say(f"created collection {info.name}, bound to encoder {info.encoder_name} ({info.fingerprint[:12]})")
    encoder = client.encoder()
    if not info.external and info.fingerprint != encoder.fingerprint:
        # Even if no file has to be sent: this server could not search the collection by image.
        raise EncoderMismatch(
            f"collection {info.name!r} is bound to encoder {info.encoder_name} ({info.fingerprint[:12]});"
            f" this server runs {encoder.name} ({encoder.fingerprint[:12]})",
            hint="add the images to a new collection, and point an alias to it: embedserve collection set-alias --help",
        )
    if info.external:
        raise FailedPrecondition(
            f"collection {info.name} takes external vectors, not images",
            hint="add the images to another collection",
        )
    if keep is not None and keep != info.keep:
        say(f"collection {info.name} keeps {info.keep}; --keep {keep} does not change that")
    return info


def _add(client: Client, info: CollectionInfo, files: Sequence[_File], counts: _Counts, bar: Progress) -> None:
    """Send what the collection does not hold yet, and count the results."""
    import time

    sent: dict[str, tuple[_File, bool]] = {}
    begun = time.monotonic()
    for result in client.add_each(info.name, _to_send(client, info, files, counts, bar, sent)):
        file, is_change = sent.pop(result.id)
        if result.error is not None:
            counts.fail(file.path, result.error, file.id)
        elif is_change:
            counts.changed += 1
        else:
            counts.added += 1
        bar.advance()
        bar.note(f"{counts.sent / (time.monotonic() - begun):.0f} images/s")


def _to_send(
    client: Client,
    info: CollectionInfo,
    files: Sequence[_File],
    counts: _Counts,
    bar: Progress,
    sent: dict[str, tuple[_File, bool]],
) -> Iterator[ItemInput]:
    """The new and changed items; ``sent`` receives the file of each, and whether it is a change."""
    from concurrent.futures import ThreadPoolExecutor

    from embedserve.client import ItemInput

    with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
        try:
            for start in range(0, len(files), _LOOKUP_IDS):
                block = files[start : start + _LOOKUP_IDS]
                items = _look_up(client, info.name, block)
                for file, item, is_same in zip(block, items, pool.map(_is_same, block, items), strict=True):
                    if is_same:
                        counts.known += 1
                        bar.advance()
                        continue
                    sent[file.id] = file, item is not None
                    metadata = {**item.metadata, **file.metadata} if item is not None else file.metadata
                    yield ItemInput(id=file.id, image=file.path, metadata=metadata)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _look_up(client: Client, collection: str, block: Sequence[_File]) -> list[Item | None]:
    """The items that the collection has under the ids of the files."""
    ids = [file.id for file in block if _is_text(file.id)]
    found = dict(zip(ids, client.get_items(collection, ids), strict=True))
    return [found.get(file.id) for file in block]


def _is_text(id: str) -> bool:
    """False for a file name that is not UTF-8; that file fails alone when it is sent."""
    try:
        id.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_same(file: _File, item: Item | None) -> bool:
    """Whether the collection holds this very file with all its metadata."""
    import hashlib

    if item is None:
        return False
    for key, value in file.metadata.items():
        stored = item.metadata.get(key)
        # True equals 1 in Python, but not in a filter.
        if type(stored) is not type(value) or stored != value:
            return False
    try:
        with file.path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest() == item.content_sha256
    except OSError:
        return False  # sending it reports the error
