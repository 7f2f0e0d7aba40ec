"""How large an answer has become while it is read, and where that ends."""

from __future__ import annotations

from embedserve.errors import LimitExceeded


class AnswerSize:
    """Bytes of one answer so far. What reads rows for it adds them, and stops where they are too many. For one thread.

    Args:
        most_bytes: that the answer may have, at least 1.
        hint: what to ask less of.
    """

    __slots__ = ("bytes", "hint", "most_bytes")

    def __init__(self, most_bytes: int, hint: str = "ask for less at once") -> None:
        self.bytes = 0
        """About as many as the answer has on the wire; the finished answer is measured again."""
        self.most_bytes = most_bytes
        self.hint = hint

    def add(self, size_bytes: int) -> None:
        """Count some more.

        Raises:
            LimitExceeded: the answer does not fit one message.
        """
        self.bytes += size_bytes
        if self.bytes > self.most_bytes:
            raise too_large(self.most_bytes, self.hint)


def too_large(most_bytes: int, hint: str) -> LimitExceeded:
    """The error for an answer that does not fit one message. Clients know it by the name of the limit."""
    return LimitExceeded(
        f"the answer has more bytes than fit one message; max_message_bytes is {most_bytes}", hint=hint
    )
