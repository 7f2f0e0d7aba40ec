"""What commands print."""

from __future__ import annotations

import json

import numpy as np
import pytest

from embedserve.cli.terminal import output
from embedserve.cli.terminal.table import print_table


def test_control_characters_and_broken_names_are_written_out() -> None:
    assert output.printable("a\x1b[31mb\x07\u202ec\udcff") == "a\\x1b[31mb\\x07\\u202ec\\udcff"
    assert output.printable("für die Ø-Größe 日本") == "für die Ø-Größe 日本"


def test_json_keeps_its_letters_and_escapes_broken_names(capfd: pytest.CaptureFixture[str]) -> None:
    output.print_json({"name": "Größe", "path": "\udcff.png"})
    out = capfd.readouterr().out
    assert out == '{"name": "Größe", "path": "\\udcff.png"}\n'
    assert json.loads(out)["path"] == "\udcff.png"


def test_a_vector_is_printed_with_the_fewest_digits_that_give_it_back() -> None:
    assert output.shortest(np.array([0.1, -1, 1e-7], dtype=np.float32)) == [0.1, -1.0, 1e-07]
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert np.array_equal(np.array(output.shortest(values), dtype=np.float32), values)


def test_one_of_something_is_no_plural() -> None:
    assert output.counted(1, "item") == "1 item"
    assert [output.counted(count, "minute") for count in (1.0, 0.2)] == ["1 minute", "0.2 minutes"]
    assert [output.counted(count, "step") for count in (0, 2, 1204)] == ["0 steps", "2 steps", "1,204 steps"]


def test_metadata_are_one_line_in_the_order_of_their_keys() -> None:
    metadata = {"year": 1999, "label": "cat", "ok": True, "tags": ["red", "big"], "x": 0.5}
    assert output.metadata_text(metadata) == "label=cat  ok=true  tags=red, big  x=0.5  year=1999"


def test_a_table_keeps_its_columns_where_it_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    print_table(["rank", "id"], [["1", "a" * 150], ["10", ":smile:"]], right=(0,))
    lines = [line.rstrip() for line in capfd.readouterr().out.splitlines() if line.strip()]
    assert lines[0].split() == ["rank", "id"]
    assert lines[2].split() == ["1", "a" * 150]
    assert lines[3].split() == ["10", ":smile:"]
    assert lines[2].index("1") == lines[3].index("0")
