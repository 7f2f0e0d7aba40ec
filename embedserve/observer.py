"""What the engine and the store report as they work: the server's metrics implement it, others ignore it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Outcome = Literal["embedded", "refused", "failed", "cancelled", "expired"]
"""How an admitted image ended: with its vector; a bad image; an internal error; the client disconnected; the
deadline passed."""


class Observer:
    """Ignores everything. The methods are called from worker threads and the event loop, and must not block."""

    def on_image(self, outcome: Outcome) -> None:
        """An admitted image is finished. Every admitted image ends in exactly one outcome."""

    def on_decoded(self, seconds: float) -> None:
        """An image was decoded and preprocessed, or refused; it took ``seconds`` of a worker thread."""

    def on_batch(self, waits_s: Sequence[float], inference_s: float) -> None:
        """A batch went through the encoder.

        Args:
            waits_s: for each of its images, seconds from its arrival to the start of the encoder.
            inference_s: seconds in the encoder.
        """

    def on_rejected(self, images: int) -> None:
        """A call with this many images was refused because the queue is full."""

    def on_store(self, operation: Literal["search", "upsert"], seconds: float) -> None:
        """A collection was searched or written to; ``seconds`` include the wait for a thread."""

    def on_sealed(self, rows: int, seconds: float, kind: str) -> None:
        """A segment of a collection was built and written to disk.

        Args:
            rows: its rows.
            seconds: how long it took.
            kind: "exact", "hnsw" or "ivf"; "none" if deleted rows were dropped and no segment was built.
        """

    def on_index_rebuilt(self, reason: str) -> None:
        """A segment was dropped and is rebuilt from the items.

        Args:
            reason: one of a few words, as in "damaged" or "missing".
        """
