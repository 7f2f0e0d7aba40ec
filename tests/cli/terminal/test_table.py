"""Tables at the widths of terminals and in pipes."""

from __future__ import annotations

import pytest

from embedserve.cli.terminal.table import print_table

HEADERS = ["rank", "score", "id", "metadata"]
ID = "a/rather/long/folder/with/a/picture-0001.jpg"
ROW = ["10", "0.1234", ID, "label=cat  place=the old harbour in the north  year=1999"]


@pytest.fixture(params=[40, 80])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A terminal of this width without colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def test_a_narrow_terminal_folds_text_at_words_and_leaves_ids_and_numbers_whole(
    terminal: int, capfd: pytest.CaptureFixture[str]
) -> None:
    print_table(HEADERS, [ROW], right=(0, 1))
    out = capfd.readouterr().out
    assert ID in out
    assert "0.1234" in out
    words = [word for line in out.splitlines()[3:] for word in line.split()]
    assert words == [*ROW[:3], *ROW[3].split()]


def test_a_pipe_gets_one_line_for_each_row_however_long_without_spaces_at_its_end(
    capfd: pytest.CaptureFixture[str],
) -> None:
    print_table(["id", "text"], [["x", "word " * 100], ["日本", "short"]])
    lines = capfd.readouterr().out.splitlines()
    assert len([line for line in lines if line.strip()]) == 4
    assert [line for line in lines if line.endswith(" ")] == []
    assert ("word " * 100).strip() in lines[3]
