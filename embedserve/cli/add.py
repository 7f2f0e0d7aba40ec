"""`embedserve add`: the images of folders into a collection; the same command again continues where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedserve.cli.terminal.options import (
    collection_option,
    exclude_option,
    existing_file,
    existing_folder,
    json_option,
    require_terminal,
    server_option,
)
from embedserve.errors import (
    CollectionNotFound,
    DataError,
    EmbedserveError,
    EncoderMismatch,
    FailedPrecondition,
)

if TYPE_CHECKING:
    from embedserve.cli.folder_items import FolderItem
    from embedserve.cli.terminal.output import Progress
    from embedserve.client import Client, ItemInput
    from embedserve.types import CollectionInfo, Item

_LOOKUP_IDS = 500
"""Ids in one lookup of what the collection holds."""

_HASH_THREADS = 4
"""Threads that hash files."""


@dataclass
class _Counts:
    """What happened to the files."""

    added: int = 0
    changed: int = 0
    known: int = 0
    removed: int | None = None
    """Items whose files are gone; None if they were not looked for."""
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
        text = f"added {self.added}, changed {self.changed}, known {self.known}, failed {len(self.failed)}"
        return text if self.removed is None else f"{text}, removed {self.removed}"


@click.command("add")
@click.argument(
    "folders",
    nargs=-1,
    required=True,
    type=existing_folder,
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
    type=existing_file,
    metavar="FILE.csv",
    help="Metadata of the images: a column `path`, relative to the folder, and a column for each key.",
)
@exclude_option
@click.option(
    "--remove-missing",
    is_flag=True,
    help="Afterwards remove the items that came from a folder of the same name and whose files are gone.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing: say what would be added, changed and removed.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@server_option
@json_option("One JSON document: how many were added, changed, known already or removed, and which failed.")
def command(
    folders: tuple[Path, ...],
    collection: str,
    keep: str | None,
    table: Path | None,
    exclude: tuple[str, ...],
    remove_missing: bool,
    dry_run: bool,
    yes: bool,
    server: str,
    as_json: bool,
) -> None:
    """Add all images in folders to a collection, which is created if it does not exist.

    An item's id is the path of its file within FOLDER. Its metadata are `root`, the name of FOLDER, `folder`, the path
    without the file's name, `label`, the first part of that, and the columns of the table. Files that the collection
    already holds unchanged are not sent again, so the same command continues where an earlier one stopped. Other
    metadata of existing items is kept.

    With --remove-missing the collection follows the folders: an item is removed if its `root` is the name of a FOLDER
    and no FOLDER has its file any more. Nothing is removed unless all folders could be read, and have images. A file
    that is there keeps its item, even if it cannot be read, is excluded or is passed over.

    @LIST stands for the files that LIST names, one on each line, relative to the folder of LIST.

    Files that cannot be used are named and skipped; the exit code is then 1.

    \b
    embedserve add photos/ --collection photos
    embedserve add photos/ --collection photos --metadata photos.csv
    embedserve add photos/ --collection photos --exclude thumbs/ --dry-run
    embedserve add photos/ --collection photos --remove-missing
    """
    if remove_missing:
        from embedserve.folder.list_file import list_file

        if any(list_file(folder) is not None for folder in folders):
            raise click.UsageError("--remove-missing follows whole folders, not a list of files")
        if not dry_run:
            require_terminal(yes)

    import time

    from embedserve.cli.folder_items import find, with_table
    from embedserve.cli.remove_missing import find_missing, remove
    from embedserve.cli.terminal.options import connect
    from embedserve.cli.terminal.output import progress, rate_text, say, say_failed

    counts = _Counts()
    found = find(folders, exclude)
    for path, why in found.unreadable:
        counts.fail(path, DataError(f"{path} cannot be read: {why}"))
    files = found.items if table is None else with_table(found.items, table)
    if remove_missing:
        _check_roots(files, table)
    begun = time.monotonic()
    with connect(server, timeout_s=120) as client:  # survives a restart of the server
        info = _existing(client, collection, keep) if dry_run else _collection(client, collection, keep)
        name = collection if info is None else info.name
        try:
            with progress(f"comparing with {name}" if dry_run else f"adding to {name}", len(files)) as bar:
                if dry_run:
                    _compare(client, info, files, counts, bar, remove_missing)
                elif info is not None:
                    _add(client, info, files, counts, bar, remove_missing)
        except (EmbedserveError, KeyboardInterrupt):
            if counts.sent and not dry_run:
                so_far = rate_text(counts.sent, time.monotonic() - begun)
                say(f"stopped: {counts}, {so_far}; the same command continues from here")
            raise
        seconds = time.monotonic() - begun
        for failure in counts.failed:
            say_failed(failure["path"], failure["error"])
        missing: list[str] = []
        if remove_missing:
            counts.removed = 0
            codes = [failure["code"] for failure in counts.failed]
            missing = find_missing(client, name, folders, found, codes) if info is not None else []
            counts.removed = len(missing) if dry_run else remove(client, name, folders, missing, yes)
    _report(name, counts, found.passed_over, seconds, dry_run=dry_run, missing=missing, as_json=as_json)
    if counts.failed or (missing and not counts.removed):
        sys.exit(1)


def _check_roots(files: Sequence[FolderItem], table: Path | None) -> None:
    from embedserve.cli.folder_items import ROOT_KEY

    if any(ROOT_KEY in file.metadata for file in files):
        raise click.UsageError(
            f"{table} has a column {ROOT_KEY!r}, by which --remove-missing knows the items of a folder"
        )


def _report(
    name: str,
    counts: _Counts,
    passed_over: Mapping[str, int],
    seconds: float,
    *,
    dry_run: bool,
    missing: Sequence[str],
    as_json: bool,
) -> None:
    """Say, or print for a program, what happened or would have happened."""
    from embedserve.cli.terminal.output import print_json, print_line, rate_text, say

    if dry_run:
        say(f"dry run, nothing was changed: {counts}")
    else:
        say(f"{counts}, {rate_text(counts.sent, seconds)}")
    if as_json:
        document: dict[str, Any] = {
            "collection": name,
            "added": counts.added,
            "changed": counts.changed,
            "known": counts.known,
            "removed": counts.removed or 0,
            "failed": counts.failed,
            "passed_over": passed_over,
            "seconds": round(seconds, 3),
            "images_per_s": 0.0 if dry_run else round(counts.sent / seconds, 1),
        }
        print_json({**document, "dry_run": True, "missing": missing} if dry_run else document)
    elif dry_run:
        for id in missing:
            print_line(f"would remove  {id}")
    elif not counts.failed:
        say(f"next: embedserve search IMAGE --collection {name}")


# --- Adding ---


def _collection(client: Client, name: str, keep: str | None) -> CollectionInfo:
    """The collection, created if it does not exist."""
    from embedserve.cli.terminal.output import say

    if (info := _existing(client, name, keep)) is None:
        info = client.create_collection(name, keep=keep or "thumbnails")
        say(f"created collection {info.name}, bound to encoder {info.encoder_name} ({info.fingerprint[:12]})")
    return info


def _existing(client: Client, name: str, keep: str | None) -> CollectionInfo | None:
    """The collection; None if it does not exist.

    Raises:
        EncoderMismatch, FailedPrecondition: it does not take images of this server's encoder.
    """
    from embedserve.cli.terminal.output import say

    try:
        info = client.get_collection(name)
    except CollectionNotFound:
        return None
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


def _compare(
    client: Client,
    info: CollectionInfo | None,
    files: Sequence[FolderItem],
    counts: _Counts,
    bar: Progress,
    with_root: bool,
) -> None:
    """Count what would be sent."""
    if info is None:
        counts.added = len(files)
        bar.advance(len(files))
        return
    sent: dict[str, tuple[FolderItem, bool]] = {}
    for item in _to_send(client, info, files, counts, bar, sent, with_root):
        _, is_change = sent.pop(str(item.id))
        counts.changed += is_change
        counts.added += not is_change
        bar.advance()


def _add(
    client: Client,
    info: CollectionInfo,
    files: Sequence[FolderItem],
    counts: _Counts,
    bar: Progress,
    with_root: bool,
) -> None:
    """Send what the collection does not hold yet, and count the results."""
    import time

    sent: dict[str, tuple[FolderItem, bool]] = {}
    begun = time.monotonic()
    for result in client.add_each(info.name, _to_send(client, info, files, counts, bar, sent, with_root)):
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
    files: Sequence[FolderItem],
    counts: _Counts,
    bar: Progress,
    sent: dict[str, tuple[FolderItem, bool]],
    with_root: bool,
) -> Iterator[ItemInput]:
    """The new and changed items; ``sent`` receives the file of each, and whether it is a change.

    A folder that was only renamed changes no item, unless ``with_root``: then each must say where it comes from.
    """
    from concurrent.futures import ThreadPoolExecutor

    from embedserve.cli.folder_items import ROOT_KEY
    from embedserve.client import ItemInput

    with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
        try:
            for start in range(0, len(files), _LOOKUP_IDS):
                block = files[start : start + _LOOKUP_IDS]
                items = _look_up(client, info.name, block)
                for file, item, is_same in zip(block, items, pool.map(_is_same, block, items), strict=True):
                    if is_same and not (with_root and _has_other_root(file, item)):
                        counts.known += 1
                        bar.advance()
                        continue
                    sent[file.id] = file, item is not None
                    kept = {} if item is None else item.metadata
                    metadata = {**kept, ROOT_KEY: file.root, **file.metadata}
                    yield ItemInput(id=file.id, image=file.path, metadata=metadata)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _look_up(client: Client, collection: str, block: Sequence[FolderItem]) -> list[Item | None]:
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


def _is_same(file: FolderItem, item: Item | None) -> bool:
    """Whether the collection holds this very file with all its metadata."""
    import hashlib

    from embedserve.regular_file import regular

    if item is None:
        return False
    for key, value in file.metadata.items():
        stored = item.metadata.get(key)
        # True equals 1 in Python, but not in a filter.
        if type(stored) is not type(value) or stored != value:
            return False
    try:
        with open(file.path, "rb", opener=regular) as opened:
            return hashlib.file_digest(opened, "sha256").digest() == item.content_sha256
    except OSError:
        return False  # sending it reports the error


def _has_other_root(file: FolderItem, item: Item | None) -> bool:
    from embedserve.cli.folder_items import ROOT_KEY

    return item is not None and item.metadata.get(ROOT_KEY) != file.root
