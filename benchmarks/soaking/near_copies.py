"""Recall where items are copies of each other: right after the build, and after a restart.

    python benchmarks/soaking/near_copies.py

24,000 vectors of 256 numbers, 40 around each of 600 random directions: near-copies in a collection with the index
"auto", exact copies in one with "hnsw:m=16". The queries are near an item, half-way between two directions, and unlike
all. Every kind must reach the target recall of the collection, 0.95, and a check must find nothing wrong.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from searching.data import K, unit

from embedserve.store.local.store import LocalStore
from embedserve.types import DEFAULT_TARGET_RECALL, EXTERNAL, Item, Keep, SearchOptions

DISTINCT, COPIES, DIMENSION = 600, 40, 256
QUERIES = 500
COLLECTIONS = {"near-copies": ("auto", 0.01), "exact-copies": ("hnsw:m=16", 0.0)}
"""Name → index, and how far the rows are from their direction."""


@dataclass(frozen=True)
class Asked:
    """Queries of one kind, and what they should find."""

    queries: NDArray[np.float32]
    """float32 [Q, D], unit norm."""
    lowest: NDArray[np.float64]
    """float64 [Q]: the score of the tenth nearest row."""

    def recall(self, store: LocalStore, name: str) -> float:
        """Share of the hits that are as near as the tenth nearest row."""
        options = SearchOptions(k=K, include_metadata=False)
        answers = store.search(name, self.queries, options, [None] * len(self.queries))
        scores = np.array([[hit.score for hit in hits] for hits in answers])
        return round(float((scores >= self.lowest[:, None] - 2e-6).mean()), 4)


def run() -> tuple[dict[str, Any], list[str]]:
    """Recall by collection, moment and kind of query, and what is below the target."""
    figures: dict[str, Any] = {}
    violations: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        asked = {}
        with LocalStore.open(data, background=False) as store:
            for name, (index, noise) in COLLECTIONS.items():
                vectors, asked[name] = _drawn(noise)
                begun = time.monotonic()
                _fill(store, name, index, vectors)
                figures[name] = {"seconds": round(time.monotonic() - begun, 1)}
            _ask(store, "after the build", asked, figures, violations)
        with LocalStore.open(data, background=False) as store:
            _ask(store, "after a restart", asked, figures, violations)
            for name in COLLECTIONS:
                problems = store.check_collection(name, lambda progress: None).problems
                violations += [f"{name}: the check says {problem}" for problem in problems]
    return figures, violations


def _ask(
    store: LocalStore,
    moment: str,
    asked: dict[str, dict[str, Asked]],
    figures: dict[str, Any],
    violations: list[str],
) -> None:
    for name, kinds in asked.items():
        figures[name]["index"] = store.get_collection(name).index
        found = figures[name][moment] = {kind: of_kind.recall(store, name) for kind, of_kind in kinds.items()}
        violations += [
            f"{name} {moment}: recall@10 of {kind} is {value}, below {DEFAULT_TARGET_RECALL}"
            for kind, value in found.items()
            if value < DEFAULT_TARGET_RECALL
        ]


def _drawn(noise: float) -> tuple[NDArray[np.float32], dict[str, Asked]]:
    """Rows in random order, float32 [N, D], and the three kinds of query for them."""
    random = np.random.default_rng(0)
    directions = unit(random.standard_normal((DISTINCT, DIMENSION), np.float32))
    rows = np.repeat(directions, COPIES, axis=0)[random.permutation(DISTINCT * COPIES)]
    if noise:
        rows = unit(rows + np.float32(noise / DIMENSION**0.5) * random.standard_normal(rows.shape, np.float32))
    some = rows[random.integers(0, len(rows), QUERIES)]
    one, other = directions[random.integers(0, DISTINCT, (2, QUERIES))]
    strangers = random.standard_normal((QUERIES, DIMENSION), np.float32)
    made = {
        "near an item": some + np.float32(0.1 / DIMENSION**0.5) * strangers,
        "half-way": one + other,
        "strangers": strangers,
    }
    asked = {}
    for kind, queries in made.items():
        queries = unit(queries)
        scores = queries.astype(np.float64) @ rows.T.astype(np.float64)
        asked[kind] = Asked(queries, np.partition(scores, -K, axis=1)[:, -K])
    return rows, asked


def _fill(store: LocalStore, name: str, index: str, vectors: NDArray[np.float32]) -> None:
    store.create_collection(
        name, fingerprint=EXTERNAL, encoder_name="", dimension=DIMENSION, keep=Keep.NONE, index=index
    )
    for start in range(0, len(vectors), 4000):
        rows = enumerate(vectors[start : start + 4000], start)
        store.upsert(name, [Item(id=f"{number}", vector=vector) for number, vector in rows])
    store.maintain()


if __name__ == "__main__":
    results, wrong = run()
    print(json.dumps(results, indent=1))
    for violation in wrong:
        print(f"VIOLATION  {violation}")
    sys.exit(1 if wrong else 0)
