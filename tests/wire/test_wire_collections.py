"""Collections and checks over the wire come out as they went in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embedserve import wire
from embedserve.types import CheckProgress, CheckReport, CollectionInfo, Keep, Recall
from embedserve.v1 import collection_service_pb2 as pb

counts = st.integers(0, 2**40)
small = st.integers(0, 2**31)
fractions = st.integers(0, 1_000_000).map(lambda millionths: millionths / 1e6)
times = st.integers(0, 2**34).map(lambda quarters: quarters / 4)
recalls = st.builds(Recall, value=fractions, queries=small, real=st.booleans(), measured_unix_s=times)
texts = st.text(max_size=20)
infos = st.builds(
    CollectionInfo,
    name=texts,
    fingerprint=texts,
    encoder_name=texts,
    dimension=st.integers(1, 65_536),
    keep=st.sampled_from(Keep),
    created_unix_s=times,
    items=counts,
    aliases=st.lists(texts).map(tuple),
    index=texts,
    disk_bytes=counts,
    index_spec=st.sampled_from(["auto", "exact", "hnsw:m=32"]),
    target_recall=fractions.filter(bool),
    filter_keys=st.lists(texts).map(tuple),
    recall=st.none() | recalls,
    building=st.booleans(),
    segments=small,
    unsealed=counts,
    deleted=counts,
)
reports = st.builds(
    CheckReport,
    items=counts,
    segments=small,
    searched=counts,
    recall=st.none() | recalls,
    problems=st.lists(texts).map(tuple),
)
steps = st.builds(CheckProgress, stage=texts, done=counts, total=counts) | reports


@given(infos)
def test_a_collection_comes_out_as_it_went_in(info: CollectionInfo) -> None:
    sent = wire.collection_to_proto(info).SerializeToString()
    assert wire.collection_from_proto(pb.Collection.FromString(sent)) == info


@given(steps)
def test_a_step_of_a_check_comes_out_as_it_went_in(step: CheckProgress | CheckReport) -> None:
    sent = wire.check_step_to_proto(step).SerializeToString()
    assert wire.check_step_from_proto(pb.CheckCollectionResponse.FromString(sent)) == step


def test_an_older_server_says_nothing_of_index_and_target() -> None:
    older = pb.Collection(name="photos", keep_media=pb.KEEP_MEDIA_NONE)
    info = wire.collection_from_proto(older)
    assert (info.index_spec, info.target_recall, info.recall, info.filter_keys) == ("auto", 0.95, None, ())
