"""Graphs and inverted lists against exact search: what they find, what they must not return, and their files."""

from __future__ import annotations

import gc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedserve.index import kernels, structures
from embedserve.index.search_params import SearchParams
from embedserve.index.spec import IndexSpec, parse, resolve
from embedserve.index.structures import Hnsw, Ivf, Stopped, Structure

KINDS = ["hnsw:m=16", "ivf:nlist=32"]
HARDEST = {"hnsw": 1024, "ivf": 10**6}


def clustered(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows around count/50 centres: float32 [count, dimension], unit norm."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(count // 50, 1), dimension))
    rows = centres[random.integers(0, len(centres), count)] + 0.7 * random.standard_normal((count, dimension))
    scaled: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled.astype(np.float32)


def never() -> bool:
    return False


def built(text: str, vectors: NDArray[np.float32]) -> Structure:
    spec = resolve(parse(text), total=len(vectors), rows=len(vectors), dimension=vectors.shape[1], memory_bytes=1 << 40)
    structure = structures.build(spec, vectors, never)
    assert structure is not None
    return structure


def recall(structure: Structure, vectors: NDArray[np.float32], queries: NDArray[np.float32], param: int) -> float:
    """Share of the ten nearest rows that are found."""
    found, _ = structure.search(queries, 10, param)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return clustered(4000, 60)


@pytest.fixture(scope="module")
def pair(vectors: NDArray[np.float32]) -> dict[str, Structure]:
    return {kind: built(kind, vectors) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_recall_rises_with_the_parameter_up_to_nearly_one(
    pair: dict[str, Structure], vectors: NDArray[np.float32], kind: str
) -> None:
    structure, queries = pair[kind], clustered(4100, 60)[4000:]
    values = list(structure.param_values)
    assert values == sorted(set(values))
    recalls = [recall(structure, vectors, queries, param) for param in values]
    assert recalls[-1] > 0.98
    assert recalls[0] < recalls[-1]
    assert all(later > earlier - 0.03 for earlier, later in pairwise(recalls))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_inner_products_of_the_rows_at_their_positions(
    pair: dict[str, Structure], vectors: NDArray[np.float32], kind: str
) -> None:
    queries = clustered(30, 60, seed=5)
    positions, scores = pair[kind].search(queries, 15, 64)
    assert positions.dtype == np.int64
    assert scores.dtype == np.float32
    assert positions.shape == scores.shape == (30, 15)
    for query, places, found in zip(queries, positions, scores, strict=True):
        assert len(set(places.tolist())) == 15
        assert np.abs(vectors[places].astype(np.float64) @ query - found).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [78, 100, 1001])
def test_few_rows_are_all_found(kind: str, count: int) -> None:
    vectors = clustered(count, 13)
    structure = built(kind, vectors)
    for k in (1, count - 1, count, count + 5):
        positions, scores = structure.search(vectors[:2], k, HARDEST[kind[: kind.index(":")]])
        assert positions.shape[1] <= max(k, count)
        for places in positions.tolist():
            there = [place for place in places if place >= 0]
            assert len(set(there)) == len(there) <= count
            assert set(there) <= set(range(count))
        assert ((positions < 0) == np.isneginf(scores)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimension", [2, 3, 8, 17, 100])
def test_any_dimension_is_built_and_searched(kind: str, dimension: int) -> None:
    vectors = clustered(500, dimension)
    structure = built(kind, vectors)
    _, scores = structure.search(vectors[:50], 1, HARDEST[kind[: kind.index(":")]])
    assert (scores[:, 0] > 1 - 1e-5).mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rows_are_found(kind: str) -> None:
    vectors = np.repeat(clustered(1, 16), 500, axis=0)
    positions, scores = built(kind, vectors).search(vectors[:4], 10, 64)
    assert (positions >= 0).all()
    assert np.abs(scores - 1).max() < 1e-5


def test_hnsw_takes_ef_and_ivf_takes_nprobe(pair: dict[str, Structure]) -> None:
    params = SearchParams(ef=70, nprobe=9)
    assert [pair[kind].given_param(params) for kind in KINDS] == [70, 9]


def test_ef_is_at_least_k(pair: dict[str, Structure], vectors: NDArray[np.float32]) -> None:
    positions, _ = pair["hnsw:m=16"].search(vectors[:20], 200, 16)
    assert (positions >= 0).all()


def test_the_recall_of_the_nearest_row_is_no_lower_with_k_1_than_with_k_10(
    pair: dict[str, Structure], vectors: NDArray[np.float32]
) -> None:
    queries = clustered(4200, 60)[4000:]
    nearest = np.argmax(queries @ vectors.T, axis=1)
    for structure in pair.values():
        for param in (16, 24):
            among_ten = (structure.search(queries, 10, param)[0] == nearest[:, None]).any(axis=1)
            alone = structure.search(queries, 1, param)[0][:, 0] == nearest
            assert alone.mean() >= among_ten.mean() - 0.02


def test_exact_search_needs_no_structure() -> None:
    assert structures.build(IndexSpec("exact"), clustered(10, 4), never) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asks", [0, 1, 5])
def test_a_build_can_be_stopped(kind: str, asks: int) -> None:
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > asks

    with pytest.raises(Stopped):
        structures.build(parse(kind), clustered(4096 * 6, 4), stopped)
    assert len(asked) == asks + 1


@pytest.mark.parametrize("kind", KINDS)
def test_builds_are_deterministic(kind: str, vectors: NDArray[np.float32]) -> None:
    kernels.use_threads(1)
    queries = clustered(20, 60, seed=8)
    first, second = (built(kind, vectors[:1000]).search(queries, 10, 4) for _ in range(2))
    assert np.array_equal(first[0], second[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_structure_read_from_its_file_gives_the_same_answers(
    tmp_path: Path, pair: dict[str, Structure], vectors: NDArray[np.float32], kind: str
) -> None:
    structure = pair[kind]
    structure.write(tmp_path / "index")
    opened = structures.open_structure(structure.spec, tmp_path / "index", None if kind.startswith("hnsw") else vectors)
    assert type(opened) is type(structure)
    assert opened.spec == structure.spec
    queries = clustered(30, 60, seed=9)
    for param in (2, 40):
        expected, got = structure.search(queries, 12, param), opened.search(queries, 12, param)
        assert np.array_equal(expected[0], got[0])
        assert np.array_equal(expected[1], got[1])


def test_a_file_of_another_kind_or_size_is_refused(
    tmp_path: Path, pair: dict[str, Structure], vectors: NDArray[np.float32]
) -> None:
    graph, lists = (pair[kind] for kind in KINDS)
    graph.write(tmp_path / "graph")
    lists.write(tmp_path / "lists")
    with pytest.raises(ValueError, match="HNSW"):
        structures.open_structure(lists.spec, tmp_path / "graph", vectors)
    with pytest.raises(ValueError, match="RaBitQ"):
        structures.open_structure(graph.spec, tmp_path / "lists", vectors)
    with pytest.raises(ValueError, match="RaBitQ"):
        structures.open_structure(lists.spec, tmp_path / "lists", None)
    with pytest.raises(ValueError, match="4000 codes of 60"):
        structures.open_structure(lists.spec, tmp_path / "lists", vectors[1:])
    with pytest.raises(ValueError, match="4000 codes of 60"):
        structures.open_structure(lists.spec, tmp_path / "lists", vectors.reshape(8000, 30))
    (tmp_path / "half").write_bytes((tmp_path / "graph").read_bytes()[:5000])
    (tmp_path / "none").write_bytes(b"")
    for name in ("half", "none", "missing"):
        with pytest.raises(ValueError, match="Error in"):
            structures.open_structure(graph.spec, tmp_path / name, vectors)


def test_vectors_of_a_graph_are_the_rows_and_outlive_the_graph() -> None:
    vectors = clustered(5000, 33)
    graph = built("hnsw:m=8", vectors)
    assert isinstance(graph, Hnsw)
    view = graph.vectors[10:20]
    assert not view.flags.writeable
    assert view.flags.c_contiguous
    del graph
    gc.collect()
    # Freed memory is overwritten.
    rubbish = [np.full((5000, 33), 7, np.float32) for _ in range(20)]
    assert np.array_equal(view, vectors[10:20])
    assert len(rubbish) == 20


def test_inverted_lists_hold_no_copy_of_the_vectors(pair: dict[str, Structure], vectors: NDArray[np.float32]) -> None:
    lists = pair["ivf:nlist=32"]
    assert isinstance(lists, Ivf)
    assert lists.vectors is vectors
