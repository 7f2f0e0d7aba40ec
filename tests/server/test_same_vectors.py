"""The same images give the same vectors in every way of calling."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from embedserve import Client
from embedserve.cli import main
from embedserve.encoder.offline import embed
from embedserve.encoder.reference import lowest_cosine
from embedserve.encoder.session import SAME_VECTOR_COSINE, Encoder
from embedserve.engine.engine import Engine
from embedserve.images import preprocess
from tests.fakes import picture
from tests.running import serving

COUNT = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several formats and sizes, one of them large enough to be decoded at a reduced scale."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        format = ("PNG", "JPEG", "WEBP", "BMP")[number % 4]
        size = (1600, 1200) if number == 1 else (30 + number, 50)
        (folder / f"{number:02}.{format.lower()}").write_bytes(picture(number, format=format, size=size))
    return folder


@pytest.fixture(scope="module")
def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def encoder(encoder_file: Path) -> Encoder:
    return Encoder.open(encoder_file)


@pytest.fixture(scope="module")
def expected(encoder: Encoder, files: list[bytes]) -> np.ndarray:
    """One by one, by hand."""
    spec = encoder.metadata.preprocess
    return np.concatenate([encoder.encode(preprocess.load(spec, data)[None]) for data in files])


def assert_same(vectors: np.ndarray, expected: np.ndarray) -> None:
    assert vectors.shape == expected.shape
    assert lowest_cosine(vectors, expected) >= SAME_VECTOR_COSINE


def test_the_engine_in_this_process_gives_them(encoder: Encoder, files: list[bytes], expected: np.ndarray) -> None:
    async def scenario() -> list[Any]:
        engine = await Engine.start(encoder)
        try:
            _, vectors = await engine.embed(files)
            return vectors
        finally:
            await engine.close()

    assert_same(np.stack(asyncio.run(scenario())), expected)


def test_bulk_embedding_in_this_process_gives_them(encoder: Encoder, files: list[bytes], expected: np.ndarray) -> None:
    vectors = embed(encoder, [partial(bytes, data) for data in files])
    assert_same(np.stack([np.asarray(vector) for vector in vectors]), expected)


def test_grpc_gives_them_one_by_one_and_in_a_batch_of_32(
    encoder: Encoder, files: list[bytes], expected: np.ndarray
) -> None:
    with serving(encoder) as address, Client(address) as client:
        one_by_one = np.concatenate([client.embed([data]).vectors for data in files])
        batch = client.embed(files).vectors
    assert_same(one_by_one, expected)
    assert_same(batch, expected)


def test_the_command_gives_them_with_and_without_a_server(
    encoder: Encoder, encoder_file: Path, folder: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    runner = CliRunner()
    alone = tmp_path / "alone.npy"
    result = runner.invoke(main, ["embed", str(folder), "-o", str(alone), "--encoder", str(encoder_file)])
    assert result.exit_code == 0, result.output
    assert_same(np.load(alone), expected)
    with serving(encoder) as address:
        served = tmp_path / "served.npy"
        result = runner.invoke(main, ["embed", str(folder), "-o", str(served), "--server", address])
    assert result.exit_code == 0, result.output
    assert_same(np.load(served), expected)
