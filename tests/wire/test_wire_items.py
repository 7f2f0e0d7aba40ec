"""Hits and their metadata as messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embedserve import wire
from embedserve.types import Hit, Metadata, check_metadata, metadata_bytes, metadata_bytes_at_most
from embedserve.v1 import search_service_pb2

metadata_values = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), max_size=4)
)
any_metadata = st.dictionaries(st.from_regex(r"[a-zäß_]{1,20}", fullmatch=True), metadata_values, max_size=6)


@given(any_metadata)
def test_metadata_comes_back_with_the_same_values_and_types(metadata: Metadata) -> None:
    hits = search_service_pb2.SearchHits()
    wire.hits_into(hits, [Hit(id="a", score=0.5, metadata=metadata)], wire.FLOATS)
    found = wire.metadata_from_proto(
        search_service_pb2.SearchHits.FromString(hits.SerializeToString()).hits[0].metadata
    )
    assert found == metadata
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in metadata.items()}


@given(any_metadata)
def test_the_cheap_bound_on_the_size_of_metadata_is_never_too_low(metadata: Metadata) -> None:
    check_metadata(metadata)
    assert metadata_bytes(metadata) <= metadata_bytes_at_most(metadata)


def test_a_query_without_hits_has_a_result_that_is_set() -> None:
    response = search_service_pb2.SearchResponse()
    wire.hits_into(response.results.add().hits, [], wire.FLOATS)
    [result] = search_service_pb2.SearchResponse.FromString(response.SerializeToString()).results
    assert result.WhichOneof("result") == "hits"
