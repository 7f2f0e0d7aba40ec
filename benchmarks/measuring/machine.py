"""CPU time, memory and disk space of processes, and facts about the machine; from /proc, where there is one."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import threading
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Self

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU time of a process, user and system; 0 if there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def busy_s() -> float:
    """CPU time of all processes of the machine; 0 if there is no /proc."""
    try:
        user, nice, system, _idle, _wait, interrupts, soft = Path("/proc/stat").read_text().split()[1:8]
    except OSError:
        return 0.0
    return sum(map(int, (user, nice, system, interrupts, soft))) / TICKS_PER_S


def memory_mb(pid: int, name: str) -> float | None:
    """VmRSS (now) or VmHWM (highest) of a process; None if there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return round(int(found[1]) / 1024, 1) if found else None


def cpu_model() -> str:
    """Name of the processor."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    found = {"python": platform.python_version()}
    for package in ("embedserve", "grpcio", "protobuf", "onnxruntime-gpu", "onnxruntime", "numpy", "pillow", "torch"):
        with contextlib.suppress(ModuleNotFoundError):
            found[package] = version(package)
    return found


@cache
def installed(python: Path) -> dict[str, str]:
    """The packages of an environment, with their versions; none if there is no such environment."""
    if not python.exists():
        return {}
    listing = (
        "import json,importlib.metadata as m;print(json.dumps({d.name.lower():d.version for d in m.distributions()}))"
    )
    done = subprocess.run([str(python), "-c", listing], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


# --- Trees of processes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """A process and all its descendants, including orphans: they carry its mark."""

    root: int
    mark: str
    """A unique word in the environment of the process."""

    def pids(self) -> list[int]:
        """The live processes."""
        parents: dict[int, int] = {}
        marked = {self.root}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] == "Z":
                    continue
                parents[int(folder.name)] = int(fields[1])
                # Some programs overwrite their environment with a title; these are found by their parent.
                if self.mark.encode() in (folder / "environ").read_bytes():
                    marked.add(int(folder.name))
        return sorted(pid for pid in parents if _descends(pid, marked, parents))

    def cpu(self) -> dict[int, float]:
        """CPU seconds of each process."""
        return {pid: cpu_s(pid) for pid in self.pids()}

    def pss_mb(self) -> float:
        """Proportional memory (PSS) of all of them: shared memory counts once."""
        return round(sum(map(pss_mb, self.pids())), 1)


def spent_s(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds between two readings of ``Tree.cpu``; what a process took that ended between them is not counted."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def pss_mb(pid: int) -> float:
    """Proportional memory (PSS) of a process; 0 if unknown."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE):
            return int(found[1]) / 1024
    return 0.0


def _descends(pid: int, ancestors: set[int], parents: dict[int, int]) -> bool:
    while pid not in ancestors:
        if pid not in parents:
            return False
        pid = parents[pid]
    return True


class PeakMemory:
    """The highest memory of all processes of a tree together, sampled while a block runs."""

    def __init__(self, tree: Tree, every_s: float = 0.5) -> None:
        self.mb = 0.0
        self._tree, self._every_s = tree, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        self.mb = max(self.mb, self._tree.pss_mb())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()


def disk_mb(folder: Path) -> float:
    """Disk space of the files of a folder, in MB."""
    return round(sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / 1e6, 1)
