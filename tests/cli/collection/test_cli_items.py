"""`embedserve collection` and items, against a real server."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from embedserve import Client, Exists
from tests.cli.outcome import Cli
from tests.fakes import DIMENSION, picture


def test_items_are_listed_one_on_each_line(cli: Cli, filled: str) -> None:
    assert cli("collection", "list-items", filled).out.splitlines() == [
        "a.png  label=cat  ok=true  tags=red, big",
        "b.png  label=dog  year=1999",
        "v",
    ]


def test_items_can_be_chosen_by_condition_and_number(cli: Cli, filled: str) -> None:
    assert cli("collection", "list-items", filled, "--where", "label=dog").out == "b.png  label=dog  year=1999\n"
    assert cli("collection", "list-items", filled, "--where", "tags=big").out.startswith("a.png")
    assert cli("collection", "list-items", filled, "--limit", "1").out.startswith("a.png")
    assert len(cli("collection", "list-items", filled, "--limit", "2").out.splitlines()) == 2


def test_a_program_gets_items_as_json_lines(cli: Cli, filled: str) -> None:
    assert cli("collection", "list-items", filled, "--json").json_lines == [
        {
            "id": "a.png",
            "metadata": {"label": "cat", "ok": True, "tags": ["red", "big"]},
            "content_sha256": hashlib.sha256(picture(1)).hexdigest(),
        },
        {
            "id": "b.png",
            "metadata": {"label": "dog", "year": 1999},
            "content_sha256": hashlib.sha256(picture(2)).hexdigest(),
        },
        {"id": "v", "metadata": {}, "content_sha256": ""},
    ]


def test_an_item_is_shown_with_its_parts(cli: Cli, filled: str) -> None:
    outcome = cli("collection", "get-items", filled, "a.png", "v", "--vectors")
    assert outcome.exit_code == 0
    shown = outcome.out.splitlines()
    assert shown[:3] == [
        "id        a.png",
        "metadata  label=cat  ok=true  tags=red, big",
        f"sha256    {hashlib.sha256(picture(1)).hexdigest()}",
    ]
    assert shown[4:] == [
        "id        v",
        "metadata  none",
        "sha256    none: it came as a vector",
        "vector    0.6 0.8" + " 0.0" * (DIMENSION - 2),
    ]


def test_a_program_gets_vectors_only_if_it_asks(cli: Cli, filled: str) -> None:
    [without] = cli("collection", "get-items", filled, "v", "--json").json_lines
    [with_vector] = cli("collection", "get-items", filled, "v", "--json", "--vectors").json_lines
    assert "vector" not in without
    assert with_vector["vector"] == [0.6, 0.8] + [0.0] * (DIMENSION - 2)


def test_a_missing_item_is_named_and_the_others_are_shown(cli: Cli, filled: str) -> None:
    outcome = cli("collection", "get-items", filled, "gone", "b.png", "--json")
    assert outcome.exit_code == 1
    assert outcome.err == f"failed  gone: collection {filled} has no item with this id\n"
    assert json.loads(outcome.out)["id"] == "b.png"


def test_listing_stops_quietly_when_its_reader_has_seen_enough(server: str, filled: str) -> None:
    command = f"{sys.executable} -m embedserve collection list-items {filled} --server {server} | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("a.png  label=cat  ok=true  tags=red, big\n", "")


# --- Deleting ---


@pytest.mark.parametrize(("answer", "exit_code", "left"), [("y", 0, 2), ("n", 1, 3)])
def test_at_a_terminal_deletion_is_confirmed_first(
    cli: Cli, client: Client, filled: str, monkeypatch: pytest.MonkeyPatch, answer: str, exit_code: int, left: int
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: answer)
    assert cli("collection", "delete-items", filled, "a.png").exit_code == exit_code
    assert client.get_collection(filled).items == left


def test_items_are_deleted_with_yes_and_counted(cli: Cli, client: Client, filled: str) -> None:
    outcome = cli("collection", "delete-items", filled, "a.png", "gone", "v", "--yes")
    assert (outcome.exit_code, outcome.err) == (0, "deleted 2 of 3 items\n")
    assert [item.id for item in client.list_items(filled)] == ["b.png"]


def test_items_that_match_are_counted(cli: Cli, filled: str) -> None:
    assert cli("collection", "count-items", filled).out == "3\n"
    assert cli("collection", "count-items", filled, "--where", "label=cat").out == "1\n"


@pytest.mark.parametrize(("answer", "exit_code", "left"), [("y", 0, 1), ("n", 1, 3)])
def test_before_items_that_match_are_deleted_they_are_counted(
    cli: Cli, client: Client, filled: str, monkeypatch: pytest.MonkeyPatch, answer: str, exit_code: int, left: int
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def reply(question: str) -> str:
        asked.append(question)
        return answer

    monkeypatch.setattr("click.termui.visible_prompt_func", reply)
    outcome = cli("collection", "delete-items", filled, "--where", "label")
    assert outcome.exit_code == exit_code
    assert "Delete 2 items from collection" in outcome.err + "".join(asked)
    assert client.get_collection(filled).items == left


def test_items_that_match_are_deleted_with_yes(cli: Cli, client: Client, filled: str) -> None:
    outcome = cli("collection", "delete-items", filled, "--where", "label=dog", "--yes")
    assert (outcome.exit_code, outcome.err) == (0, "deleted 1 item\n")
    assert [item.id for item in client.list_items(filled)] == ["a.png", "v"]


def test_where_no_item_matches_nobody_is_asked(cli: Cli, filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    outcome = cli("collection", "delete-items", filled, "--where", "label=bird")
    assert (outcome.exit_code, outcome.err) == (0, "no items match\n")


@pytest.mark.parametrize("arguments", [[], ["a.png", "--where", "label"]], ids=["neither", "both"])
def test_a_deletion_names_either_ids_or_conditions(cli: Cli, filled: str, arguments: list[str]) -> None:
    outcome = cli("collection", "delete-items", filled, *arguments, "--yes")
    assert outcome.exit_code == 2
    assert "give either ids or --where" in outcome.err


# --- Metadata ---


def test_metadata_are_changed(cli: Cli, client: Client, filled: str) -> None:
    given = ["--set", "price=30", "--set", "label='7'", "--set", "tags=x=y", "--set", "tags=z", "--remove", "ok"]
    outcome = cli("collection", "update-metadata", filled, "a.png", *given)
    assert (outcome.exit_code, outcome.err) == (0, "changed 1 item\n")
    [item] = client.get_items(filled, ["a.png"])
    assert item is not None
    assert item.metadata == {"label": "7", "tags": ["x=y", "z"], "price": 30}
    assert cli("collection", "update-metadata", filled, "a.png", "b.png", "--replace").err == "changed 2 items\n"
    assert cli("collection", "count-items", filled, "--where", "label").out == "0\n"


def test_an_item_whose_metadata_cannot_be_changed_is_named(cli: Cli, client: Client, filled: str) -> None:
    outcome = cli("collection", "update-metadata", filled, "gone", "v", "--set", "a=1")
    assert outcome.exit_code == 1
    assert "gone" in outcome.err
    assert "changed 1 item" in outcome.err
    assert client.count_items(filled, Exists("a")) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give what is to change"),
        (["--set", "price"], "--set takes KEY=VALUE, and 'price' is not"),
        (["--set", "=5"], "--set takes KEY=VALUE"),
        (["--set", "a=1", "--set", "a=x"], "lists have texts only"),
    ],
)
def test_a_change_that_says_nothing_or_cannot_be_read_is_refused(
    cli: Cli, filled: str, arguments: list[str], said: str
) -> None:
    outcome = cli("collection", "update-metadata", filled, "a.png", *arguments)
    assert outcome.exit_code == 2
    assert said in " ".join(outcome.err.split())


def test_a_listing_without_items_says_why(cli: Cli, filled: str) -> None:
    outcome = cli("collection", "list-items", filled, "--where", "labell=dog")
    assert (outcome.exit_code, outcome.out) == (0, "")
    assert outcome.err == "no items: no item has the key 'labell'; did you mean 'label'?\n"
