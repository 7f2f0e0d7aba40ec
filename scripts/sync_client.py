"""Write the client that blocks, embedserve/client/sync*.py, from the one for asyncio, aio*.py.

    python scripts/sync_client.py          write the files
    python scripts/sync_client.py --check  write nothing; exit with status 1 if a file is not up to date

What cannot be derived, how a call is made, is written by hand in aio_calls.py and sync_calls.py.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CLIENT = REPOSITORY / "embedserve/client"
TARGETS = {"aio.py": "sync.py", "aio_collections.py": "sync_collections.py"}

RULES: dict[str, str] = {
    # Documentation
    r"^# sync.* is generated from this file: .*\n": "",
    r"The client for asyncio\. Each": "The client that blocks. Each",
    r"awaits the responses": "waits for the responses",
    r"server, for one event loop\.": "server. Several threads may use it at once.",
    r"in a worker thread": "in the caller's thread",
    # Imports
    r"^import asyncio\n": "",
    r"import AsyncCalls, in_threads$": "import Calls",
    r"\baio_(\w+)": r"sync_\1",
    # Expressions; the first rules are for what contains `async` or `await`
    r"\[(\w+) async for \1 in (\w+)\]": r"list(\2)",
    r"\basync with in_threads\((.*)\) as": r"with \1 as",
    r"\basync (def|for|with)\b": r"\1",
    r"\bawait asyncio\.to_thread\(([\w.]+), ": r"\1(",
    r"\bawait asyncio\.sleep\b": "time.sleep",
    r"(?<!\w)\(await ([\w.]+\(\))\)": r"\1",
    r"\bawait ": "",
    r"\bfor (\w+) in (.+):\n +yield \1$": r"yield from \2",
    # Names
    r"\bAsync(Calls|Client|Collections|Generator|Iterator)\b": r"\1",
    r"\b__a(enter|exit)__\b": r"__\1__",
    r"\baclos(e|ing)\b": r"clos\1",
}
"""Regular expression → replacement, applied in this order."""


def generate(sources: dict[str, str]) -> dict[str, str]:
    """Name → text of the files that block, from name → text of those for asyncio."""
    unused, generated = set(RULES), {}
    for name, text in sources.items():
        for pattern, replacement in RULES.items():
            text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
            unused -= {pattern} if count else set()
        if left := re.search(r"(?i).*(async|await|aio).*", text):
            sys.exit(f"error: {name} has what no rule of scripts/sync_client.py replaces: {left[0].strip()}")
        header = f"# Generated from {name} by scripts/sync_client.py; do not edit.\n"
        generated[TARGETS[name]] = _ruff("format", _ruff("check", header + text, "--quiet", "--fix", "--select=I"))
    if unused:
        sys.exit(f"error: rules of scripts/sync_client.py that match nothing: {sorted(unused)}")
    return generated


def _ruff(command: str, text: str, *options: str) -> str:
    """The text with imports in order, or formatted, as the lint expects it."""
    arguments = [sys.executable, "-m", "ruff", command, *options, f"--stdin-filename={CLIENT}/sync.py", "-"]
    return subprocess.run(arguments, input=text, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout


def main() -> None:
    """Parse the arguments; write or compare."""
    parser = argparse.ArgumentParser(description="Write embedserve/client/sync*.py from aio*.py.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    is_check = parser.parse_args().check
    for name, text in generate({name: (CLIENT / name).read_text(encoding="utf-8") for name in TARGETS}).items():
        if not is_check:
            (CLIENT / name).write_text(text, encoding="utf-8")
        elif (CLIENT / name).read_text(encoding="utf-8") != text:
            sys.exit(f"error: embedserve/client/{name} is not what scripts/sync_client.py writes\nhint:  make client")


if __name__ == "__main__":
    main()
