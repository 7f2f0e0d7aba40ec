"""Refuse words that the glossary in CONTRIBUTING.md replaces by others: one thing, one word.

Usage: python scripts/words.py            checks every tracked text; prints each place and the word to take instead
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

BANNED: dict[str, str] = {
    r"\b(he|him|his|himself)\b": "the caller, the client or the reader, by name",
    r"\b[Ww]hoever\b": "who it is: the caller, a reader, an operator",
    r"\bin[_ ]work\b": "in flight",
    r"\b[Ee]fforts?\b": "search parameters (ef, nprobe)",
    r"\b[Bb]oost(s|ed)?\b": "multiplier",
    r"\b[Ss]trays?\b": "unreachable rows",
    r"\b[Dd]ead rows?\b": "deleted rows",
    r"\b[Ss]ealed parts?\b": "segment",
    r"\b[Ww]hole_file\b": "atomic_write",
    r"\b(doom|doomed)\b": "mark for removal",
    r"\b[Cc]anary\b": "encoder health",
    r"\b(Bound|Intake|Gate|Pace|Together|Layers|Anchors)\b": "the names in the glossary",
    r"\.(anchors|highest|doom)\(": "loss_references, all_reduce_max, mark_for_removal",
    r"\bas many \w+( \w+){0,3} as may\b": "the limit, as a plain sentence",
}
"""Regular expression → what to write instead."""

EXEMPT = (
    "CHANGELOG.md",  # says what older releases called it
    "CONTRIBUTING.md",  # the glossary names the words that it replaces
    "scripts/words.py",
    "docs/wire.md",  # made from protos/, which stay as they are byte for byte
    "embedserve/v1/",
    "benchmarks/results/",
    "tests/compatibility/",
)
FORMATS = {("embedserve/store/local/collection/segment_files.py", "strays")}
"""Words in file formats, which stay as they are: file and word."""
SUFFIXES = {".py", ".md", ".toml", ".sh", ".yml"}


def places() -> Iterator[str]:
    """Each place with a banned word: file, line, word, and the word to take instead."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if name.startswith(EXEMPT) or path.suffix not in SUFFIXES or not path.exists():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for pattern, instead in BANNED.items():
                if (found := re.search(pattern, line)) and (name, found[0]) not in FORMATS:
                    yield f"{name}:{number}: {found[0]!r}: write {instead}"


def main() -> int:
    """The exit status: 1 if there is such a place."""
    found = list(places())
    for place in found:
        print(place)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
