"""A bulk method cut into parts: each is one call that stays below the server's limits.

Inputs that cannot be sent, such as a file that cannot be read, keep their place among the results of their part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from embedserve.errors import EmbedserveError, InternalError, LimitExceeded
from embedserve.types import Limits

RequestT = TypeVar("RequestT", bound=Message)
EntryT = TypeVar("EntryT")
ResultT = TypeVar("ResultT")

_FRAME_BYTES = 16
"""Tag and length of one entry of a message, and of what it contains."""


@dataclass(frozen=True, slots=True)
class Part(Generic[RequestT]):
    """One call of several that together do the work of a bulk method."""

    request: RequestT | None
    """None where nothing is left to send."""
    refused: Sequence[EmbedserveError | None]
    """For each input of this part: why it was not sent, or None if it was."""
    ids: Sequence[str] = ()
    """The ids of the inputs, where they have any."""
    after_others: bool = False
    """To be sent only when all parts before it have been answered."""

    def merge(self, answers: Sequence[ResultT]) -> list[ResultT | EmbedserveError]:
        """For each input its answer or why it was refused, in order.

        Raises:
            InternalError: the server gave another number of answers than was asked for.
        """
        asked = sum(error is None for error in self.refused)
        if len(answers) != asked:
            raise InternalError(f"the server gave {len(answers)} results for {asked} inputs")
        remaining = iter(answers)
        return [next(remaining) if error is None else error for error in self.refused]


@dataclass(frozen=True, slots=True)
class Entry(Generic[EntryT]):
    """One input of a bulk method, ready to be sent or refused."""

    content: EntryT | EmbedserveError
    size_bytes: int = 0
    is_image: bool = False
    id: str = ""


def pack(
    entries: Iterable[Entry[EntryT]], *, room_bytes: int, most: int, most_images: int
) -> Iterator[list[Entry[EntryT]]]:
    """Cut entries into groups that fit one message each."""
    group: list[Entry[EntryT]] = []
    size_bytes = images = 0
    for entry in entries:
        entry_bytes = entry.size_bytes + _FRAME_BYTES
        if entry_bytes > room_bytes:
            too_large = LimitExceeded(
                f"{entry.size_bytes} bytes do not fit one message; there is room for {room_bytes}"
            )
            entry, entry_bytes = Entry(too_large, id=entry.id), 0
        if group and (
            len(group) >= most or size_bytes + entry_bytes > room_bytes or images + entry.is_image > most_images
        ):
            yield group
            group, size_bytes, images = [], 0, 0
        group.append(entry)
        size_bytes += entry_bytes
        images += entry.is_image
    if group:
        yield group


def part_of(
    group: list[Entry[EntryT]], build: Callable[[list[EntryT]], RequestT], *, after_others: bool = False
) -> Part[RequestT]:
    """The call for a group; ``build`` makes its request of those entries that can be sent."""
    contents = [entry.content for entry in group if not isinstance(entry.content, EmbedserveError)]
    return Part(
        request=build(contents) if contents else None,
        refused=[entry.content if isinstance(entry.content, EmbedserveError) else None for entry in group],
        ids=[entry.id for entry in group],
        after_others=after_others,
    )


def images_per_call(limits: Limits) -> int:
    """Images that one call may have."""
    # A call with more images than the queue holds could never be admitted.
    return min(limits.max_images, limits.max_queue_images)


def room_bytes_for(limits: Limits, request: Message) -> int:
    """Bytes of entries that fit a call beside what the empty ``request`` takes."""
    return min(limits.max_message_bytes, limits.max_queue_bytes) - request.ByteSize() - _FRAME_BYTES
