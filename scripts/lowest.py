"""Print the lowest version of every dependency that pyproject.toml allows, as constraints for pip.

Usage: python scripts/lowest.py > lowest.txt && make quick PIP_ARGS='--constraint lowest.txt'
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
TOOLS = ("dev", "peers")
"""Extras that users do not install: the newest versions are good enough."""

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(?P<versions>[^;]*)(?:;\s*(?P<marker>.*))?", re.DOTALL
)
_LOWER = re.compile(r"(?:>=|==)\s*([^\s,]+)")


def lowest(project: dict[str, Any]) -> list[str]:
    """``name==version`` of each requirement, with its marker, sorted by name: the extras of users included.

    Args:
        project: the table [project] of pyproject.toml.

    Raises:
        ValueError: if a requirement has no lower bound.
    """
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(each for extra in extras if extra not in TOOLS for each in extras[extra])]
    found = set()
    for requirement in named:
        parts = _REQUIREMENT.fullmatch(requirement)
        assert parts is not None
        bound = _LOWER.search(parts["versions"])
        if bound is None:
            raise ValueError(f"{requirement!r} has no lower bound")
        marker = f" ; {parts['marker'].strip()}" if parts["marker"] else ""
        found.add(f"{parts['name']}=={bound[1]}{marker}")
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(lowest(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"])))
