"""What the engine tells whoever counts: the server's metrics implement it, everyone else leaves it silent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Outcome = Literal["embedded", "refused", "failed", "cancelled", "expired"]
"""What became of an image that was let in: its vector; an error of its own; an error of ours; its caller went away;
its deadline passed."""


class Observer:
    """Does nothing. Its methods are called from worker threads and from the event loop, and must not block."""

    def on_image(self, outcome: Outcome) -> None:
        """One admitted image is done with. Every admitted image ends in exactly one outcome."""

    def on_decoded(self, seconds: float) -> None:
        """One image was decoded and prepared, or found to be bad; ``seconds`` of a worker thread."""

    def on_batch(self, waits_s: Sequence[float], inference_s: float) -> None:
        """A batch went through the encoder.

        Args:
            waits_s: for each of its images the seconds from arrival until the encoder began.
            inference_s: seconds in the encoder.
        """

    def on_rejected(self, images: int) -> None:
        """A call with so many images was refused, since the queue was full."""

    def on_store(self, operation: Literal["search", "upsert"], seconds: float) -> None:
        """The collections were searched or written to; ``seconds`` include the wait for a thread."""

    def on_sealed(self, rows: int, seconds: float, kind: str) -> None:
        """A part of the index of a collection was built and written to disk.

        Args:
            rows: in it.
            seconds: it took.
            kind: "exact", "hnsw" or "ivf"; "none" if only rows without items were dropped.
        """

    def on_index_rebuilt(self, reason: str) -> None:
        """A part of an index was dropped and is made anew from the items.

        Args:
            reason: one of a few words, as in "damaged" or "missing".
        """
