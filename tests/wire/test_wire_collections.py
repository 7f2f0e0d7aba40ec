"""Collections and checks survive the wire unchanged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve import wire
from embedserve.types import CheckProgress, CheckReport, CollectionInfo, Keep, Recall
from embedserve.v1 import collection_service_pb2 as pb
from tests.logged import logged

KNOWN = CollectionInfo(
    name="photos", fingerprint="ab" * 32, encoder_name="e", dimension=4, keep=Keep.NONE, created_unix_s=1.0, items=0
)

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
def test_a_collection_survives_the_wire_unchanged(info: CollectionInfo) -> None:
    sent = wire.collection_to_proto(info).SerializeToString()
    assert wire.collection_from_proto(pb.Collection.FromString(sent)) == info


@given(steps)
def test_a_step_of_a_check_survives_the_wire_unchanged(step: CheckProgress | CheckReport) -> None:
    sent = wire.check_step_to_proto(step).SerializeToString()
    assert wire.check_step_from_proto(pb.CheckCollectionResponse.FromString(sent)) == step


def test_what_an_older_server_does_not_send_has_defaults() -> None:
    older = pb.Collection(name="photos", keep_media=pb.KEEP_MEDIA_NONE)
    info = wire.collection_from_proto(older)
    assert (info.index_spec, info.target_recall, info.recall, info.filter_keys) == ("auto", 0.95, None, ())


@pytest.mark.parametrize(("created_unix_s", "year"), [(3.0936e12, 9999), (-1e12, 1), (1e300, 9999)])
def test_a_time_beyond_the_wire_does_not_hide_a_collection(created_unix_s: float, year: int) -> None:
    message = wire.collection_to_proto(replace(KNOWN, created_unix_s=created_unix_s))
    assert message.created_at.ToDatetime().year == year
    assert wire.collection_from_proto(message).name == "photos"


@pytest.mark.parametrize("spoiled", [{"dimension": -1}, {"encoder_name": "\ud800"}, {"created_unix_s": float("nan")}])
def test_a_collection_that_no_message_holds_is_listed_by_its_name(
    spoiled: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert wire.collection_from_proto(wire.listed_to_proto(replace(KNOWN, **spoiled))).name == "photos"
    assert "a collection cannot be described, only named  collection=photos" in logged(caplog)
    assert wire.listed_to_proto(KNOWN) == wire.collection_to_proto(KNOWN)
