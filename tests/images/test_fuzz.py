"""Randomly damaged files and messages: `make fuzz` tries a hundred thousand, `make test` a thousand."""

from __future__ import annotations

import contextlib
import os
import random
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from embedserve.errors import EmbedserveError
from embedserve.images import codec, jpeg, preprocess
from embedserve.images.jpeg_header import read_header
from embedserve.images.pixel_rule import PixelRule
from embedserve.images.preprocess import PreprocessSpec
from embedserve.types import Limits
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1 import search_service_pb2 as search_pb
from tests.fakes import FakeEncoder, picture
from tests.mutation import mutated, samples
from tests.running import serving

CASES = int(os.environ.get("FUZZ_CASES", "0")) or 1000
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SPECS = (PreprocessSpec(size_px=32), PreprocessSpec(size_px=28, resize_px=32, filter="bicubic"))


@pytest.fixture(autouse=True)
def _pillow_warns_of_what_is_damaged() -> None:
    warnings.simplefilter("ignore")


def test_every_sample_is_an_image_before_it_is_damaged() -> None:
    for name, data in samples().items():
        assert codec.decode(data).ndim == 3, name


def test_damaged_files_give_pixels_or_an_error_of_ours() -> None:
    outcomes: Counter[str] = Counter()
    before_mib, slowest = _resident_mib(), (0.0, "")
    for number, (name, data) in enumerate(mutated(CASES, SEED)):
        begun = time.process_time()
        try:
            square = preprocess.load(SPECS[number % 2], data, Limits())
        except EmbedserveError as error:
            outcomes[error.code] += 1
        except Exception as error:
            raise AssertionError(f"{name}, case {number} of seed {SEED}: {type(error).__name__}: {error}") from error
        else:
            outcomes["OK"] += 1
            assert square.shape == (SPECS[number % 2].size_px,) * 2 + (3,)
            assert square.dtype == np.uint8
        slowest = max(slowest, (time.process_time() - begun, f"{name}, case {number}"))
    print(f"{CASES} damaged files: {dict(outcomes)}; slowest {slowest[0]:.2f} s ({slowest[1]})")
    assert set(outcomes) <= {"OK", "IMAGE_UNDECODABLE", "IMAGE_FORMAT", "IMAGE_TOO_LARGE"}
    assert min(outcomes["OK"], outcomes["IMAGE_UNDECODABLE"]) > CASES / 20  # both sides of the decoder are tried
    assert _resident_mib() < before_mib + 500


def test_nothing_is_written_about_damaged_files_of_optional_formats(capfd: pytest.CaptureFixture[str]) -> None:
    """The decoders of AVIF, HEIC and DICOM are silent, on standard error as in warnings."""
    tried = 0
    for name, data in mutated(CASES, SEED + 2):
        if name.startswith(("avif", "heic", "dicom")):
            tried += 1
            with contextlib.suppress(EmbedserveError):
                codec.decode(data)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert tried > CASES / 10


def test_a_damaged_jpeg_gives_the_pixels_that_pillow_gives_if_pillow_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("simplejpeg")
    quick = jpeg.decode_jpeg
    monkeypatch.setattr(codec, "decode_jpeg", lambda *_: None)
    compared = refused = 0
    for number, (name, data) in enumerate(mutated(CASES, SEED + 1)):
        if "jpeg" not in name:
            continue
        for min_side_px in (0, 16):
            try:
                pixels = quick(data, read_header(data), Limits(), PixelRule(), min_side_px)
            except EmbedserveError:
                continue
            if pixels is None:
                continue
            try:
                expected = codec.decode(data, min_side_px=min_side_px)
            except EmbedserveError:
                refused += 1
                continue
            compared += 1
            np.testing.assert_array_equal(pixels, expected, f"{name}, case {number} of seed {SEED + 1}")
    print(f"{compared} compared; {refused} that Pillow refuses")
    assert compared > CASES / 50


def test_damaged_messages_are_answered_with_a_status_of_ours_and_the_server_continues(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    item = collection_pb.UpsertItem(id="a", image=picture(1))
    messages = {
        "EmbeddingService/Embed": embedding_pb.EmbedRequest(images=[picture(1), picture(2)]),
        "SearchService/Search": search_pb.SearchRequest(
            collection="photos", k=5, queries=[search_pb.SearchQuery(image=picture(1))]
        ),
        "CollectionService/Upsert": collection_pb.UpsertRequest(collection="photos", items=[item]),
        "CollectionService/ListItems": collection_pb.ListItemsRequest(collection="photos", page_size=5),
    }
    codes: Counter[str] = Counter()
    with serving(FakeEncoder(), tmp_path / "data") as address, grpc.insecure_channel(address) as channel:
        create: Any = channel.unary_unary("/embedserve.v1.CollectionService/CreateCollection")
        create(collection_pb.CreateCollectionRequest(name="photos").SerializeToString(), timeout=20)
        for number in range(min(CASES // 4, 2000)):
            method, message = list(messages.items())[number % len(messages)]
            data = bytearray(message.SerializeToString())
            for _ in range(chance.choice((1, 3, 20))):
                at = chance.randrange(min(len(data), 60))
                data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            call: Any = channel.unary_unary(f"/embedserve.v1.{method}")
            codes[_code(call, bytes(data))] += 1
    print(dict(codes))
    assert set(codes) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}


def _code(call: Any, data: bytes) -> str:
    try:
        call(data, timeout=20)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def _resident_mib() -> float:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20) if statm.exists() else 0.0
