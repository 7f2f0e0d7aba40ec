"""Gauges: the state of a server at the moment of a scrape. How full it is, its encoder, its collections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from embedserve.errors import EmbedserveError

if TYPE_CHECKING:
    from embedserve.engine.engine import Engine
    from embedserve.types import CollectionInfo

_REFRESH_TIMEOUT_S = 1.0
"""How long a scrape waits for the state of the collections."""


class Gauges(Collector):
    """The gauges of one server; most have no samples until there is an engine."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.ready: Callable[[], bool] = lambda: False
        """Whether calls are accepted."""
        self._collections: Sequence[CollectionInfo] = ()
        self._refreshing: asyncio.Task[None] | None = None

    async def refresh_collections(self) -> None:
        """Read the state of the collections for their gauges.

        Their files are read in a thread. If that takes long, the gauges keep the state that was read last.
        """
        engine = self.engine
        if engine is None or not engine.has_collections:
            return
        if self._refreshing is None or self._refreshing.done():  # one at a time, however many scrapes wait for a disk
            self._refreshing = asyncio.create_task(self._refresh(engine), name="collections")
        await asyncio.wait([self._refreshing], timeout=_REFRESH_TIMEOUT_S)

    async def _refresh(self, engine: Engine) -> None:
        try:
            self._collections = await engine.collections.list_all()
        except (EmbedserveError, RuntimeError):  # the store, or its threads, are closed: the server stops
            self._collections = []

    def collect(self) -> Iterable[Metric]:
        """All gauges, read now."""
        engine = self.engine
        ready = GaugeMetricFamily("embedserve_ready", "1 while calls are accepted, 0 while starting and draining.")
        ready.add_metric([], float(self.ready()))
        images = GaugeMetricFamily("embedserve_queue_images", "Images in flight: admitted and not yet answered.")
        size = GaugeMetricFamily("embedserve_queue_bytes", "Bytes of the images in flight.")
        max_images = GaugeMetricFamily("embedserve_queue_limit_images", "Limit on images in flight.")
        max_size = GaugeMetricFamily("embedserve_queue_limit_bytes", "Limit on bytes of images in flight.")
        info = InfoMetricFamily("embedserve_encoder", "The encoder in use.")
        if engine is not None:
            admission, encoder = engine.admission, engine.encoder
            images.add_metric([], admission.images)
            size.add_metric([], admission.bytes)
            max_images.add_metric([], engine.limits.max_queue_images)
            max_size.add_metric([], engine.limits.max_queue_bytes)
            metadata = encoder.metadata
            info.add_metric(
                [],
                {
                    "name": metadata.name,
                    "fingerprint": encoder.fingerprint,
                    "provider": encoder.provider,
                    "precision": metadata.precision,
                    "dimension": str(metadata.dimension),
                },
            )
        return [ready, images, size, max_images, max_size, info, *self._collection_gauges()]

    def _collection_gauges(self) -> Iterable[Metric]:
        def gauge(name: str, text: str, value: Callable[[CollectionInfo], float | None]) -> Metric:
            family = GaugeMetricFamily(f"embedserve_collection_{name}", text, labels=["collection"])
            for info in self._collections:
                if (number := value(info)) is not None:
                    family.add_metric([info.name], number)
            return family

        return [
            gauge("items", "Items in a collection.", lambda info: info.items),
            gauge(
                "unsealed_items",
                "Items that are in no segment yet; searches compare them one by one.",
                lambda info: info.unsealed,
            ),
            gauge("dead_rows", "Deleted rows that are still in the index.", lambda info: info.deleted),
            gauge("segments", "Segments of the index.", lambda info: info.segments),
            gauge(
                "building",
                "1 while segments are built or merged in the background.",
                lambda info: float(info.building),
            ),
            gauge(
                "recall",
                "recall@10 as last measured; absent while every search is exact.",
                lambda info: None if info.recall is None else info.recall.value,
            ),
            gauge("target_recall", "recall@10 that searches are tuned to.", lambda info: info.target_recall),
            gauge("disk_bytes", "Bytes of its files on disk.", lambda info: info.disk_bytes),
        ]
