"""From ranked rows to hits: order of ties, excluded items, minimum score, one hit per group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedserve.types import Hit, SearchOptions

if TYPE_CHECKING:
    from collections.abc import Hashable

    from embedserve.index.ranking import Ranking
    from embedserve.index.search_params import SearchParams
    from embedserve.index.snapshot import Snapshot
    from embedserve.store.local.records.view import View

_DEEPER = 4
"""Factor on the number of ranked rows when they contain fewer than k groups."""


def need_records(options: SearchOptions, exclude_ids: Sequence[str | None]) -> bool:
    """Whether the answer needs more than vectors and ids, which the index has."""
    of_items = options.include_metadata or options.filter is not None or bool(options.group_by)
    return of_items or any(id is not None for id in exclude_ids)


def search_index(
    snapshot: Snapshot, queries: NDArray[np.float32], options: SearchOptions, params: SearchParams
) -> list[list[Hit]]:
    """Hits for each of the queries [Q, D], from the index alone."""
    rankings = snapshot.nearest(queries, options.k, params=params)
    answers = []
    for ranking, ids in zip(rankings, snapshot.ids_of(rankings), strict=True):
        ordered = _ordered(ranking, ids, options, None)[: options.k]
        if options.include_vectors:
            hits = [Hit(id=id.decode(), score=s, vector=snapshot.vector_at(ranking, n)) for s, id, n in ordered]
        else:
            hits = [Hit(id=id.decode(), score=s) for s, id, _ in ordered]
        answers.append(hits)
    return answers


def search(
    view: View,
    snapshot: Snapshot,
    queries: NDArray[np.float32],
    options: SearchOptions,
    exclude_ids: Sequence[str | None],
    params: SearchParams,
    among: Sequence[NDArray[np.bool_]] | None,
) -> list[list[Hit]]:
    """Hits for each of the queries [Q, D], from index and records.

    Args:
        view: of the records.
        snapshot: of the index, after the same write.
        queries: float32 [Q, D], unit norm.
        options: of the search.
        exclude_ids: for each query the id of an item that must not be a hit, or None.
        params: of the search.
        among: for each part of the snapshot bool [N], the live rows that match the filter; None without one.
    """
    excluded = [None if id is None else view.rid(id) for id in exclude_ids]
    if options.group_by:
        chosen = [
            _grouped(view, snapshot, query, options, params, among, rid)
            for query, rid in zip(queries, excluded, strict=True)
        ]
    else:
        k = options.k + any(rid is not None for rid in excluded)
        rankings = snapshot.nearest(queries, k, params=params, among=among)
        chosen = []
        for ranking, ids, rid in zip(rankings, snapshot.ids_of(rankings), excluded, strict=True):
            rids = ranking.rids.tolist()
            ordered = _ordered(ranking, ids, options, rid)[: options.k]
            chosen.append([(rids[place], score) for score, _, place in ordered])
    return _hits(view, chosen, options)


def _ordered(
    ranking: Ranking, ids: list[bytes], options: SearchOptions, excluded: int | None
) -> list[tuple[float, bytes, int]]:
    """Score, id and place in the ranking of each possible hit; equal scores in the order of the ids' bytes."""
    scores = ranking.scores.tolist()
    ordered = list(zip(scores, ids, range(len(ids)), strict=True))
    if options.min_score is not None:
        ordered = [hit for hit in ordered if hit[0] >= options.min_score]
    if excluded is not None:
        rids = ranking.rids.tolist()
        ordered = [hit for hit in ordered if rids[hit[2]] != excluded]
    if len(set(scores)) < len(scores):
        ordered.sort(key=lambda hit: (-hit[0], hit[1]))
    return ordered


def _grouped(
    view: View,
    snapshot: Snapshot,
    query: NDArray[np.float32],
    options: SearchOptions,
    params: SearchParams,
    among: Sequence[NDArray[np.bool_]] | None,
    excluded: int | None,
) -> list[tuple[int, float]]:
    total = snapshot.items if among is None else sum(int(np.count_nonzero(mask)) for mask in among)
    depth = options.k * _DEEPER
    while True:
        (ranking,) = snapshot.nearest(query[None], depth, params=params, among=among)
        (ids,), rids = snapshot.ids_of([ranking]), ranking.rids.tolist()
        ranked = [(rids[place], score) for score, _, place in _ordered(ranking, ids, options, excluded)]
        groups = view.groups([rid for rid, _ in ranked], options.group_by)
        seen: set[Hashable] = set()
        chosen: list[tuple[int, float]] = []
        for rid, score in ranked:
            group = groups.get(rid)  # a missing row is reported when it is read
            if group is None or group not in seen:
                seen.add(group)
                chosen.append((rid, score))
        # All rows that were not ranked come after those that were.
        if len(chosen) >= options.k or len(ranking.rids) >= total or _too_low(ranking, options):
            return chosen[: options.k]
        depth *= _DEEPER


def _too_low(ranking: Ranking, options: SearchOptions) -> bool:
    return options.min_score is not None and bool(ranking.scores[-1] < options.min_score)


def _hits(view: View, chosen: list[list[tuple[int, float]]], options: SearchOptions) -> list[list[Hit]]:
    rows = view.rows_of_hits(sorted({rid for of_query in chosen for rid, _ in of_query}))
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
