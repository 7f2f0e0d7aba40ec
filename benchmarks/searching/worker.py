"""The process in which one system runs: reads requests as lines of JSON, answers with lines of JSON.

    python -m searching.worker peers.search.hnswlib_index:Hnswlib FOLDER OPTIONS

What a library prints goes to standard error. An error is an answer too; the process continues.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searching.data import recall
from searching.loads import found_by, search_loop, to_json
from searching.system import System


class Worker:
    """Handles requests one after the other."""

    def __init__(self, system: System, folder: Path) -> None:
        self._system, self._folder = system, folder
        self._queries: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._truth: NDArray[np.int32] = np.empty((0, 0), np.int32)

    def build(self, vectors: str) -> dict[str, Any]:
        """Fill the system."""
        begun = time.perf_counter()
        parts = self._system.build(np.load(vectors, mmap_mode="r"), self._folder)
        return {"seconds": round(time.perf_counter() - begun, 2), **parts}

    def ask_with(self, queries: str, truth: str) -> dict[str, Any]:
        """The files of queries and true neighbours."""
        self._queries, self._truth = np.load(queries), np.load(truth)
        return {}

    def open(self) -> dict[str, Any]:
        """Make the system ready, up to its first answer."""
        begun = time.perf_counter()
        address = self._system.open(self._folder)
        opened = time.perf_counter()
        self._system.tune(self._system.ladder[0])
        self._system.client(1)(self._queries[:1])
        return {
            "address": address,
            "ladder": self._system.ladder,
            "about": self._system.about(),
            "own_processes": self._system.own_processes,
            "open_s": round(opened - begun, 3),
            "first_answer_s": round(time.perf_counter() - opened, 3),
        }

    def connect(self, address: str) -> dict[str, Any]:
        """Become a client of the server that another process has started."""
        self._system.connect(address)
        return {}

    def recall(self, setting: str, per_call: int, queries: int) -> dict[str, Any]:
        """recall@10 of a setting, over some of the queries."""
        self._system.tune(setting)
        found = found_by(self._system.client, self._queries[:queries], per_call)
        return {"recall": recall(found, self._truth[:queries])}

    def load(self, setting: str, **how: Any) -> dict[str, Any]:
        """A closed loop; ``how`` as for ``loads.search_loop``."""
        self._system.tune(setting)
        return to_json(search_loop(self._system.client, self._queries, **how))

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """A method that only this system has; ``queries`` is the number of queries it gets."""
        if "queries" in arguments:
            arguments["queries"] = self._queries[: arguments["queries"]]
        return getattr(self._system, method)(**arguments) or {}

    def close(self) -> dict[str, Any]:
        """Release what was opened."""
        self._system.close()
        return {}


def main() -> None:
    """Answer until there are no more requests."""
    where, folder, options = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = where.partition(":")
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if worker is None:
                made = getattr(importlib.import_module(module), name)(json.loads(options))
                worker = Worker(made, Path(folder))
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
