"""What every client-side command has: help with an example, and its shell's completion."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import click
import pytest

from embedserve.cli import main
from embedserve.cli.collection import RENAMED
from tests.cli.outcome import Cli

COMMANDS = [
    "embed",
    "add",
    "search",
    "bench serve",
    "completion",
    "collection",
    *(f"collection {verb}" for verb in ("list", "info", "create", "delete", "set-alias")),
    *(f"collection {verb}" for verb in ("list-items", "get-items", "count-items", "delete-items", "update-metadata")),
    *(f"collection {verb}" for verb in ("check", "backup", "restore", "export", "import")),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_exits_with_0_and_shows_an_example(cli: Cli, command: str) -> None:
    outcome = cli(*command.split(), "--help")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert f"\n  embedserve {command}" in outcome.out


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("completion", "collection")])
def test_the_server_is_given_in_the_same_way_everywhere(cli: Cli, command: str) -> None:
    help_text = cli(*command.split(), "--help").out
    assert "--server HOST:PORT" in help_text
    assert "EMBEDSERVE_SERVER" in help_text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_goes_to_stdout_and_its_path_to_stderr(cli: Cli, shell: str) -> None:
    outcome = cli("completion", shell)
    assert outcome.exit_code == 0
    assert "_EMBEDSERVE_COMPLETE" in outcome.out
    assert f"{shell}_complete" in outcome.out
    assert f"#   embedserve completion {shell} > ~/" in outcome.err


def test_bash_accepts_its_script(cli: Cli) -> None:
    script = cli("completion", "bash").out
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_shell_is_wrong_usage(cli: Cli) -> None:
    outcome = cli("completion", "tcsh")
    assert outcome.exit_code == 2
    assert "'tcsh' is not one of 'bash', 'fish', 'zsh'" in outcome.err


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*words, name))


@pytest.mark.parametrize("words", [*commands(main), *(("collection", old) for old in RENAMED)], ids=" ".join)
def test_the_help_fits_80_columns(cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = cli(*words, "--help").out
    assert text.startswith("Usage: ")
    assert [line for line in text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("old", RENAMED)
def test_the_help_of_an_old_name_says_so_first_and_its_examples_are_whole(cli: Cli, old: str) -> None:
    text = cli("collection", old, "--help").out
    notice = f"An old name. Use `embedserve collection {RENAMED[old]}`."
    assert notice in text
    assert "DEPRECATED" not in text
    same = cli("collection", RENAMED[old], "--help").out.splitlines()
    examples = [line for line in same if line.startswith("  embedserve collection ")]
    assert examples
    assert set(examples) <= set(text.splitlines())
