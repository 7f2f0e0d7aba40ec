"""Which index a collection has: as requested, and what that means for a number of rows.

auto                     exact for few rows, HNSW while it fits into memory, IVF beyond
exact                    every row is compared
hnsw:m=32                a graph (Malkov and Yashunin, 2018)
ivf:nlist=1024           inverted lists of RaBitQ codes (Gao and Long, 2024), re-scored with the vectors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from embedserve.errors import InvalidInput

Kind = Literal["exact", "hnsw", "ivf"]

_BOUNDS: Mapping[str, Mapping[str, tuple[int, int, int]]] = {
    "auto": {},
    "exact": {},
    "hnsw": {"m": (32, 4, 128), "ef_construction": (40, 8, 2000)},
    "ivf": {"nlist": (0, 1, 1 << 20)},
}
"""For each kind its parameters: default, least and greatest. An nlist of 0 is chosen by the number of rows."""

_EXACT_BYTES = 20 << 20
"""Under "auto", up to this size of its vectors a collection is searched exactly: 20,000 of 256 numbers, 2 ms on one
core."""
_IVF_ROWS = 4_000_000
"""Beyond this a graph takes hours to build."""
POINTS_PER_LIST = 39
"""Points that k-means needs for each centroid; FAISS warns below."""
_FEW = 4096
"""Under "auto", a segment with fewer rows is searched exactly even in a large collection, as fast as a graph is."""


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """A kind with its parameters, or "auto"."""

    kind: Literal["auto", "exact", "hnsw", "ivf"]
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Only those that were given."""

    def __str__(self) -> str:
        given = ",".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.kind}:{given}" if given else self.kind

    def get(self, parameter: str) -> int:
        """Its value: the given one or the default."""
        return self.parameters.get(parameter, _BOUNDS[self.kind][parameter][0])


def parse(text: str) -> IndexSpec:
    """The specification in a text such as "hnsw:m=32,ef_construction=80".

    Raises:
        InvalidInput: names what is wrong and what is allowed.
    """
    kind, _, rest = text.partition(":")
    known = _BOUNDS.get(kind)
    if known is None:
        raise InvalidInput(
            f"there is no index {text[:80]!r}", hint="for example: auto, exact, hnsw:m=32 or ivf:nlist=1024"
        )
    parameters: dict[str, int] = {}
    for setting in filter(None, rest.split(",")):
        name, equals, value = setting.partition("=")
        if name not in known or not equals:
            names = ", ".join(known) or "none"
            raise InvalidInput(f"index {kind} has no setting {setting[:80]!r}", hint=f"its settings are: {names}")
        _, least, most = known[name]
        # isdecimal accepts digits of all scripts, and so does int.
        if not value.isdecimal() or len(value) > 9 or not least <= int(value) <= most:
            raise InvalidInput(f"{name} of index {kind} is {value[:80]!r}; it must be a number from {least} to {most}")
        parameters[name] = int(value)
    return IndexSpec(kind, parameters)  # type: ignore[arg-type]  # one of the keys of _BOUNDS


def resolve(spec: IndexSpec, *, total: int, rows: int, dimension: int, memory_bytes: int) -> IndexSpec:
    """What a segment with ``rows`` of a collection's ``total`` rows is built as.

    Args:
        spec: of the collection.
        total: live rows of the collection.
        rows: live rows of the segment.
        dimension: D.
        memory_bytes: budget for the index of the collection.
    """
    if spec.kind == "auto":
        if total * dimension * 4 <= _EXACT_BYTES or rows < _FEW:
            return IndexSpec("exact")
        graph = IndexSpec("hnsw")
        fits = total * hnsw_bytes_per_row(graph, dimension) <= memory_bytes and total <= _IVF_ROWS
        return graph if fits else _ivf(IndexSpec("ivf"), rows)
    if spec.kind == "ivf":
        return _ivf(spec, rows)
    return spec


def attempts(spec: IndexSpec, *, total: int, rows: int, dimension: int, memory_bytes: int) -> tuple[IndexSpec, ...]:
    """What a segment is built as, and what comes next where that does not reach the target recall; exact comes last.

    The arguments are those of ``resolve``.
    """
    first = resolve(spec, total=total, rows=rows, dimension=dimension, memory_bytes=memory_bytes)
    exact = IndexSpec("exact")
    if first == exact:
        return (exact,)
    graph = IndexSpec("hnsw")
    if first.kind == "hnsw":
        other = _ivf(IndexSpec("ivf"), rows)
    else:
        fits = total * hnsw_bytes_per_row(graph, dimension) <= memory_bytes and total <= _IVF_ROWS
        other = graph if fits else exact
    return (first, exact) if other == exact else (first, other, exact)


def hnsw_bytes_per_row(spec: IndexSpec, dimension: int) -> int:
    """Memory of a row in a graph: the vector, 2·m links in the bottom layer and a few above."""
    return 4 * dimension + 4 * 2 * spec.get("m") + 16


def _ivf(spec: IndexSpec, rows: int) -> IndexSpec:
    # 4·√N lists balance the search for the nearest lists against scanning them.
    wanted = spec.get("nlist") or int(4 * rows**0.5)
    nlist = min(wanted, rows // POINTS_PER_LIST)
    return IndexSpec("ivf", {"nlist": nlist}) if nlist >= 1 else IndexSpec("exact")
