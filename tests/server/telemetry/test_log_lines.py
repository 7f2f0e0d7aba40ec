"""The queue of the log: nobody who logs waits, nothing grows, and what is lost is counted."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import pytest

from embedserve.server.telemetry import log_lines, repeats
from embedserve.server.telemetry.log_lines import LogLines
from embedserve.server.telemetry.repeats import Repeats
from tests.waiting import wait_until


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    # A thread may still write, and must not find another file under this number: the end of the reader ends it.
    os.close(reading)


def all_lines(lines: LogLines, pipe: tuple[int, int]) -> list[str]:
    """Close the log, and what was written until then. The reader ends before its descriptor is another file's."""
    text = bytearray()

    def read() -> None:
        while part := os.read(pipe[0], 1 << 16):
            text.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    lines.close(20)
    os.close(pipe[1])
    reader.join(20)
    assert not reader.is_alive()
    return text.decode().splitlines()


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    lines = LogLines(pipe[1], str)
    for number in range(1000):
        lines.put(f"line {number}")
    assert all_lines(lines, pipe) == [f"line {number}" for number in range(1000)]


def test_a_pipe_that_nobody_reads_holds_up_nobody_and_what_was_dropped_is_counted(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lines, "MAX_LINES", 100)
    lines = LogLines(pipe[1], lambda count: f"dropped {count}")
    for number in range(2000):
        lines.put(f"{number:04} {'x' * 1000}")
    assert lines.dropped > 1000
    found = all_lines(lines, pipe)
    dropped = [int(line.split()[1]) for line in found if line.startswith("dropped ")]
    assert sum(dropped) == lines.dropped
    assert len(found) - len(dropped) == 2000 - lines.dropped


def test_the_queue_is_bounded_in_characters_too(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "MAX_CHARS", 300_000)
    lines = LogLines(pipe[1], str)
    for _ in range(20):
        lines.put("x" * 100_000)
    assert lines.dropped >= 15
    assert sum(line.startswith("x") for line in all_lines(lines, pipe)) == 20 - lines.dropped


def test_closing_does_not_wait_for_ever_for_a_reader(pipe: tuple[int, int]) -> None:
    lines = LogLines(pipe[1], str)
    lines.put("x" * 200_000)
    lines.close(0.01)
    assert len(os.read(pipe[0], 1000)) == 1000


def test_a_reader_that_has_gone_changes_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    lines = LogLines(writing, str)
    for _ in range(3):
        lines.put("nobody reads this")
        assert lines.flush(20)
    lines.close(20)
    os.close(writing)


def test_a_descriptor_that_does_not_wait_gets_every_line(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    lines = LogLines(pipe[1], str)
    for number in range(200):
        lines.put(f"{number} {'x' * 1000}")
    assert [line.split()[0] for line in all_lines(lines, pipe)] == [str(number) for number in range(200)]


def test_a_wish_is_granted_while_nothing_is_written(pipe: tuple[int, int]) -> None:
    lines, granted = LogLines(pipe[1], str), threading.Event()
    lines.call_after(0.01, granted.set)
    wait_until(granted.is_set)
    lines.close(20)


# --- Repeats ---


def record(message: str, *values: object, name: str = "grpc") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "file", 1, message, values, None)


def test_a_message_is_logged_ten_times_a_second_and_then_counted() -> None:
    now_s = 0.0
    messages = Repeats(lambda: now_s)
    folded = [messages.is_folded(record("accept failed: fd %d", number)) for number in range(1000)]
    assert folded == [False] * 10 + [True] * 990
    assert not messages.is_folded(record("another message"))
    assert messages.ended() == []
    now_s = 1.0
    [last] = messages.ended()
    assert (last.getMessage(), vars(last)["fields"]) == ("accept failed: fd 999", {"repeated": 990})
    assert not messages.is_folded(record("accept failed: fd %d", 1))


def test_a_message_that_is_always_another_one_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_MAX_MESSAGES", 5)
    messages = Repeats()
    folded = [messages.is_folded(record("x" * number)) for number in range(100)]
    assert folded == [False] * 15 + [True] * 85
    [last] = messages.ended(now=True)
    assert vars(last)["fields"] == {"repeated": 85}


def test_arguments_that_do_not_fit_the_message_are_shown_beside_it() -> None:
    assert repeats.message_of(record("%d items", "many")) == "%d items ('many',)"
