"""Embeds many images in this process, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from embedserve.encoder.session import ImageEncoder
from embedserve.errors import DataError, EmbedserveError, ImageError
from embedserve.images import preprocess

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedserve.types import Limits

_BATCH = 16


def embed(
    encoder: ImageEncoder,
    sources: Iterable[Callable[[], bytes]],
    limits: Limits | None = None,
    *,
    notes: list[str] | None = None,
) -> Iterator[NDArray[np.float32] | EmbedserveError]:
    """Embed images in parallel on all cores.

    Args:
        encoder: the encoder.
        sources: for each image a function that reads its encoded bytes; called in a worker thread, at most a few
            batches ahead of the results that were taken.
        limits: limits on an image.
        notes: receives sentences, as in ``codec.decode``, each once for an image.

    Yields:
        For each image, in order, its vector (float32 [D]), or the error why it cannot be read or decoded.
    """
    import numpy as np

    def work(batch: list[Callable[[], bytes]]) -> list[NDArray[np.float32] | EmbedserveError]:
        results: list[NDArray[np.float32] | EmbedserveError | None] = []
        squares = []
        for read in batch:
            said: list[str] = []
            try:
                squares.append(preprocess.load(encoder.metadata.preprocess, read(), limits, notes=said))
                results.append(None)
                if notes is not None:
                    notes.extend(dict.fromkeys(said))
            except ImageError as error:
                results.append(error)
            except OSError as error:
                results.append(DataError(f"the image cannot be read: {error.strerror or error}"))
        vectors = iter(encoder.encode(np.stack(squares)) if squares else ())
        return [next(vectors) if result is None else result for result in results]

    waiting: list[Future[list[NDArray[np.float32] | EmbedserveError]]] = []
    with ThreadPoolExecutor(encoder.parallel_runs, thread_name_prefix="embed") as pool:
        remaining = iter(sources)
        while batch := list(islice(remaining, _BATCH)):
            waiting.append(pool.submit(work, batch))
            if len(waiting) > 2 * encoder.parallel_runs:
                yield from waiting.pop(0).result()
        for future in waiting:
            yield from future.result()
