"""Which rows of a snapshot match a filter, as bit masks that are cached for later searches."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedserve.store.local.collection.metadata_log import MetadataLog
from embedserve.store.local.records.filters import Leaf
from embedserve.store.local.records.view import View
from embedserve.types import And, Filter, Not, Or

Bits = NDArray[np.uint8]
"""One bit per row of a part, eight to a byte; padding bits are 0."""

_MANY = 4
"""With more values than this per row of a part, a range condition reads the metadata of the rows instead, which takes
about as long."""
_MANY_ONCE = 40
"""The same for parts that never change: each is looked up once, and values are read once for several of them."""
_FEW = 2048
"""Up to this many rows that remain after other conditions are read by their row numbers; 2,048 took 4 ms."""
_ENTRY_BYTES = 400
"""Memory of a cache entry besides its bits."""


class Matcher:
    """Finds the rows of a part that match a filter. Safe to use from several threads.

    Conditions on declared keys are looked up in the table of facets and combined as bits; the rest is one SQL condition
    on the rows of the part. Rows change in nothing but their metadata, so the result for a part stays valid as long as
    the part exists, except for the rows in ``metadata_log``, which are read again.

    Args:
        filter_keys: the declared keys of the collection.
        max_bytes: of cached masks; the least recently used are dropped first.
    """

    def __init__(self, filter_keys: Sequence[str], max_bytes: int = 64 << 20) -> None:
        self._filter_keys = frozenset(filter_keys)
        self._masks = _Masks(max_bytes)
        self.metadata_log = MetadataLog()
        """To be told of every change of metadata in place."""

    def matching(self, view: View, filter: Filter, rids: NDArray[np.int64], part: Hashable | None) -> NDArray[np.bool_]:
        """The rows that match the filter.

        Args:
            view: contains every live row of the part.
            filter: with allowed keys.
            rids: row numbers of the part, ascending: int64 [N].
            part: identifies the part forever if it always has the same rows; None if it may get others.

        Returns:
            bool [N]; undefined for rows that are not in the view any more.

        Raises:
            InvalidInput: a key is not allowed.
        """
        if not len(rids):
            return np.empty(0, np.bool_)
        search = _Search(view, rids, part, self._filter_keys, self._masks, self.metadata_log)
        return search.unpacked(search.bits(filter))

    def forget(self, part: Hashable) -> None:
        """Drop the masks of a part that is gone."""
        self._masks.forget(part)


@dataclass(frozen=True, slots=True)
class _Mask:
    seq: int
    """The last write before the rows were read. Rows removed by then are missing, so readers of an earlier state, which
    contains them, must not use the mask."""
    bits: Bits


class _Masks:
    """A cache of bits by part and filter, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._masks: OrderedDict[tuple[Hashable, bytes], _Mask] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, part: Hashable, key: bytes, seq: int) -> _Mask | None:
        with self._lock:
            mask = self._masks.get((part, key))
            if mask is None or mask.seq > seq:
                return None
            self._masks.move_to_end((part, key))
            return mask

    def drop(self, part: Hashable, key: bytes, mask: _Mask) -> None:
        """Drop a mask that is out of date, unless another has taken its place."""
        with self._lock:
            if self._masks.get((part, key)) is mask:
                self._bytes -= _size(self._masks.pop((part, key)).bits)

    def put(self, part: Hashable, key: bytes, seq: int, bits: Bits) -> None:
        size = _size(bits)
        with self._lock:
            old = self._masks.get((part, key))
            if size > self._max_bytes or (old is not None and old.seq <= seq):
                return
            self._masks[part, key] = _Mask(seq, bits)
            self._masks.move_to_end((part, key))
            self._bytes += size if old is None else 0
            while self._bytes > self._max_bytes:
                _, dropped = self._masks.popitem(last=False)
                self._bytes -= _size(dropped.bits)

    def forget(self, part: Hashable) -> None:
        with self._lock:
            for entry in [entry for entry in self._masks if entry[0] == part]:
                self._bytes -= _size(self._masks.pop(entry).bits)


class _Search:
    """One filter on one part."""

    def __init__(
        self,
        view: View,
        rids: NDArray[np.int64],
        part: Hashable | None,
        filter_keys: frozenset[str],
        masks: _Masks,
        metadata_log: MetadataLog,
    ) -> None:
        self._view = view
        self._rids = rids
        self._first, self._last = int(rids[0]), int(rids[-1])
        self._part = part
        self._filter_keys = filter_keys
        self._masks = masks
        self._metadata_log = metadata_log
        self._all = np.packbits(np.ones(len(rids), np.bool_))
        self._worthwhile: dict[int, bool] = {}

    def bits(self, node: Filter) -> Bits:
        """The rows that match a filter."""
        bits = self._kept(node)
        if bits is None:
            bits = self._computed(node)
            if self._part is not None:
                self._masks.put(self._part, _key(node), self._view.seq(), bits)
        return bits

    def unpacked(self, bits: Bits) -> NDArray[np.bool_]:
        """One value per row: bool [N]."""
        return np.unpackbits(bits, count=len(self._rids)).view(np.bool_)

    def _kept(self, node: Filter) -> Bits | None:
        """The rows that match a filter, if its mask is cached."""
        if self._part is None:
            return None
        key, seq = _key(node), self._view.seq()
        mask = self._masks.get(self._part, key, seq)
        if mask is None:
            return None
        changed = self._metadata_log.between(mask.seq, seq, self._first, self._last)
        if changed is not None and not len(changed):
            return mask.bits
        self._masks.drop(self._part, key, mask)
        if changed is None or len(changed) > _FEW:
            return None
        flags = self.unpacked(mask.bits).copy()
        for rids, matches in ((changed, False), (self._view.matching_among(node, changed.tolist()), True)):
            places = np.searchsorted(self._rids, rids)
            flags[places[self._rids[places] == rids]] = matches
        bits = np.packbits(flags)
        self._masks.put(self._part, key, seq, bits)
        return bits

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
        """True if facets answer a condition inside."""
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
        """``found``: ascending row numbers between the first and the last of the part."""
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


def _key(node: Filter) -> bytes:
    """Equal for equal filters only, unlike their hash, for which True, 1 and 1.0 are the same."""
    return hashlib.blake2b(repr(node).encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _size(bits: Bits) -> int:
    return bits.nbytes + _ENTRY_BYTES
