"""`embedserve add --remove-missing` against a real server: what goes, and everything that stays."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from embedserve import Client
from embedserve.cli import remove_missing
from embedserve.client import ItemInput
from embedserve.errors import Unavailable
from tests.cli.outcome import Cli, Outcome
from tests.fakes import picture

IDS = ["cats/a.png", "cats/b.jpg", "dogs/big/c.png", "dogs/big/d.webp", "top.png"]


@pytest.fixture
def added(cli: Cli, collection: str, photos: Path) -> str:
    """The collection that holds the photos, added without any option."""
    assert cli("add", photos, "--collection", collection).exit_code == 0
    return collection


def ids(client: Client, collection: str) -> list[str]:
    return [item.id for item in client.list_items(collection)]


def sync(cli: Cli, collection: str, *folders: Path, options: tuple[str, ...] = ("--yes",)) -> Outcome:
    return cli("add", *folders, "--collection", collection, "--remove-missing", *options)


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)


# --- What goes ---


def test_items_whose_files_are_gone_are_removed_after_the_others_were_added(
    cli: Cli, client: Client, added: str, photos: Path
) -> None:
    (photos / "top.png").unlink()
    shutil.rmtree(photos / "dogs")
    (photos / "new.png").write_bytes(picture(50))
    outcome = sync(cli, added, photos)
    assert outcome.exit_code == 0
    assert ids(client, added) == ["cats/a.png", "cats/b.jpg", "new.png"]
    assert "added 1, changed 0, known 2, failed 0, removed 3, in " in outcome.err
    assert "missing  dogs/big/c.png\nmissing  dogs/big/d.webp\nmissing  top.png\n" in outcome.err
    assert sync(cli, added, photos, options=("--yes", "--json")).json["removed"] == 0


def test_a_file_that_was_renamed_is_a_new_item_and_a_missing_one(
    cli: Cli, client: Client, added: str, photos: Path
) -> None:
    (photos / "top.png").rename(photos / "peak.png")
    document = sync(cli, added, photos, options=("--yes", "--json")).json
    assert (document["added"], document["removed"], document["known"]) == (1, 1, 4)
    assert "peak.png" in ids(client, added)


def test_without_the_option_nothing_is_removed(cli: Cli, client: Client, added: str, photos: Path) -> None:
    (photos / "top.png").unlink()
    assert cli("add", photos, "--collection", added, "--json").json["removed"] == 0
    assert ids(client, added) == IDS


def test_many_missing_items_are_listed_page_by_page_and_counted(
    cli: Cli, client: Client, added: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remove_missing, "_PAGE", 2)
    monkeypatch.setattr(remove_missing, "_NAMED", 2)
    for name in ("cats/b.jpg", "top.png"):
        (photos / name).unlink()
    shutil.rmtree(photos / "dogs")
    outcome = sync(cli, added, photos)
    assert ids(client, added) == IDS[:1]
    assert outcome.err.count("missing  ") == 3
    assert "missing  2 more; --dry-run names all" in outcome.err


# --- Asking ---


def test_without_a_terminal_and_yes_nothing_is_done(cli: Cli, client: Client, added: str, photos: Path) -> None:
    (photos / "top.png").unlink()
    (photos / "new.png").write_bytes(picture(50))
    outcome = sync(cli, added, photos, options=())
    assert outcome.exit_code == 2
    assert "this deletes data, and there is no terminal to confirm at: give --yes" in outcome.err
    assert ids(client, added) == IDS


@pytest.mark.parametrize(("text", "removed"), [("y\n", 1), ("n\n", 0)])
def test_at_a_terminal_it_asks(
    cli: Cli, client: Client, added: str, photos: Path, monkeypatch: pytest.MonkeyPatch, text: str, removed: int
) -> None:
    (photos / "top.png").unlink()
    answer(monkeypatch, text)
    outcome = sync(cli, added, photos, options=("--json",))
    assert f"Remove 1 item whose file is gone from collection {added}?" in outcome.err
    assert outcome.json["removed"] == removed
    assert ("nothing is removed" in outcome.err) == (not removed)
    assert outcome.exit_code == (0 if removed else 1)
    assert ("top.png" in ids(client, added)) == (not removed)


def test_a_file_that_comes_back_while_the_question_is_open_keeps_its_item(
    cli: Cli, client: Client, added: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("top.png", "cats/a.png"):
        (photos / name).unlink()

    def asked(question: str, yes: bool) -> bool:
        (photos / "top.png").write_bytes(picture(0))
        return True

    monkeypatch.setattr(remove_missing, "confirmed", asked)
    assert sync(cli, added, photos, options=("--yes", "--json")).json["removed"] == 1
    assert ids(client, added) == IDS[1:]


def test_nothing_to_remove_is_not_asked_about(
    cli: Cli, added: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, "")
    outcome = sync(cli, added, photos, options=())
    assert outcome.exit_code == 0
    assert "removed 0" in outcome.err


def test_a_dry_run_names_everything_and_changes_nothing(cli: Cli, client: Client, added: str, photos: Path) -> None:
    (photos / "top.png").unlink()
    (photos / "new.png").write_bytes(picture(50))
    (photos / "cats/a.png").write_bytes(picture(51))
    before = list(client.list_items(added))
    outcome = sync(cli, added, photos, options=("--dry-run",))
    assert (outcome.exit_code, outcome.out) == (0, "would remove  top.png\n")
    assert "dry run, nothing was changed: added 1, changed 1, known 3, failed 0, removed 1" in outcome.err
    document = sync(cli, added, photos, options=("--dry-run", "--json")).json
    assert (document["dry_run"], document["removed"], document["missing"]) == (True, 1, ["top.png"])
    assert list(client.list_items(added)) == before


def test_a_dry_run_creates_no_collection(cli: Cli, client: Client, collection: str, photos: Path) -> None:
    document = sync(cli, collection, photos, options=("--dry-run", "--json")).json
    assert (document["added"], document["removed"]) == (5, 0)
    assert collection not in [info.name for info in client.list_collections()]


# --- What stays ---


def test_items_of_another_folder_and_of_other_programs_stay(
    cli: Cli, client: Client, added: str, photos: Path, tmp_path: Path
) -> None:
    other = tmp_path / "scans"
    other.mkdir()
    (other / "page.png").write_bytes(picture(60))
    cli("add", other, "--collection", added)
    mine = [
        ItemInput(id="cats/mine.png", image=picture(61), metadata={"label": "cats", "folder": "cats"}),
        ItemInput(id="no-file", image=picture(62)),
        ItemInput(id="../../etc/passwd", image=picture(63), metadata={"root": "photos"}),
    ]
    assert [result.error for result in client.add(added, mine)] == [None] * 3
    (photos / "top.png").unlink()
    assert sync(cli, added, photos, options=("--yes", "--json")).json["removed"] in (1, 2)
    assert {"page.png", "cats/mine.png", "no-file"} <= set(ids(client, added))
    assert "top.png" not in ids(client, added)


def test_several_folders_are_followed_together(
    cli: Cli, client: Client, added: str, photos: Path, tmp_path: Path
) -> None:
    other = tmp_path / "scans"
    other.mkdir()
    for number in range(2):
        (other / f"{number}.png").write_bytes(picture(60 + number))
    cli("add", other, "--collection", added)
    (other / "1.png").unlink()
    (photos / "top.png").unlink()
    assert sync(cli, added, photos, other, options=("--yes", "--json")).json["removed"] == 2
    assert ids(client, added) == sorted(["0.png", *IDS[:-1]])


def test_a_file_that_cannot_be_read_or_used_or_is_excluded_keeps_its_item(
    cli: Cli, client: Client, added: str, photos: Path
) -> None:
    (photos / "cats/a.png").write_bytes(b"no picture any more")
    (photos / "top.png").unlink()
    outcome = sync(cli, added, photos, options=("--yes", "--exclude", "*.webp", "--json"))
    assert outcome.exit_code == 1  # for the file that cannot be used
    assert outcome.json["removed"] == 1
    assert ids(client, added) == IDS[:-1]


def test_a_broken_link_keeps_its_item_and_ends_the_removal(cli: Cli, client: Client, added: str, photos: Path) -> None:
    (photos / "cats/a.png").unlink()
    (photos / "cats/a.png").symlink_to(photos / "gone.png")
    (photos / "top.png").unlink()
    outcome = sync(cli, added, photos)
    assert outcome.exit_code == 1
    assert "nothing is removed: 1 file could not be read or sent" in outcome.err
    assert ids(client, added) == IDS


def test_a_folder_inside_that_cannot_be_read_ends_the_removal(
    cli: Cli, client: Client, added: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedserve.folder import scan as scanner

    real = scanner._entries

    def entries(folder: Path, seen: Any) -> Any:
        if folder.name == "dogs":
            raise PermissionError(13, "Permission denied")
        return real(folder, seen)

    monkeypatch.setattr(scanner, "_entries", entries)
    (photos / "top.png").unlink()
    outcome = sync(cli, added, photos)
    assert outcome.exit_code == 1
    assert f"nothing is removed: {photos}/dogs cannot be read" in outcome.err
    assert ids(client, added) == IDS


@pytest.mark.parametrize("what", ["empty", "gone"])
def test_a_folder_that_is_empty_or_gone_removes_nothing(
    cli: Cli, client: Client, added: str, photos: Path, what: str
) -> None:
    shutil.rmtree(photos)
    if what == "empty":
        photos.mkdir()
    outcome = sync(cli, added, photos)
    assert outcome.exit_code == (1 if what == "empty" else 2)
    assert ids(client, added) == IDS


def test_a_folder_that_goes_away_meanwhile_removes_nothing(
    cli: Cli, client: Client, added: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Client.add_each

    def add_each(self: Client, *arguments: Any) -> Any:
        yield from real(self, *arguments)
        shutil.rmtree(photos)
        photos.mkdir()  # a mount point

    monkeypatch.setattr(Client, "add_each", add_each)
    outcome = sync(cli, added, photos)
    assert f"nothing is removed: {photos} has become empty" in outcome.err
    assert ids(client, added) == IDS


def test_an_add_that_fails_removes_nothing(
    cli: Cli, client: Client, added: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_each(self: Client, *_: Any) -> Any:
        raise Unavailable("the server is shutting down")

    (photos / "top.png").unlink()
    (photos / "new.png").write_bytes(picture(50))
    with monkeypatch.context() as patch:
        patch.setattr(Client, "add_each", add_each)
        assert sync(cli, added, photos).exit_code == 1
    assert ids(client, added) == IDS


# --- The name of the folder ---


def test_a_folder_that_was_renamed_is_known_and_is_followed_under_its_new_name(
    cli: Cli, client: Client, added: str, photos: Path
) -> None:
    pictures = photos.rename(photos.parent / "pictures")
    document = cli("add", pictures, "--collection", added, "--json").json
    assert (document["known"], document["changed"]) == (5, 0)
    document = sync(cli, added, pictures, options=("--yes", "--json")).json
    assert (document["known"], document["changed"], document["removed"]) == (0, 5, 0)
    (pictures / "top.png").unlink()
    assert sync(cli, added, pictures, options=("--yes", "--json")).json["removed"] == 1
    assert {item.metadata["root"] for item in client.list_items(added)} == {"pictures"}


def test_a_folder_has_its_own_name_even_as_a_dot_or_a_link(
    cli: Cli, client: Client, collection: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = photos.parent / "current"
    link.symlink_to(photos)
    for folder, name in ((".", "photos"), (link, "current"), (f"{photos}/cats/..", "photos")):
        monkeypatch.chdir(photos)
        sync(cli, collection, Path(folder))
        assert {item.metadata["root"] for item in client.list_items(collection)} == {name}


def test_a_table_that_sets_the_root_is_refused(cli: Cli, collection: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,root\ntop.png,x\n")
    outcome = sync(cli, collection, photos, options=("--yes", "--metadata", str(tmp_path / "t.csv")))
    assert outcome.exit_code == 2
    assert "has a column 'root', by which --remove-missing knows the items of a folder" in outcome.err


@pytest.mark.parametrize("is_empty", [False, True])
def test_items_behind_a_link_to_a_folder_that_is_gone_or_empty_stay(
    cli: Cli, client: Client, collection: str, photos: Path, tmp_path: Path, is_empty: bool
) -> None:
    drive = tmp_path / "drive"
    (drive / "deep").mkdir(parents=True)
    (drive / "deep/a.png").write_bytes(picture(60))
    (photos / "linked").symlink_to(drive)
    cli("add", photos, "--collection", collection)
    shutil.rmtree(drive)
    if is_empty:
        drive.mkdir()
    (photos / "top.png").unlink()
    assert sync(cli, collection, photos).exit_code == 0
    assert ids(client, collection) == [
        "cats/a.png",
        "cats/b.jpg",
        "dogs/big/c.png",
        "dogs/big/d.webp",
        "linked/deep/a.png",
    ]


@pytest.mark.parametrize("deep", [False, True])
def test_items_in_a_folder_that_is_there_and_empty_stay_until_it_is_gone_too(
    cli: Cli, client: Client, added: str, photos: Path, deep: bool
) -> None:
    # So is the mount point of a drive that is away.
    emptied = photos / ("dogs" if deep else "dogs/big")
    shutil.rmtree(emptied)
    emptied.mkdir()
    (photos / "top.png").unlink()
    outcome = sync(cli, added, photos)
    assert outcome.exit_code == 0
    assert ids(client, added) == IDS[:-1]
    assert f"{emptied} is empty, so 2 items stay: remove the folder too if its images are gone" in outcome.err
    shutil.rmtree(photos / "dogs")
    assert sync(cli, added, photos, options=("--yes", "--json")).json["removed"] == 2
    assert ids(client, added) == IDS[:2]


def test_items_of_files_that_are_passed_over_now_stay(cli: Cli, client: Client, added: str, photos: Path) -> None:
    own = [
        ItemInput(id=name, image=picture(70 + number), metadata={"root": "photos"})
        for number, name in enumerate(["@eaDir/a.png", "cats/.b.png", "cats/c.dng"])
    ]
    assert [result.error for result in client.add(added, own)] == [None] * 3
    for item in own:
        path = photos / str(item.id)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(70))
    assert sync(cli, added, photos, options=("--yes", "--json")).json["removed"] == 0
    assert {"@eaDir/a.png", "cats/.b.png", "cats/c.dng"} <= set(ids(client, added))


def test_a_list_of_files_is_not_followed(cli: Cli, client: Client, added: str, photos: Path) -> None:
    (photos / "chosen.txt").write_text("top.png\n")
    outcome = sync(cli, added, Path(f"@{photos}/chosen.txt"))
    assert outcome.exit_code == 2
    assert "--remove-missing follows whole folders, not a list of files" in outcome.err
    assert ids(client, added) == IDS
