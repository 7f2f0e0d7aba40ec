"""What large answers cost the server, and how soon work ends whose caller has left.

    python benchmarks/soaking/answers.py          about 40 s; exit code 1 if a bound is exceeded

One server with two collections. (a) Callers ask at the same time for 16 queries with k=1000 over items of 16 KiB of
metadata: each answer is refused, as it fits no message, or fits just so. The peak of the process must stay below what
docs/serving.md states. (b) Callers of searches and backups that take seconds leave; the time from then until the
server's threads rest must be at most 100 ms, and SIGTERM beside such calls must be obeyed within the drain time.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
import numpy as np
from measuring.bare import BUILT_IN, make_encoder
from measuring.child import Child, real_server
from measuring.machine import memory_mb

from embedserve import Client, ItemInput
from embedserve.types import Eq, Limits, Not
from embedserve.v1 import collection_service_pb2 as collection_pb
from embedserve.v1 import common_pb2
from embedserve.v1 import search_service_pb2 as search_pb
from embedserve.v1.collection_service_pb2_grpc import CollectionServiceStub
from embedserve.v1.search_service_pb2_grpc import SearchServiceStub
from embedserve.wire import filter_to_proto

CALLERS = 6
LARGE, MANY = 1000, 100_000
METADATA_BYTES = 16_000
D = 16
END_WITHIN_MS = 100.0
GRACE_S = 5
STOP_WITHIN_S = GRACE_S + 5.0
OWN_MB = 150.0
"""Of threads, allocators and what else a process gathers in a burst, beside what is stated."""
LEAVE_AFTER_S = 0.6
QUIET_S = 0.05
"""A server rests if none of its threads has had anything to do for so long."""
LONGEST_REST_S = 20.0
TRIES = 3
"""The median counts: on a busy machine a thread may wait for a core for longer than it works."""


def run() -> tuple[dict[str, float], list[str]]:
    """The figures, and a sentence for each bound that was exceeded."""
    with tempfile.TemporaryDirectory(prefix="embedserve-answers-") as folder:
        encoder = Path(folder) / "encoder.onnx"
        backbone, size_px, _ = BUILT_IN["light"]
        make_encoder(backbone, size_px, encoder)
        with real_server(encoder, "--data", str(Path(folder) / "data"), "--grace-s", str(GRACE_S)) as child:
            fill(child.address)
            figures, violations = memory(child)
            ends, late = leaving(child)
            figures |= ends
            violations += late
            took_s, code = stopping(child)
            figures["stopped_after_s"] = took_s
            if took_s > STOP_WITHIN_S or code != 0:
                violations.append(f"SIGTERM was obeyed after {took_s:.1f} s with exit code {code}")
    return figures, violations


def fill(address: str) -> None:
    """One collection with large metadata, and one with many items and facets."""
    random = np.random.default_rng(7)
    with Client(address, timeout_s=120) as client:
        client.create_collection("large", external=True, dimension=D)
        client.create_collection("many", external=True, dimension=D, filter_keys=["tags"])
        vectors = random.standard_normal((MANY, D)).astype(np.float32)
        client.add("large", [
            ItemInput(id=f"l{n}", vector=vectors[n], metadata={"text": f"{n:06}" * (METADATA_BYTES // 6)})
            for n in range(LARGE)
        ])  # fmt: skip
        client.add("many", (
            ItemInput(id=f"m{n}", vector=vectors[n], metadata={"one": "value", "n": n,
                      "tags": [f"{n}-{tag}" for tag in range(8)]})
            for n in range(MANY)
        ))  # fmt: skip


def memory(child: Child) -> tuple[dict[str, float], list[str]]:
    """The peak of the process while several callers ask for more than fits a message."""
    pid, limits = child.process.pid, Limits()
    before, peak = memory_mb(pid, "VmRSS") or 0.0, [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], memory_mb(pid, "VmRSS") or 0.0)

    def ask(stub: SearchServiceStub, queries: int) -> str:
        request = search_request("large", queries, k=1000, include_metadata=True)
        try:
            return f"{len(stub.Search(request, timeout=30).results)} results"
        except grpc.RpcError as error:
            return str(error.code().name)

    watching = threading.Thread(target=watch)
    watching.start()
    with grpc.insecure_channel(child.address, [("grpc.max_receive_message_length", -1)]) as channel:
        stub = SearchServiceStub(channel)
        for queries in (16, 1, 64):
            with ThreadPoolExecutor(CALLERS) as pool:
                outcomes = list(pool.map(lambda _, queries=queries: ask(stub, queries), range(CALLERS * 2)))
            print(f"  {queries:3} queries with k=1000: {sorted(set(outcomes))}", flush=True)
    done.set()
    watching.join()
    bound = before + 4 * getattr(limits, "max_answer_bytes", 128 << 20) / 1e6 + OWN_MB
    figures = {"memory_before_mb": before, "memory_peak_mb": peak[0], "memory_bound_mb": bound}
    return figures, [f"the server took {peak[0]:.0f} MB; {bound:.0f} are allowed"] if peak[0] > bound else []


def leaving(child: Child) -> tuple[dict[str, float], list[str]]:
    """Milliseconds from a caller's leaving to the end of its work, for each kind of work."""
    one = Not(Eq("n", -1))
    kinds: dict[str, search_pb.SearchRequest | None] = {
        "grouped": search_request("many", 64, group_by="one"),
        "filtered": search_request("many", 64, filter=filter_to_proto(one), k=1000, include_metadata=True),
        "exact": search_request("many", 64, exact=True, k=1000),
        "backup": None,
    }
    figures: dict[str, float] = {}
    violations = []
    with grpc.insecure_channel(child.address) as channel:
        for kind, request in kinds.items():
            walls, used = [], []
            for _ in range(TRIES):
                rest(child.process.pid)
                calls = [begin(channel, request) for _ in range(8)]
                time.sleep(LEAVE_AFTER_S)
                for call in calls:
                    call.cancel()
                before_ms = cpu_ms(child.process.pid)
                walls.append(rest(child.process.pid))
                used.append(cpu_ms(child.process.pid) - before_ms)
            took_ms, cpu = statistics.median(walls), statistics.median(used)
            figures |= {f"{kind}_ended_ms": took_ms, f"{kind}_cpu_ms": cpu}
            if took_ms > END_WITHIN_MS:
                violations.append(f"{kind}: work went on for {took_ms:.0f} ms after its callers had left")
            print(f"  {kind}: ended {took_ms:.0f} ms after its callers left, {cpu:.0f} ms of CPU time", flush=True)
    return figures, violations


