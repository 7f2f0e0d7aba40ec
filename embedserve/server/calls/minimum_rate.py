"""How fast a client must send or read the messages of a call that holds resources of the server."""

from __future__ import annotations

MIN_BYTES_PER_S = 16 << 10


class MinimumRate:
    """Adds up the bytes of a call and the time that the server has waited for the client.

    Args:
        allowance_s: seconds of waiting allowed beyond those that ``MIN_BYTES_PER_S`` allows for the bytes.
    """

    def __init__(self, allowance_s: float) -> None:
        self._allowance_s = allowance_s
        self.bytes = 0
        self.waited_s = 0.0

    def is_kept(self, size_bytes: int, waited_s: float) -> bool:
        """Whether the call is still fast enough after one more message, which took ``waited_s``."""
        self.bytes += size_bytes
        self.waited_s += waited_s
        return self.waited_s <= self._allowance_s + self.bytes / MIN_BYTES_PER_S
