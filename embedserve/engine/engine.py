"""Embed, add, search, delete: what the services call. Knows neither gRPC nor HTTP.

An engine holds one embedder and, where there is a data directory, its collections. It checks what concerns both:
limits, metadata, and that vectors of different encoders never meet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from embedserve.encoder.session import ImageEncoder
from embedserve.engine.admission import Admission
from embedserve.engine.batcher import Encoded
from embedserve.engine.collections import Collections
from embedserve.engine.core import Core
from embedserve.engine.embedder import Embedder
from embedserve.engine.inputs import positioned
from embedserve.engine.item_changes import ItemChanges
from embedserve.engine.items import Items
from embedserve.engine.search import Searcher
from embedserve.engine.timings import Timings
from embedserve.errors import EmbedserveError, InvalidInput
from embedserve.observer import Observer
from embedserve.store.protocol import VectorStore
from embedserve.types import Keep, Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Engine:
    """One encoder and, if there is a data directory, its collections. Make it with ``start``.

    ``deadline`` is always when the caller stops waiting, on ``time.monotonic``'s clock. A result that is an
    EmbedserveError concerns that image, item or query alone; a raised one concerns the whole call. Without a data
    directory, whatever needs a collection raises FailedPrecondition.
    """

    def __init__(
        self,
        start_embedder: Callable[[ImageEncoder], Awaitable[Embedder]],
        embedder: Embedder,
        store: VectorStore | None,
        observer: Observer,
    ) -> None:
        self._core = Core(embedder, store, observer)
        self.admission = embedder.admission
        self.limits = embedder.admission.limits
        self.answers = self._core.answers
        self.collections = Collections(self._core)
        self.items = Items(self._core)
        self.item_changes = ItemChanges(self._core)
        self.searcher = Searcher(self._core, self.items)
        self._start_embedder = start_embedder
        self._replacing = asyncio.Lock()

    @classmethod
    async def start(
        cls,
        encoder: ImageEncoder,
        store: VectorStore | None = None,
        *,
        limits: Limits | None = None,
        decode_threads: int = 0,
        max_batch: int = 0,
        observer: Observer | None = None,
    ) -> Engine:
        """A warm engine: see ``Embedder.start``. From now on it owns the store, and closes it."""
        start_embedder = partial(
            Embedder.start,
            admission=Admission(limits or Limits()),
            decode_threads=decode_threads,
            max_batch=max_batch,
            observer=observer,
        )
        return cls(start_embedder, await start_embedder(encoder), store, observer or Observer())

    async def close(self) -> None:
        """Finish what was admitted, then end the threads and close the store."""
        await self._core.close()

    @property
    def embedder(self) -> Embedder:
        """Embeds from now on. It may be replaced while a call runs, so a call reads it once, when it begins."""
        return self._core.embedder

    @property
    def encoder(self) -> ImageEncoder:
        """The encoder that new calls get."""
        return self._core.embedder.encoder

    async def replace_encoder(self, encoder: ImageEncoder) -> None:
        """Embed with another encoder from now on.

        It is warmed up first, while the old one continues; the old one has answered all its images when this returns.
        """
        async with self._replacing:
            embedder = await self._start_embedder(encoder)
            old, self._core.embedder = self._core.embedder, embedder
            await old.close()

    @property
    def has_collections(self) -> bool:
        """Whether there is a store."""
        return self._core.has_store

    async def embed(
        self,
        images: Sequence[bytes],
        *,
        deadline: float | None = None,
        timings: Timings | None = None,
    ) -> tuple[ImageEncoder, list[NDArray[np.float32] | EmbedserveError]]:
        """The encoder that was used, and a vector (float32 [D], unit norm) or an error for each encoded image.

        Raises:
            InvalidInput, LimitExceeded: no images, or more than max_images.
            Overloaded: the limit on images in flight is reached.
        """
        if not images:
            raise InvalidInput("the call has no images")
        self.limits.check("max_images", len(images), "images in one call")
        embedder = self._core.embedder
        results = await embedder.embed(images, keep=Keep.NONE, deadline=deadline, timings=timings or Timings())
        vectors = [r.vector if isinstance(r, Encoded) else r for r in results]
        return embedder.encoder, positioned("image", vectors)

    def refuse(self, images: int) -> None:
        """Count admitted images of a stream that are not embedded, since their message cannot be used."""
        for _ in range(images):
            self._core.observer.on_image("refused")
