"""How fast the messages of a call that holds up others have to be sent or taken."""

from __future__ import annotations

LEAST_BYTES_PER_S = 16 << 10


class MinimumRate:
    """Adds up what went through and how long the other side was waited for.

    Args:
        allowance_s: how long it may be waited for beyond what ``LEAST_BYTES_PER_S`` allows, in seconds.
    """

    def __init__(self, allowance_s: float) -> None:
        self._allowance_s = allowance_s
        self.bytes = 0
        self.waited_s = 0.0

    def is_kept(self, size_bytes: int, waited_s: float) -> bool:
        """Whether the call is fast enough still, with one more message that was waited for so long."""
        self.bytes += size_bytes
        self.waited_s += waited_s
        return self.waited_s <= self._allowance_s + self.bytes / LEAST_BYTES_PER_S
