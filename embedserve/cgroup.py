"""The CPU quota and the memory limit of this process's control groups, of version 1 and 2: what a container may use.

Each group is limited by those above it as well, so the smallest number on the way up counts. Sources: cgroups(7),
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1 of Linux.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_NO_LIMIT = 1 << 60
"""Version 1 says "no limit" with a number near 2⁶³."""


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs that the groups may use at a time, such as 1.5; None without a quota.

    Args:
        root: where the files of the system are.
    """
    quotas = []
    for folder in _folders(root, "cpu"):
        version_2 = _words(folder / "cpu.max")
        quota, period = (version_2[0], version_2[1]) if len(version_2) == 2 else ("", "")
        if not version_2:
            quota = next(iter(_words(folder / "cpu.cfs_quota_us")), "")
            period = next(iter(_words(folder / "cpu.cfs_period_us")), "")
        if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """Bytes above which the groups are slowed down or ended; None without a limit.

    Args:
        root: where the files of the system are.
    """
    limits = [
        int(word)
        for folder in _folders(root, "memory")
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        for word in _words(folder / name)
        if word.isdecimal() and 0 < int(word) < _NO_LIMIT
    ]
    return min(limits, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The group of this process and those above it, in every hierarchy that may have the controller."""
    paths = {"": ""}
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        paths.update(dict.fromkeys(names.split(","), path))
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        name = "" if kind[0] == "cgroup2" else controller
        if kind[0] != "cgroup2" and (kind[0] != "cgroup" or controller not in kind[2].split(",")):
            continue
        yield from _upwards(root, paths.get(name, "/"), mounted=_plain(fields[3]), at=_plain(fields[4]))


def _upwards(root: Path, path: str, *, mounted: str, at: str) -> Iterator[Path]:
    """From the folder of a group up to where its hierarchy is mounted."""
    top = root / at.lstrip("/")
    # Inside a container the mount may show only the container's group, and the path may lead out of it: the top then
    # is the process's own group.
    group, shown = PurePosixPath("/", path), PurePosixPath(mounted)
    inner = group.relative_to(shown) if group.is_relative_to(shown) else PurePosixPath()
    if ".." not in inner.parts:
        for depth in range(len(inner.parts), 0, -1):
            yield top.joinpath(*inner.parts[:depth])
    yield top


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path)[:1] for word in line.split()]


def _plain(text: str) -> str:
    """A field of mountinfo, which writes a space as \\040."""
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), text)
