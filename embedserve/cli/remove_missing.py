"""`embedserve add --remove-missing`: the items whose files are gone.

An item is missing if it was added from a folder of the same name (its metadata ``root``), the scan of the folders did
not find its id, and none of the folders has a file of that name now. Anything else is kept: items of other folders, of
other programs, those that ``--exclude`` leaves out or that are passed over, files that are there but cannot be read,
those behind a link to a folder that is gone, and those in a folder that is there and empty: so is the mount point of a
drive that is away.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.cli.folder_items import ROOT_KEY, Found, root_of
from embedserve.cli.terminal.options import confirmed
from embedserve.cli.terminal.output import printable, say
from embedserve.types import In

if TYPE_CHECKING:
    from embedserve.client import Client

_PAGE = 500
_NAMED = 10
"""Missing items that are named before they are removed."""
_TOLERATED = {"IMAGE_UNDECODABLE", "IMAGE_FORMAT", "IMAGE_TOO_LARGE", "INVALID_ARGUMENT", "LIMIT_EXCEEDED"}
"""Codes of failures that are about one file for good; with any other the folder was perhaps not read as it is."""


def find_missing(
    client: Client, collection: str, folders: Sequence[Path], found: Found, failed_codes: Sequence[str]
) -> list[str]:
    """Ids of items that came from the folders and whose files are gone, sorted.

    None, and a line that says why, if the folders were not read completely.
    """
    if reason := _why_not(folders, found, failed_codes):
        say(f"nothing is removed: {printable(reason)}")
        return []
    ids = {item.id for item in found.items}
    roots = tuple(dict.fromkeys(map(root_of, folders)))
    listed = client.list_items(collection, filter=In(ROOT_KEY, roots), include_metadata=False, page_size=_PAGE)
    gone = [item.id for item in listed if item.id not in ids]
    missing = _still_missing(folders, gone)
    _say_empty(folders, gone, missing)
    return missing


def remove(client: Client, collection: str, folders: Sequence[Path], missing: Sequence[str], yes: bool) -> int:
    """Remove missing items, once that is confirmed.

    Returns:
        How many were removed.
    """
    if not missing:
        return 0
    for id in missing[:_NAMED]:
        say(f"missing  {printable(id)}")
    if len(missing) > _NAMED:
        say(f"missing  {len(missing) - _NAMED:,} more; --dry-run names all")
    what = "1 item whose file is gone" if len(missing) == 1 else f"{len(missing):,} items whose files are gone"
    if not confirmed(f"Remove {what} from collection {printable(collection)}?", yes):
        say("nothing is removed")
        return 0
    # Files may have come back, or a drive have gone, while the question was open.
    return client.delete_items(collection, _still_missing(folders, missing))


def _why_not(folders: Sequence[Path], found: Found, failed_codes: Sequence[str]) -> str:
    """Why nothing may be removed; empty if the folders were read completely."""
    if found.unreadable:
        return f"{found.unreadable[0][0]} cannot be read"
    if others := [code for code in failed_codes if code not in _TOLERATED]:
        return f"{len(others)} {'file' if len(others) == 1 else 'files'} could not be read or sent"
    for folder in folders:
        # As after a network drive went away: its mount point is an empty folder.
        if not any(_is_there(item.path) for item in found.items if item.path.is_relative_to(folder)):
            return f"{folder} has become empty"
    return ""


def _say_empty(folders: Sequence[Path], gone: Sequence[str], missing: Sequence[str]) -> None:
    """Say which folders are there without entries and keep items, since their drive may be away."""
    kept = set(gone).difference(missing)
    empty: dict[Path, int] = {}
    for id in kept:
        for folder in folders:
            parents = [parent for parent in (folder / id).parents if parent.is_relative_to(folder) and parent != folder]
            found = next((parent for parent in parents if _is_empty(parent)), None)
            if found is not None and not _is_there(folder / id):
                empty[found] = empty.get(found, 0) + 1
    for path, count in sorted(empty.items())[:_NAMED]:
        items = "1 item stays" if count == 1 else f"{count:,} items stay"
        say(f"{printable(str(path))} is empty, so {items}: remove the folder too if its images are gone")


def _still_missing(folders: Sequence[Path], ids: Sequence[str]) -> list[str]:
    """Those of the ids that no folder has a file for; none if a folder is gone."""
    if not all(_has_entries(folder) for folder in folders):
        return []
    lost: dict[Path, bool] = {}
    return [id for id in ids if not any(_may_be_there(folder, id, lost) for folder in folders)]


def _may_be_there(folder: Path, id: str, lost: dict[Path, bool]) -> bool:
    """Whether an item's file is there, or cannot be seen since a folder or link on its way is there without entries.

    As when a drive is unmounted that a folder inside is a link to, or its mount point. ``lost`` keeps what is known
    about folders.
    """
    path = folder / id
    if _is_there(path):
        return True
    for parent in path.parents:
        if parent == folder:
            return False
        if parent not in lost:
            lost[parent] = _is_empty(parent)
        if lost[parent]:
            return True
    return False


def _is_empty(path: Path) -> bool:
    """Whether this is a link that leads to nothing or a folder, itself or by a link, without entries."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True  # it cannot be known
    return (stat.S_ISLNK(mode) or stat.S_ISDIR(mode)) and not _has_entries(path)


def _has_entries(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _is_there(path: Path) -> bool:
    """Whether something has this path, be it a broken link or a file that cannot be read."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        pass  # it cannot be known
    return True
