"""Vectors, metadata and hits as messages: what is written quickly is what protobuf would have written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve import wire
from embedserve.errors import InvalidInput
from embedserve.types import Hit, Metadata, check_metadata, metadata_bytes, metadata_bytes_at_most
from embedserve.v1 import common_pb2, search_service_pb2

numbers = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=600)
metadata_values = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), max_size=4)
)
any_metadata = st.dictionaries(st.from_regex(r"[a-zäß_]{1,20}", fullmatch=True), metadata_values, max_size=6)


@given(numbers)
def test_floats_are_written_as_protobuf_writes_them_and_read_back_bit_for_bit(values: list[float]) -> None:
    vector = np.array(values, np.float32)
    message = wire.vector_to_proto(vector)
    assert message == common_pb2.Vector(values=vector.tolist())
    assert message.SerializeToString() == common_pb2.Vector(values=vector.tolist()).SerializeToString()
    assert wire.vector_from_proto(message).tobytes() == vector.tobytes()


def test_a_vector_without_numbers_stays_one() -> None:
    assert wire.vector_to_proto(np.empty(0, np.float32)) == common_pb2.Vector()
    with pytest.raises(InvalidInput, match="has no numbers"):
        wire.vector_from_proto(common_pb2.Vector())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("field_is_first", [True, False])
def test_floats_are_read_the_same_packed_or_one_by_one_and_beside_a_field_of_a_later_version(
    packed: bool, field_is_first: bool
) -> None:
    vector = np.arange(1, 301, dtype=np.float32) / 7
    later = b"\xfa\x07\x05later"  # field 127, a text
    if packed:
        encoded = common_pb2.Vector(values=vector.tolist()).SerializeToString()
    else:
        encoded = b"".join(b"\x0d" + number.tobytes() for number in vector.astype("<f4"))
    message = common_pb2.Vector.FromString(later + encoded if field_is_first else encoded + later)
    assert wire.vector_from_proto(message).tobytes() == vector.tobytes()


def test_floats_that_are_read_may_be_changed() -> None:
    read = wire.vector_from_proto(common_pb2.Vector(values=[1, 2, 3]))
    read[0] = 5
    assert read.tolist() == [5, 2, 3]


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
def test_the_quick_bound_on_the_size_of_metadata_is_never_too_low(metadata: Metadata) -> None:
    check_metadata(metadata)
    assert metadata_bytes(metadata) <= metadata_bytes_at_most(metadata)


def test_a_query_without_hits_is_answered_and_not_left_empty() -> None:
    response = search_service_pb2.SearchResponse()
    wire.hits_into(response.results.add().hits, [], wire.FLOATS)
    [result] = search_service_pb2.SearchResponse.FromString(response.SerializeToString()).results
    assert result.WhichOneof("result") == "hits"
