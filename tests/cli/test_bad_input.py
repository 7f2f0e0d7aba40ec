"""What a person gets for a slip: one sentence that names it, a hint, an exit code, and no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest

from embedserve import Client
from embedserve.cli import main
from scripts import cli_doc
from tests.cli.outcome import Cli
from tests.fakes import picture

SLIPS: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "training on an empty folder": (lambda p: ["train", p / "empty"], "has no images"),
    "training on a folder that is not there": (lambda p: ["train", p / "nowhere"], "nowhere"),
    "training on files that are no images": (lambda p: ["train", p / "broken", "-o", p / "run"], "can be read"),
    "training into a place that cannot be written": (
        lambda p: ["train", p / "good", "--epochs", "1", "-o", p / "file" / "run"],
        "cannot be created",
    ),
    "training with a batch larger than the data": (
        lambda p: ["train", p / "good", "--batch-size", "500", "-o", p / "run"],
        "batch_size is 500",
    ),
    "training with a setting that does not exist": (
        lambda p: ["train", p / "good", "--set", "speed=11"],
        "there is no setting 'speed'",
    ),
    "training with a method that does not exist": (
        lambda p: ["train", p / "good", "--method", "magic"],
        "method is 'magic'",
    ),
    "exporting what is no run": (lambda p: ["export", p / "good", "-o", p / "e.onnx"], "good"),
    "evaluating a file that is no encoder": (
        lambda p: ["evaluate", p / "file", p / "good"],
        "is not an ONNX model",
    ),
    "adding an empty folder": (lambda p: ["add", p / "empty", "--collection", "c"], "has no"),
    "searching a collection that is not there": (
        lambda p: ["search", p / "good" / "00.png", "--collection", "nowhere"],
        "there is no collection 'nowhere'",
    ),
    "asking a server that is not there": (
        lambda p: ["search", p / "good" / "00.png", "--collection", "c", "--server", "127.0.0.1:1"],
        "no server answers at 127.0.0.1:1",
    ),
    "embedding into a folder that is not there": (
        lambda p: ["embed", p / "good", "-o", p / "no" / "v.npy"],
        "cannot be written",
    ),
    "serving a file that is no encoder": (
        lambda p: ["serve", p / "file", "--port", "0", "--no-http"],
        "is not an ONNX model",
    ),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("empty", "broken", "good"):
        (tmp_path / name).mkdir()
    for number in range(20):
        (tmp_path / "good" / f"{number:02}.png").write_bytes(picture(number))
        (tmp_path / "broken" / f"{number:02}.png").write_bytes(picture(number)[:50])
    (tmp_path / "file").write_bytes(b"just a file")
    return tmp_path


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_answered_with_one_sentence_and_a_hint(slip: str, cli: Cli, place: Path) -> None:
    words, expected = SLIPS[slip]
    if words(place)[0] in ("train", "export", "evaluate"):
        pytest.importorskip("torch")
    outcome = cli(*words(place))
    assert outcome.exit_code in (1, 2)
    [error] = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert expected in error
    assert outcome.err.count("hint:") == 1
    assert "\nhint:  " in outcome.err
    assert "Traceback" not in outcome.err


def test_impossible_vectors_are_refused_with_a_hint(client: Client, collection: str) -> None:
    from embedserve import EmbedserveError

    client.create_collection(collection, external=True, dimension=3)
    for vector, expected in (([1, 2], "2 numbers"), ([1, float("nan"), 0], "number 1"), ([0, 0, 0], "zero")):
        with pytest.raises(EmbedserveError, match=expected) as refused:
            client.search(collection, vector=vector)
        assert refused.value.hint


NUMBERS = [
    (command, option.opts[0])
    for command, found in cli_doc.walk(main, "embedserve")
    for option in found.params
    if isinstance(option.type, click.types.FloatParamType) and command != "embedserve train"
]
"""Command and option, for every option that is a number with decimals; the plan of a training checks its own."""


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_a_number_is_finite(command: str, option: str, value: str) -> None:
    found = dict(cli_doc.walk(main, "embedserve"))[command]
    [parameter] = [parameter for parameter in found.params if option in parameter.opts]
    with pytest.raises(click.BadParameter, match=value):
        parameter.type.convert(value, parameter, None)


@pytest.mark.parametrize("seconds", ["31536001", "1e12"])
@pytest.mark.parametrize(("command", "option"), [("doctor", "--wait"), ("serve", "--grace-s")])
def test_a_time_to_wait_is_at_most_a_year(cli: Cli, place: Path, command: str, option: str, seconds: str) -> None:
    outcome = cli(command, *([place / "file"] if command == "serve" else []), option, seconds)
    assert outcome.exit_code == 2
    assert "31536000" in outcome.err
