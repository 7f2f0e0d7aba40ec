"""`embedserve add` against a real server."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedserve import Client
from embedserve.cli import add
from embedserve.errors import Unavailable
from tests.cli.outcome import Cli
from tests.fakes import DIMENSION, FakeEncoder, picture
from tests.running import serving

IDS = ["cats/a.png", "cats/b.jpg", "dogs/big/c.png", "dogs/big/d.webp", "top.png"]


def ids(client: Client, collection: str) -> list[str]:
    return [item.id for item in client.list_items(collection)]


def counts(document: dict[str, Any]) -> tuple[int, int, int, int]:
    return document["added"], document["changed"], document["known"], len(document["failed"])


def test_every_image_of_a_folder_becomes_an_item_with_its_path_as_id(
    cli: Cli, client: Client, collection: str, photos: Path
) -> None:
    outcome = cli("add", photos, "--collection", collection)
    assert outcome.exit_code == 0
    assert ids(client, collection) == IDS
    assert re.search(r"^added 5, changed 0, known 0, failed 0, in [\d.]+ s \([\d.]+ images/s\)$", outcome.err, re.M)
    assert outcome.out == ""


def test_the_collection_is_created_and_bound_to_the_encoder(
    cli: Cli, client: Client, collection: str, photos: Path
) -> None:
    outcome = cli("add", photos, "--collection", collection)
    assert f"created collection {collection}, bound to encoder fake (fafafafafafa)" in outcome.err
    assert client.get_collection(collection).fingerprint == "fa" * 32


def test_the_next_command_to_type_is_named_in_the_end(cli: Cli, collection: str, photos: Path) -> None:
    outcome = cli("add", photos, "--collection", collection)
    assert outcome.err.splitlines()[-1] == f"next: embedserve search IMAGE --collection {collection}"


def test_without_a_terminal_progress_is_one_line_with_images_per_second(
    cli: Cli, collection: str, photos: Path
) -> None:
    [line] = [line for line in cli("add", photos, "--collection", collection).err.splitlines() if " of " in line]
    assert line.startswith(f"adding to {collection}: 5 of 5 ")
    assert line.endswith(" images/s")


def test_metadata_are_root_folder_and_label(cli: Cli, client: Client, collection: str, photos: Path) -> None:
    cli("add", photos, "--collection", collection)
    assert {item.id: dict(item.metadata) for item in client.list_items(collection)} == {
        "cats/a.png": {"root": "photos", "label": "cats", "folder": "cats"},
        "cats/b.jpg": {"root": "photos", "label": "cats", "folder": "cats"},
        "dogs/big/c.png": {"root": "photos", "label": "dogs", "folder": "dogs/big"},
        "dogs/big/d.webp": {"root": "photos", "label": "dogs", "folder": "dogs/big"},
        "top.png": {"root": "photos"},
    }


def test_thumbnails_are_kept_by_default(cli: Cli, client: Client, collection: str, photos: Path) -> None:
    cli("add", photos, "--collection", collection)
    assert client.get_collection(collection).keep == "thumbnails"
    [item] = client.get_items(collection, ["top.png"], include_media=True)
    assert item is not None
    assert item.media is not None
    assert item.media.media_type == "image/jpeg"


def test_originals_are_kept_on_request(cli: Cli, client: Client, collection: str, photos: Path) -> None:
    cli("add", photos, "--collection", collection, "--keep", "originals")
    for item in client.get_items(collection, IDS, include_media=True):
        assert item is not None
        assert item.media is not None
        assert item.media.data == (photos / item.id).read_bytes()


def test_what_a_collection_keeps_does_not_change(cli: Cli, client: Client, collection: str, photos: Path) -> None:
    client.create_collection(collection, keep="none")
    outcome = cli("add", photos, "--collection", collection, "--keep", "originals")
    assert outcome.exit_code == 0
    assert f"collection {collection} keeps none; --keep originals does not change that" in outcome.err


# --- Going on ---


def test_a_second_run_sends_nothing(
    cli: Cli, client: Client, collection: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("add", photos, "--collection", collection)
    sent: list[object] = []

    def add_each(self: Client, collection: str, items: Iterator[object]) -> Iterator[object]:
        sent.extend(items)
        return iter([])

    monkeypatch.setattr(Client, "add_each", add_each)
    outcome = cli("add", photos, "--collection", collection, "--json")
    assert counts(outcome.json) == (0, 0, 5, 0)
    assert sent == []


def test_only_new_and_changed_files_are_sent(cli: Cli, client: Client, collection: str, photos: Path) -> None:
    cli("add", photos, "--collection", collection)
    (photos / "cats/a.png").write_bytes(picture(77))
    (photos / "new.png").write_bytes(picture(78))
    outcome = cli("add", photos, "--collection", collection, "--json")
    assert counts(outcome.json) == (1, 1, 4, 0)
    [changed, new] = client.get_items(collection, ["cats/a.png", "new.png"])
    assert changed is not None
    assert new is not None
    assert changed.content_sha256 == hashlib.sha256(picture(77)).digest()
    assert new.content_sha256 == hashlib.sha256(picture(78)).digest()


def test_files_are_looked_up_block_by_block(
    cli: Cli, client: Client, collection: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(add, "_LOOKUP_IDS", 2)
    cli("add", photos, "--collection", collection)
    (photos / "top.png").write_bytes(picture(77))
    outcome = cli("add", photos, "--collection", collection, "--json")
    assert counts(outcome.json) == (0, 1, 4, 0)
    assert ids(client, collection) == IDS


@pytest.mark.parametrize(
    ("reason", "exit_code", "said"),
    [
        (Unavailable("the server is shutting down"), 1, "error: the server is shutting down"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["server-gone", "ctrl-c"],
)
def test_an_aborted_run_reports_its_progress_and_the_next_continues(
    cli: Cli,
    client: Client,
    collection: str,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    reason: BaseException,
    exit_code: int,
    said: str,
) -> None:
    real: Callable[..., Any] = Client.add_each

    def breaking_off(self: Client, collection: str, items: Any) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == 2:
                raise reason
            yield from real(self, collection, [item])

    with monkeypatch.context() as patch:
        patch.setattr(Client, "add_each", breaking_off)
        outcome = cli("add", photos, "--collection", collection)
    assert outcome.exit_code == exit_code
    assert re.search(
        r"stopped: added 2, changed 0, known 0, failed 0, in [\d.]+ s \([\d.]+ images/s\);"
        r" the same command continues from here",
        outcome.err,
    )
    assert said in outcome.err
    assert counts(cli("add", photos, "--collection", collection, "--json").json) == (3, 0, 2, 0)


def test_interrupting_ends_with_130(cli: Cli, collection: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    cli("add", photos, "--collection", collection)
    monkeypatch.setattr(add, "_is_same", interrupted)
    assert cli("add", photos, "--collection", collection).exit_code == 130


# --- Files that cannot be used ---


@pytest.fixture
def bad(photos: Path) -> Path:
    """The pictures with three bad files among them."""
    (photos / "cut.jpg").write_bytes(picture(9, format="JPEG")[:300])
    (photos / "cats/text.png").write_text("I am no picture at all")
    (photos / "empty.webp").write_bytes(b"")
    return photos


def test_files_that_cannot_be_used_are_named_with_the_reason_and_the_others_added(
    cli: Cli, client: Client, collection: str, bad: Path
) -> None:
    outcome = cli("add", bad, "--collection", collection)
    assert outcome.exit_code == 1
    assert ids(client, collection) == IDS
    failures = [line for line in outcome.err.splitlines() if line.startswith("failed")]
    assert len(failures) == 3
    assert failures[0].startswith(f"failed  {bad}/cats/text.png: the bytes are not a readable image")
    assert failures[1].startswith(f"failed  {bad}/cut.jpg: the image is damaged")
    assert failures[2] == f"failed  {bad}/empty.webp: the image has zero bytes"
    assert "added 5, changed 0, known 0, failed 3" in outcome.err


def test_a_program_receives_the_failures(cli: Cli, collection: str, bad: Path) -> None:
    document = cli("add", bad, "--collection", collection, "--json").json
    assert document["collection"] == collection
    assert counts(document) == (5, 0, 0, 3)
    assert document["seconds"] > 0
    assert document["images_per_s"] > 0
    assert [(failure["path"], failure["id"], failure["code"]) for failure in document["failed"]] == [
        (f"{bad}/cats/text.png", "cats/text.png", "IMAGE_FORMAT"),
        (f"{bad}/cut.jpg", "cut.jpg", "IMAGE_UNDECODABLE"),
        (f"{bad}/empty.webp", "empty.webp", "IMAGE_UNDECODABLE"),
    ]


def test_bad_files_do_not_make_the_next_run_send_the_good_ones_again(cli: Cli, collection: str, bad: Path) -> None:
    cli("add", bad, "--collection", collection)
    outcome = cli("add", bad, "--collection", collection, "--json")
    assert outcome.exit_code == 1
    assert counts(outcome.json) == (0, 0, 5, 3)


def test_a_broken_link_is_reported(cli: Cli, collection: str, photos: Path) -> None:
    (photos / "lost.png").symlink_to(photos / "gone.png")
    outcome = cli("add", photos, "--collection", collection)
    assert outcome.exit_code == 1
    assert f"failed  {photos}/lost.png: cannot be read: No such file or directory" in outcome.err


def test_an_undecodable_file_name_is_reported_and_the_others_added(
    cli: Cli, client: Client, collection: str, photos: Path
) -> None:
    with open(os.fsencode(photos) + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.write(picture(9))
    outcome = cli("add", photos, "--collection", collection, "--json")
    assert outcome.exit_code == 1
    assert ids(client, collection) == IDS
    assert [failure["code"] for failure in outcome.json["failed"]] == ["INVALID_ARGUMENT"]
    assert "\\udcff.png" in outcome.err


# --- Folders ---


def test_a_folder_without_images_is_an_error_that_names_its_files(cli: Cli, collection: str, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "notes.txt").write_text("")
    (folder / "a.svg").write_bytes(b"")
    outcome = cli("add", folder, "--collection", collection)
    assert outcome.exit_code == 1
    first, second = outcome.err.splitlines()
    passed_over = "1 .svg, 1 .txt, such as a.svg"
    assert first == f"error: {folder} has no images (passed over: {passed_over})"
    assert second.startswith("hint:  images are files ending in .jpg .jpeg .jpe .jfif .png")


def test_a_missing_folder_is_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("add", tmp_path / "gone", "--collection", "x")
    assert outcome.exit_code == 2
    assert "does not exist" in outcome.err


def test_several_folders_go_into_one_collection(
    cli: Cli, client: Client, collection: str, photos: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / "e.png").write_bytes(picture(9))
    cli("add", photos, more, "--collection", collection)
    assert ids(client, collection) == sorted([*IDS, "e.png"])


def test_two_files_that_would_have_one_id_are_refused_before_anything_is_sent(
    cli: Cli, client: Client, collection: str, photos: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / "top.png").write_bytes(picture(9))
    outcome = cli("add", photos, more, "--collection", collection)
    assert outcome.exit_code == 2
    assert f"{photos}/top.png and {more}/top.png would both get the name 'top.png'" in outcome.err
    assert collection not in [info.name for info in client.list_collections()]


# --- Collections that do not fit ---


def test_images_are_not_sent_to_an_external_collection(cli: Cli, client: Client, collection: str, photos: Path) -> None:
    client.create_collection(collection, external=True, dimension=DIMENSION)
    outcome = cli("add", photos, "--collection", collection)
    assert outcome.exit_code == 1
    assert f"collection {collection} takes external vectors, not images" in outcome.err


def test_images_are_not_added_to_a_collection_of_another_encoder(cli: Cli, photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(FakeEncoder(), data) as first:
        assert cli("add", photos, "--collection", "photos", "--server", first).exit_code == 0
    # No file has to be sent, but this server could not search the collection by image.
    with serving(FakeEncoder(fingerprint="0b" * 32, name="other"), data) as second:
        outcome = cli("add", photos, "--collection", "photos", "--server", second)
    assert outcome.exit_code == 1
    assert "is bound to encoder fake (fafafafafafa); this server runs other (0b0b0b0b0b0b)" in outcome.err


def test_a_server_without_collections_says_how_to_get_them(cli: Cli, photos: Path) -> None:
    with serving(FakeEncoder()) as server:
        outcome = cli("add", photos, "--collection", "photos", "--server", server)
    assert outcome.exit_code == 1
    assert "hint:  start it with: embedserve serve encoder.onnx --data DIR" in outcome.err
