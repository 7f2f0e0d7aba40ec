"""The search benchmark runs, and what it is made of measures what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measuring.machine import PeakMemory, Tree
from numpy.typing import NDArray
from searching import data as search_data
from searching import report
from searching.comparison import OWN, Plan, add_ratios, kind_of, tuned
from searching.data import Clusters, clustered, recall, true_neighbours
from searching.loads import found_by, search_loop, to_json
from searching.processes import Failed, Place, SystemProcess, opened

from scripts import readme_tables
from tests.encoders import write_encoder_file
from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = Plan(rounds=1, seconds=0.1, warmup_s=0.05, targets=(0.9, 0.99), recall_queries=20, build_within_s=60)


def run(*arguments: str) -> str:
    """What search_peers.py prints."""
    command = [sys.executable, "benchmarks/search_peers.py", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- Data -----------------------------------------------------------------------------------------------------------


def test_clusters_are_unit_vectors_the_same_ones_for_a_seed_and_queries_are_none_of_them(tmp_path: Path) -> None:
    one = clustered(tmp_path / "one", 600, 24, 30, seed=3)
    again = clustered(tmp_path / "two", 600, 24, 30, seed=3)
    other = clustered(tmp_path / "one", 600, 24, 30, seed=4)
    assert np.allclose(np.linalg.norm(one.vectors(), axis=1), 1, atol=1e-5)
    assert np.array_equal(one.vectors(), again.vectors())
    assert not np.array_equal(one.vectors(), other.vectors())
    assert (one.queries() @ one.vectors().T).max() < 0.9999
    assert one.describe().keys() >= {"about", "vectors", "dimension", "top1_cosine", "relative_contrast"}


def test_chunks_change_nothing_but_the_memory_that_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = search_data.unit(random.standard_normal((500, 16)).astype(np.float32))
    queries = search_data.unit(random.standard_normal((20, 16)).astype(np.float32))
    whole = true_neighbours(vectors, queries)
    monkeypatch.setattr(search_data, "CHUNK", 64)
    assert np.array_equal(true_neighbours(vectors, queries), whole)
    Clusters(8).write(tmp_path / "vectors.npy", 200)
    assert np.load(tmp_path / "vectors.npy").shape == (200, 8)


def test_true_neighbours_are_those_of_float64_also_among_some_rows_only() -> None:
    random = np.random.default_rng(1)
    vectors, queries = (search_data.unit(random.standard_normal((n, 12)).astype(np.float32)) for n in (300, 15))
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    assert np.array_equal(true_neighbours(vectors, queries), np.argsort(-exact, axis=1, kind="stable")[:, :10])
    rows = np.array([3, 50, 51, 200])
    among = true_neighbours(vectors, queries, rows=rows)
    assert np.array_equal(among[:, :4], rows[np.argsort(-exact[:, rows], axis=1, kind="stable")])
    assert (among[:, 4:] == -1).all()


def test_recall_is_the_share_of_the_true_neighbours_that_there_are() -> None:
    truth = np.array([[1, 2, 3, 4], [5, -1, -1, -1]], np.int32)
    assert recall(np.array([[4, 3, 9, 8], [5, -1, -1, -1]]), truth) == 0.75
    assert recall(np.array([[4, 3, 2, 1], [-1, -1, -1, -1]]), truth) == 0.5


# --- Loads ----------------------------------------------------------------------------------------------------------


def test_the_closed_loop_counts_the_calls_after_the_warm_up_of_all_its_clients() -> None:
    sizes: list[tuple[str, int]] = []

    def client(_threads: int) -> Any:
        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            sizes.append((threading.current_thread().name, len(queries)))
            time.sleep(0.005)
            return np.zeros((len(queries), 10), np.int64)

        return search

    queries = np.zeros((7, 4), np.float32)
    result = to_json(search_loop(client, queries, clients=4, per_call=3, warmup_s=0.1, seconds=0.2))
    assert {size for _, size in sizes} == {3}
    assert len({name for name, _ in sizes}) == 4
    assert result["queries"] == 3 * len(sizes)
    assert 0 < len(result["taken_ms"]) < len(sizes)
    assert min(result["taken_ms"]) >= 5
    assert result["qps"] <= 4 * 3 / 0.005


def test_a_search_client_that_cannot_begin_is_named_and_the_others_do_not_wait() -> None:
    def client(_threads: int) -> Any:
        raise ConnectionError("nobody there")

    with pytest.raises(ConnectionError, match="nobody there"):
        search_loop(client, np.zeros((1, 4), np.float32), clients=3, per_call=1, warmup_s=0, seconds=0.1)


def test_queries_are_asked_in_rotation_and_each_client_begins_elsewhere() -> None:
    asked: dict[str, list[list[float]]] = {}

    def client(_threads: int) -> Any:
        def search(queries: NDArray[np.float32]) -> NDArray[np.int64]:
            asked.setdefault(threading.current_thread().name, []).append(queries[:, 0].tolist())
            time.sleep(0.005)
            return np.zeros((len(queries), 10), np.int64)

        return search

    queries = np.arange(5, dtype=np.float32)[:, None]
    search_loop(client, queries, clients=2, per_call=2, warmup_s=0, seconds=0.05)
    first, second = sorted(asked.values())
    assert first[:4] == [[0, 1], [2, 3], [4, 0], [1, 2]]
    assert second[:3] == [[2, 3], [4, 0], [1, 2]]


def test_calls_longer_than_the_window_are_measured_all_the_same() -> None:
    def client(_threads: int) -> Any:
        return lambda queries: time.sleep(0.1)

    result = to_json(
        search_loop(client, np.zeros((4, 4), np.float32), clients=1, per_call=1, warmup_s=0.01, seconds=0.02)
    )
    assert min(result["taken_ms"]) >= 100
    assert 0 < result["qps"] <= 10


def test_missing_hits_are_minus_one() -> None:
    found = found_by(lambda _: lambda queries: np.ones((len(queries), 3), np.int64), np.zeros((5, 4), np.float32), 2)
    assert found.shape == (5, 10)
    assert (found[:, :3] == 1).all()
    assert (found[:, 3:] == -1).all()


# --- Processes ------------------------------------------------------------------------------------------------------


def place(folder: Path, implementation: str) -> Place:
    return Place(name="tried", python=Path(sys.executable), implementation=implementation, folder=folder)


def test_a_system_in_a_separate_process_is_built_tuned_and_loaded(tmp_path: Path) -> None:
    data = clustered(tmp_path, 2000, 16, 40)
    (tmp_path / "built").mkdir()
    where = place(tmp_path / "built", "peers.search.faiss_index:Hnsw")
    with SystemProcess(where) as process:
        assert process.ask("build", vectors=str(data.vectors_file))["seconds"] >= 0
    with opened(where, data.queries_file, data.truth_file) as system:
        assert system.others == []  # threads of one process share a library
        sweep, chosen = tuned(system, PLAN)
        assert chosen.keys() == {"0.9", "0.99"}
        assert sweep[chosen["0.99"]] >= 0.99
        loaded = system.load(chosen["0.99"], clients=2, per_call=1, warmup_s=0.05, seconds=0.2)
        assert loaded.qps > 0
        assert len(loaded.taken_ms) > 0
        memory, server = system.memory_mb()
        assert memory > 10
        assert server == 0
        root = system.first.tree.root
    assert not Path(f"/proc/{root}").exists()


def test_errors_of_a_system_are_reported_and_the_process_ends(tmp_path: Path) -> None:
    with SystemProcess(place(tmp_path, "peers.search.faiss_index:Flat")) as process:
        with pytest.raises(Failed, match=r"index\.faiss"):
            process.ask("open")
        with pytest.raises(Failed, match="no answer within 0 s"):
            process.answer(within_s=0.05)  # nothing was asked
    with (
        SystemProcess(place(tmp_path, "peers.search.faiss_index:Missing")) as process,
        pytest.raises(Failed, match="Missing"),
    ):
        process.ask("open")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
def test_the_peak_memory_is_kept_after_it_has_fallen() -> None:
    with PeakMemory(Tree(os.getpid(), "a mark that no process has"), every_s=0.01) as peak:
        block = np.ones(8 << 20, np.float64)
        wait_until(lambda: peak.mb > 64)
        full = peak.mb
        del block
    assert peak.mb >= full > 64


# --- Comparison and report ------------------------------------------------------------------------------------------


class Recalls:
    """Stands in the place of an opened system: settings with the recall that each has."""

    def __init__(self, recalls: dict[str, float]) -> None:
        self.recalls, self.first, self.described = recalls, self, {"ladder": list(recalls)}
        self.asked: list[str] = []

    def ask(self, do: str, *, setting: str, **_: Any) -> dict[str, float]:
        assert do == "recall"
        self.asked.append(setting)
        return {"recall": self.recalls[setting]}


def test_the_first_setting_that_reaches_a_target_is_chosen_and_nothing_is_tried_beyond() -> None:
    system: Any = Recalls({"ef=8": 0.8, "ef=16": 0.95, "ef=32": 0.98, "ef=64": 0.995, "ef=128": 1.0})
    assert tuned(system, PLAN)[1] == {"0.9": "ef=16", "0.99": "ef=64"}
    assert "ef=128" not in system.asked


def test_the_default_of_a_system_is_a_separate_setting_unless_it_is_the_only_one() -> None:
    several: Any = Recalls({OWN: 0.999, "ef=8": 0.8, "ef=16": 0.99})
    assert tuned(several, PLAN)[1] == {OWN: OWN, "0.9": "ef=16", "0.99": "ef=16"}
    alone: Any = Recalls({OWN: 1.0})
    assert tuned(alone, PLAN)[1] == {"0.9": OWN, "0.99": OWN}


def leg(*qps: float, disturbed: bool = False) -> dict[str, Any]:
    return {
        "qps": float(np.median(qps)),
        "cpu_ms": 0.5,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "disturbed": disturbed,
        "by_round": {"qps": list(qps)},
    }


def system_of(about: str, targets: dict[str, tuple[float, dict[str, Any]]], what: str = "library") -> dict[str, Any]:
    return {
        "about": about,
        "what": what,
        "build": {"seconds": 1.5, "peak_mb": 70.0},
        "disk_mb": 3.0,
        "memory_mb": 50.0,
        "server_mb": None,
        "problem": "",
        "targets": {
            target: {"setting": "x", "recall": value, "modes": modes} for target, (value, modes) in targets.items()
        },
    }


def modes_of(*qps: float) -> dict[str, Any]:
    return {mode: leg(*qps) for mode in report.MODES}


def compared() -> dict[str, Any]:
    systems = {
        "FAISS HNSW": system_of("HNSW32", {"0.95": (0.96, modes_of(1000, 2000))}),
        "FAISS IVF+RaBitQ": system_of("IVF+RaBitQfs", {"0.95": (0.95, modes_of(4000, 1000))}),
        "embedserve": system_of(
            "gRPC; HNSW", {"0.95": (0.96, modes_of(500, 500)), OWN: (0.97, modes_of(250, 250))}, "server, gRPC"
        ),
        "Chroma": system_of("HNSW", {"0.95": (0.95, modes_of(800, 800))}, "store in the process of the caller"),
    }
    add_ratios(systems, ["FAISS HNSW", "FAISS IVF+RaBitQ"])
    return {"name": "made", "systems": systems}


def test_ratios_are_to_the_fastest_bare_faiss_of_the_same_round_and_to_the_same_kind_of_index() -> None:
    targets = compared()["systems"]["embedserve"]["targets"]
    batch = targets["0.95"]["modes"]["batch"]
    assert batch["of_faiss"] == round((500 / 4000 + 500 / 2000) / 2, 3)
    assert batch["of_same_index"] == round((500 / 1000 + 500 / 2000) / 2, 3)
    assert targets[OWN]["modes"]["batch"]["of_same_index"] == round(batch["of_same_index"] / 2, 3)
    assert [kind_of(words) for words in ("gRPC; IVF of 64", "HNSW32", "exact (flat)")] == ["ivf", "hnsw", "flat"]


def test_missed_aims_name_the_peer_that_is_ahead() -> None:
    document = {"data": [compared()], "embedserve": {"restart": {"items": 7, "ready_s": 1.5}}}
    found = {aim["aim"]: aim for aim in report.aims(document)}
    batches = found["made: batches ≥ 0.7 of bare FAISS"]
    assert not batches["reached"]
    eight = found["made: 8 clients ahead of every peer behind a process or language boundary"]
    assert (eight["reached"], eight["mode"]) == (False, "eight")
    assert eight["measured"] == "500 queries/s, Chroma 800"  # FAISS is a library in the process of the caller
    assert found["restart of 7 items < 2 s"]["reached"]


def test_lines_are_sorted_by_speed_and_mark_what_was_disturbed() -> None:
    data = compared()
    data["systems"]["Chroma"]["targets"]["0.95"]["modes"]["eight"]["disturbed"] = True
    data["systems"]["Chroma"]["problem"] = "it ended"
    lines = report.rows_of(data, "0.95")
    assert [name for name, _ in lines] == ["FAISS IVF+RaBitQ", "FAISS HNSW", "Chroma", "embedserve"]
    assert lines[2][1][2] == "800*"
    assert all(len(cells) == len(report.HEADER) for _, cells in lines)
    assert report.notes(data) == ["Chroma: it ended", "* more than 0.2 cores were busy with something else"]


# --- The whole ------------------------------------------------------------------------------------------------------


def test_peers_that_are_not_installed_are_left_out_with_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/search_peers.py", "--only", "Chroma", "--environment", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "nothing left to measure" in done.stderr
    assert "skipped: Chroma (not installed" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
def test_embedserve_is_measured_beside_faiss_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, out = write_encoder_file(tmp_path / "encoder.onnx"), tmp_path / "search_peers.json"
    options = ["--data", "clustered", "--vectors", "2000", "--dimension", "16", "--queries", "60", "--quick"]
    options += ["--seconds", "0.2", "--only", "FAISS Flat", "--only", "FAISS HNSW", "--only", "embedserve"]
    said = run(*options, "--encoder", str(encoder), "--work", str(tmp_path / "work"), "--json", str(out))
    document = json.loads(out.read_text(encoding="utf-8"))

    [data] = document["data"]
    assert data["systems"].keys() == {"FAISS Flat", "FAISS HNSW", "embedserve"}
    for name, one in data["systems"].items():
        assert not one["problem"], name
        assert one["targets"]["0.95"]["recall"] >= 0.95
        for mode in report.MODES:
            figures = one["targets"]["0.95"]["modes"][mode]
            assert min(figures["qps"], figures["cpu_ms"], figures["of_faiss"]) > 0, (name, mode)
            assert 0 < figures["p50_ms"] <= figures["p99_ms"]
        assert one["disk_mb"] > 0
        assert one["build"]["peak_mb"] > 0
        assert f"{one['targets']['0.95']['modes']['eight']['qps']:,.0f}" in said
    alone = document["embedserve"]
    assert 0 < alone["restart"]["ready_s"] <= alone["restart"]["first_hit_s"]
    assert alone["writes"]["upsert, 2 clients"]["rows_per_s"] > 0
    assert alone["writes"]["one by one, 4 clients searching"]["searches_per_s"] > 0
    for name, one in alone["filters"]["selectivity"].items():
        assert (one["short"], one["wrong"]) == (0, 0), name
        assert one["recall"] >= 0.95, name
    assert alone["filters"]["selectivity"]["0.1 %"]["matches"] == 2
    for mode in ("eight", "batch"):
        assert alone["profile"][mode]["server_cpu_ms_per_query"] > 0
        assert alone["profile"][mode]["event_loop"]
    assert len(document["aims"]) == 5  # none about peers, for there were none
    assert not list((tmp_path / "work").glob("built/*"))

    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    assert readme_tables.search_table().count("| embedserve |") == len(data["systems"]["embedserve"]["targets"])
    assert "restart with 2,000 items" in readme_tables.search_alone_table()
    assert readme_tables.large_search_table().startswith("Not measured yet")


def test_the_tables_of_the_readme_say_what_was_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    for table in (readme_tables.search_table, readme_tables.search_alone_table, readme_tables.large_search_table):
        assert table() == "Not measured yet: `make search-peers` does."
