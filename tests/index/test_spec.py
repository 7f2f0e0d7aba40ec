"""Index specifications, and what they mean for a number of rows."""

from __future__ import annotations

import pytest

from embedserve.errors import InvalidInput
from embedserve.index.spec import IndexSpec, hnsw_bytes_per_row, parse, resolve

GIB = 1 << 30


@pytest.mark.parametrize("text", ["auto", "exact", "hnsw", "hnsw:m=16", "hnsw:m=16,ef_construction=80", "ivf:nlist=64"])
def test_a_specification_is_printed_as_it_was_parsed(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


def test_parameters_have_defaults() -> None:
    assert (parse("hnsw").get("m"), parse("hnsw").get("ef_construction")) == (32, 40)
    assert (parse("hnsw:m=8").get("m"), parse("hnsw:m=8").get("ef_construction")) == (8, 40)
    assert parse("ivf").get("nlist") == 0


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no index"),
        ("HNSW", "no index"),
        ("pq:m=8", "'pq:m=8'"),
        ("exact:m=8", "none"),
        ("auto:m=8", "none"),
        ("hnsw:nlist=8", "m, ef_construction"),
        ("hnsw:m", "m, ef_construction"),
        ("hnsw:m=", "number from 4 to 128"),
        ("hnsw:m=3", "number from 4 to 128"),
        ("hnsw:m=129", "number from 4 to 128"),
        ("hnsw:m=-8", "number from 4 to 128"),
        ("hnsw:m=8.0", "number from 4 to 128"),
        ("hnsw:m=1" + "0" * 5000, "number from 4 to 128"),
        ("hnsw:m=²", "number from 4 to 128"),
        ("ivf:nlist=0", "number from 1 to 1048576"),
        ("hnsw: m=8", "m, ef_construction"),
    ],
)
def test_an_invalid_specification_is_refused_and_the_message_names_what_is_allowed(text: str, word: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert word in f"{caught.value} {caught.value.hint}"
    assert len(str(caught.value)) < 300


def test_a_small_collection_is_exact_and_a_large_one_has_graphs_while_they_fit_into_memory() -> None:
    def kind(total: int, rows: int, memory_bytes: int = 4 * GIB, dimension: int = 256) -> str:
        spec = parse("auto")
        return resolve(spec, total=total, rows=rows, dimension=dimension, memory_bytes=memory_bytes).kind

    assert kind(20_480, 20_480) == "exact"
    assert kind(20_481, 20_481) == "hnsw"
    # Bytes count, not rows.
    assert kind(20_481, 20_481, dimension=128) == "exact"
    assert kind(1_000_000, 4095) == "exact"
    assert kind(1_000_000, 4096) == "hnsw"
    needed = 1_000_000 * hnsw_bytes_per_row(parse("hnsw"), 256)
    assert kind(1_000_000, 1_000_000, needed) == "hnsw"
    assert kind(1_000_000, 1_000_000, needed - 1) == "ivf"
    # The rows of all segments count, not only those of this one.
    assert kind(1_000_000, 5_000, needed - 1) == "ivf"
    assert kind(4_000_000, 4_000_000, 1000 * GIB) == "hnsw"
    assert kind(4_000_001, 5_000, 1000 * GIB) == "ivf"


def test_the_memory_of_a_graph_is_its_vectors_and_links() -> None:
    # Measured with FAISS 1.15.1: 272 bytes more than the vector with m = 32.
    assert hnsw_bytes_per_row(parse("hnsw:m=32"), 256) == 4 * 256 + 272


@pytest.mark.parametrize(
    ("text", "rows", "expected"),
    [
        ("ivf", 1_000_000, "ivf:nlist=4000"),
        ("ivf", 10_000, "ivf:nlist=256"),  # 400 lists would have 25 rows each
        ("ivf:nlist=64", 1_000_000, "ivf:nlist=64"),
        ("ivf:nlist=64", 78, "ivf:nlist=2"),
        ("ivf:nlist=64", 39, "ivf:nlist=1"),
        ("ivf:nlist=64", 38, "exact"),
        ("ivf", 1, "exact"),
        ("hnsw:m=8", 1, "hnsw:m=8"),
        ("exact", 10**7, "exact"),
    ],
)
def test_a_requested_kind_is_kept_with_no_more_lists_than_its_rows_fill(text: str, rows: int, expected: str) -> None:
    found = resolve(parse(text), total=rows, rows=rows, dimension=64, memory_bytes=GIB)
    assert str(found) == expected
    assert isinstance(found, IndexSpec)
