"""Prometheus metrics: how many calls and images, how long each part took, how full the server is.

Every call and every image is counted once, when it is done with, by what became of it. What is true at a moment (how
much is in work, which encoder runs) is read when somebody asks for the metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

import embedserve
from embedserve.errors import EmbedserveError
from embedserve.observer import Observer, Outcome

if TYPE_CHECKING:
    from embedserve.engine.engine import Engine
    from embedserve.types import CollectionInfo

SECONDS = (1e-4, 2.5e-4, 5e-4, *(m * 10.0**e for e in (-3, -2, -1, 0) for m in (1, 2.5, 5)), 10.0, 30.0, 60.0)
"""Upper bounds of the time histograms: from what a call costs that does nothing to what nobody waits for."""

BUILD_SECONDS = tuple(m * 10.0**e for e in (-2, -1, 0, 1, 2, 3) for m in (1, 2.5, 5))
"""Upper bounds for what is built in the background: from a small part of an index to a million rows of HNSW."""

BATCH_SIZES = tuple(float(2**power) for power in range(9))

REJECTED = (
    "DEADLINE_EXCEEDED",
    "DISK_FULL",
    "LIMIT_EXCEEDED",
    "OVERLOADED",
    "PERMISSION_DENIED",
    "STORE",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
)
"""Codes of the errors (those of ``embedserve.errors``) with which a call is turned away, not answered."""

_OTHER = "other"
_MOST_WORDS = 16
"""Values of a label that others choose; those that come later share one. Each is a series for ever."""
_LOOK_S = 1.0
"""How long a scrape waits to hear how the collections are."""

Stage = Literal["decode", "queue", "inference", "search", "upsert"]


class MethodMetrics:
    """The counters of one method; finding them by name would cost more than counting."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self.known = method != _OTHER
        """False for the one that stands for methods that we do not have."""
        self._metrics, self._method = metrics, method
        self._by_code: dict[str, Counter] = {}
        self._seconds = metrics.seconds.labels(method)
        self._ok = self._counter("OK")

    def ended(self, code: str, seconds: float) -> None:
        """A call ended with a gRPC status; each call ends once."""
        (self._by_code.get(code) or self._counter(code)).inc()
        self._seconds.observe(seconds)

    def _counter(self, code: str) -> Counter:
        counter = self._by_code[code] = self._metrics.calls.labels(self._method, code)
        return counter


class Metrics(Observer):
    """All metrics of one server, in ``registry``.

    Args:
        methods: paths of the methods that are served, such as ``/embedserve.v1.EmbeddingService/Embed``.
    """

    def __init__(self, methods: Iterable[str]) -> None:
        self.registry = registry = CollectorRegistry()
        self.calls_in_flight = 0
        """Calls that have begun and not ended."""
        self.calls = Counter(
            "embedserve_requests",
            "Calls that ended, by the gRPC status they ended with.",
            ["method", "code"],
            registry=registry,
        )
        self.seconds = Histogram(
            "embedserve_request_duration_seconds",
            "From when a call was read until its answer was sent.",
            ["method"],
            registry=registry,
            buckets=SECONDS,
        )
        images = Counter(
            "embedserve_images",
            "Images that were let in and are done with, by what became of them.",
            ["outcome"],
            registry=registry,
        )
        rejected = Counter(
            "embedserve_rejected", "Calls that were turned away, by the error's code.", ["reason"], registry=registry
        )
        self._rejected_images = Counter(
            "embedserve_rejected_images",
            "Images in calls that were refused with OVERLOADED.",
            registry=registry,
        )
        self.cancelled = Counter(
            "embedserve_cancelled",
            "Calls that were over before their answer was sent: the caller went away, or his message was larger than"
            " max_message_bytes.",
            registry=registry,
        )
        stages = Histogram(
            "embedserve_stage_duration_seconds",
            "Parts of the work: decode and queue for each image, inference for each batch, search and upsert for each"
            " call of the collections.",
            ["stage"],
            registry=registry,
            buckets=SECONDS,
        )
        self._batch_size = Histogram(
            "embedserve_batch_size",
            "Images in a batch that went through the encoder.",
            registry=registry,
            buckets=BATCH_SIZES,
        )
        self._build_seconds = Histogram(
            "embedserve_index_build_duration_seconds",
            "Parts of collections' indexes that were built in the background, by the kind of index.",
            ["kind"],
            registry=registry,
            buckets=BUILD_SECONDS,
        )
        self._built_rows = Counter(
            "embedserve_index_built_rows", "Rows of the parts that were built.", ["kind"], registry=registry
        )
        self._rebuilt = Counter(
            "embedserve_index_rebuilt",
            "Parts of indexes that were dropped and made anew from the items, by why.",
            ["reason"],
            registry=registry,
        )
        Gauge("embedserve_requests_in_flight", "Calls that have begun and not ended.", registry=registry).set_function(
            lambda: self.calls_in_flight
        )
        Info("embedserve_build", "The version that runs.", registry=registry).info({"version": embedserve.__version__})
        self._looking: asyncio.Task[None] | None = None
        self._now = _Now()
        registry.register(self._now)
        ProcessCollector(registry=registry)

        self._words: set[str] = set()
        self._methods = {path: MethodMetrics(self, path.rpartition("/")[2]) for path in methods}
        self._other = MethodMetrics(self, _OTHER)
        self._images = {outcome: images.labels(outcome) for outcome in get_args(Outcome)}
        self._rejected = {code: rejected.labels(code) for code in REJECTED}
        self._stages: dict[Stage, Histogram] = {stage: stages.labels(stage) for stage in get_args(Stage)}

    def read_from(self, engine: Engine, *, ready: Callable[[], bool]) -> None:
        """Where the gauges are read from, and whether calls are taken."""
        self._now.engine, self._now.ready = engine, ready

    async def look(self) -> None:
        """See how the collections are, for their gauges. For whoever is about to read the metrics.

        Their files are looked at in a thread. Where that takes long, the gauges keep what was seen last.
        """
        engine = self._now.engine
        if engine is None or not engine.has_collections:
            return
        if self._looking is None or self._looking.done():  # one at a time, however many ask while a disk hangs
            self._looking = asyncio.create_task(self._look(engine), name="collections")
        await asyncio.wait([self._looking], timeout=_LOOK_S)

    async def _look(self, engine: Engine) -> None:
        try:
            self._now.collections = await engine.list_collections()
        except (EmbedserveError, RuntimeError):  # the store, or its threads, have been closed: the server ends
            self._now.collections = []

    # --- Calls: from the interceptor, on the event loop -----------------------------

    def method(self, path: str) -> MethodMetrics:
        """The counters of a method; those that we do not have share theirs, since callers choose their names."""
        return self._methods.get(path, self._other)

    def on_error(self, code: str) -> None:
        """A call was answered with one of our errors, by the code that ``embedserve.errors`` gives it."""
        if counter := self._rejected.get(code):
            counter.inc()

    # --- Images and batches: from the engine, on any thread -------------------------

    def on_image(self, outcome: Outcome) -> None:
        """See Observer."""
        self._images[outcome].inc()

    def on_decoded(self, seconds: float) -> None:
        """See Observer."""
        self._stages["decode"].observe(seconds)

    def on_batch(self, waits_s: Sequence[float], inference_s: float) -> None:
        """See Observer."""
        self._batch_size.observe(len(waits_s))
        self._stages["inference"].observe(inference_s)
        observe = self._stages["queue"].observe
        for wait_s in waits_s:
            observe(wait_s)

    def on_rejected(self, images: int) -> None:
        """See Observer."""
        self._rejected_images.inc(images)

    def on_store(self, operation: Literal["search", "upsert"], seconds: float) -> None:
        """See Observer."""
        self._stages[operation].observe(seconds)

    def on_sealed(self, rows: int, seconds: float, kind: str) -> None:
        """See Observer."""
        kind = self._known(kind)
        self._build_seconds.labels(kind).observe(seconds)
        self._built_rows.labels(kind).inc(rows)

    def on_index_rebuilt(self, reason: str) -> None:
        """See Observer."""
        self._rebuilt.labels(self._known(reason)).inc()

    def _known(self, word: str) -> str:
        if len(self._words) < _MOST_WORDS:
            self._words.add(word)
        return word if word in self._words else _OTHER


