"""The JSON document of a benchmark: date, command, machine and versions, then the results."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from embedserve.cores import usable_cores
from measuring.machine import cpu_model, versions


def document(script: str, **results: Any) -> dict[str, Any]:
    """The facts, followed by ``results``, which may replace them.

    Args:
        script: name of the benchmark's file.
        results: more entries.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
        "hardware": {"cpu": cpu_model(), "cores": usable_cores(), "machine": platform.machine()},
        "versions": versions(),
        **results,
    }


def write(document: dict[str, Any], path: Path | None) -> None:
    """Write a document, if there is a path, and print where it is."""
    if path is not None:
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written to {path}")
