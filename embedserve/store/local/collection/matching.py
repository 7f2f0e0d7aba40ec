"""Which rows of a part of the index a filter holds for, as masks of bits that are kept for the next search."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedserve.store.local.records.filters import Leaf
from embedserve.store.local.records.view import View
from embedserve.types import And, Filter, Not, Or

Bits = NDArray[np.uint8]
"""One bit for each row of a part, eight to a byte; those that fill up the last byte are 0."""

_MANY = 4
"""Of more values than this many for each row of a part, a range reads the rows' metadata instead, which takes about as
long."""
_MANY_ONCE = 40
"""The same for parts that never change: these are asked once, and all values are read for several of them together."""
_FEW = 2048
"""So few rows that other conditions left over are read by their numbers; 2,048 took 4 ms."""
_ENTRY_BYTES = 400
"""What an entry of the cache takes beside its bits."""


class Matcher:
    """Which rows of a part of the index a filter holds for. Safe to use from several threads.

    Conditions on declared keys are looked up in the table of facets and combined as bits; all else is one SQL
    condition on the rows of the part. Rows never change, so what was found for a part stays right as long as the part
    lives.

    Args:
        filter_keys: the declared keys of the collection.
        max_bytes: of the masks that are kept; those that were not used for the longest time go first.
    """

    def __init__(self, filter_keys: Sequence[str], max_bytes: int = 64 << 20) -> None:
        self._filter_keys = frozenset(filter_keys)
        self._masks = _Masks(max_bytes)

    def matching(self, view: View, filter: Filter, rids: NDArray[np.int64], part: Hashable | None) -> NDArray[np.bool_]:
        """The rows that the filter holds for.

        Args:
            view: holds every live row of the part.
            filter: with keys that are allowed.
            rids: row numbers of the part, ascending: int64 [N].
            part: names the part for good if its rows never change, None if they may.

        Returns:
            bool [N]; of a row that is not in the view any more it says nothing.

        Raises:
            InvalidInput: a key is not allowed.
        """
        if not len(rids):
            return np.empty(0, np.bool_)
        search = _Search(view, rids, part, self._filter_keys, self._masks)
        return search.unpacked(search.bits(filter))

    def forget(self, part: Hashable) -> None:
        """Drop what was found for a part that is gone."""
        self._masks.forget(part)


@dataclass(frozen=True, slots=True)
class _Mask:
    seq: int
    """Write that the rows were read after. Rows that were removed by then are missing, so that readers of an earlier
    state, for whom they are there, must not use it."""
    bits: Bits


class _Masks:
    """Bits by part and filter, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._masks: OrderedDict[tuple[Hashable, bytes], _Mask] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, part: Hashable, name: bytes, seq: int) -> Bits | None:
        with self._lock:
            mask = self._masks.get((part, name))
            if mask is None or mask.seq > seq:
                return None
            self._masks.move_to_end((part, name))
            return mask.bits

    def put(self, part: Hashable, name: bytes, seq: int, bits: Bits) -> None:
        size = _size(bits)
        with self._lock:
            old = self._masks.get((part, name))
            if size > self._max_bytes or (old is not None and old.seq <= seq):
                return
            self._masks[part, name] = _Mask(seq, bits)
            self._masks.move_to_end((part, name))
            self._bytes += size if old is None else 0
            while self._bytes > self._max_bytes:
                _, dropped = self._masks.popitem(last=False)
                self._bytes -= _size(dropped.bits)

    def forget(self, part: Hashable) -> None:
        with self._lock:
            for key in [key for key in self._masks if key[0] == part]:
                self._bytes -= _size(self._masks.pop(key).bits)


class _Search:
    """One filter in one part."""

    def __init__(
        self,
        view: View,
        rids: NDArray[np.int64],
        part: Hashable | None,
        filter_keys: frozenset[str],
        masks: _Masks,
    ) -> None:
        self._view = view
        self._rids = rids
        self._first, self._last = int(rids[0]), int(rids[-1])
        self._part = part
        self._filter_keys = filter_keys
        self._masks = masks
        self._all = np.packbits(np.ones(len(rids), np.bool_))
        self._worthwhile: dict[int, bool] = {}

    def bits(self, node: Filter) -> Bits:
        """The rows that a filter holds for."""
        bits = self._kept(node)
        if bits is None:
            bits = self._computed(node)
            if self._part is not None:
                self._masks.put(self._part, _name(node), self._view.seq(), bits)
        return bits

    def unpacked(self, bits: Bits) -> NDArray[np.bool_]:
        """One value for each row: bool [N]."""
        return np.unpackbits(bits, count=len(self._rids)).view(np.bool_)

    def _kept(self, node: Filter) -> Bits | None:
        return None if self._part is None else self._masks.get(self._part, _name(node), self._view.seq())

    def _computed(self, node: Filter) -> Bits:
        if not self._looks_up(node):
            return self._packed(self._view.matching_between(node, self._first, self._last))
        match node:
            case And(filters):
                return self._conjunction(filters)
            case Or(filters):
                return self._disjunction(filters)
            case Not(child):
                return self._all ^ self.bits(child)
            case leaf:
                return self._packed(self._view.with_facet(leaf, self._first, self._last))

    def _looks_up(self, node: Filter) -> bool:
        """True if a condition inside is answered by facets."""
        match node:
            case And(filters) | Or(filters):
                return any(self._looks_up(child) for child in filters)
            case Not(child):
                return self._looks_up(child)
            case leaf:
                return leaf.key in self._filter_keys and self._is_worthwhile(leaf)

    def _is_worthwhile(self, leaf: Leaf) -> bool:
        if id(leaf) not in self._worthwhile:
            many = _MANY if self._part is None else _MANY_ONCE
            self._worthwhile[id(leaf)] = self._view.facets_within(leaf, many * len(self._rids))
        return self._worthwhile[id(leaf)]

    def _conjunction(self, filters: Sequence[Filter]) -> Bits:
        bits = self._all
        for child in filters:
            if self._looks_up(child):
                bits = bits & self.bits(child)
                if not bits.any():
                    return bits
        rest = And(tuple(child for child in filters if not self._looks_up(child)))
        if not rest.filters:
            return bits
        known = self._kept(rest)
        if known is None and len(some := self._rids[self.unpacked(bits)]) <= _FEW:
            return bits & self._packed(self._view.matching_among(rest, some.tolist()))
        return bits & (self.bits(rest) if known is None else known)

    def _disjunction(self, filters: Sequence[Filter]) -> Bits:
        bits = np.zeros_like(self._all)
        for child in filters:
            if self._looks_up(child):
                bits = bits | self.bits(child)
                if np.array_equal(bits, self._all):
                    return bits
        rest = Or(tuple(child for child in filters if not self._looks_up(child)))
        return bits | self.bits(rest) if rest.filters else bits

    def _packed(self, found: NDArray[np.int64]) -> Bits:
        """``found``: row numbers, ascending, from the part's first to its last."""
        span = self._last - self._first + 1
        if span <= 8 * len(self._rids):
            flags = np.zeros(span, np.bool_)
            flags[found - self._first] = True
            if span != len(self._rids):
                flags = flags[self._rids - self._first]
        else:
            flags = np.zeros(len(self._rids), np.bool_)
            places = np.searchsorted(self._rids, found)
            flags[places[self._rids[places] == found]] = True
        return np.packbits(flags)


def _name(node: Filter) -> bytes:
    """The same for equal filters only; not their hash, for which True, 1 and 1.0 are one."""
    return hashlib.blake2b(repr(node).encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _size(bits: Bits) -> int:
    return bits.nbytes + _ENTRY_BYTES
