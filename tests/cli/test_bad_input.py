"""What a person gets for a slip: one sentence that names it, a hint, an exit code, and no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embedserve import Client
from tests.cli.outcome import Cli
from tests.fakes import picture

SLIPS: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "training on an empty folder": (lambda p: ["train", p / "empty"], "holds no images"),
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
    assert "\nhint:  " in outcome.err
    assert "Traceback" not in outcome.err


def test_impossible_vectors_are_refused_with_a_hint(client: Client, collection: str) -> None:
    from embedserve import EmbedserveError

    client.create_collection(collection, external=True, dimension=3)
    for vector, expected in (([1, 2], "2 numbers"), ([1, float("nan"), 0], "number 1"), ([0, 0, 0], "zero")):
        with pytest.raises(EmbedserveError, match=expected) as refused:
            client.search(collection, vector=vector)
        assert refused.value.hint
