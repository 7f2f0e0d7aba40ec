"""What a container may use: control groups of both versions, as container engines and systemd lay them out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from embedserve import cgroup, cores, memory
from scripts.architecture import REPOSITORY

MIB = 1 << 20
V2 = "31 24 0:27 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1_CPU = "35 29 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "36 29 0:32 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory"
NO_LIMIT_V1 = "9223372036854771712"


def system(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    """A folder with the files of a system."""
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": "\n".join(mounts), **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


CONTAINERS: dict[str, tuple[str, list[str], dict[str, str], float | None, int | None]] = {
    "v2, own namespace": (
        "0::/",
        [V2],
        {"sys/fs/cgroup/cpu.max": "150000 100000", "sys/fs/cgroup/memory.max": str(512 * MIB)},
        1.5,
        512 * MIB,
    ),
    "v2, no limits": (
        "0::/",
        [V2],
        {"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/memory.max": "max"},
        None,
        None,
    ),
    "v2, the root group has no files": ("0::/", [V2], {}, None, None),
    "v2, limits of the groups above": (
        "0::/kubepods.slice/pod1.slice/cri-1.scope",
        [V2],
        {
            "sys/fs/cgroup/kubepods.slice/cpu.max": "max 100000",
            "sys/fs/cgroup/kubepods.slice/memory.max": str(4096 * MIB),
            "sys/fs/cgroup/kubepods.slice/pod1.slice/cpu.max": "50000 100000",
            "sys/fs/cgroup/kubepods.slice/pod1.slice/memory.max": "max",
            "sys/fs/cgroup/kubepods.slice/pod1.slice/cri-1.scope/cpu.max": "200000 100000",
            "sys/fs/cgroup/kubepods.slice/pod1.slice/cri-1.scope/memory.max": str(8192 * MIB),
        },
        0.5,
        4096 * MIB,
    ),
    "v2, memory.high is the lower one": (
        "0::/app.service",
        [V2],
        {
            "sys/fs/cgroup/app.service/memory.max": str(900 * MIB),
            "sys/fs/cgroup/app.service/memory.high": str(700 * MIB),
        },
        None,
        700 * MIB,
    ),
    "v2, the path leads out of the namespace": (
        "0::/../../other",
        [V2],
        {"sys/fs/cgroup/cpu.max": "300000 100000"},
        3.0,
        None,
    ),
    "v2, only the own group is mounted": (
        "0::/docker/abc",
        [V2.replace(" / /sys", " /docker/abc /sys")],
        {"sys/fs/cgroup/cpu.max": "250000 50000"},
        5.0,
        None,
    ),
    "v1, own group mounted at the top": (
        "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc",
        [V1_CPU.replace(" / /sys", " /docker/abc /sys"), V1_MEMORY.replace(" / /sys", " /docker/abc /sys")],
        {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(256 * MIB),
        },
        2.0,
        256 * MIB,
    ),
    "v1, host mounts, limits of the groups above": (
        "4:memory:/lxc/a/b\n2:cpuacct,cpu:/lxc/a/b",
        [V1_CPU, V1_MEMORY],
        {
            "sys/fs/cgroup/cpu,cpuacct/lxc/cpu.cfs_quota_us": "400000",
            "sys/fs/cgroup/cpu,cpuacct/lxc/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/lxc/a/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/lxc/a/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/lxc/a/memory.limit_in_bytes": str(128 * MIB),
            "sys/fs/cgroup/memory/lxc/a/b/memory.limit_in_bytes": NO_LIMIT_V1,
        },
        4.0,
        128 * MIB,
    ),
    "v1, no limits": (
        "4:memory:/\n2:cpu,cpuacct:/",
        [V1_CPU, V1_MEMORY],
        {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT_V1,
        },
        None,
        None,
    ),
    "both versions at once": (
        "4:memory:/a\n0::/a",
        [V1_MEMORY, V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")],
        {
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(64 * MIB),
            "sys/fs/cgroup/unified/a/cpu.max": "100000 100000",
        },
        1.0,
        64 * MIB,
    ),
    "a mount point with a space": (
        "0::/",
        [V2.replace("/sys/fs/cgroup ", "/sys/fs/my\\040groups ")],
        {"sys/fs/my groups/cpu.max": "100000 200000"},
        0.5,
        None,
    ),
    "files that say nothing": (
        "0::/\n\nnonsense\n1:name=systemd:/x",
        [V2, "", "nonsense - x", "1 2 3 - cgroup cgroup rw"],
        {"sys/fs/cgroup/cpu.max": "", "sys/fs/cgroup/memory.max": "much"},
        None,
        None,
    ),
    "no control groups": ("", [], {}, None, None),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_smallest_limit_of_a_group_and_those_above_it_counts(name: str, tmp_path: Path) -> None:
    groups, mounts, files, quota, limit = CONTAINERS[name]
    root = system(tmp_path, groups, mounts, files)
    assert cgroup.cpu_quota(root) == quota
    assert cgroup.memory_limit_bytes(root) == limit


def with_quota(folder: Path, quota: int, limit: str = "max") -> Path:
    files = {"sys/fs/cgroup/cpu.max": f"{quota} 100000", "sys/fs/cgroup/memory.max": limit}
    return system(folder, "0::/", [V2], files)


@pytest.mark.parametrize(
    ("quota", "usable"), [(10_000, 1), (50_000, 1), (100_000, 1), (150_000, 2), (200_000, 2), (6_400_000, 8)]
)
def test_a_part_of_a_core_counts_as_one_and_there_are_never_more_than_the_machine_has(
    quota: int, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_cores", lambda: 8)
    assert cores.usable_cores(with_quota(tmp_path, quota)) == usable


def test_memory_is_the_container_s_if_that_is_less_than_the_machine_s(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.usable_bytes(with_quota(tmp_path / "a", 100_000, str(64 * MIB))) == 64 * MIB
    assert memory.usable_bytes(with_quota(tmp_path / "b", 100_000, str(2 * machine))) == machine
    assert memory.usable_bytes(tmp_path / "c") == machine


COUNT = """
import sys
from pathlib import Path
from embedserve import cgroup, cores
cores._cores = lambda: 64
cores._quota = lambda root: 1.5
cores.limit_libraries()
import faiss
print(faiss.omp_get_max_threads())
"""


@pytest.mark.parametrize(("set_by_user", "threads"), [({}, 2), ({"OMP_NUM_THREADS": "1"}, 1)])
def test_libraries_with_threads_of_their_own_follow_the_quota_unless_the_user_says_otherwise(
    set_by_user: dict[str, str], threads: int
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | set_by_user
    ran = subprocess.run(
        [sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert int(ran.stdout) == threads


ASKS_THE_MACHINE = re.compile(
    r"\bcpu_count\(|sched_getaffinity|\bpsutil\b|SC_PHYS_PAGES|SC_NPROCESSORS|/proc/meminfo|/proc/cpuinfo.*processor"
)


def test_only_the_words_for_it_ask_how_many_cores_and_how_much_memory_there_are() -> None:
    sources = [
        path for folder in ("embedserve", "training", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")
    ]
    asking = {path.relative_to(REPOSITORY).as_posix() for path in sources if ASKS_THE_MACHINE.search(path.read_text())}
    assert asking == {"embedserve/cores.py", "embedserve/memory.py"}