class _Now(Collector):
    """What is true at this moment; without samples as long as there is no engine."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.collections: Sequence[CollectionInfo] = ()
        self.ready: Callable[[], bool] = lambda: False

    def collect(self) -> Iterable[Metric]:
        """The families, read now."""
        engine = self.engine
        ready = GaugeMetricFamily("embedserve_ready", "1 while calls are taken, 0 while starting and draining.")
        ready.add_metric([], float(self.ready()))
        images = GaugeMetricFamily("embedserve_queue_images", "Images that were let in and are not answered yet.")
        size = GaugeMetricFamily("embedserve_queue_bytes", "Bytes of the images that are not answered yet.")
        most = GaugeMetricFamily("embedserve_queue_limit_images", "Images that may be in work at a time.")
        largest = GaugeMetricFamily("embedserve_queue_limit_bytes", "Bytes of images that may be in work at a time.")
        info = InfoMetricFamily("embedserve_encoder", "The encoder that runs.")
        if engine is not None:
            admission, encoder = engine.admission, engine.encoder
            images.add_metric([], admission.images)
            size.add_metric([], admission.bytes)
            most.add_metric([], engine.limits.max_queue_images)
            largest.add_metric([], engine.limits.max_queue_bytes)
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
        return [ready, images, size, most, largest, info, *self._of_collections()]

    def _of_collections(self) -> Iterable[Metric]:
        def gauge(name: str, text: str, value: Callable[[CollectionInfo], float | None]) -> Metric:
            family = GaugeMetricFamily(f"embedserve_collection_{name}", text, labels=["collection"])
            for info in self.collections:
                if (number := value(info)) is not None:
                    family.add_metric([info.name], number)
            return family

        return [
            gauge("items", "Items of a collection.", lambda info: info.items),
            gauge(
                "unsealed_items",
                "Items that are in no sealed part of the index yet; searches compare them one by one.",
                lambda info: info.unsealed,
            ),
            gauge("dead_rows", "Rows of the index whose items are gone.", lambda info: info.deleted),
            gauge("segments", "Sealed parts of the index.", lambda info: info.segments),
            gauge(
                "building",
                "1 while parts of the index are built or merged in the background.",
                lambda info: float(info.building),
            ),
            gauge(
                "recall",
                "recall@10 as last measured; absent while every search is exact.",
                lambda info: None if info.recall is None else info.recall.value,
            ),
            gauge("target_recall", "recall@10 that searches are tuned to.", lambda info: info.target_recall),
            gauge("disk_bytes", "Bytes of its files.", lambda info: info.disk_bytes),
        ]
