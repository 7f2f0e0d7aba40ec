"""The directories of collections: in use, being created or removed, or unknown to the catalog.

    DATA/collections/<uid>/             one collection, or a copy that is being made
    DATA/collections/<uid>/UNFINISHED   it is being created or removed

A start removes only directories that have this mark or contain no items: if the catalog is lost or replaced by an older
one, unknown directories may be the only copies of their items.
"""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from collections.abc import Collection as Names
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from embedserve.atomic_write import sync
from embedserve.store.local.records.database import translate_errors
from embedserve.store.local.records.records import FILE

_log = logging.getLogger("embedserve.store")

_UID = re.compile(r"[0-9a-f]{32}")
_MARK = "UNFINISHED"


class Directories:
    """The directories of collections in ``root``, which must exist."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, uid: str) -> Path:
        return self.root / uid

    def uids(self) -> set[str]:
        """The uids of all existing directories."""
        return {entry.name for entry in self.root.iterdir() if _UID.fullmatch(entry.name)}

    @contextmanager
    def unfinished(self, *, keep: bool = True) -> Iterator[str]:
        """The uid of a new directory, which is removed after the block if that fails or unless ``keep``.

        Raises:
            DiskFull, StoreError: for errors of the file system, also inside the block.
        """
        with translate_errors(self.root):
            uid = self.make()
            try:
                with translate_errors(self[uid]):
                    yield uid
            except BaseException:
                keep = False
                raise
            finally:
                if not keep:
                    self.remove(uid)

    def make(self) -> str:
        """Create a directory, marked as unfinished; its uid."""
        uid = uuid.uuid4().hex
        self[uid].mkdir(mode=0o700)
        self._mark(uid)  # on disk before it contains items, so that a power cut leaves none without a mark
        return uid

    def finish(self, uid: str) -> None:
        """Remove the mark, now that the catalog knows the directory; on disk when this returns."""
        if (self[uid] / _MARK).exists():
            (self[uid] / _MARK).unlink()
            sync(self[uid])

    def mark_for_removal(self, uid: str) -> None:
        """Set the mark, before the catalog removes the collection; on disk when this returns."""
        self._mark(uid)

    def remove(self, uid: str) -> None:
        """Remove a directory as far as possible; if it is marked, the next start removes the rest."""
        with suppress(OSError):
            # The mark goes last, also on disk: what is left without it would be kept.
            for entry in self[uid].iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry.name != _MARK:
                    entry.unlink()
            sync(self[uid])
            shutil.rmtree(self[uid])

    def _mark(self, uid: str) -> None:
        (self[uid] / _MARK).touch(mode=0o600)
        sync(self[uid])

    def clear(self, known: Names[str]) -> None:
        """Remove what a killed process left unfinished; keep and log other directories that are not ``known``."""
        for uid in sorted(self.uids() - set(known)):
            if (self[uid] / _MARK).exists() or not (self[uid] / FILE).exists():
                self.remove(uid)
            else:
                _log.error(
                    "a directory contains items, but the catalog, perhaps an older one, names no collection for it; it"
                    " is kept: put the newer catalog back, or remove the directory",
                    extra={"fields": {"path": str(self[uid])}},
                )


def warn_if_readable(directory: Path) -> None:
    """Name a data directory that others may enter; what an operator has made so is not changed."""
    mode = directory.stat().st_mode & 0o777
    if mode & 0o077:
        fields = {"path": str(directory), "mode": f"{mode:03o}", "hint": f"chmod -R go= {directory}"}
        _log.warning("other users may enter the data directory", extra={"fields": fields})
