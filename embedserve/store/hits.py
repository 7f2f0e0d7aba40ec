"""From ranked rows to hits: ties by id, excluded items, the lowest score, one hit for each group."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedserve.types import Hit, SearchOptions

if TYPE_CHECKING:
    from collections.abc import Hashable

    from embedserve.index.ranking import Ranking
    from embedserve.index.snapshot import Snapshot
    from embedserve.store.view import View

Scored = tuple[int, float]
"""A row number and its score."""

_DEEPER = 4
"""How many times more rows are ranked when one of each group is not enough for k hits."""


def search(
    view: View,
    snapshot: Snapshot,
    queries: NDArray[np.float32],
    options: SearchOptions,
    exclude_ids: Sequence[str | None],
) -> list[list[Hit]]:
    """Hits for each of the queries [Q, D]; ``view`` and ``snapshot`` hold the same writes."""
    among = view.matching(options.filter) if options.filter is not None else None
    excluded = [None if id is None else view.rid(id) for id in exclude_ids]
    if options.group_by:
        chosen = [
            _grouped(view, snapshot, query, options, among, rid) for query, rid in zip(queries, excluded, strict=True)
        ]
    else:
        k = options.k + any(rid is not None for rid in excluded)
        rankings = snapshot.nearest(queries, k, among=among)
        chosen = [
            _first(view, _allowed(ranking, options, rid), options.k)
            for ranking, rid in zip(rankings, excluded, strict=True)
        ]
    return _hits(view, chosen, options)


def _allowed(ranking: Ranking, options: SearchOptions, excluded: int | None) -> list[Scored]:
    lowest = -np.inf if options.min_score is None else options.min_score
    pairs = zip(ranking.rids.tolist(), ranking.scores.tolist(), strict=True)
    return [(rid, score) for rid, score in pairs if score >= lowest and rid != excluded]


def _by_id(view: View, ranked: list[Scored]) -> list[Scored]:
    """The same with equal scores in the order of the ids' bytes."""
    ordered: list[Scored] = []
    for _, tied in groupby(ranked, key=lambda pair: pair[1]):
        together = list(tied)
        if len(together) > 1:
            ids = view.ids([rid for rid, _ in together])
            together.sort(key=lambda pair: ids[pair[0]])
        ordered += together
    return ordered


def _first(view: View, ranked: list[Scored], k: int) -> list[Scored]:
    return _by_id(view, ranked)[:k]


def _grouped(
    view: View,
    snapshot: Snapshot,
    query: NDArray[np.float32],
    options: SearchOptions,
    among: NDArray[np.int64] | None,
    excluded: int | None,
) -> list[Scored]:
    total = snapshot.items if among is None else len(among)
    depth = options.k * _DEEPER
    while True:
        (ranking,) = snapshot.nearest(query[None], depth, among=among)
        ranked = _by_id(view, _allowed(ranking, options, excluded))
        groups = view.groups([rid for rid, _ in ranked], options.group_by)
        seen: set[Hashable] = set()
        chosen: list[Scored] = []
        for rid, score in ranked:
            group = groups[rid]
            if group is None or group not in seen:
                seen.add(group)
                chosen.append((rid, score))
        # Rows that were not ranked come after all that were.
        if len(chosen) >= options.k or len(ranking.rids) >= total or _too_low(ranking, options):
            return chosen[: options.k]
        depth *= _DEEPER


def _too_low(ranking: Ranking, options: SearchOptions) -> bool:
    return options.min_score is not None and bool(ranking.scores[-1] < options.min_score)


def _hits(view: View, chosen: list[list[Scored]], options: SearchOptions) -> list[list[Hit]]:
    rows = view.rows(sorted({rid for of_query in chosen for rid, _ in of_query}))
    return [
        [
            Hit(
                id=rows[rid].text_id,
                score=score,
                metadata=rows[rid].metadata if options.include_metadata else {},
                vector=rows[rid].vector if options.include_vectors else None,
            )
            for rid, score in of_query
        ]
        for of_query in chosen
    ]
