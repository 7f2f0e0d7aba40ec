"""Prometheus metrics: how many calls and images, how long each part took, and with ``gauges`` how full the server is.

Every call and every image is counted once, when it is finished, by its outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

import embedserve
from embedserve.observer import Observer, Outcome
from embedserve.server.telemetry.gauges import Gauges

if TYPE_CHECKING:
    from embedserve.engine.engine import Engine

SECONDS = (1e-4, 2.5e-4, 5e-4, *(m * 10.0**e for e in (-3, -2, -1, 0) for m in (1, 2.5, 5)), 10.0, 30.0, 60.0)
"""Upper bounds of the time histograms: from the cost of an empty call to longer than any client waits."""

BUILD_SECONDS = tuple(m * 10.0**e for e in (-2, -1, 0, 1, 2, 3) for m in (1, 2.5, 5))
"""Upper bounds for builds in the background: from a small segment to a million rows of HNSW."""

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
"""Codes of ``embedserve.errors`` that refuse a call instead of answering it."""

_OTHER = "other"
_MAX_LABEL_VALUES = 16
"""Values of a label that is not limited by itself; later ones share ``_OTHER``, as each value is a series for good."""

Stage = Literal["decode", "queue", "inference", "search", "upsert"]


class MethodMetrics:
    """The counters of one method, kept because a look-up by name costs more than counting."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self.known = method != _OTHER
        """False for the one that stands for all methods that do not exist."""
        self._metrics, self._method = metrics, method
        self._by_code: dict[str, Counter] = {}
        self._seconds = metrics.seconds.labels(method)
        self._ok = self._counter("OK")

    def ended(self, code: str, seconds: float) -> None:
        """Count a call that ended with a gRPC status; each call ends once."""
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
            "From when a request had been read until its response was sent.",
            ["method"],
            registry=registry,
            buckets=SECONDS,
        )
        images = Counter(
            "embedserve_images",
            "Admitted images that are finished, by outcome.",
            ["outcome"],
            registry=registry,
        )
        rejected = Counter(
            "embedserve_rejected", "Calls that were refused, by the code of the error.", ["reason"], registry=registry
        )
        self._rejected_images = Counter(
            "embedserve_rejected_images",
            "Images in calls that were refused with OVERLOADED.",
            registry=registry,
        )
        self.cancelled = Counter(
            "embedserve_cancelled",
            "Calls that ended before their response was sent: the client hung up, or its message was larger than"
            " max_message_bytes.",
            registry=registry,
        )
        stages = Histogram(
            "embedserve_stage_duration_seconds",
            "Parts of the work: decode and queue per image, inference per batch, search and upsert per call of a"
            " collection.",
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
            "Segments that were built in the background, by the kind of index.",
            ["kind"],
            registry=registry,
            buckets=BUILD_SECONDS,
        )
        self._built_rows = Counter(
            "embedserve_index_built_rows", "Rows of the segments that were built.", ["kind"], registry=registry
        )
        self._rebuilt = Counter(
            "embedserve_index_rebuilt",
            "Segments that were dropped and rebuilt from the items, by reason.",
            ["reason"],
            registry=registry,
        )
        Gauge("embedserve_requests_in_flight", "Calls that have begun and not ended.", registry=registry).set_function(
            lambda: self.calls_in_flight
        )
        Info("embedserve_build", "The server's version.", registry=registry).info({"version": embedserve.__version__})
        self._gauges = Gauges()
        registry.register(self._gauges)
        ProcessCollector(registry=registry)

        self._label_values: set[str] = set()
        self._methods = {path: MethodMetrics(self, path.rpartition("/")[2]) for path in methods}
        self._other = MethodMetrics(self, _OTHER)
        self._images = {outcome: images.labels(outcome) for outcome in get_args(Outcome)}
        self._rejected = {code: rejected.labels(code) for code in REJECTED}
        self._stages: dict[Stage, Histogram] = {stage: stages.labels(stage) for stage in get_args(Stage)}

    def read_from(self, engine: Engine, *, ready: Callable[[], bool]) -> None:
        """Read the gauges from an engine from now on; ``ready`` tells whether calls are accepted."""
        self._gauges.engine, self._gauges.ready = engine, ready

    async def refresh_collections(self) -> None:
        """To be called before the metrics are read: see ``Gauges.refresh_collections``."""
        await self._gauges.refresh_collections()

    # --- Calls: from the interceptor, on the event loop -----------------------------

    def method(self, path: str) -> MethodMetrics:
        """The counters of a method. Unknown methods share theirs, since clients choose the names."""
        return self._methods.get(path, self._other)

    def on_error(self, code: str) -> None:
        """Count a call that was answered with an error, by its code in ``embedserve.errors``."""
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
        kind = self._label_value(kind)
        self._build_seconds.labels(kind).observe(seconds)
        self._built_rows.labels(kind).inc(rows)

    def on_index_rebuilt(self, reason: str) -> None:
        """See Observer."""
        self._rebuilt.labels(self._label_value(reason)).inc()

    def _label_value(self, value: str) -> str:
        if len(self._label_values) < _MAX_LABEL_VALUES:
            self._label_values.add(value)
        return value if value in self._label_values else _OTHER
