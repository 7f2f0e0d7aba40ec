"""`embedserve collection check`: what a user sees and a program gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embedserve import Client
from embedserve.store.local.store import LocalStore
from embedserve.types import CheckProgress, CheckReport, Recall
from tests.cli.outcome import Cli

REPORT = CheckReport(
    items=1200,
    segments=2,
    searched=1200,
    recall=Recall(value=0.97, queries=100, real=False, measured_unix_s=1_700_000_000),
    problems=(),
)


def report(monkeypatch: pytest.MonkeyPatch, found: CheckReport) -> None:
    """Has the store find this, after some progress."""

    def check(_: LocalStore, name: str, on_progress: Callable[[CheckProgress], None]) -> CheckReport:
        for step in (CheckProgress("items", 0, 1200), CheckProgress("search", 0, 600), CheckProgress("recall", 0, 100)):
            on_progress(step)
        return found

    monkeypatch.setattr(LocalStore, "check_collection", check)


def test_a_check_without_problems_lists_what_was_checked(
    cli: Cli, client: Client, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_collection(collection)
    report(monkeypatch, REPORT)
    outcome = cli("collection", "check", collection)
    assert outcome.exit_code == 0
    said = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert said["items"] == "1,200 read and compared with their checksums"
    assert said["segments"] == "2 compared with their hashes"
    assert said["searched"] == "1,200 items by their own vectors"
    assert said["recall@10"].startswith("0.970 with 100 of its own vectors as queries, measured 2023-11-1")
    assert said["problems"] == "none"
    assert outcome.err.splitlines() == [
        "checking items: 1200 of 1200",
        "checking search: 600 of 600",
        "checking recall: 100 of 100",
    ]


def test_a_check_that_finds_problems_exits_with_1(
    cli: Cli, client: Client, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_collection(collection)
    problems = ("item 'a': its row does not fit its checksum", "graph.faiss does not fit its hash; it is made again")
    report(monkeypatch, CheckReport(items=2, segments=1, searched=0, recall=None, problems=problems))
    outcome = cli("collection", "check", collection)
    assert outcome.exit_code == 1
    assert "problems     2\n" in outcome.out
    for problem in problems:
        assert problem in outcome.out
    for_programs = cli("collection", "check", collection, "--json")
    assert for_programs.exit_code == 1
    assert for_programs.json == {
        "collection": collection,
        "items": 2,
        "segments": 1,
        "searched": 0,
        "recall": None,
        "problems": list(problems),
    }


def test_a_check_of_an_unknown_collection_fails(cli: Cli) -> None:
    outcome = cli("collection", "check", "nowhere")
    assert outcome.exit_code == 1
    assert "there is no collection 'nowhere'" in outcome.err


def test_a_real_check_finds_nothing_wrong(cli: Cli, collection: str, photos: Path) -> None:
    cli("add", photos, "--collection", collection)
    outcome = cli("collection", "check", collection, "--json")
    assert outcome.exit_code == 0
    found = outcome.json
    assert (found["items"], found["searched"], found["problems"]) == (5, 5, [])
