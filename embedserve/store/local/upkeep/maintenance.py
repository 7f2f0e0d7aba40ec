"""What is done in the background: segments are sealed and merged, and recall is measured."""

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

_log = logging.getLogger("embedserve.store")

_LOOK_S = 0.25
_RECALL_S = 60.0
"""Between two measurements of a collection's recall at least."""
_PAUSE = 10
_AGAIN_AT_MOST_S = 3600.0
_AGAIN_S = 30.0
"""After a step that failed."""
_NICENESS = 10
"""Of the thread and those that FAISS starts for it: calls come first."""


class Maintenance:
    """One thread that looks after all collections, until ``stop``.

    Args:
        collections: those there are at the moment.
        observer: told of what was built.
    """

    def __init__(self, collections: Callable[[], Sequence[Collection]], observer: Observer) -> None:
        self._collections = collections
        self._observer = observer
        self._stop = threading.Event()
        self._not_before: dict[str, float] = {}
        self._measured: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        # A daemon: an interpreter that ends without closing the store shall not wait for the end of a build.
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give up what is being built, and wait for that."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # not everywhere, and not everyone may
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not self._stop.wait(_LOOK_S):
            collections = self._collections()
            for collection in collections:
                self._look_after(collection)
            known = {collection.entry.uid for collection in collections}
            of_collections: list[dict[str, Any]] = [self._not_before, self._measured, self._failures]
            for of_collection in of_collections:
                for uid in of_collection.keys() - known:
                    del of_collection[uid]

    def _look_after(self, collection: Collection) -> None:
        uid, now = collection.entry.uid, time.monotonic()
        if now < self._not_before.get(uid, 0.0):
            return
        try:
            kernels.use_threads(usable_cores())
            built = collection.maintain(self._stop.is_set)
            self._failures.pop(uid, None)
            if built is not None:
                self._observer.on_sealed(built.rows, built.seconds, built.kind)
            elif collection.recall.has_news and now >= self._measured.get(uid, 0.0) + _RECALL_S:
                collection.measure_recall(self._stop.is_set)
                # Between two of them ten times as long as one takes, so that of many vectors not all the time is spent.
                ended = time.monotonic()
                self._measured[uid] = ended + _PAUSE * (ended - now)
        except Stopped:
            pass
        except EmbedserveError as error:
            if self._stop.is_set() or collection.is_closing:
                return
            self._wait(uid)
            level = logging.WARNING if isinstance(error, DiskFull) else logging.ERROR
            _log.log(level, "the index of %r was not built on, and stays as it is: %s", collection.entry.name, error)
        except Exception:
            if self._stop.is_set() or collection.is_closing:
                return
            self._wait(uid)
            _log.exception("the index of %r was not built on: bug", collection.entry.name)

    def _wait(self, uid: str) -> None:
        # From now on: a step that failed at its end may have taken longer than that. Longer after each failure, for
        # what fails on a full disk may have been built for minutes.
        failures = self._failures[uid] = self._failures.get(uid, 0) + 1
        self._not_before[uid] = time.monotonic() + min(_AGAIN_S * 2 ** (failures - 1), _AGAIN_AT_MOST_S)
