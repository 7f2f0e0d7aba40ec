"""The preprocess rule of an encoder reaches the client whole, from today's server and from an older one."""

from __future__ import annotations

import pytest

from embedserve.client import messages
from embedserve.encoder.encoder_file import EncoderMetadata
from embedserve.images.pixel_rule import STORED, PixelRule
from embedserve.images.preprocess import PreprocessSpec
from embedserve.server.services.embedding import _preprocess_to_proto
from embedserve.v1 import embedding_service_pb2 as pb


def received(preprocess: pb.Preprocess) -> PreprocessSpec:
    """The rule that the client's description has."""
    info = messages.encoder_info(
        pb.GetEncoderResponse(
            encoder=pb.Encoder(name="e", size_px=64, preprocess=preprocess, metadata_json="{}", dimension=3)
        )
    )
    red, green, blue = info.pad_colour or (255, 255, 255)
    return PreprocessSpec(
        size_px=info.size_px,
        resize_px=info.resize_px,
        filter=info.filter,
        fit=info.fit,
        pad_colour=(red, green, blue),
        pixels=PixelRule(colour=info.colour, value_range=info.value_range, bands=info.bands),
    )


@pytest.mark.parametrize(
    "spec",
    [
        PreprocessSpec(size_px=64),
        PreprocessSpec(size_px=64, resize_px=74, filter="bicubic", pixels=STORED),
        PreprocessSpec(size_px=64, fit="pad", pad_colour=(0, 128, 255)),
        PreprocessSpec(size_px=64, pixels=PixelRule(value_range=(-1000, 2000.5), bands=(4, 3, 2))),
        PreprocessSpec(size_px=64, pixels=PixelRule(value_range=(0, 1), bands=(2,))),
    ],
    ids=str,
)
def test_the_client_is_told_the_rule_that_the_encoder_has(spec: PreprocessSpec) -> None:
    metadata = EncoderMetadata(name="e", dimension=3, preprocess=spec)
    assert received(_preprocess_to_proto(metadata)) == spec


@pytest.mark.parametrize(("resize_px", "fit"), [(74, "crop"), (0, "squeeze")])
def test_of_an_older_server_the_client_tells_what_was_done_then(resize_px: int, fit: str) -> None:
    spec = received(pb.Preprocess(size_px=64, resize_px=resize_px, filter="bilinear"))
    assert (spec.fit, spec.pixels) == (fit, STORED)
