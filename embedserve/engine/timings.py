"""Where the time of a call goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class Timings:
    """Milliseconds in each part of a call. Its images run side by side, so the longest time of each part counts."""

    decode_ms: float = 0.0
    queue_ms: float = 0.0
    """From arrival until the encoder began, without decoding."""
    inference_ms: float = 0.0
    store_ms: float = 0.0
