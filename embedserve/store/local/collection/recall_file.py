"""What was measured of a collection's recall, on disk beside its segments, so that a restart does not forget it.

    segments/RECALL.json    the segments that it is about, the multiplier, and the last measurement

It is written whole and with its hash, and ignored where it is about other segments: then recall is measured again.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedserve.index.snapshot import Snapshot
from embedserve.store.local.collection.recall import RecallMonitor
from embedserve.store.local.records.files import read_document, write_document
from embedserve.types import Recall

_log = logging.getLogger("embedserve.store")

_FORMAT = 1
_NAME = "RECALL.json"


def keep(directory: Path, snapshot: Snapshot, monitor: RecallMonitor) -> None:
    """Write what a monitor knows about the segments of a snapshot; on disk when this returns.

    A failure is logged and the file is as before: what is lost can be measured again.

    Args:
        directory: of the segments; without it there is nothing to write about.
        snapshot: of the collection.
        monitor: of the collection.
    """
    path = directory / _NAME
    if not directory.is_dir():
        return
    try:
        if not snapshot.is_approximate:
            path.unlink(missing_ok=True)
            return
        last = monitor.last
        document: dict[str, Any] = {
            "format": _FORMAT,
            "segments": _about(snapshot),
            "multiplier": monitor.multiplier,
            "exact": monitor.exact,
            "found": monitor.found,
            "last": None if last is None else asdict(last),
        }
        write_document(path, document)
    except OSError as error:
        _log.warning("the measured recall is not kept", extra={"fields": {"reason": str(error)}})


def load(directory: Path, snapshot: Snapshot, monitor: RecallMonitor) -> None:
    """Give a monitor what ``keep`` wrote about the segments of a snapshot, if it did."""
    path = directory / _NAME
    try:
        document = read_document(path)
        if document["format"] != _FORMAT or document["segments"] != _about(snapshot):
            return
        last = None if document["last"] is None else Recall(**document["last"])
        multiplier, exact, found = document["multiplier"], document["exact"], document["found"]
        monitor.restore(multiplier=float(multiplier), exact=exact is True, found=float(found), last=last)
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("recall is measured again", extra={"fields": {"reason": str(error)}})


def _about(snapshot: Snapshot) -> list[str]:
    return [segment.uid for segment in snapshot.segments if segment.structure is not None]
