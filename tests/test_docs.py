"""The documents are true: their commands run, the command-line reference is complete, links resolve."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from embedserve.cli import main
from scripts import cli_doc, readme_tables

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
GUIDES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
PAGES = sorted(
    {*GUIDES, *(page for where in ("*.md", "benchmarks/*.md", "training/*.md") for page in REPOSITORY.glob(where))}
)
COMMANDS = dict(cli_doc.walk(main, "embedserve"))
SHELL, PYTHON = ("shell", "bash", "sh", "console"), ("python",)
PORTS = (50051, 8080)
"""The ports in the documents."""


# --- Blocks of code ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None
    """The reason in the comment before the block; None if there is no such comment."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


_MARK = re.compile(r"<!-- not run:(.*)-->")


def blocks_of(page: Path) -> list[Block]:
    blocks: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    begin: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begin is None:
            begin = number
            continue
        mark = _MARK.fullmatch(lines[begin - 1].strip()) if begin else None
        language, text = lines[begin].removeprefix("```").strip(), "\n".join(lines[begin + 1 : number])
        blocks.append(Block(page, begin + 1, language, text, mark[1].strip() if mark else None))
        begin = None
    assert begin is None, f"{page.name}: the block that begins in line {(begin or 0) + 1} has no end"
    return blocks


BLOCKS = [block for page in GUIDES for block in blocks_of(page)]
RUN = [block for block in BLOCKS if block.not_run is None and block.language in SHELL + PYTHON]
"""Executed below, page by page."""


def named(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_every_block_names_its_language_and_every_reason_stands_before_a_block(page: Path) -> None:
    blocks = blocks_of(page)
    assert [str(block) for block in blocks if not block.language] == [], "a block without a language cannot be run"
    assert [str(block) for block in blocks if block.not_run == ""] == [], "the comment has no reason"
    marks = _MARK.findall(page.read_text(encoding="utf-8"))
    assert len(marks) == sum(block.not_run is not None for block in blocks), "a comment `not run` without a block"


def test_no_block_that_is_run_calls_make() -> None:
    assert [str(block) for block in RUN if re.search(r"^\s*make\b", block.text, re.MULTILINE)] == [], (
        "CI runs make; mark the block: <!-- not run: CI runs it -->"
    )


def script_of(blocks: list[Block], folder: Path) -> str:
    """One bash script of all blocks, in order; at its end it stops its background jobs."""
    parts = [
        "set -euo pipefail",
        "trap 'status=$?; kill $(jobs -p) 2>/dev/null || true; wait; exit \"$status\"' EXIT",
    ]
    for number, block in enumerate(blocks):
        parts.append(f"echo {shlex.quote(f'--- {block}')}")
        if block.language in PYTHON:
            file = folder / f".block-{number}.py"
            file.write_text(block.text, encoding="utf-8")
            parts.append(f"python {file.name}")
        else:
            parts += ["set -x", block.text, "{ set +x; } 2>/dev/null"]
    return "\n".join(parts) + "\n"


def run_page(page: Path, folder: Path) -> tuple[int, str]:
    """Run the blocks of a page in a folder; the exit code and all output, that of servers included."""
    script = script_of([block for block in RUN if block.page == page], folder)
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                pytest.fail(f"port {port}, which {named(page)} uses, is taken: stop the program that listens there")
    path = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")])
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        pytest.fail(f"{named(page)} did not end:\n{said}")
    return process.returncode, said


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A folder with photos/ and query.jpg in which the README was followed; the exit code and the output."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("readme")
    random = np.random.default_rng(0)
    for number in range(24):
        picture = folder / "photos" / ("red", "blue")[number % 2] / f"{number:02d}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        pixels[..., 2 * (number % 2)] += 120
        Image.fromarray(pixels).save(picture)
    Image.fromarray(pixels).save(folder / "query.jpg")
    return folder, *run_page(README, folder)


@pytest.mark.slow
def test_the_commands_of_the_readme_do_what_it_says(after_readme: tuple[Path, int, str]) -> None:
    folder, code, said = after_readme
    assert code == 0, said
    assert (folder / "encoder.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in RUN} - {README}), ids=named)
def test_the_commands_of_a_guide_run_where_the_readme_was_followed(
    page: Path, after_readme: tuple[Path, int, str]
) -> None:
    folder, readme_code, _ = after_readme
    assert readme_code == 0, "the README itself failed"
    code, said = run_page(page, folder)
    assert code == 0, said


# --- The command line ----------------------------------------------------------------------------------------------


def test_the_committed_reference_is_what_the_commands_give(tmp_path: Path) -> None:
    out = tmp_path / "cli.md"
    subprocess.run([sys.executable, "scripts/cli_doc.py", "--out", str(out)], cwd=REPOSITORY, check=True)
    committed = (REPOSITORY / "docs/cli.md").read_text(encoding="utf-8")
    assert out.read_text(encoding="utf-8") == committed, "run: python scripts/cli_doc.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_of_itself(name: str) -> None:
    assert [line for line in cli_doc.examples(COMMANDS[name]) if line.startswith(f"{name} ") or line == name] != []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    options = [entry for entry in COMMANDS[name].params if isinstance(entry, click.Option)]
    assert [option.opts for option in options if not option.help] == []


@pytest.mark.parametrize("line", sorted({line for command in COMMANDS.values() for line in cli_doc.examples(command)}))
def test_every_example_uses_commands_and_options_that_exist(line: str) -> None:
    words = shlex.split(line.split(" > ")[0])
    # --help takes effect after the whole line has been parsed and before any file is opened.
    result = CliRunner().invoke(main, [*words[1:], "--help"])
    assert result.exit_code == 0, result.output


# --- Links ---------------------------------------------------------------------------------------------------------


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", readme_tables.PAGES, ids=named)
def test_tables_are_those_of_the_committed_results_and_recipes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert readme_tables.with_tables(text, readme_tables.PAGES[page]) == text


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_placeholder_is_left(page: Path) -> None:
    assert re.findall(r"\b(?:[A-Z]+_TABLE|TODO|FIXME|TBD)\b", page.read_text(encoding="utf-8")) == []
