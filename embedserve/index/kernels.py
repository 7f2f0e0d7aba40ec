"""Typed wrappers of the few FAISS functions that work on plain arrays and have no type stubs.

All of them release the interpreter lock.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

STEP_NUMBERS = 32 << 20
"""Numbers that are multiplied between two looks at whether the result is still wanted: 4 to 6 ms at 6 to 8 billion a
second, as measured on one core of 2026, and still no more than 20 ms on one of a quarter of its speed."""
_LEAST_ROWS = 256
_VISITED = 32
"""About so many rows of a graph are compared for each candidate that ef keeps; with inverted lists, whose codes are a
32nd of the vectors, each list costs no more than that."""


def step_of(queries: int, rows: int, dimension: int, k: int = 0) -> tuple[int, int]:
    """How many of Q queries are compared with how many of N rows of D numbers in one step; both at least 1.

    All queries go over the same rows before the next ones are read, unless k is large: of each step k rows are kept,
    so that there must be several times as many. The number of rows is a multiple of 8 if it is not all of them.
    """
    if queries * rows * dimension <= STEP_NUMBERS:  # as nearly always
        return queries, rows
    some_rows = max(STEP_NUMBERS // (queries * dimension), 4 * k, _LEAST_ROWS) + 7 & ~7
    return min(max(STEP_NUMBERS // (some_rows * dimension), 1), queries), min(some_rows, rows)


def queries_of_step(param: int, k: int, rows: int, dimension: int) -> int:
    """How many queries a structure over N rows of D numbers answers in one step with this ef or nprobe; at least 1."""
    visited = min(_VISITED * max(param, k), rows)
    return max(STEP_NUMBERS // max(visited * dimension, 1), 1)


def use_threads(count: int) -> None:
    """Set how many threads FAISS uses for calls of this thread; called at the start of every search and every build.

    OpenMP keeps the thread count per calling thread, so a new worker thread starts with the default. Two workers that
    each fan out over all cores were 4 times slower than two that do not.
    """
    faiss.omp_set_num_threads(count)


def inner_products(query: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inner products of query [D] with every row of vectors [N, D]: float32 [N]."""
    scores = np.empty(len(vectors), np.float32)
    if len(vectors):
        count, dimension = vectors.shape
        pointer = faiss.swig_ptr
        faiss.fvec_inner_products_ny(  # type: ignore[attr-defined]
            pointer(scores), pointer(query), pointer(vectors), dimension, count
        )
    return scores


def inner_products_at(
    query: NDArray[np.float32], vectors: NDArray[np.float32], positions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The same with the rows at positions [M], without gathering them: float32 [M]."""
    scores = np.empty(len(positions), np.float32)
    if len(positions):
        pointer = faiss.swig_ptr
        faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
            pointer(scores), pointer(query), pointer(vectors), pointer(positions), vectors.shape[1], 1, len(positions)
        )
    return scores


def inner_products_of_each(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], positions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The same for several queries [Q, D], each with its own positions [Q, C]: float32 [Q, C], −inf where one is −1."""
    scores = np.empty(positions.shape, np.float32)
    queries, places = np.ascontiguousarray(queries), np.maximum(positions, 0)
    pointer = faiss.swig_ptr
    faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
        pointer(scores), pointer(queries), pointer(vectors), pointer(places), vectors.shape[1], *places.shape
    )
    scores[positions < 0] = -np.inf
    return scores


def nearest(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, live_bits: NDArray[np.uint8] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows of vectors [N, D] with the largest inner products with each of the queries [Q, D]; compares all rows.

    Args:
        live_bits: uint8 [⌈N/8⌉], lowest bit first: the rows to search; None for all.

    Returns:
        Positions int64 [Q, k], −1 where there are fewer rows, and inner products float32 [Q, k], descending.
    """
    count, dimension = vectors.shape
    scores, positions = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    # Held in a variable: FAISS keeps only the addresses of the bits and of the selector.
    selector = None if live_bits is None else bitmap_selector(live_bits)
    pointer = faiss.swig_ptr
    faiss.knn_inner_product(
        pointer(queries),
        pointer(vectors),
        dimension,
        len(queries),
        count,
        k,
        pointer(scores),
        pointer(positions),
        selector,
    )
    return positions, scores


def bitmap_selector(bits: NDArray[np.uint8]) -> faiss.IDSelector:
    """Selects the positions whose bit is set, lowest bit first. The caller keeps ``bits`` and the selector alive."""
    # The stub describes the C++ constructor, the wrapper takes the array.
    return faiss.IDSelectorBitmap(bits)  # type: ignore[arg-type, call-arg]


class _Memory:
    """Memory of an index, kept alive by every array over it."""

    def __init__(self, numbers: NDArray[np.float32], owner: faiss.Index) -> None:
        self.__array_interface__ = numbers.__array_interface__
        self._owner = owner


def vectors_of(flat: faiss.IndexFlat, dimension: int, owner: faiss.Index) -> NDArray[np.float32]:
    """A read-only view of the vectors that an index holds: float32 [N, D].

    Args:
        flat: the index, or the storage of one.
        owner: the index that owns the memory; the view keeps it alive.
    """
    if not flat.ntotal:
        return np.empty((0, dimension), np.float32)
    numbers: NDArray[np.float32] = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * dimension)
    view = np.asarray(_Memory(numbers, owner))
    view.flags.writeable = False
    return view.reshape(flat.ntotal, dimension)


def hnsw_parameters(ef: int) -> faiss.SearchParameters:
    """Parameters of a search through a graph."""
    parameters: faiss.SearchParameters = faiss.SearchParametersHNSW(efSearch=ef)  # type: ignore[attr-defined]
    return parameters


def ivf_parameters(nprobe: int) -> faiss.SearchParameters:
    """Parameters of a search through inverted lists."""
    return faiss.IVFRaBitQSearchParameters(nprobe=nprobe)  # type: ignore[call-arg]
