"""From ranked rows to hits: order of ties, excluded items, minimum score, one hit per group."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedserve.answer_size import AnswerSize
from embedserve.store.local.collection.groups import GroupedSearch, PartGroups
from embedserve.store.local.records.row import StoredMetadata
from embedserve.store.local.records.view import EAGER_BYTES, ITEM_BYTES
from embedserve.types import Hit, Metadata, SearchOptions
from embedserve.wanted import Wanted

if TYPE_CHECKING:
    from embedserve.index.ranking import Ranking
    from embedserve.index.search_params import SearchParams
    from embedserve.index.snapshot import Snapshot
    from embedserve.store.local.records.view import View
    from embedserve.types import Vector

_DEEPER = 4
"""Factor on the number of ranked rows when they contain fewer than k groups."""
_SHALLOW = 8
"""Up to this share of the rows, one in so many, are ranked in search of k groups; then every row is looked at once."""
_TIES = 4096
"""Rows beyond k that tie with the last one and whose ids are compared in one step."""
_HITS = 512
"""Hits, or those of one query if it has more, whose rows are read together."""


def need_records(options: SearchOptions, exclude_ids: Sequence[str | None]) -> bool:
    """Whether the answer needs more than vectors and ids, which the index has."""
    of_items = options.include_metadata or options.filter is not None or bool(options.group_by)
    return of_items or any(id is not None for id in exclude_ids)


def search_index(
    snapshot: Snapshot,
    queries: NDArray[np.float32],
    options: SearchOptions,
    params: SearchParams,
    wanted: Wanted,
    sizes: Sequence[AnswerSize],
) -> list[list[Hit]]:
    """Hits for each of the queries [Q, D], from the index alone; ``sizes`` as in ``search``."""
    answers: list[list[Hit]] = []
    vector_bytes = 4 * snapshot.dimension if options.include_vectors else 0
    for rankings in snapshot.nearest_of_some(queries, options.k, params=params, wanted=wanted):
        rankings = _without_ties(snapshot, rankings, options.k, wanted)
        for ranking, ids in zip(rankings, snapshot.ids_of(rankings), strict=True):
            ordered = _ordered(ranking, ids, options, None)[: options.k]
            sizes[len(answers)].add((ITEM_BYTES + vector_bytes) * len(ordered) + sum([len(id) for _, id, _ in ordered]))
            if vector_bytes:
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
    groups_of: Callable[[int], PartGroups],
    sizes: Sequence[AnswerSize],
) -> list[list[Hit]]:
    """Hits for each of the queries [Q, D], from index and records.

    Args:
        view: of the records; its ``wanted`` is asked before every step of the work.
        snapshot: of the index, after the same write.
        queries: float32 [Q, D], unit norm.
        options: of the search.
        exclude_ids: for each query the id of an item that must not be a hit, or None.
        params: of the search.
        among: for each part of the snapshot bool [N], the live rows that match the filter; None without one.
        groups_of: the groups of a part of the snapshot, by its number.
        sizes: for each query the size of the answer that its hits are part of.

    Raises:
        LimitExceeded: the answer of one of the queries becomes too large.
    """
    excluded = [None if id is None else view.rid(id) for id in exclude_ids]
    if options.group_by:
        chosen = _grouped(view, snapshot, queries, options, params, among, excluded, groups_of)
    else:
        k = options.k + any(rid is not None for rid in excluded)
        chosen = []
        for rankings in snapshot.nearest_of_some(queries, k, params=params, among=among, wanted=view.wanted):
            rankings = _without_ties(snapshot, rankings, k, view.wanted)
            for ranking, ids in zip(rankings, snapshot.ids_of(rankings), strict=True):
                rids = ranking.rids.tolist()
                ordered = _ordered(ranking, ids, options, excluded[len(chosen)])[: options.k]
                chosen.append([(rids[place], score) for score, _, place in ordered])
    return _hits(view, chosen, options, sizes)


def _without_ties(snapshot: Snapshot, rankings: list[Ranking], k: int, wanted: Wanted) -> list[Ranking]:
    """The rankings, without most of the rows that tie with the k-th and come after it by their ids."""
    if max([len(ranking.rids) for ranking in rankings]) <= k + _TIES:
        return rankings
    return [
        ranking if len(ranking.rids) <= k + _TIES else _of_first_ids(snapshot, ranking, k, wanted)
        for ranking in rankings
    ]


def _of_first_ids(snapshot: Snapshot, ranking: Ranking, k: int, wanted: Wanted) -> Ranking:
    """The k best rows of a ranking; of those that tie with the last one, those with the first ids."""
    tied = int(np.searchsorted(-ranking.scores, -ranking.scores[k - 1]))
    best: list[tuple[bytes, int]] = []
    for start in range(tied, len(ranking.rids), _TIES):
        wanted.check()
        (ids,) = snapshot.ids_of([ranking.at(slice(start, start + _TIES))])
        best = heapq.nsmallest(k - tied, [*best, *zip(ids, range(start, start + len(ids)), strict=True)])
    return ranking.at(np.array([*range(tied), *sorted(place for _, place in best)], np.int64))


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
        ordered.sort(key=itemgetter(1))
        ordered.sort(key=itemgetter(0), reverse=True)  # which keeps the order of equal ones
    return ordered


def _grouped(
    view: View,
    snapshot: Snapshot,
    queries: NDArray[np.float32],
    options: SearchOptions,
    params: SearchParams,
    among: Sequence[NDArray[np.bool_]] | None,
    excluded: Sequence[int | None],
    groups_of: Callable[[int], PartGroups],
) -> list[list[tuple[int, float]]]:
    """Row number and score of the hits of each query, one for each group.

    The nearest rows nearly always hold k groups. Where they do not, few values are shared by many items, and every row
    is compared with the query once.
    """
    total = snapshot.items if among is None else sum(int(np.count_nonzero(mask)) for mask in among)
    everything: GroupedSearch | None = None
    answers = []
    for query, rid in zip(queries, excluded, strict=True):
        depth, chosen = options.k * _DEEPER, None
        while chosen is None and (depth == options.k * _DEEPER or (depth * _SHALLOW < total and everything is None)):
            view.wanted.check()
            chosen = _of_nearest(view, snapshot, query, depth, total, options, params, among, rid)
            depth *= _DEEPER
        if chosen is None:
            everything = everything or GroupedSearch(view, snapshot, among, groups_of)
            chosen = everything.best(query, options.k, options.min_score, rid)
        answers.append(chosen)
    return answers


def _of_nearest(
    view: View,
    snapshot: Snapshot,
    query: NDArray[np.float32],
    depth: int,
    total: int,
    options: SearchOptions,
    params: SearchParams,
    among: Sequence[NDArray[np.bool_]] | None,
    excluded: int | None,
) -> list[tuple[int, float]] | None:
    """The hits of a query; None if the nearest ``depth`` of ``total`` rows hold fewer than k groups."""
    rankings = snapshot.nearest(query[None], depth, params=params, among=among, wanted=view.wanted)
    (ranking,) = _without_ties(snapshot, rankings, depth, view.wanted)
    (ids,), rids = snapshot.ids_of([ranking]), ranking.rids.tolist()
    ranked = [(rids[place], score) for score, _, place in _ordered(ranking, ids, options, excluded)]
    groups = view.groups([rid for rid, _ in ranked], options.group_by)
    seen: set[bytes] = set()
    chosen: list[tuple[int, float]] = []
    for rid, score in ranked:
        group = groups.get(rid)  # a missing row is reported when it is read
        if group is None or group not in seen:
            if group is not None:
                seen.add(group)
            chosen.append((rid, score))
    # All rows that were not ranked come after those that were.
    if len(chosen) >= options.k or len(ranking.rids) >= total or _too_low(ranking, options):
        return chosen[: options.k]
    return None


def _too_low(ranking: Ranking, options: SearchOptions) -> bool:
    return options.min_score is not None and bool(ranking.scores[-1] < options.min_score)


_Read: TypeAlias = "tuple[str, Metadata, Vector | None, int]"
"""Id, metadata, vector and bytes of a hit, without its score."""


def _hits(
    view: View, chosen: list[list[tuple[int, float]]], options: SearchOptions, sizes: Sequence[AnswerSize]
) -> list[list[Hit]]:
    """The hits of each query; each row is read once, some at a time, so that what becomes too large ends early."""
    rows: dict[int, _Read] = {}
    answers: list[list[Hit]] = []
    for some in _together(chosen):
        _read(view, sorted({rid for of_query in some for rid, _ in of_query} - rows.keys()), options, rows)
        for of_query in some:
            sizes[len(answers)].add(sum([rows[rid][3] for rid, _ in of_query]))
            hits = []
            for rid, score in of_query:
                id, metadata, vector, _ = rows[rid]
                hits.append(Hit(id=id, score=score, metadata=metadata, vector=vector))
            answers.append(hits)
    return answers


def _together(chosen: list[list[tuple[int, float]]]) -> Iterator[list[list[tuple[int, float]]]]:
    """Neighbouring queries with some hundred hits together, or one with more."""
    some: list[list[tuple[int, float]]] = []
    count = 0
    for of_query in chosen:
        if some and count + len(of_query) > _HITS:
            yield some
            some, count = [], 0
        some.append(of_query)
        count += len(of_query)
    yield some


def _read(view: View, rids: list[int], options: SearchOptions, rows: dict[int, _Read]) -> None:
    parsed_bytes = 0 if not rows else EAGER_BYTES
    for rid, row in view.each_row(rids):
        metadata: Metadata = {}
        size_bytes = ITEM_BYTES + len(row.id)
        if options.include_metadata:
            size_bytes += len(row.meta)
            parsed_bytes += len(row.meta)
            metadata = row.metadata if parsed_bytes <= EAGER_BYTES else StoredMetadata(row.meta)
        if options.include_vectors:
            size_bytes += len(row.vec)
        rows[rid] = row.id.decode(), metadata, row.vector if options.include_vectors else None, size_bytes
    for rid in rids:
        if rid not in rows:
            raise view.missing(rid)
