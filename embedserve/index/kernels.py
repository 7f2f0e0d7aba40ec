"""The few FAISS functions that work on plain arrays and have no type stubs, behind typed ones.

Everything here runs in the calling thread alone and without the interpreter lock.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray


def single_threaded() -> None:
    """Keep FAISS to the calling thread; for the start of every search.

    OpenMP's thread count belongs to the calling thread, so a new worker thread sees the default again. Two workers
    that each fan out over all cores were 4 times slower than two that do not.
    """
    faiss.omp_set_num_threads(1)


def flat_index(count: int, dimension: int) -> tuple[faiss.IndexFlatIP, NDArray[np.float32]]:
    """An inner-product index of ``count`` vectors, and a view of its memory to write them to: float32 [N, D].

    Filling the view costs no second copy and none of the doubling that add() does to its buffer. The view does not
    keep the index alive.
    """
    flat = faiss.IndexFlatIP(dimension)
    flat.codes.resize(count * dimension * 4)
    flat.ntotal = count
    if count == 0:
        return flat, np.empty((0, dimension), np.float32)
    view: NDArray[np.float32] = faiss.rev_swig_ptr(flat.get_xb(), count * dimension)
    return flat, view.reshape(count, dimension)


def inner_products(query: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """query [D] with every row of vectors [N, D]: float32 [N]."""
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
    """query [D] with the rows of vectors [N, D] at positions [M], without gathering them: float32 [M]."""
    scores = np.empty(len(positions), np.float32)
    if len(positions):
        pointer = faiss.swig_ptr
        faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
            pointer(scores), pointer(query), pointer(vectors), pointer(positions), vectors.shape[1], 1, len(positions)
        )
    return scores


def bitmap_selector(bits: NDArray[np.uint8]) -> faiss.IDSelector:
    """Selects the positions whose bit is set, lowest bit first. The caller keeps ``bits`` and the selector alive."""
    # The stub describes the C++ constructor, the wrapper takes the array.
    return faiss.IDSelectorBitmap(bits)  # type: ignore[arg-type, call-arg]
