"""A run's images follow its rule: in the cache, the kept samples, the plan and the encoder file."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedserve.encoder import encoder_file
from embedserve.images import codec, preprocess
from embedserve.images.pixel_rule import STORED, PixelRule
from embedserve.images.preprocess import PreprocessSpec
from embedserve.types import Limits
from embedserve_training.data import cache, folders
from embedserve_training.data.folders import Noted
from embedserve_training.export.export import export
from embedserve_training.plan.config import TrainConfig
from embedserve_training.run import run_folder, served
from embedserve_training.run.prepare import Prepared, prepare
from embedserve_training.run.run import run_training
from tests.compatibility.conftest import old

__all__ = ["old"]

Config = Callable[..., TrainConfig]


def quiet(_: str) -> None:
    """Discards the line."""


@pytest.fixture
def wide_folder(tmp_path: Path) -> Path:
    """16 PNGs of 32 × 16 pixels, of which the centre square says nothing: it is grey in all."""
    folder = tmp_path / "wide"
    folder.mkdir()
    for number in range(16):
        image = Image.new("RGB", (32, 16), (128, 128, 128))
        image.paste((16 * number, 255 - 16 * number, 40), (0, 0, 8, 16))
        image.save(folder / f"{number:02d}.png")
    return folder


def prepared(folder: Path, config: TrainConfig, out: Path, lines: list[str], **options: Any) -> Prepared:
    with ExitStack() as held:
        return prepare(folder, config, out, lines.append, processes=1, dry_run=False, fresh=False, held=held, **options)


@pytest.mark.parametrize("fit", ["crop", "squeeze", "pad"])
def test_cache_samples_and_plan_have_the_fit_that_was_asked_for(
    wide_folder: Path, tmp_path: Path, tiny_config: Config, fit: str
) -> None:
    colour = {"pad_colour": "0,0,255"} if fit == "pad" else {}
    config = tiny_config(fit=fit, **colour)
    ready = prepared(wide_folder, config, tmp_path / "run", [])
    document = json.loads((tmp_path / "run" / run_folder.PLAN).read_text())
    assert (document["settings"]["fit"], document["sources"]["fit"]) == (fit, "flag")
    spec = PreprocessSpec.from_json(document["preprocess"])
    assert (spec.fit, spec.size_px) == (fit, 16)
    assert ready.cached is not None
    images = cache.find_cache(tmp_path / "run" / run_folder.CACHE, ready.cached, ready.fingerprint)
    assert images is not None
    samples = np.load(tmp_path / "run" / run_folder.SAMPLES)
    for square in (images.pixels_NTTC[3], samples[3]):
        corner, left = square[0, 0].tolist(), square[8, 0].tolist()
        assert corner == {"crop": [128] * 3, "squeeze": [48, 207, 40], "pad": [0, 0, 255]}[fit]
        assert left == ([128] * 3 if fit == "crop" else [48, 207, 40])
    expected = [preprocess.load(spec, path.read_bytes()) for path in sorted(wide_folder.iterdir())]
    np.testing.assert_array_equal(samples, expected)


@pytest.mark.slow
def test_a_padding_run_makes_an_encoder_that_pads_and_is_measured_so(
    wide_folder: Path, tmp_path: Path, tiny_config: Config
) -> None:
    run = tmp_path / "run"
    run_training(wide_folder, config=tiny_config(fit="pad", value_range="0,4095"), out=run, report=quiet)
    exported = export(run, tmp_path / "encoder.onnx", report=quiet)
    spec = encoder_file.read(tmp_path / "encoder.onnx").metadata.preprocess
    assert spec == exported.metadata.preprocess
    assert (spec.fit, spec.pad_colour, spec.pixels.value_range) == ("pad", (255, 255, 255), (0, 4095))
    assert served.trained(run) is not None


def test_images_decoded_by_another_rule_are_not_taken_for_those_of_a_run(wide_folder: Path, tmp_path: Path) -> None:
    files = folders.scan(wide_folder)
    crop = PreprocessSpec(size_px=16, resize_px=16, filter="bicubic")
    pad = cache.cached_spec(replace(crop, fit="pad", resize_px=0), 16)
    one, other = (cache.open_cache(files, spec, tmp_path / "cache", workers=1) for spec in (crop, pad))
    assert one.fingerprint == other.fingerprint
    for spec, made in ((crop, one), (pad, other)):
        found = cache.find_cache(tmp_path / "cache", spec, made.fingerprint)
        assert found is not None
        np.testing.assert_array_equal(found.pixels_NTTC, made.pixels_NTTC)
    assert not np.array_equal(one.pixels_NTTC, other.pixels_NTTC)


def test_what_an_older_version_decoded_is_found_by_the_rule_that_it_had(wide_folder: Path, tmp_path: Path) -> None:
    before = PreprocessSpec(size_px=16, resize_px=16, filter="bicubic", pixels=STORED)
    made = cache.open_cache(folders.scan(wide_folder), before, tmp_path / "cache", workers=1)
    [index] = (tmp_path / "cache").glob("*.json")
    document = json.loads(index.read_text())
    del document["rule"], document["notes"]
    index.write_text(json.dumps(document))
    assert cache.find_cache(tmp_path / "cache", before, made.fingerprint) is not None
    assert cache.find_cache(tmp_path / "cache", replace(before, pixels=PixelRule()), made.fingerprint) is None


def test_an_interrupted_run_of_an_older_version_goes_on_by_its_own_rule(old: Path) -> None:
    stored = run_folder.read_plan(old / "run")
    assert "fit" not in stored.config
    ready = prepared(old / "images", TrainConfig(**stored.config), old / "run", [])
    assert ready.step is not None
    assert ready.cached is not None
    assert (ready.cached.fit, ready.cached.pixels) == ("crop", STORED)
    assert ready.cached.to_json().keys() == {"size_px", "resize_px", "filter"}
    assert (ready.plan.settings.fit, ready.plan.settings.colour, ready.plan.settings.value_range) == (
        "crop",
        "stored",
        "full",
    )


def test_what_was_decided_for_single_images_is_listed_and_counted(
    wide_folder: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = codec.decode

    def noting(data: bytes, *args: Any, notes: list[str] | None = None, **options: Any) -> Any:
        pixels = decode(data, *args, notes=notes, **options)
        if notes is not None and pixels[0, 0, 0] < 40:  # of 16 images the first three
            notes += ["the fourth band was left out"] * 2
        return pixels

    monkeypatch.setattr(preprocess, "decode", noting)
    lines: list[str] = []
    out = tmp_path / "run"
    ready = prepared(wide_folder, tiny_config(), out, lines)
    listed = [Noted(path=f"{number:02d}.png", note="the fourth band was left out") for number in range(3)]
    assert ready.notes == tuple(listed)
    assert (out / run_folder.NOTES).read_text().splitlines() == [f"{one.path}\t{one.note}" for one in listed]
    assert f"in 3 images: the fourth band was left out; listed in {out / run_folder.NOTES}" in lines
    document = json.loads((out / run_folder.PLAN).read_text())
    assert document["data"]["notes"] == {"the fourth band was left out": 3}
    monkeypatch.undo()
    [index] = (out / run_folder.CACHE).glob("*.json")  # a cache that is read again still knows them
    assert cache.open_cache(folders.scan(wide_folder), ready.cached, index.parent, workers=1).notes == ready.notes  # type: ignore[arg-type]


def test_images_beyond_the_limits_of_a_run_are_left_out_and_named(
    wide_folder: Path, tmp_path: Path, tiny_config: Config
) -> None:
    Image.new("RGB", (100, 100)).save(wide_folder / "large.png")
    limits = Limits(max_image_pixels=9_999)
    ready = prepared(wide_folder, tiny_config(), tmp_path / "run", [], limits=limits)
    assert [(entry.path, "max_image_pixels is 9999" in entry.reason) for entry in ready.skipped] == [
        ("large.png", True)
    ]
