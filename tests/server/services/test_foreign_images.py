"""Callers are told what it is that they sent instead of an image, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedserve import Client, ItemInput
from embedserve.errors import ImageError, ImageFormatError, ImageUndecodable
from embedserve.types import Keep, Media
from tests.fakes import FakeEncoder
from tests.images.quarters import quarters
from tests.running import serving


def test_what_is_no_image_is_named_over_the_wire_with_what_to_do(tmp_path: Path) -> None:
    page = tmp_path / "photo.jpg"
    page.write_bytes(b"<!DOCTYPE html><title>404</title>")
    with serving(FakeEncoder(), tmp_path / "data") as address, Client(address) as client:
        for image, named, todo in (
            (quarters("PDF"), "not a readable image, but a PDF document", "pdftoppm"),
            (page, "not a readable image, but an HTML page", "download the image again"),
            (b"data:image/png;base64,AAAA", "not a readable image, but a data: URL", "b64decode"),
        ):
            with pytest.raises(ImageFormatError, match=named) as caught:
                client.embed([image])
            assert todo in caught.value.hint
        with pytest.raises(ImageUndecodable, match="file of zero bytes") as damaged:
            client.embed([bytes(1000)])
        assert damaged.value.hint == "copy it again"


@pytest.mark.parametrize("format", ["AVIF", "PNG"])
def test_originals_that_are_kept_have_their_media_type(format: str, tmp_path: Path) -> None:
    data = quarters(format)
    with serving(FakeEncoder(), tmp_path / "data") as address, Client(address) as client:
        client.create_collection("photos", keep=Keep.ORIGINALS)
        client.add("photos", [ItemInput(id="a", image=data)])
        [item] = client.get_items("photos", ["a"], include_media=True)
    assert item is not None
    assert item.media == Media(data=data, media_type=f"image/{format.lower()}")


def test_each_image_of_a_call_has_its_own_error(tmp_path: Path) -> None:
    with serving(FakeEncoder(), tmp_path / "data") as address, Client(address) as client:
        found = client.embed([quarters("PNG"), b"hello, text", quarters("AVIF")], errors="keep")
    assert [type(error) for error in (found.errors[n] for n in found.errors)] == [ImageFormatError]
    assert all(isinstance(error, ImageError) for error in found.errors.values())
