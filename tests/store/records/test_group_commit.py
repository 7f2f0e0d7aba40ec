"""Group commit: few commits for many writers, and each gets its own result, whatever happens to the others."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedserve.errors import DiskFull, InvalidInput
from embedserve.store.local.records.group_commit import GroupCommit
from tests.waiting import wait_until


class Disk:
    """Takes writes of numbers: negative ones are refused, and more than ``room`` at once do not fit."""

    def __init__(self, sync_s: float = 0.0, room: int = 10**9) -> None:
        self.sync_s = sync_s
        self.room = room
        self.groups: list[list[int]] = []
        self.before: Callable[[], None] = lambda: None
        self._inside = threading.Lock()

    def commit(self, writes: Sequence[int]) -> list[str]:
        assert self._inside.acquire(blocking=False), "two threads commit at the same time"
        try:
            self.before()
            time.sleep(self.sync_s)
            if any(write < 0 for write in writes):
                raise InvalidInput("a negative number")
            if len(writes) > self.room:
                raise DiskFull("too much at once")
            self.groups.append(list(writes))
            return [f"wrote {write}" for write in writes]
        finally:
            self._inside.release()

    @property
    def written(self) -> list[int]:
        return sorted(write for group in self.groups for write in group)


class Held:
    """A leader that stays inside ``commit`` until ``go``."""

    def __init__(self, disk: Disk) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        disk.before = self._before

    def _before(self) -> None:
        self.inside.set()
        assert self.go.wait(30)


def gathered(commits: GroupCommit[int, str], count: int) -> None:
    wait_until(lambda: len(commits._gathered) >= count)


def test_a_lone_writer_commits_at_once_and_gets_its_result() -> None:
    disk = Disk()
    commits = GroupCommit(disk.commit)
    assert [commits.commit(number) for number in (3, 1)] == ["wrote 3", "wrote 1"]
    assert disk.groups == [[3], [1]]


def test_writes_that_come_during_a_commit_are_committed_together_by_the_next() -> None:
    disk = Disk()
    commits, held = GroupCommit(disk.commit), Held(disk)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(commits.commit, 0)
        assert held.inside.wait(30)
        others = [pool.submit(commits.commit, number) for number in range(1, 9)]
        gathered(commits, 9)
        held.go.set()
        assert first.result() == "wrote 0"
        assert [other.result() for other in others] == [f"wrote {number}" for number in range(1, 9)]
    assert len(disk.groups) == 2


def test_writers_that_never_pause_need_far_fewer_commits_than_writes() -> None:
    disk = Disk(sync_s=0.004)
    commits = GroupCommit(disk.commit)

    def write(first: int) -> None:
        for number in range(first, first + 20):
            assert commits.commit(number) == f"wrote {number}"

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(write, range(0, 640, 20)))
    assert disk.written == list(range(640))
    # Half of the writes are committed while the other half gathers: 40 commits and a few at the ends.
    assert len(disk.groups) < 640 / 6


def test_a_group_has_at_most_max_group_writes() -> None:
    disk = Disk()
    commits, held = GroupCommit(disk.commit, max_group=3), Held(disk)
    with ThreadPoolExecutor(9) as pool:
        writers = [pool.submit(commits.commit, 0)]
        assert held.inside.wait(30)
        writers += [pool.submit(commits.commit, number) for number in range(1, 9)]
        gathered(commits, 9)
        held.go.set()
        assert [writer.result() for writer in writers] == [f"wrote {number}" for number in range(9)]
    assert [len(group) for group in disk.groups] == [1, 3, 3, 2]


def test_a_refused_write_does_not_fail_the_others_of_its_group() -> None:
    disk = Disk()
    commits, held = GroupCommit(disk.commit), Held(disk)
    with ThreadPoolExecutor(6) as pool:
        pool.submit(commits.commit, 0)
        assert held.inside.wait(30)
        writers = {number: pool.submit(commits.commit, number) for number in (1, -2, 3, -4, 5)}
        gathered(commits, 6)
        held.go.set()
        for number, writer in writers.items():
            if number < 0:
                assert isinstance(writer.exception(), InvalidInput)
            else:
                assert writer.result() == f"wrote {number}"
    assert disk.written == [0, 1, 3, 5]


def test_what_does_not_fit_together_is_written_one_by_one() -> None:
    disk = Disk(room=2)
    commits, held = GroupCommit(disk.commit), Held(disk)
    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(commits.commit, 0)]
        assert held.inside.wait(30)
        writers += [pool.submit(commits.commit, number) for number in range(1, 6)]
        gathered(commits, 6)
        held.go.set()
        assert [writer.result() for writer in writers] == [f"wrote {number}" for number in range(6)]


@pytest.mark.parametrize("when", ["before", "between"])
def test_an_interrupted_leader_loses_no_other_write(when: str) -> None:
    disk = Disk()
    commits, held = GroupCommit(disk.commit), Held(disk)
    calls: list[int] = []

    def interrupted() -> None:
        # The first call is for the group of five; if that fails, each write is committed alone.
        calls.append(1)
        if when == "between" and len(calls) == 1:
            raise InvalidInput("so that each goes alone")
        if len(calls) == (1 if when == "before" else 3):
            raise KeyboardInterrupt

    with ThreadPoolExecutor(6) as pool:
        pool.submit(commits.commit, 0)
        assert held.inside.wait(30)
        writers = [pool.submit(commits.commit, number) for number in range(1, 6)]
        gathered(commits, 6)
        disk.before = interrupted
        held.go.set()
        errors = [writer.exception(30) for writer in writers]
        assert [type(error) for error in errors if error] == [KeyboardInterrupt]
        assert all(writer.result() for writer, error in zip(writers, errors, strict=True) if error is None)
        assert commits.commit(7) == "wrote 7"
    assert {0, 7} < set(disk.written)
    assert len(disk.written) == len(set(disk.written)) >= 6


def test_a_holder_of_the_lock_makes_writers_wait() -> None:
    disk = Disk()
    commits = GroupCommit(disk.commit)
    with ThreadPoolExecutor(2) as pool:
        with commits.lock:
            writers = [pool.submit(commits.commit, number) for number in range(2)]
            gathered(commits, 2)
            time.sleep(0.02)
            assert disk.groups == []
        assert sorted(writer.result() for writer in writers) == ["wrote 0", "wrote 1"]


def test_a_writer_that_is_interrupted_while_it_waits_is_skipped() -> None:
    disk = Disk()
    commits, held = GroupCommit(disk.commit), Held(disk)

    interrupted = threading.Event()

    def handle(*_: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def interrupt() -> None:
        gathered(commits, 2)
        while not interrupted.wait(0.02):
            # Again, because one that comes just before a thread begins to wait does not end the wait.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, handle)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(commits.commit, 0)
        assert held.inside.wait(30)
        interrupting = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            commits.commit(1)
        interrupting.result(30)
        signal.signal(signal.SIGINT, before)
        held.go.set()
        assert first.result() == "wrote 0"
        assert pool.submit(commits.commit, 2).result(30) == "wrote 2"
    assert disk.written == [0, 2]
