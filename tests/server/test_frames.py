"""What a call costs in Python: functions of ours that are entered, and hand-overs between threads. Counted, not timed.

The bounds are what exactly this counted on 2026-11-25, with Python 3.11, before the modules moved into their folders.
Newer Pythons enter no frames for comprehensions, so they count less. Where a change makes a call cheaper, lower them.
"""

from __future__ import annotations

import statistics
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import pytest

import embedserve
from embedserve.encoder.session import Encoder
from embedserve.server.app import Server
from embedserve.v1 import collection_service_pb2 as collections_pb
from embedserve.v1 import common_pb2
from embedserve.v1 import embedding_service_pb2 as embedding_pb
from embedserve.v1 import search_service_pb2 as search_pb
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from embedserve.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from embedserve.v1.search_service_pb2_grpc import SearchServiceStub
from tests.encoders import write_encoder_file
from tests.fakes import picture
from tests.running import serving, wait_until

OURS = str(Path(embedserve.__file__).parent)
THREADS = {"server": "loop", "embed-": "embed", "search-": "search", "write": "write"}
"""How a thread's name begins → what its functions are counted under."""
ASLEEP = {"poll", "select", "control", "acquire", "get"}
"""C functions in which those threads wait: the event loop, the batcher's workers, pools and search threads."""
WAKING = {"notify", "run_in_executor"}
CALLS = 15


class Frames:
    """A profile function that counts how often functions of ours are entered or resumed, by kind of thread.

    Under "hand-overs" it counts what wakes another thread: callbacks given to the event loop, and conditions notified,
    queues put to and work submitted to a pool by code of ours.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.functions: Counter[tuple[str, str]] = Counter()
        self._kinds: dict[int, str] = {}
        self._asleep: dict[int, bool] = {}

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        thread = threading.get_ident()
        if thread not in self._kinds:
            name = threading.current_thread().name
            kind = next((kind for beginning, kind in THREADS.items() if name.startswith(beginning)), "")
            if not kind:
                sys.setprofile(None)
                return
            self._kinds[thread] = kind
        self._asleep[thread] = event == "c_call" and arg.__name__ in ASLEEP
        if event == "call":
            code = frame.f_code
            if code.co_filename.startswith(OURS):
                self.counts[self._kinds[thread]] += 1
                self.functions[self._kinds[thread], code.co_qualname] += 1
            elif code.co_name == "call_soon_threadsafe" or (code.co_name in WAKING and _is_ours(frame.f_back)):
                self.counts["hand-overs"] += 1
        elif event == "c_call" and arg.__name__ == "put" and _is_ours(frame):
            self.counts["hand-overs"] += 1

    def are_quiet(self) -> bool:
        """Whether every thread that is watched waits for something to do."""
        return all(list(self._asleep.values()))


def _is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(OURS)


class Watched:
    """A server whose calls are counted."""

    def __init__(self, channel: grpc.Channel, server: Server, frames: Frames) -> None:
        self.channel, self._server, self._frames = channel, server, frames

    def check(self, call: Callable[[], object], bounds: dict[str, int]) -> None:
        """Count several calls, after some that warm up; the median of each count is within its bound.

        What a test that fails prints says which functions were entered, and how often for each call.
        """
        found = []
        for number in range(2 * CALLS):
            if number == CALLS:
                self._frames.functions.clear()
            self._frames.counts.clear()
            call()
            wait_until(lambda: not self._server.metrics.calls_in_flight and self._frames.are_quiet())
            found.append(self._frames.counts.copy())
        for (kind, function), times in sorted(self._frames.functions.items()):
            print(f"{times / CALLS:6.2f} {kind:6} {function}")
        counted = {kind: int(statistics.median(counts[kind] for counts in found[CALLS:])) for kind in found[-1]}
        assert counted.keys() == bounds.keys()
        assert {kind: count for kind, count in counted.items() if count > bounds[kind]} == {}, f"bounds: {bounds}"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("frames")
    encoder = write_encoder_file(directory / "encoder.onnx")
    frames, servers = Frames(), list[Server]()
    threading.setprofile(frames)
    try:
        with (
            serving(Encoder.open(encoder), directory / "data", max_batch=8, on_listening=servers.append) as address,
            grpc.insecure_channel(address) as channel,
        ):
            yield Watched(channel, servers[0], frames)
    finally:
        threading.setprofile(None)


def test_embedding_one_image_enters_no_more_functions_than_it_did(watched: Watched) -> None:
    stub, request = EmbeddingServiceStub(watched.channel), embedding_pb.EmbedRequest(images=[picture(1)])
    watched.check(lambda: stub.Embed(request, timeout=20), {"loop": 60, "embed": 29, "hand-overs": 2})


VECTOR = common_pb2.Vector(values=[1.0, 0.0, 0.0, 0.0])
METADATA = {
    "label": common_pb2.MetadataValue(string_value="a"),
    "price": common_pb2.MetadataValue(int64_value=3),
}


def upsert(collection: str, item_id: str) -> collections_pb.UpsertRequest:
    item = collections_pb.UpsertItem(id=item_id, vector=VECTOR, metadata=METADATA)
    return collections_pb.UpsertRequest(collection=collection, items=[item])


def filled(watched: Watched, collection: str) -> CollectionServiceStub:
    """A new collection with 20 items; none shares one, since what was written before changes what a call does."""
    stub = CollectionServiceStub(watched.channel)
    stub.CreateCollection(collections_pb.CreateCollectionRequest(name=collection, external=True, dimension=4))
    for number in range(20):
        stub.Upsert(upsert(collection, str(number)), timeout=20)
    return stub


def test_searching_with_metadata_enters_no_more_functions_than_it_did(watched: Watched) -> None:
    filled(watched, "searched")
    stub = SearchServiceStub(watched.channel)
    request = search_pb.SearchRequest(
        collection="searched", queries=[search_pb.SearchQuery(vector=VECTOR)], include_metadata=True
    )
    assert len(stub.Search(request, timeout=20).results[0].hits.hits) == 10
    watched.check(lambda: stub.Search(request, timeout=20), {"loop": 114, "search": 177, "hand-overs": 2})


def test_writing_one_item_enters_no_more_functions_than_it_did(watched: Watched) -> None:
    stub, request = filled(watched, "written"), upsert("written", "0")
    watched.check(lambda: stub.Upsert(request, timeout=20), {"loop": 88, "write": 71, "hand-overs": 2})
