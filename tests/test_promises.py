"""Every promise of the README names its tests, and they exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGE = (REPOSITORY / "docs" / "promises.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", PAGE)))
NOT_PROMISED = "What is not promised"


def promises() -> list[str]:
    section = re.search(r"^## What it promises\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    assert section is not None
    return [bold.rstrip(".") for bold in re.findall(r"^- \*\*(.+?)\*\*", section[1], re.MULTILINE | re.DOTALL)]


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_promise_of_the_readme_has_its_section_and_no_other_has_one() -> None:
    assert sorted(promises()) == sorted(set(SECTIONS) - {NOT_PROMISED})


def test_every_section_names_a_test() -> None:
    assert [name for name, text in SECTIONS.items() if "tests/" not in text and name != NOT_PROMISED] == []


@pytest.mark.parametrize("name", TESTS)
def test_every_named_test_exists(name: str) -> None:
    file, _, function = name.partition("::")
    assert function in functions_of(file)
