"""Which files and folders ``--exclude`` leaves out."""

from __future__ import annotations

from pathlib import Path, PurePath

import pytest

from embedserve import Client
from embedserve.cli import bench_inputs
from embedserve.errors import InvalidInput
from embedserve.folder.exclude import Exclude
from embedserve.folder.scan import scan
from tests.cli.outcome import Cli
from tests.fakes import picture

FILES = ["a.gif", "b.png", "thumbs/c.png", "x/d.gif", "x/thumbs/e.png", "x/y/f.png", "x/y/z/g.png", "x/thumbs.png"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "left_out"),
    [
        ("*.gif", {"a.gif", "x/d.gif"}),
        ("thumbs", {"thumbs/c.png", "x/thumbs/e.png"}),
        ("thumbs/", {"thumbs/c.png", "x/thumbs/e.png"}),
        ("thumbs*", {"thumbs/c.png", "x/thumbs/e.png", "x/thumbs.png"}),
        ("thumbs*/", {"thumbs/c.png", "x/thumbs/e.png"}),
        ("/thumbs", {"thumbs/c.png"}),
        ("./thumbs/", {"thumbs/c.png"}),
        ("x/*.gif", {"x/d.gif"}),
        ("x/*", {"x/d.gif", "x/thumbs/e.png", "x/y/f.png", "x/y/z/g.png", "x/thumbs.png"}),
        ("x/*.png", {"x/thumbs.png"}),
        ("x/**/*.png", {"x/thumbs/e.png", "x/y/f.png", "x/y/z/g.png", "x/thumbs.png"}),
        ("**/z", {"x/y/z/g.png"}),
        ("x/y/**", {"x/y/f.png", "x/y/z/g.png"}),
        ("?.png", {"b.png", "thumbs/c.png", "x/thumbs/e.png", "x/y/f.png", "x/y/z/g.png"}),
        ("[a-b].*", {"a.gif", "b.png"}),
        ("[^a].png", {"b.png", "thumbs/c.png", "x/thumbs/e.png", "x/y/f.png", "x/y/z/g.png"}),
        ("b.png/**", set()),
        ("A.gif", set()),
        ("nothing", set()),
        ("a.gif/", set()),
    ],
)
def test_a_pattern_leaves_out_what_it_matches(tree: Path, pattern: str, left_out: set[str]) -> None:
    exclude = Exclude([pattern])
    found = set(scan(tree, exclude).images)
    assert set(FILES) - found == left_out
    assert exclude.unused == ([] if left_out else [pattern])


def test_several_patterns_leave_out_what_one_of_them_matches(tree: Path) -> None:
    found = scan(tree, Exclude(["x/", "*.gif"])).images
    assert list(found) == ["b.png", "thumbs/c.png"]


def test_an_excluded_folder_is_not_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedserve.folder import scan as scanner

    read: list[Path] = []
    real = scanner._entries
    monkeypatch.setattr(scanner, "_entries", lambda folder, seen: read.append(folder) or real(folder, seen))  # type: ignore[func-returns-value]
    found = scan(tree, Exclude(["x"]))
    assert read == [tree, tree / "thumbs"]
    assert found.excluded == [tree / "x"]


@pytest.mark.parametrize("pattern", ["", "/", "!a.png", "a\\b", "../a", "a/./b", "[[:digit:]].png"])
def test_a_pattern_that_means_nothing_here_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Exclude([pattern])
    assert refused.value.hint


def test_many_folders_of_any_depth_cost_no_more_than_their_number() -> None:
    path = PurePath(*["a"] * 200, "b")
    assert not Exclude(["/".join(["**", "a"] * 40) + "/c"])(path, is_folder=False)


# --- Commands ---


def test_add_leaves_out_what_is_excluded_and_says_so(cli: Cli, client: Client, collection: str, photos: Path) -> None:
    options = ("--exclude", "big/", "--exclude", "cats/*.jpg", "--exclude", "*.bmp")
    outcome = cli("add", photos, "--collection", collection, *options)
    assert outcome.exit_code == 0
    assert [item.id for item in client.list_items(collection)] == ["cats/a.png", "top.png"]
    assert f"--exclude leaves out 2 files and folders, such as {photos}/" in outcome.err
    assert "--exclude *.bmp matches nothing" in outcome.err


def test_embed_leaves_out_what_is_excluded_in_folders_only(cli: Cli, photos: Path) -> None:
    outcome = cli("embed", photos / "cats", photos / "top.png", "-o", "-", "--exclude", "*.png")
    assert outcome.exit_code == 0
    assert [Path(row["path"]).name for row in outcome.json_lines] == ["b.jpg", "top.png"]


def test_bench_leaves_out_what_is_excluded(photos: Path) -> None:
    assert bench_inputs._files([photos, photos / "top.png"], ["cats", "*.webp"]) == [
        photos / name for name in ("dogs/big/c.png", "top.png", "top.png")
    ]


def test_a_folder_of_which_everything_is_excluded_is_an_error_that_says_so(
    cli: Cli, collection: str, photos: Path
) -> None:
    outcome = cli("add", photos, "--collection", collection, "--exclude", "*")
    assert outcome.exit_code == 1
    assert f"{photos} has no images beside what --exclude leaves out, such as " in outcome.err


def test_a_wrong_pattern_is_wrong_usage(cli: Cli, photos: Path) -> None:
    (photos / "x.png").write_bytes(picture(1))
    outcome = cli("add", photos, "--collection", "c", "--exclude", "!x.png")
    assert outcome.exit_code == 2
    assert "'!x.png' would include what another pattern excludes" in outcome.err
