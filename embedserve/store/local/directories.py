"""The directories of collections: which are used, which are being made or removed, and which nobody knows of.

    DATA/collections/<uid>/             one collection, or a copy in work
    DATA/collections/<uid>/UNFINISHED   it is being made or removed

Only what is marked, or holds no items, is ever removed without being asked for: if the catalog is lost or an older one
is put in its place, collections are unknown to it that are all there is of their items.
"""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from collections.abc import Collection as Names
from contextlib import suppress
from pathlib import Path

from embedserve.atomic_write import sync
from embedserve.store.local.records.records import FILE

_log = logging.getLogger("embedserve.store")

_UID = re.compile(r"[0-9a-f]{32}")
_MARK = "UNFINISHED"


class Directories:
    """Those in one directory, which is there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, uid: str) -> Path:
        return self.root / uid

    def uids(self) -> set[str]:
        """All that are there."""
        return {entry.name for entry in self.root.iterdir() if _UID.fullmatch(entry.name)}

    def make(self) -> str:
        """A new one, marked as unfinished; its uid."""
        uid = uuid.uuid4().hex
        self[uid].mkdir()
        self._mark(uid)  # before there are items in it, also after a power cut
        return uid

    def finish(self, uid: str) -> None:
        """The catalog knows of it; on disk when this returns."""
        if (self[uid] / _MARK).exists():
            (self[uid] / _MARK).unlink()
            sync(self[uid])

    def mark_for_removal(self, uid: str) -> None:
        """The catalog is about to forget it; on disk when this returns."""
        self._mark(uid)

    def remove(self, uid: str) -> None:
        """Remove it as far as that is possible now; the rest goes at the next start, if it is marked."""
        with suppress(OSError):
            # The mark goes last, also on disk, for what is left without it would be kept.
            for entry in self[uid].iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry.name != _MARK:
                    entry.unlink()
            sync(self[uid])
            shutil.rmtree(self[uid])

    def _mark(self, uid: str) -> None:
        (self[uid] / _MARK).touch()
        sync(self[uid])

    def clear(self, known: Names[str]) -> None:
        """Remove what was made or removed in part when a process died; keep, and tell of, what is merely unknown."""
        for uid in sorted(self.uids() - set(known)):
            if (self[uid] / _MARK).exists() or not (self[uid] / FILE).exists():
                self.remove(uid)
            else:
                _log.error(
                    "%s holds items, and the catalog names no collection for it, as an older catalog would not; it is"
                    " kept: put the newer catalog back, or remove the directory",
                    self[uid],
                )
