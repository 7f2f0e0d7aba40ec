"""How much of an index a search examines."""

from __future__ import annotations

from dataclasses import dataclass

from embedserve.types import DEFAULT_TARGET_RECALL


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchParams:
    """What approximate structures are searched with; it has no effect where rows are compared one by one."""

    exact: bool = False
    """Compare every row."""
    ef: int = 0
    """Candidates that HNSW keeps; 0: what the target recall needs."""
    nprobe: int = 0
    """Lists that IVF scans; 0: what the target recall needs."""
    target_recall: float = DEFAULT_TARGET_RECALL
    """recall@10, in (0, 1]."""
    multiplier: float = 1.0
    """Factor on ef and nprobe where they follow from the target recall: what real queries need relative to the queries
    that the structures were tuned with."""


EXACT = SearchParams(exact=True)
