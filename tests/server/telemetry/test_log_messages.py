"""Every message that we log is constant: what differs is in fields, by which a program can count and look."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import embedserve

PACKAGE = Path(embedserve.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def logging_calls() -> list[tuple[str, ast.Call]]:
    """Calls of loggers in what a server runs, by file and line."""
    found = []
    for room in ("server", "engine", "encoder", "images", "index", "store", "wire"):
        for path in sorted((PACKAGE / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in LEVELS
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id in ("_log", "access")
                ):
                    found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", node))
    return found


CALLS = logging_calls()


@pytest.mark.parametrize(("place", "call"), CALLS, ids=[place for place, _ in CALLS])
def test_a_message_is_constant(place: str, call: ast.Call) -> None:
    assert isinstance(call.func, ast.Attribute)
    arguments = call.args[1:] if call.func.attr == "log" else call.args
    assert len(arguments) == 1, place
    assert isinstance(arguments[0], ast.Constant), place
    assert "%" not in str(arguments[0].value), place


def test_the_calls_are_found() -> None:
    assert len(CALLS) > 20
