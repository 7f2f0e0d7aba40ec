"""`embedserve search` against a real server."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from embedserve import Client
from embedserve.client import ItemInput
from tests.cli.outcome import Cli
from tests.fakes import picture
from tests.sizes import fast_retries


@pytest.fixture
def filled(client: Client, collection: str) -> str:
    """A collection of six pictures with metadata."""
    client.create_collection(collection)
    items = [
        ItemInput(
            id=f"{number}.png",
            image=picture(number),
            metadata={"label": "cat" if number < 3 else "dog", "year": 1990 + number, "shop": f"s{number % 2}"},
        )
        for number in range(6)
    ]
    assert [result.error for result in client.add(collection, items)] == [None] * 6
    return collection


@pytest.fixture
def query(tmp_path: Path) -> Path:
    """The picture that is also item 2.png."""
    path = tmp_path / "query.png"
    path.write_bytes(picture(2))
    return path


def found(cli: Cli, *arguments: object) -> list[str]:
    outcome = cli("search", *arguments, "--json")
    assert (outcome.exit_code, outcome.err) == (0, "")
    return [hit["id"] for hit in outcome.json["hits"]]


def test_hits_are_a_table_with_the_closest_first(cli: Cli, filled: str, query: Path) -> None:
    outcome = cli("search", query, "--collection", filled, "-k", "2")
    assert outcome.exit_code == 0
    header, _rule, first, _second = [line for line in outcome.out.splitlines() if line.strip()]
    assert header.split() == ["rank", "score", "id", "metadata"]
    assert first.split() == ["1", "1.0000", "2.png", "label=cat", "shop=s0", "year=1992"]


def test_a_program_gets_one_json_document(cli: Cli, filled: str, query: Path) -> None:
    document = cli("search", query, "--collection", filled, "--json").json
    assert document["collection"] == filled
    hits = document["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5, 6]
    assert hits[0] == {
        "rank": 1,
        "id": "2.png",
        "score": 1.0,
        "metadata": {"label": "cat", "year": 1992, "shop": "s0"},
    }
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_the_image_may_come_from_standard_input(
    cli: Cli, filled: str, query: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(query.read_bytes())))
    assert found(cli, "-", "--collection", filled, "-k", "1") == ["2.png"]


def test_an_item_can_be_searched_by_and_is_not_its_own_hit(cli: Cli, filled: str, query: Path) -> None:
    like = found(cli, "--like", "2.png", "--collection", filled)
    assert like == found(cli, query, "--collection", filled)[1:]


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        (["label=cat"], ["0", "1", "2"]),
        (["label!=cat"], ["3", "4", "5"]),
        (["year>=1994"], ["4", "5"]),
        (["year<=1991"], ["0", "1"]),
        (["year>1994"], ["5"]),
        (["year<1991"], ["0"]),
        (["year"], ["0", "1", "2", "3", "4", "5"]),
        (["price"], []),
        (["label=dog", "shop=s1"], ["3", "5"]),
        (["year=1993"], ["3"]),
        (['year="1993"'], []),
    ],
    ids=lambda value: " and ".join(value),
)
def test_conditions_choose_among_the_items(
    cli: Cli, filled: str, query: Path, conditions: list[str], ids: list[str]
) -> None:
    where = [argument for condition in conditions for argument in ("--where", condition)]
    assert sorted(found(cli, query, "--collection", filled, *where)) == [f"{id}.png" for id in ids]


def test_grouping_leaves_one_hit_for_each_value(cli: Cli, filled: str, query: Path) -> None:
    everything = found(cli, query, "--collection", filled)
    grouped = found(cli, query, "--collection", filled, "--group-by", "shop")
    odd = next(id for id in everything if int(id[0]) % 2)
    assert grouped == ["2.png", odd]


def test_a_minimum_score_leaves_closer_hits_only(cli: Cli, filled: str, query: Path) -> None:
    assert found(cli, query, "--collection", filled, "--min-score", "0.999") == ["2.png"]


def test_exact_search_finds_the_same(cli: Cli, filled: str, query: Path) -> None:
    assert found(cli, query, "--collection", filled, "--exact") == found(cli, query, "--collection", filled)


def test_no_hits_are_reported_and_are_not_a_failure(cli: Cli, filled: str, query: Path) -> None:
    outcome = cli("search", query, "--collection", filled, "--where", "label=bird")
    assert (outcome.exit_code, outcome.out, outcome.err) == (0, "", "no hits\n")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--where", "price"], "no item has the key 'price'"),
        (["--where", "label=cat", "--where", "Yeer>=1990"], "no item has the key 'Yeer'; did you mean 'year'?"),
        (["--where", "LABEL in (cat, dog)"], "no item has the key 'LABEL'; did you mean 'label'?"),
        (
            ["--where", "label>5"],
            "the values of 'label' are text, such as 'cat', and the condition has numbers; quotes make text",
        ),
        (["--where", "year='1993'"], "the values of 'year' are numbers, such as 1990, and the condition has text"),
        (["--where", "label=cat", "--min-score", "1", "--like", "2.png"], "no item that matches has a score of at"),
        (["--where", "year!=1", "--where", "label=bird"], ""),
    ],
    ids=str,
)
def test_no_hits_say_what_the_items_lack(cli: Cli, filled: str, query: Path, options: list[str], reason: str) -> None:
    image = [] if "--like" in options else [query]
    outcome = cli("search", *image, "--collection", filled, *options)
    assert (outcome.exit_code, outcome.out) == (0, "")
    assert outcome.err.startswith(f"no hits: {reason}" if reason else "no hits\n")


def test_no_hits_say_that_the_collection_is_empty(cli: Cli, client: Client, collection: str, query: Path) -> None:
    client.create_collection(collection)
    outcome = cli("search", query, "--collection", collection)
    assert outcome.err == f"no hits: collection {collection} is empty\n"
    assert cli("search", query, "--collection", collection, "--json").err == ""


def test_ids_and_metadata_cannot_steer_the_terminal(cli: Cli, client: Client, collection: str, query: Path) -> None:
    client.create_collection(collection)
    evil = ItemInput(id="\x1b[2Ja:smile:[red].png", image=picture(2), metadata={"note": "\x07[bold]b"})
    assert client.add(collection, [evil])[0].error is None
    outcome = cli("search", query, "--collection", collection)
    assert "\x1b" not in outcome.out
    assert "\\x1b[2Ja:smile:[red].png" in outcome.out
    assert "note=\\x07[bold]b" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either IMAGE or --like ID"),
        (["QUERY", "--like", "a"], "give either IMAGE or --like ID"),
        (["QUERY", "-k", "0"], "0 is not in the range x>=1"),
        (["QUERY", "--min-score", "2"], "2.0 is not in the range -1<=x<=1"),
        (["QUERY", "--where", "year>=1,5"], "'year>=1,5' compares with '1,5', which is not a number"),
        (["QUERY", "--where", "=1"], "'=1' is not a condition; write key=value"),
        (["gone.jpg"], "'gone.jpg' does not exist"),
    ],
)
def test_wrong_usage_is_explained_and_exits_with_2(cli: Cli, query: Path, arguments: list[str], message: str) -> None:
    arguments = [str(query) if argument == "QUERY" else argument for argument in arguments]
    outcome = cli("search", *arguments, "--collection", "photos")
    assert outcome.exit_code == 2
    assert message in outcome.err


def test_an_unknown_collection_is_an_error(cli: Cli, query: Path) -> None:
    outcome = cli("search", query, "--collection", "nowhere")
    assert outcome.exit_code == 1
    assert "nowhere" in outcome.err.splitlines()[0]
    assert outcome.err.startswith("error: ")


def test_a_query_that_is_not_an_image_is_an_error(cli: Cli, filled: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("no picture")
    outcome = cli("search", path, "--collection", filled)
    assert outcome.exit_code == 1
    assert outcome.err.startswith("error: the bytes are not a readable image")


def test_the_collection_may_come_from_the_environment(
    cli: Cli, filled: str, query: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSERVE_COLLECTION", filled)
    assert found(cli, query, "-k", "1") == ["2.png"]


def test_an_option_also_has_its_own_variable(
    cli: Cli, filled: str, query: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSERVE_SEARCH_K", "3")
    assert len(found(cli, query, "--collection", filled)) == 3


def test_where_no_server_answers_the_hint_says_how_to_start_one(
    cli: Cli, query: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast_retries(monkeypatch)
    outcome = cli("search", query, "--collection", "photos", "--server", "127.0.0.1:1")
    assert outcome.exit_code == 1
    first, second = outcome.err.splitlines()
    assert first == "error: no server answers at 127.0.0.1:1: Connection refused"
    assert second.startswith(
        "hint:  start one: embedserve serve encoder.onnx --data data/; if one runs there, it may speak TLS"
    )


def test_search_parameters_are_passed_on(cli: Cli, photos: Path, client: Client, collection: str) -> None:
    cli("add", photos, "--collection", collection)
    query = ("search", photos / "top.png", "--collection", collection, "-k", "1", "--json")
    for options in (("--target-recall", "0.99"), ("--ef", "64"), ("--nprobe", "8"), ("--exact",)):
        found = cli(*query, *options)
        assert (options, found.exit_code) == (options, 0)
        assert [hit["id"] for hit in found.json["hits"]] == ["top.png"]


def test_two_search_parameters_at_once_are_wrong_usage(cli: Cli, photos: Path) -> None:
    refused = cli("search", photos / "top.png", "--collection", "any", "--ef", "64", "--exact")
    assert refused.exit_code == 2
    assert "at most one of --exact, --target-recall, --ef and --nprobe" in refused.err
