"""A path of the wrong kind: one sentence that names it, a hint, exit code 2, whichever command it is given to."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from embedserve import Client
from embedserve.client import ItemInput, failures
from tests.cli.outcome import Cli
from tests.fakes import picture

FOLDER, FILE, ENCODER, RUN = "photos", "notes.txt", "encoder.onnx", "run"
IMAGE, NPY, EMPTY, PIPE, LOOP, MISSING = "a.png", "v.npy", "none.bin", "pipe", "loop", "gone"
ALL = {FOLDER, FILE, ENCODER, RUN, IMAGE, NPY, EMPTY, PIPE, LOOP, MISSING}
FILES = {FILE, ENCODER, IMAGE, NPY, EMPTY}

PLACES: dict[str, tuple[Callable[[Path], list[object]], set[str]]] = {
    # What a command is given → what is wrong there. A run is a folder, and a folder of images if it holds some.
    "train": (lambda p: ["train", p, "--dry-run"], ALL - {FOLDER, RUN}),
    "train @LIST": (lambda p: ["train", f"@{p}", "--dry-run"], {FOLDER, RUN, PIPE, LOOP, MISSING}),
    "preview": (lambda p: ["preview", p, "-o", p.parent / "out.png"], ALL - {FOLDER, RUN}),
    "demo": (lambda p: ["demo", p], ALL - {FOLDER, RUN}),
    "export": (lambda p: ["export", p, "-o", p.parent / "e.onnx"], ALL - {RUN}),
    "export --calibration": (
        lambda p: ["export", p.parent / "run", "-o", p.parent / "e.onnx", "--calibration", p],
        ALL - {FOLDER, RUN},
    ),
    "evaluate": (lambda p: ["evaluate", p, p.parent / "photos"], ALL - {RUN, ENCODER}),
    "evaluate on": (lambda p: ["evaluate", p.parent / "encoder.onnx", p], ALL - {FOLDER, RUN}),
    "evaluate --test": (
        lambda p: ["evaluate", p.parent / "encoder.onnx", p.parent / "photos", "--test", p],
        ALL - {FOLDER, RUN},
    ),
    "serve": (lambda p: ["serve", p, "--port", 0, "--no-http"], ALL - {ENCODER}),
    "serve --tokens": (lambda p: ["serve", p.parent / ENCODER, "--port", 0, "--no-http", "--tokens", p], ALL - FILES),
    "serve --data": (lambda p: ["serve", p.parent / ENCODER, "--port", 0, "--no-http", "--data", p], FILES | {PIPE}),
    "doctor": (lambda p: ["doctor", p], ALL - {ENCODER}),
    "embed": (lambda p: ["embed", p, "-o", "-"], {PIPE, LOOP, MISSING}),
    "embed --encoder": (lambda p: ["embed", p.parent / "photos", "-o", "-", "--encoder", p], ALL - {ENCODER}),
    "add": (lambda p: ["add", p, "--collection", "c"], ALL - {FOLDER, RUN}),
    "add --metadata": (
        lambda p: ["add", p.parent / "photos", "--collection", "c", "--metadata", p],
        ALL - FILES | {NPY, IMAGE},
    ),
    "search": (lambda p: ["search", p, "--collection", "c"], {FOLDER, RUN, LOOP, MISSING}),
    "bench serve": (lambda p: ["bench", "serve", p], {LOOP, MISSING}),
    "collection import": (
        lambda p: ["collection", "import", "new", p],
        ALL,
    ),
    "collection restore": (lambda p: ["collection", "restore", "new", p], ALL - FILES),
    "collection export to": (lambda p: ["collection", "export", "c", p], {FOLDER, RUN}),
    "collection backup to": (lambda p: ["collection", "backup", "c", p], {FOLDER, RUN}),
    "--token-file": (lambda p: ["collection", "list", "--token-file", p], ALL - FILES),
    "--ca": (lambda p: ["collection", "list", "--ca", p], ALL - FILES),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_file: Path) -> Path:
    """A folder with one path of each kind; ``gone`` is not there."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / FOLDER).mkdir()
    for number in range(3):
        (folder / FOLDER / f"{number:02}.png").write_bytes(picture(number))
    (folder / FILE).write_text("hello\n")
    (folder / IMAGE).write_bytes(picture(0))
    shutil.copy(tiny_encoder_file, folder / ENCODER)
    (folder / RUN).mkdir()
    (folder / RUN / "plan.json").write_text("{}")
    np.save(folder / NPY, np.zeros((3, 4), np.float32))
    (folder / EMPTY).write_bytes(b"")
    os.mkfifo(folder / PIPE)
    (folder / LOOP).symlink_to(LOOP)
    return folder


@pytest.mark.parametrize(
    ("place", "kind"), [(place, kind) for place, (_, wrong) in PLACES.items() for kind in sorted(wrong)]
)
def test_a_path_of_the_wrong_kind_is_named_with_a_hint_and_ends_with_2(
    cli: Cli, kinds: Path, place: str, kind: str
) -> None:
    if place == "evaluate":
        pytest.importorskip("torch")
    words, _ = PLACES[place]
    outcome = cli(*words(kinds / kind))
    assert outcome.err.count("error: ") == 1, outcome.err
    assert re.search(r"Traceback|Errno|a bug in|\b[A-Z]\w+(Error|Exception|Input)\b|<\w+ object", outcome.err) is None
    assert kind in outcome.err.split("hint: ")[0]
    assert "\nhint:  " in outcome.err, outcome.err
    assert outcome.exit_code == 2, outcome.err


def test_a_link_to_nothing_is_called_one(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to("unmounted")
    outcome = cli("train", tmp_path / "photos")
    assert outcome.exit_code == 2
    assert "photos is a link to something that is not there" in outcome.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("place", ["train", "export", "serve", "embed --encoder", "collection restore"])
def test_what_may_not_be_read_is_said(cli: Cli, kinds: Path, tmp_path: Path, place: str) -> None:
    closed = tmp_path / "closed"
    if place in {"train", "export"}:
        closed.mkdir()
    else:
        closed.touch()
    closed.chmod(0)
    # The other paths of the command line are those of the kinds.
    outcome = cli(*(str(word).replace(f"{tmp_path}/photos", f"{kinds}/photos") for word in PLACES[place][0](closed)))
    assert outcome.exit_code == 2
    assert "closed cannot be read: Permission denied\nhint:  " in outcome.err


def test_a_folder_given_twice_is_said(cli: Cli, kinds: Path) -> None:
    outcome = cli("add", kinds / FOLDER, kinds / FOLDER, "--collection", "c")
    assert outcome.exit_code == 2
    assert "00.png is given twice\nhint:  name each folder once" in outcome.err


def test_a_machine_that_has_no_address_is_said_without_the_words_of_grpc() -> None:
    details = (
        "errors resolving nowhere:50051: [field:hostname lookup error:lookup of nowhere:50051: Domain name not found]"
    )
    failed = failures._from_code(grpc.StatusCode.UNAVAILABLE, details, "nowhere:50051", 1.0, None)
    assert failed.message == "the name of nowhere:50051 leads to no machine: Domain name not found"
    assert "check the name" in failed.hint


def test_the_least_score_is_said_as_it_was_typed(cli: Cli, client: Client, collection: str, kinds: Path) -> None:
    client.create_collection(collection)
    client.add(collection, [ItemInput(id="a", image=kinds / FOLDER / "01.png")])
    outcome = cli("search", kinds / FOLDER / "00.png", "--collection", collection, "--min-score", "0.99999999")
    assert "a score of at least 0.99999999" in outcome.err
