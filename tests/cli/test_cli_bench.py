"""`embedserve bench serve` as a person types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from embedserve import Client
from tests.certificates import Authority
from tests.cli.outcome import Cli
from tests.fakes import FakeEncoder
from tests.running import serving

QUICK = ["--seconds", "0.2", "--warmup-s", "0", "--size", "32x32"]


def test_it_prints_a_table_with_a_row_for_each_run_and_a_verdict(cli: Cli) -> None:
    outcome = cli("bench", "serve", *QUICK, "--clients", "1,3", "--rate", "50%,40")
    assert outcome.exit_code == 0
    for shown in ("images/s", "p50 ms", "p99 ms", "client CPU", "1 client ", "3 clients", "(50%)", "40.0/s", "Most: "):
        assert shown in outcome.out
    assert "24 drawn JPEGs of 32x32" in outcome.err


def test_json_and_plot_are_written(cli: Cli, tmp_path: Path) -> None:
    json_out, svg, html = tmp_path / "out.json", tmp_path / "out.svg", tmp_path / "out.html"
    cli("bench", "serve", *QUICK, "--clients", "1", "--rate", "30", "--json", json_out, "--plot", svg)
    document = json.loads(json_out.read_text())
    assert [run["loop"] for run in document["runs"]] == ["closed", "open"]
    assert document["server"]["encoder"]["name"] == "fake"
    assert document["server"]["limits"]["max_images"] == 64
    assert document["client"]["versions"].keys() >= {"embedserve", "grpcio", "python"}
    assert document["command"][:3] == ["embedserve", "bench", "serve"]
    assert len(ET.parse(svg).findall(".//{http://www.w3.org/2000/svg}polyline")) == 2

    assert cli("bench", "serve", *QUICK, "--clients", "1", "--plot", html).exit_code == 0
    assert html.read_text().startswith("<!doctype html>")


def test_json_on_standard_output_stands_alone(cli: Cli) -> None:
    outcome = cli("bench", "serve", *QUICK, "--clients", "2", "--json", "-")
    assert [run["clients"] for run in outcome.json["runs"]] == [2]
    assert outcome.json["ok"] is True


def test_own_images_are_sent(cli: Cli, photos: Path) -> None:
    outcome = cli("bench", "serve", photos, *QUICK, "--clients", "1", "--per-call", "2", "--json", "-")
    assert outcome.exit_code == 0
    assert outcome.json["inputs"].startswith(f"5 images of {photos}")
    assert outcome.json["options"]["per_call"] == 2


def test_a_stream_of_the_sample_is_sent(cli: Cli) -> None:
    outcome = cli("bench", "serve", "--sample", "--stream", *QUICK, "--clients", "4")
    assert outcome.exit_code == 0
    assert "1000 images of the sample" in outcome.err


def test_the_exit_code_is_1_where_calls_failed_unless_that_is_allowed(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    line = ["bench", "serve", tmp_path, *QUICK, "--clients", "1"]
    outcome = cli(*line)
    assert outcome.exit_code == 1
    assert "IMAGE_FORMAT" in outcome.out
    assert "--allow IMAGE_FORMAT" in outcome.err
    assert cli(*line, "--allow", "overloaded,image_format").exit_code == 0


def test_a_server_that_asks_for_a_token_and_certificates_is_loaded(cli: Cli, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    (tmp_path / "tokens").write_text("read read-token-of-a-test\n")
    (tmp_path / "token").write_text("read-token-of-a-test\n")
    config = {**authority.issue().server, "tokens": tmp_path / "tokens"}
    with serving(FakeEncoder(), **config) as address:
        line = ["bench", "serve", *QUICK, "--server", address, "--clients", "2", "--ca", authority.file]
        for more in ([], ["--stream"]):
            outcome = cli(*line, *more, "--token-file", tmp_path / "token")
            assert outcome.exit_code == 0, outcome.err
        assert "asks for a token" in cli(*line).err


def test_search_and_upsert_leave_the_collection_as_it_was(cli: Cli, client: Client, collection: str) -> None:
    client.create_collection(collection)
    for line in (["upsert"], ["upsert", "--vectors", "--per-call", "100"], ["search"], ["search", "--vectors"]):
        outcome = cli("bench", "serve", *QUICK, "--clients", "2", "--collection", collection, "--call", *line)
        assert outcome.exit_code == 0, outcome.err
        assert ("deleted the" in outcome.err) == ("upsert" in line)
    assert client.get_collection(collection).items == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--clients", "0"], "'0' is not a number of clients"),
        (["--clients", "1,x"], "'x' is not a number of clients"),
        (["--rate", "0%"], "'0%' is not a rate"),
        (["--rate", "-5"], "'-5' is not a rate"),
        (["--allow", "BUSY?"], "'BUSY?' is not the code of an error"),
        (["--allow", "OVERLOADD"], "'OVERLOADD' is not the code of an error"),
        (["--plot", "out.png"], "ends neither in .svg nor in .html"),
        (["--call", "search"], "needs --collection"),
        (["--collection", "photos"], "takes no --collection"),
        (["--vectors"], "--vectors needs --call"),
        (["--stream", "--call", "search", "--collection", "c"], "no --call search"),
        (["--size", "big"], "'big' is not the size"),
        (["--size", "9999x9999"], "max_image_pixels"),
        (["--per-call", "65"], "max_images"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_sent(cli: Cli, line: list[str], said: str) -> None:
    outcome = cli("bench", "serve", *line)
    assert outcome.exit_code == 2
    assert said in outcome.err


def test_an_unreachable_server_is_one_sentence(cli: Cli) -> None:
    outcome = cli("bench", "serve", "--server", "127.0.0.1:1", *QUICK)
    assert outcome.exit_code == 1
    assert "no server answers at 127.0.0.1:1" in outcome.err


def test_an_unknown_collection_is_one_sentence(cli: Cli) -> None:
    outcome = cli("bench", "serve", *QUICK, "--call", "search", "--collection", "nowhere")
    assert outcome.exit_code == 1
    assert "nowhere" in outcome.err


def test_a_result_that_cannot_be_written_is_one_sentence(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedserve.atomic_write.check_writable", lambda *_, **__: None)  # its folder goes later
    outcome = cli("bench", "serve", *QUICK, "--clients", "1", "--json", tmp_path / "none" / "out.json")
    assert outcome.exit_code == 1
    assert "cannot be written" in outcome.err
    assert "images/s" in outcome.out, "what was measured is printed all the same"


def test_ctrl_c_prints_what_was_measured_until_then(server: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    line = ["bench", "serve", "--server", server, "--size", "32x32", "--clients", "2,4", "--seconds", "600"]
    process = subprocess.Popen(
        [sys.executable, "-m", "embedserve", *line, "--warmup-s", "0", "--json", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        with Client(server) as client:
            assert process.stderr is not None
            for said in process.stderr:
                if said.startswith("sending"):
                    break
            # Only calls of this tool embed anything here; the first one begins its run.
            while not client.server_info().images_in_flight:
                assert process.poll() is None
        process.send_signal(signal.SIGINT)
        shown, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, said
    assert "2 clients" in shown
    assert "4 clients" not in shown
    assert "interrupted" in said
    assert [run["cut_short"] for run in json.loads(out.read_text())["runs"]] == ["stopped"]
