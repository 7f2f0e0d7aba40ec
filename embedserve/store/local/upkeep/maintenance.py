"""Background work: seals and merges segments, and measures recall."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from embedserve.cores import usable_cores
from embedserve.errors import DiskFull, EmbedserveError
from embedserve.index import kernels
from embedserve.index.structures import Stopped
from embedserve.observer import Observer
from embedserve.store.local.collection.collection import Collection
from embedserve.store.local.upkeep import sealing

_log = logging.getLogger("embedserve.store")

_LOOK_S = 0.25
"""Between two looks at the collections."""
_RECALL_S = 60.0
"""Minimum time between two measurements of a collection's recall."""
_PAUSE = 10
"""The pause after a measurement, as a multiple of the time it took."""
_AGAIN_S = 30.0
"""Pause after a step that failed; doubled after each further failure."""
_AGAIN_AT_MOST_S = 3600.0
_NICENESS = 10
"""Of the thread and those that FAISS starts for it: calls come first."""


class Maintenance:
    """One thread that maintains all collections, until ``stop``.

    Args:
        collections: returns those that exist now.
        observer: told what was built.
    """

    def __init__(self, collections: Callable[[], Sequence[Collection]], observer: Observer) -> None:
        self._collections = collections
        self._observer = observer
        self._stop = threading.Event()
        self._not_before: dict[str, float] = {}
        self._measured: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        # A daemon: an interpreter that exits without closing the store must not wait for the end of a build.
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the current build, and wait until it has stopped."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # not available everywhere, nor permitted to every user
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not self._stop.wait(_LOOK_S):
            collections = self._collections()
            for collection in collections:
                self._maintain(collection)
            known = {collection.entry.uid for collection in collections}
            of_collections: list[dict[str, Any]] = [self._not_before, self._measured, self._failures]
            for of_collection in of_collections:
                for uid in of_collection.keys() - known:
                    del of_collection[uid]

    def _maintain(self, collection: Collection) -> None:
        uid, now = collection.entry.uid, time.monotonic()
        if now < self._not_before.get(uid, 0.0):
            return
        try:
            kernels.use_threads(usable_cores())
            sealed = sealing.seal_next(collection, self._stop.is_set)
            self._failures.pop(uid, None)
            if sealed is not None:
                self._observer.on_sealed(sealed.rows, sealed.seconds, sealed.kind)
            elif collection.recall.is_outdated and now >= self._measured.get(uid, 0.0) + _RECALL_S:
                collection.measure_recall(self._stop.is_set)
                ended = time.monotonic()
                self._measured[uid] = ended + _PAUSE * (ended - now)
        except Stopped:
            pass
        except EmbedserveError as error:
            if self._stop.is_set() or collection.is_closing:
                return
            self._postpone(uid)
            level = logging.WARNING if isinstance(error, DiskFull) else logging.ERROR
            _log.log(level, "segments of %r were not built; its index stays as it is: %s", collection.entry.name, error)
        except Exception:
            if self._stop.is_set() or collection.is_closing:
                return
            self._postpone(uid)
            _log.exception("segments of %r were not built: bug", collection.entry.name)

    def _postpone(self, uid: str) -> None:
        # Counted from now: a step may have taken longer than the pause before it failed. The pause grows with each
        # failure, since what fails on a full disk may take minutes to build.
        failures = self._failures[uid] = self._failures.get(uid, 0) + 1
        self._not_before[uid] = time.monotonic() + min(_AGAIN_S * 2 ** (failures - 1), _AGAIN_AT_MOST_S)
