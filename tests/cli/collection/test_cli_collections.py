"""`embedserve collection` `list`, `info`, `create`, `delete` and `set-alias` against a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedserve import Client
from embedserve.client import ItemInput
from embedserve.errors import EncoderMismatch
from tests.cli.outcome import Cli
from tests.fakes import DIMENSION, picture


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_a_collection_is_created_and_described(cli: Cli, collection: str) -> None:
    made = cli("collection", "create", collection, "--keep", "originals")
    assert (made.exit_code, made.out) == (0, "")
    assert made.err == f"created {collection}: fake (fafafafafafa), 16 numbers per vector, keeps originals\n"
    described = dict(line.split(maxsplit=1) for line in lines(cli("collection", "info", collection).out))
    assert described["name"] == collection
    assert described["encoder"] == "fake (fafafafafafa)"
    assert described["fingerprint"] == "fa" * 32
    assert described["dimension"] == "16 numbers per vector"
    assert (described["items"], described["keeps"], described["aliases"]) == ("0", "originals", "none")


def test_the_documented_example_of_info_has_all_lines_that_are_printed(cli: Cli, filled: str) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "collections.md").read_text(encoding="utf-8")
    example = page.partition("```text\n")[2].partition("```")[0]
    printed = cli("collection", "info", filled).out
    assert [line[:12] for line in example.splitlines()] == [line[:12] for line in printed.splitlines()]


def test_a_program_gets_every_field_of_a_collection(cli: Cli, filled: str) -> None:
    document = cli("collection", "info", filled, "--json").json
    assert document["name"] == filled
    assert (document["items"], document["dimension"], document["keep"]) == (3, DIMENSION, "thumbnails")
    assert document["fingerprint"] == "fa" * 32
    assert document["created_unix_s"] > 1.7e9
    assert {"segments", "unsealed", "dead"} < document.keys()
    assert "deleted" not in document


def test_a_collection_is_created_with_index_target_and_filter_keys(cli: Cli, client: Client, collection: str) -> None:
    options = ["--index", "hnsw:m=16", "--target-recall", "0.9", "--filter-key", "label", "--filter-key", "year"]
    assert cli("collection", "create", collection, *options).exit_code == 0
    info = client.get_collection(collection)
    assert (info.index_spec, info.target_recall, info.filter_keys) == ("hnsw:m=16", 0.9, ("label", "year"))
    described = dict(line.split(maxsplit=1) for line in lines(cli("collection", "info", collection).out))
    assert described["index"].endswith("(requested: hnsw:m=16)")
    assert described["recall@10"] == "every search is exact; target 0.9"
    shown = cli("collection", "info", collection).out
    assert "filter keys  label, year" in shown
    assert "in index     0 segments, 0 items compared one by one, 0 deleted rows" in shown


def test_a_collection_is_bound_to_an_encoder_that_the_server_does_not_run(
    cli: Cli, client: Client, collection: str
) -> None:
    options = ["--encoder-fingerprint", "cd" * 32, "--encoder-name", "another", "--dimension", "3"]
    made = cli("collection", "create", collection, *options)
    assert made.err == f"created {collection}: another (cdcdcdcdcdcd), 3 numbers per vector, keeps thumbnails\n"
    [added] = client.add(collection, [ItemInput(id="v", vector=[1, 2, 2])], encoder_fingerprint="cd" * 32)
    assert added.error is None
    with pytest.raises(EncoderMismatch):
        client.add(collection, [ItemInput(id="w", vector=[1, 2, 2])])
    with pytest.raises(EncoderMismatch):
        client.search(collection, image=picture(1))
    assert [hit.id for hit in client.search(collection, vector=[1, 2, 2], encoder_fingerprint="cd" * 32)] == ["v"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--external", "--dimension", "3", "--encoder-fingerprint", "cd" * 32], "contradict each other"),
        (["--encoder-name", "another"], "--encoder-name needs --encoder-fingerprint"),
        (["--target-recall", "0"], "0 is not in the range"),
        (["--encoder-fingerprint", "cd"], "is not 64 hexadecimal digits"),
        (["--encoder-fingerprint", "cd" * 32], "needs a dimension"),
    ],
)
def test_impossible_collections_are_refused(
    cli: Cli, client: Client, collection: str, options: list[str], why: str
) -> None:
    refused = cli("collection", "create", collection, *options)
    assert refused.exit_code in (1, 2)
    assert why in refused.err
    assert collection not in [info.name for info in client.list_collections()]


def test_an_external_collection_has_a_dimension_and_no_encoder(cli: Cli, client: Client, collection: str) -> None:
    made = cli("collection", "create", collection, "--external", "--dimension", "3")
    assert made.err == f"created {collection}: external, 3 numbers per vector, keeps thumbnails\n"
    assert client.get_collection(collection).external


def test_external_without_a_dimension_is_wrong_usage(cli: Cli, collection: str) -> None:
    outcome = cli("collection", "create", collection, "--external")
    assert outcome.exit_code == 2
    assert "--external needs --dimension" in outcome.err


def test_a_name_that_is_taken_is_an_error(cli: Cli, filled: str) -> None:
    outcome = cli("collection", "create", filled)
    assert outcome.exit_code == 1
    assert filled in outcome.err.splitlines()[0]


def test_collections_are_listed_in_a_table_and_as_json(cli: Cli, filled: str) -> None:
    [row] = [line for line in lines(cli("collection", "list").out) if filled in line]
    assert row.split()[:4] == [filled, "3", "fake", "(fafafafafafa)"]
    [document] = [document for document in cli("collection", "list", "--json").json if document["name"] == filled]
    assert document["items"] == 3


def test_without_collections_the_next_step_is_named(cli: Cli, client: Client) -> None:
    assert client.list_collections() == []
    outcome = cli("collection", "list")
    assert (outcome.exit_code, outcome.out) == (0, "")
    assert "embedserve add FOLDER --collection NAME" in outcome.err
    assert cli("collection", "list", "--json").json == []


# --- Deleting ---


@pytest.mark.parametrize("arguments", [["delete"], ["delete-items", "a.png"]], ids=["collection", "items"])
def test_nothing_is_deleted_without_yes_or_a_terminal(
    cli: Cli, client: Client, filled: str, arguments: list[str]
) -> None:
    verb, *ids = arguments
    outcome = cli("collection", verb, filled, *ids)
    assert outcome.exit_code == 2
    assert "there is no terminal to confirm at: give --yes" in outcome.err
    assert client.get_collection(filled).items == 3


def test_a_collection_is_deleted_with_yes(cli: Cli, client: Client, filled: str) -> None:
    outcome = cli("collection", "delete", filled, "--yes")
    assert (outcome.exit_code, outcome.err) == (0, f"deleted {filled}\n")
    assert filled not in [info.name for info in client.list_collections()]


# --- Aliases ---


def test_an_alias_is_pointed_shown_and_removed(cli: Cli, client: Client, filled: str) -> None:
    alias = f"{filled}-latest"
    assert cli("collection", "set-alias", alias, filled).err == f"alias {alias} points to {filled}\n"
    assert client.get_collection(alias).name == filled
    assert f"aliases      {alias}" in cli("collection", "info", filled).out
    assert cli("collection", "set-alias", alias, "--remove").err == f"removed alias {alias}\n"
    assert client.get_collection(filled).aliases == ()


@pytest.mark.parametrize("arguments", [[], ["photos", "--remove"]], ids=["neither", "both"])
def test_an_alias_is_either_pointed_or_removed(cli: Cli, arguments: list[str]) -> None:
    outcome = cli("collection", "set-alias", "latest", *arguments)
    assert outcome.exit_code == 2
    assert "give either NAME or --remove" in outcome.err
