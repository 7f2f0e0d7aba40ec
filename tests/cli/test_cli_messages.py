"""Wrong usage is said in one style, help is not cut, misspelt names get a proposal, and shells complete names."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from embedserve import Client
from embedserve.cli import main
from embedserve.nearest import meant, nearest
from tests.cli.outcome import Cli


@pytest.mark.parametrize(
    ("words", "says", "hint"),
    [
        (["serch"], "no such command 'serch'", "embedserve --help"),
        (["train", "--foo"], "no such option '--foo'", "embedserve train --help"),
        (["collection", "lst"], "no such command 'lst'", "embedserve collection --help"),
        (["collection", "info"], "missing argument 'NAME'", "embedserve collection info --help"),
        (["export", ".", "--precision", "fp8"], "invalid value for '--precision'", "embedserve export --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_an_error_and_a_hint_like_bad_input(cli: Cli, words: list[str], says: str, hint: str) -> None:
    outcome = cli(*words)
    assert outcome.exit_code == 2
    assert outcome.out == ""
    first, *_, last = outcome.err.splitlines()
    assert first.startswith(f"error: {says}")
    assert last == f"hint:  {hint}"


@pytest.mark.parametrize("words", [[], ["collection"]], ids=" ".join)
def test_lists_of_commands_are_not_cut_at_80_columns(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = cli(*words, "--help")
    commands = outcome.out.partition("Commands:")[2]
    assert commands.count("\n") > 10
    assert "..." not in commands
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_a_file_where_a_run_belongs_is_named_with_what_to_type(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "resnet18.onnx"
    file.write_bytes(b"")
    outcome = cli("export", file)
    assert outcome.exit_code == 2
    assert outcome.err.startswith(f"error: {file} is a file, not the folder of a training run\nhint:  ")
    assert "NotADirectoryError" not in outcome.err


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_run_where_an_encoder_file_belongs_is_named_with_the_export(cli: Cli, tmp_path: Path, command: str) -> None:
    (tmp_path / "plan.json").write_text("{}")
    outcome = cli(command, tmp_path)
    assert outcome.exit_code == 2
    assert f"{tmp_path} is a folder, not an encoder file\n" in outcome.err
    assert f"embedserve export {tmp_path}" in outcome.err


@pytest.mark.parametrize(
    ("words", "proposal"),
    [
        (["--set", "taw=0.1"], "did you mean tau?"),
        (["--method", "simclir"], "did you mean simclr?"),
        (["--augmentation", "smal"], "did you mean small?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_misspelt_setting_gets_the_nearest_as_a_proposal(
    cli: Cli, photos: Path, words: list[str], proposal: str
) -> None:
    pytest.importorskip("torch")
    outcome = cli("train", photos, "--dry-run", *words)
    assert outcome.exit_code == 2
    assert f"hint:  {proposal}" in outcome.err


def test_the_nearest_name_is_found_whatever_its_case_and_none_where_none_is_similar() -> None:
    assert nearest("Simclir", ["moco", "SimCLR"]) == "SimCLR"
    assert nearest("zzz", ["moco", "simclr"]) is None
    assert meant("zzz", ["moco"], "one of: moco") == "one of: moco"


def test_a_number_that_no_item_can_have_is_refused_in_set(cli: Cli) -> None:
    outcome = cli("collection", "update-metadata", "c", "a", "--set", "w=1e400")
    assert outcome.exit_code == 2
    assert outcome.err.startswith("error: --set w: 1e400 is larger than any number that can be kept\nhint:  ")


def _completed(words: list[str], incomplete: str) -> list[str]:
    complete = ShellComplete(main, {}, "embedserve", "_EMBEDSERVE_COMPLETE")
    return [item.value for item in complete.get_completions(words, incomplete)]


@pytest.mark.parametrize(
    ("option", "incomplete", "expected"),
    [
        ("--method", "sim", ["simclr"]),
        ("--backbone", "small", ["small-cnn"]),
        ("--augmentation", "sm", ["small"]),
        ("--device", "cu", ["cuda"]),
        ("--fit", "", ["crop", "squeeze", "pad"]),
    ],
)
def test_the_shell_completes_settings(option: str, incomplete: str, expected: list[str]) -> None:
    assert _completed(["train", "photos", option], incomplete) == expected


def test_the_shell_completes_collections_of_the_server(
    client: Client, server: str, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_collection(collection)
    monkeypatch.setenv("EMBEDSERVE_SERVER", server)
    assert _completed(["collection", "info"], collection[:-1]) == [collection]
    assert _completed(["search", "--collection"], collection[:-1]) == [collection]


def test_the_shell_completes_nothing_and_says_nothing_without_a_server(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSERVE_SERVER", "localhost:1")
    assert _completed(["collection", "info"], "") == []
    assert capfd.readouterr() == ("", "")


def test_sentences_of_commands_are_found_for_every_command() -> None:
    from embedserve.cli.terminal.usage import first_sentence

    assert isinstance(main, click.Group)
    assert all(first_sentence(command).endswith(".") for command in main.commands.values())
