"""One hit per group by looking at every row once: for keys with so few values that the nearest rows share them.

Each row has a number for the group that it belongs to. A query is compared with every row, the best score of each group
is kept, and only rows that may be the best of one of the k best groups are looked at more closely.
"""

from __future__ import annotations

import heapq
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from embedserve.index.ranking import exact_scores, score_error
from embedserve.index.rows import Rows
from embedserve.index.snapshot import Snapshot
from embedserve.store.local.collection.metadata_log import MetadataLog
from embedserve.store.local.records.view import View
from embedserve.wanted import Wanted

_ROWS = 4096
"""Rows whose groups are read, or whose ids are compared, in one step."""
_SORTED = 1 << 16
"""Hashes that are sorted in one step, about 6 ms."""
_FEW = 2048
"""Rows that are read again one by one; where more have changed, all are read."""
_MEMO = 4096
"""Values whose hashes are remembered while a part is read."""
_SECRET = secrets.token_bytes(16)
"""Makes the hashes of values unpredictable: nobody can prepare two values that share one. By chance, two of a million
values do with a probability of 3e-8."""
_ENTRY_BYTES = 400


@dataclass(frozen=True, slots=True, eq=False)
class PartGroups:
    """The groups of a part's rows."""

    codes: NDArray[np.int32]
    """int32 [N]: for each row the place of its group's hash; −1 for a row without a group."""
    hashes: NDArray[np.uint64]
    """uint64 [G], ascending."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.codes.nbytes + self.hashes.nbytes + _ENTRY_BYTES


class Groups:
    """Groups of parts that always have the same rows, bounded in bytes; the least recently used go first.

    Safe for several threads. Metadata of rows may change: those that ``metadata_log`` names are read again.

    Args:
        metadata_log: is told of every change of metadata in place.
        max_bytes: of what is kept for later searches.
    """

    def __init__(self, metadata_log: MetadataLog, max_bytes: int = 64 << 20) -> None:
        self._metadata_log = metadata_log
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[Hashable, str], tuple[int, PartGroups]] = OrderedDict()
        self._lock = threading.Lock()

    def of_part(self, view: View, key: str, rids: NDArray[np.int64], part: Hashable | None) -> PartGroups:
        """The groups by a metadata key of the rows with some row numbers, ascending.

        Args:
            view: contains every live row of the part.
            key: of metadata.
            rids: int64 [N].
            part: identifies the part forever if it always has the same rows; None if it may get others.
        """
        if part is None or not len(rids):
            return _read(view, key, rids)
        seq = view.seq()
        with self._lock:
            # What was read after a later write lacks the rows that it removed, which this view still has.
            kept = self._kept.get((part, key))
            if kept is not None and kept[0] <= seq:
                self._kept.move_to_end((part, key))
            else:
                kept = None
        changed = None
        if kept is not None:
            changed = self._metadata_log.between(kept[0], seq, int(rids[0]), int(rids[-1]))
            if changed is not None and not len(changed):
                return kept[1]
        if kept is None or changed is None or len(changed) > _FEW:
            groups = _read(view, key, rids)
        else:
            groups = _read_again(view, key, rids, kept[1], changed)
        self._keep(part, key, seq, groups, kept)
        return groups

    def _keep(
        self, part: Hashable, key: str, seq: int, groups: PartGroups, outdated: tuple[int, PartGroups] | None
    ) -> None:
        with self._lock:
            old = self._kept.get((part, key))
            if old is not None and old is not outdated and old[0] < seq:
                return
            if old is not None:
                self._bytes -= self._kept.pop((part, key))[1].bytes
            if groups.bytes > self._max_bytes:
                return
            self._bytes += groups.bytes
            self._kept[part, key] = seq, groups
            while self._bytes > self._max_bytes:
                self._bytes -= self._kept.popitem(last=False)[1][1].bytes

    def forget(self, part: Hashable) -> None:
        """Drop what is kept about a part that is gone."""
        with self._lock:
            for entry in [entry for entry in self._kept if entry[0] == part]:
                self._bytes -= self._kept.pop(entry)[1].bytes


def _read(view: View, key: str, rids: NDArray[np.int64]) -> PartGroups:
    hashes, is_grouped = np.zeros(len(rids), np.uint64), np.zeros(len(rids), np.bool_)
    memo: dict[bytes, int] = {}
    for start in range(0, len(rids), _ROWS):
        view.wanted.check()
        some = rids[start : start + _ROWS]
        found, numbers = [], []
        for rid, group in view.grouped(key, int(some[0]), int(some[-1])):
            number = memo.get(group)
            if number is None:
                number = _hash(group)
                if len(memo) < _MEMO and len(group) < _MEMO:
                    memo[group] = number
            found.append(rid)
            numbers.append(number)
        places = np.searchsorted(some, np.array(found, np.int64))
        here = some[np.minimum(places, len(some) - 1)] == found  # other parts have rows in this range only after damage
        hashes[start + places[here]] = np.array(numbers, np.uint64)[here]
        is_grouped[start + places[here]] = True
    return _numbered(hashes, is_grouped, view.wanted)


def _read_again(
    view: View, key: str, rids: NDArray[np.int64], known: PartGroups, changed: NDArray[np.int64]
) -> PartGroups:
    """The groups of a part of which some rows, numbered ``changed``, have other metadata now."""
    hashes, is_grouped = np.append(known.hashes, np.uint64(0))[known.codes], known.codes >= 0
    places = np.searchsorted(rids, changed)
    places = places[rids[places] == changed]
    groups = view.groups(rids[places].tolist(), key)
    for place, rid in zip(places.tolist(), rids[places].tolist(), strict=True):
        group = groups.get(rid)  # a row that is missing was removed later
        is_grouped[place] = group is not None
        if group is not None:
            hashes[place] = _hash(group)
    return _numbered(hashes, is_grouped, view.wanted)


def _hash(group: bytes) -> int:
    return int.from_bytes(blake2b(group, digest_size=8, key=_SECRET).digest())


def _numbered(hashes: NDArray[np.uint64], is_grouped: NDArray[np.bool_], wanted: Wanted) -> PartGroups:
    """The hashes sorted, a share of the rows at a time: those that begin with the same bits."""
    codes = np.full(len(hashes), -1, np.int32)
    bits = max((len(hashes) // _SORTED).bit_length(), 0)
    distinct: list[NDArray[np.uint64]] = []
    count = 0
    for first in range(1 << bits):
        wanted.check()
        places = np.flatnonzero(is_grouped & (hashes >> np.uint64(64 - bits) == first) if bits else is_grouped)
        if len(places):
            of_some, inverse = np.unique(hashes[places], return_inverse=True)
            codes[places] = inverse + count
            count += len(of_some)
            distinct.append(of_some)
    return PartGroups(codes, np.concatenate([np.empty(0, np.uint64), *distinct]))


class GroupedSearch:
    """The k best groups of a snapshot for one query after the other.

    Args:
        view: of the records.
        snapshot: of the index, after the same write.
        among: for each part bool [N], the live rows to choose from; None for all.
        groups_of: the groups of a part, by its number.
    """

    def __init__(
        self,
        view: View,
        snapshot: Snapshot,
        among: Sequence[NDArray[np.bool_]] | None,
        groups_of: Callable[[int], PartGroups],
    ) -> None:
        self._wanted = view.wanted
        self._snapshot = snapshot
        self._parts: list[tuple[int, Rows, NDArray[np.int64] | None]] = []
        for number, part in enumerate(snapshot.parts):
            if part.live if among is None else among[number].any():
                chosen = None if among is None else np.flatnonzero(among[number]).astype(np.int64, copy=False)
                self._parts.append((number, part, chosen))
        self._codes, self._count = _joined({number: groups_of(number) for number, _, _ in self._parts}, self._wanted)
        self._error = score_error(snapshot.dimension)

    def best(
        self, query: NDArray[np.float32], k: int, min_score: float | None, excluded: int | None
    ) -> list[tuple[int, float]]:
        """Row number and score of the best row of each of the k best groups; a row without a group is one by itself.

        Args:
            query: float32 [D].
            k: at least 1.
            min_score: lower scores are not counted; None for none.
            excluded: row number of an item that is not counted, or None.
        """
        least = -np.inf if min_score is None else min_score - self._error
        of_groups = np.full(self._count, -np.inf, np.float32)
        compared = [(part, self._compared(number, part, chosen, query, excluded, of_groups))
                    for number, part, chosen in self._parts]  # fmt: skip
        alone = [scores[codes < 0] for _, (_, scores, codes) in compared]
        bests = np.concatenate([of_groups, *alone])
        if len(bests) > k:
            least = max(least, float(np.partition(bests, len(bests) - k)[len(bests) - k]) - self._error)
        highest = np.append(of_groups, np.float32(-np.inf))  # the last one, which −1 means, is for rows without a group
        chosen: dict[int, tuple[float, bytes, int]] = {}
        others: list[tuple[float, bytes, int]] = []
        for part, (positions, scores, codes) in compared:
            kept = (scores >= least) & (scores >= highest[codes] - self._error)
            self._choose(part, query, positions[kept], codes[kept], chosen, others, k)
        lowest = -np.inf if min_score is None else min_score
        ranked = heapq.nsmallest(k, (best for best in (*chosen.values(), *others) if -best[0] >= lowest))
        return [(rid, -score) for score, _, rid in ranked]

    def _compared(
        self,
        number: int,
        part: Rows,
        chosen: NDArray[np.int64] | None,
        query: NDArray[np.float32],
        excluded: int | None,
        of_groups: NDArray[np.float32],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int32]]:
        """Positions, scores and groups [M] of all rows of a part; the best score of each group is noted."""
        left_out = part.positions_of(np.array([] if excluded is None else [excluded], np.int64))
        found = []
        for positions, scores in part.scored(query, chosen, self._wanted):
            if len(left_out):
                here = positions != left_out[0]
                positions, scores = positions[here], scores[here]
            codes = self._codes[number][positions]
            grouped = codes >= 0
            np.maximum.at(of_groups, codes[grouped], scores[grouped])
            found.append((positions, scores, codes))
        positions, scores, codes = (np.concatenate(column) for column in zip(*found, strict=True))
        return positions, scores, codes

    def _choose(
        self,
        part: Rows,
        query: NDArray[np.float32],
        positions: NDArray[np.int64],
        codes: NDArray[np.int32],
        chosen: dict[int, tuple[float, bytes, int]],
        others: list[tuple[float, bytes, int]],
        k: int,
    ) -> None:
        """Note which of some rows is the best of its group, by exact score and id, beside those noted before."""
        for start in range(0, len(positions), _ROWS):
            self._wanted.check()
            some, of_some = positions[start : start + _ROWS], codes[start : start + _ROWS].tolist()
            scores = exact_scores(query[None], np.zeros(len(some), np.int64), part.vectors, some).tolist()
            rows = zip(scores, part.ids_at(some), part.rids[some].tolist(), of_some, strict=True)
            for score, id, rid, code in rows:
                row = (-score, id, rid)
                if code < 0:
                    others.append(row)
                elif code not in chosen or row < chosen[code]:
                    chosen[code] = row
            if len(others) > k + _ROWS:
                others[:] = heapq.nsmallest(k, others)


def _joined(groups: dict[int, PartGroups], wanted: Wanted) -> tuple[dict[int, NDArray[np.int32]], int]:
    """For each part the numbers of its rows' groups, equal for equal groups of all parts; and how many there are."""
    if not groups:
        return {}, 0
    base = max(groups, key=lambda number: len(groups[number].hashes))
    known = groups[base].hashes
    new = [other.hashes[~_within(other.hashes, known)] for number, other in groups.items() if number != base]
    added = np.unique(np.concatenate([np.empty(0, np.uint64), *new]))
    codes = {}
    for number, other in groups.items():
        wanted.check()
        if number == base:
            codes[number] = other.codes
            continue
        is_known = _within(other.hashes, known)
        renumbered = np.where(
            is_known, np.searchsorted(known, other.hashes), len(known) + np.searchsorted(added, other.hashes)
        ).astype(np.int32)
        codes[number] = np.append(renumbered, np.int32(-1))[other.codes]  # −1 stays −1
    return codes, len(known) + len(added)


def _within(some: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(some), np.bool_)
    within: NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, some), len(known) - 1)] == some
    return within
