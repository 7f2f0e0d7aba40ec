"""Command line, Python client and wire name the same things by the same words; old words still work, and say so."""

from __future__ import annotations

import inspect
import re

import pytest

from embedserve import Client
from embedserve.cli import main
from embedserve.cli.collection import RENAMED
from embedserve.client import ItemInput
from embedserve.v1 import collection_service_pb2 as collection_pb
from tests.cli.outcome import Cli
from tests.fakes import picture

RPCS = [method.name for method in collection_pb.DESCRIPTOR.services_by_name["CollectionService"].methods]

OTHERWISE = {"get": "info"}
"""`collection get` was the name of `get-items`; given to GetCollection, it would change what old scripts do."""

ELSEWHERE = {"Upsert", "UpsertStream"}
"""RPCs behind `embedserve add`, `collection import` and `Client.add`."""


def words(rpc: str) -> list[str]:
    """DeleteItems → ["delete", "items"]."""
    return re.findall("[A-Z][a-z]+", rpc.replace("Collections", "Collection"))


@pytest.mark.parametrize("rpc", [rpc for rpc in RPCS if rpc not in ELSEWHERE])
def test_a_command_of_collection_is_named_after_its_rpc(rpc: str) -> None:
    name = "-".join(word.lower() for word in words(rpc) if word != "Collection")
    [group] = [command for command in main.commands.values() if command.name == "collection"]
    command = group.commands[OTHERWISE.get(name, name)]  # type: ignore[attr-defined]
    assert not command.hidden


@pytest.mark.parametrize("rpc", [rpc for rpc in RPCS if rpc not in ELSEWHERE])
def test_a_method_of_the_client_is_named_after_its_rpc(rpc: str) -> None:
    assert inspect.isfunction(getattr(Client, re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()))


def test_an_old_name_does_the_same_and_names_the_new_one_in_one_line(cli: Cli, client: Client, collection: str) -> None:
    client.create_collection(collection)
    client.add(collection, [ItemInput(id=id, image=picture(1)) for id in ("a", "b")])
    for old, arguments in {
        "items": [collection],
        "get": [collection, "a", "gone"],
        "remove": [collection, "a", "--yes"],
        "alias": [f"{collection}-2", collection],
    }.items():
        outcome = cli("collection", old, *arguments)
        if old == "remove":
            client.add(collection, [ItemInput(id="a", image=picture(1))])
        same = cli("collection", RENAMED[old], *arguments)
        warning, *rest = outcome.err.splitlines()
        assert warning.endswith(f"Use `embedserve collection {RENAMED[old]}`.")
        assert (outcome.exit_code, outcome.out, rest) == (same.exit_code, same.out, same.err.splitlines())


def test_old_names_are_hidden_from_the_help(cli: Cli) -> None:
    shown = {line.split()[0] for line in cli("collection", "--help").out.partition("Commands:")[2].splitlines() if line}
    assert set(RENAMED.values()) <= shown
    assert not RENAMED.keys() & shown


def test_a_misspelt_command_of_collection_is_answered_with_the_right_one(cli: Cli) -> None:
    outcome = cli("collection", "delet-items")
    assert outcome.exit_code == 2
    assert "delete-items" in outcome.err


def test_a_suggestion_never_offers_an_old_name(cli: Cli) -> None:
    err = cli("collection", "itms").err
    assert "get-items" in err
    assert "'items'" not in err
    assert "'remove'" not in cli("collection", "remov").err