def stopping(child: Child) -> tuple[float, int]:
    """Seconds from SIGTERM to the end of the process beside long calls, and its exit code."""
    with grpc.insecure_channel(child.address) as channel:
        calls = [begin(channel, search_request("many", 64, group_by="one")) for _ in range(4)]
        calls += [begin(channel, None) for _ in range(2)]
        time.sleep(LEAVE_AFTER_S)
        begun = time.monotonic()
        try:
            code = child.stop()
        except Exception:
            code = -1
        took_s = time.monotonic() - begun
        for call in calls:
            call.cancel()
    return took_s, code


def begin(channel: grpc.Channel, request: search_pb.SearchRequest | None) -> Any:
    """A call that takes long, without waiting for it."""
    if request is None:
        return CollectionServiceStub(channel).BackupCollection(collection_pb.BackupCollectionRequest(name="many"))
    return SearchServiceStub(channel).Search.future(request, timeout=300)


def rest(pid: int) -> float:
    """Milliseconds until no thread of the process has anything to do, to about 5 ms."""
    begun = time.monotonic()
    quiet_since: float | None = None
    while (now := time.monotonic()) - begun < LONGEST_REST_S:
        if works(pid):
            quiet_since = None
        elif quiet_since is None:
            quiet_since = now
        elif now - quiet_since > QUIET_S:
            return (quiet_since - begun) * 1000
        time.sleep(0.003)
    return LONGEST_REST_S * 1000


def cpu_ms(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def works(pid: int) -> bool:
    """Whether a thread of a process runs, would run if it had a core, or waits for the disk."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # the thread has ended
            continue
        if state in "RD":
            return True
    return False


def search_request(collection: str, queries: int, *, k: int = 10, **options: Any) -> search_pb.SearchRequest:
    """A search for random vectors."""
    vectors = np.random.default_rng(queries).standard_normal((queries, D)).astype("<f4")
    asked = [search_pb.SearchQuery(vector=common_pb2.Vector(packed_f32=vector.tobytes())) for vector in vectors]
    return search_pb.SearchRequest(collection=collection, queries=asked, k=k, **options)


if __name__ == "__main__":
    found, wrong = run()
    for name, value in found.items():
        print(f"{name:20} {value:8.1f}")
    print("\n".join(wrong) or "all bounds are kept")
    sys.exit(1 if wrong else 0)
