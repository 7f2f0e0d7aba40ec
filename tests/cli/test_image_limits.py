"""The limits on an image are options of every command that decodes images in this process."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from embedserve.errors import ImageTooLarge
from embedserve.images import codec
from embedserve.types import Limits
from tests.cli.outcome import Cli

pytest.importorskip("torch")


@pytest.mark.parametrize("command", ["train", "evaluate", "preview", "embed"])
def test_the_command_has_the_three_limits_with_the_defaults_of_serve(cli: Cli, command: str) -> None:
    shown = " ".join(cli(command, "--help").out.split())
    for name in ("max_image_pixels", "max_image_bytes", "max_image_side_px"):
        assert f"--{name.replace('_', '-')}" in shown
        assert str(getattr(Limits(), name)) in shown


def test_an_image_beyond_a_limit_is_left_out_and_the_reason_names_the_limit(
    cli: Cli, photos: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (200, 200)).save(photos / "large.png")
    out = tmp_path / "p.png"
    document = cli("preview", photos, "-o", out, "--images", 9, "--max-image-pixels", 39_999, "--json").json
    [skipped] = document["skipped"]
    assert skipped["path"] == "large.png"
    assert "max_image_pixels is 39999" in skipped["reason"]
    document = cli("preview", photos, "-o", out, "--overwrite", "--images", 9, "--json").json
    assert document["skipped"] == []


@pytest.mark.parametrize("value", ["0", "-1", "many", "4294967296"])
def test_a_limit_that_is_none_is_refused(cli: Cli, photos: Path, value: str) -> None:
    assert cli("train", photos, "--dry-run", "--max-image-pixels", value).exit_code == 2


def test_a_picture_of_8192_by_6144_passes_by_default_and_one_beyond_64_million_pixels_does_not() -> None:
    out = io.BytesIO()
    Image.new("L", (8192, 6144), 200).save(out, "PNG", compress_level=1)
    pixels = codec.decode(out.getvalue())
    assert pixels.shape == (6144, 8192, 3)
    assert (pixels[::512, ::512] == 200).all()
    out = io.BytesIO()
    Image.new("1", (8000, 8001)).save(out, "PNG")
    with pytest.raises(ImageTooLarge, match="max_image_pixels is 64000000"):
        codec.decode(out.getvalue())
