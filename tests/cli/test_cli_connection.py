"""Tokens and certificates of the commands that ask a server, over TLS and real sockets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from embedserve.cli import main
from scripts import cli_doc
from tests.certificates import Authority
from tests.cli.outcome import Cli
from tests.fakes import FakeEncoder
from tests.running import serving

READ, WRITE = "read-token-of-a-test", "write-token-of-a-test"
CONNECTION = {"--token-file", "--tls", "--ca", "--client-cert", "--client-key", "--allow-plain-token"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def guarded(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with mutual TLS and tokens; the commands look for it already."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"read {READ}\nwrite {WRITE}\n")
    config = {**authority.issue().server, "tls_client_ca": authority.file, "tokens": tokens}
    with serving(FakeEncoder(), tmp_path / "data", **config) as address:
        monkeypatch.setenv("EMBEDSERVE_SERVER", address)
        yield address


@pytest.fixture
def flags(authority: Authority) -> list[str]:
    pair = authority.issue("importer")
    return ["--ca", str(authority.file), "--client-cert", str(pair.certificate), "--client-key", str(pair.key)]


def token_file(tmp_path: Path, token: str) -> list[str]:
    path = tmp_path / "token"
    path.write_text(f"{token}\n")
    return ["--token-file", str(path)]


def test_every_command_that_asks_a_server_takes_tokens_and_certificates() -> None:
    for name, command in cli_doc.walk(main, "embedserve"):
        options = {text for entry in command.params if isinstance(entry, click.Option) for text in entry.opts}
        if "--server" in options:
            assert options >= CONNECTION, name
        else:
            assert not options & CONNECTION, name


def test_commands_work_with_a_token_in_a_file_and_certificates(
    cli: Cli, guarded: str, photos: Path, tmp_path: Path, flags: list[str]
) -> None:
    write = [*flags, *token_file(tmp_path, WRITE)]
    assert cli("add", photos, "--collection", "photos", *write).exit_code == 0
    assert cli("collection", "list", "--json", *write).json[0]["items"] == 5
    assert (
        cli("search", photos / "top.png", "--collection", "photos", "--json", *write).json["hits"][0]["id"] == "top.png"
    )
    assert len(cli("embed", photos, "-o", "-", *write).json_lines) == 5
    quick = ["--seconds", "0.2", "--warmup-s", "0", "--size", "32x32", "--clients", "1"]
    for more in ([], ["--stream"]):
        assert cli("bench", "serve", *quick, *more, *write).exit_code == 0
    outcome = cli("doctor", "--server", guarded, "--wait", "10", *write)
    assert (outcome.exit_code, f"{guarded} is ready" in outcome.out) == (0, True)


def test_commands_take_all_of_it_from_the_environment(
    cli: Cli, guarded: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSERVE_TOKEN", READ)
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        monkeypatch.setenv(f"EMBEDSERVE_{flag.removeprefix('--').replace('-', '_').upper()}", value)
    assert cli("collection", "list").exit_code == 0


def test_a_token_that_may_only_read_is_refused_in_one_sentence(
    cli: Cli, guarded: str, photos: Path, tmp_path: Path, flags: list[str]
) -> None:
    outcome = cli("add", photos, "--collection", "photos", *flags, *token_file(tmp_path, READ))
    assert outcome.exit_code == 1
    assert "needs a token of the role write; the call has one of read" in outcome.err


def test_without_a_token_the_hint_says_how_to_give_one(cli: Cli, guarded: str, flags: list[str]) -> None:
    outcome = cli("collection", "list", *flags)
    assert outcome.exit_code == 1
    assert "asks for a token" in outcome.err
    assert "--token-file FILE" in outcome.err


def test_an_untrusted_server_is_reported_in_two_lines_of_ours(guarded: str, tmp_path: Path) -> None:
    foreign = Authority(tmp_path, "foreign")
    words = ["doctor", "--server", guarded, "--wait", "60", "--ca", str(foreign.file)]
    # In a separate process, to see what gRPC itself prints.
    done = subprocess.run(
        [sys.executable, "-m", "embedserve", *words], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["error:", "hint:"]
    assert "is not trusted" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "has 0 words"), (f"write {WRITE}\n", "has 2 words"), (None, "token does not exist")],
)
def test_a_token_file_that_holds_no_token_alone_is_refused(
    cli: Cli, tmp_path: Path, text: str | None, says: str
) -> None:
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
    outcome = cli("collection", "list", "--token-file", path)
    assert outcome.exit_code == (2 if text is None else 1)
    assert says in outcome.err
    assert WRITE not in outcome.err


def test_a_token_is_not_sent_to_another_machine_without_tls(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("collection", "list", "--server", "gpu-box.invalid", *token_file(tmp_path, READ))
    assert outcome.exit_code == 2
    assert "everyone on the way to gpu-box.invalid:50051 could read the token" in outcome.err
    assert "--allow-plain-token" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--server", "localhost:1"], "--ca FILE or --tls"),
        (["--server", "https://localhost:443"], "write --server localhost:443 --tls"),
        (["--server", "user:secret@localhost"], "--token-file FILE"),
        (["--server", "::1:50051"], "write [::1]:50051"),
        (["--server", "localhost:1,localhost:1"], "name each server once"),
        (["--server", "gpu-box.invalid", "--token-file"], "--allow-plain-token where the way is safe"),
    ],
)
def test_hints_speak_of_flags_and_not_of_python(cli: Cli, tmp_path: Path, arguments: list[str], says: str) -> None:
    more = token_file(tmp_path, READ)[1:] if arguments[-1] == "--token-file" else []
    outcome = cli("collection", "list", *arguments, *more)
    assert outcome.exit_code in (1, 2)
    assert says in outcome.err
    assert "Client(" not in outcome.err
    assert "secret" not in outcome.err


def test_a_server_that_asks_for_a_token_is_answered_in_flags(cli: Cli, guarded: str, flags: list[str]) -> None:
    outcome = cli("collection", "list", *flags)
    assert "hint:  --token-file FILE, or EMBEDSERVE_TOKEN in the environment" in outcome.err


def test_several_servers_share_the_calls_of_a_command(cli: Cli, guarded: str, tmp_path: Path, flags: list[str]) -> None:
    write = [*flags, *token_file(tmp_path, WRITE)]
    several = ["--server", f"localhost:1,{guarded}"]
    assert cli("collection", "list", *write, *several).exit_code == 0
