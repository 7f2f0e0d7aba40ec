"""Many inputs cut into chunks: each is one message within the server's limits.

Inputs that cannot be sent, such as a file that cannot be read, keep their place among the results of their chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from embedserve.client import answers
from embedserve.errors import EmbedserveError, LimitExceeded, ProtocolError
from embedserve.types import Limits

RequestT = TypeVar("RequestT", bound=Message)
EntryT = TypeVar("EntryT")
ResultT = TypeVar("ResultT")

_FRAME_BYTES = 16
"""Tag and length of one entry of a message, and of what it contains."""


@dataclass(frozen=True, slots=True)
class Chunk(Generic[RequestT]):
    """The inputs of a method that share one message."""

    request: RequestT | None
    """None where nothing is left to send."""
    refused: Sequence[EmbedserveError | None]
    """For each input of the chunk: why it cannot be sent, or None if it is sent."""
    ids: Sequence[str] = ()
    """The ids of the inputs, if they have any."""
    size_bytes: int = 0
    """Approximate size of the inputs."""
    is_all: bool = False
    """There are no other chunks."""

    @property
    def sent(self) -> int:
        """How many inputs the request holds."""
        return sum(error is None for error in self.refused)

    def merge(self, answers: Sequence[ResultT]) -> list[ResultT | EmbedserveError]:
        """For each input its answer or why it was refused, in order.

        Raises:
            ProtocolError: the number of answers is not the number of inputs that were sent.
        """
        if len(answers) != self.sent:
            raise ProtocolError(f"the server gave {len(answers)} results for {self.sent} inputs")
        remaining = iter(answers)
        return [next(remaining) if error is None else error for error in self.refused]


@dataclass(frozen=True, slots=True)
class Entry(Generic[EntryT]):
    """One input, ready to be sent or refused."""

    content: EntryT | EmbedserveError
    size_bytes: int = 0
    is_image: bool = False
    id: str = ""


@dataclass(slots=True)
class Group(Generic[EntryT]):
    """Entries that fit one message."""

    entries: list[Entry[EntryT]] = field(default_factory=list)
    size_bytes: int = 0
    images: int = 0
    is_all: bool = False
    """There are no other groups."""

    def add(self, entry: Entry[EntryT], entry_bytes: int) -> None:
        """Add an entry that takes so many bytes of the message."""
        self.entries.append(entry)
        self.size_bytes += entry_bytes
        self.images += entry.is_image


def pack(
    entries: Iterable[Entry[EntryT]],
    *,
    room_bytes: int,
    max_entries: int,
    max_images: int,
    full_bytes: int | None = None,
    full_after_s: float | None = None,
) -> Iterator[Group[EntryT]]:
    """Cut entries into groups that fit one message each.

    Args:
        entries: taken one by one.
        room_bytes: a larger entry is refused.
        max_entries: of a group.
        max_images: of a group.
        full_bytes: a group ends before it exceeds this, unless a single entry does; None for ``room_bytes``.
        full_after_s: a group ends when its first entry was taken this long ago; None: only size ends it.
    """
    full_bytes = room_bytes if full_bytes is None else min(full_bytes, room_bytes)
    group: Group[EntryT] = Group()
    is_first, begun = True, 0.0
    for entry in entries:
        entry_bytes = entry.size_bytes + _FRAME_BYTES
        if entry_bytes > room_bytes:
            too_large = LimitExceeded(
                f"{entry.size_bytes} bytes do not fit one message; there is room for {room_bytes}"
            )
            entry, entry_bytes = Entry(too_large, id=entry.id), 0
        if group.entries and (
            len(group.entries) >= max_entries
            or group.size_bytes + entry_bytes > full_bytes
            or group.images + entry.is_image > max_images
            or (full_after_s is not None and time.monotonic() - begun > full_after_s)
        ):
            yield group
            group, is_first = Group(), False
        if not group.entries:
            begun = time.monotonic()
        group.add(entry, entry_bytes)
    if group.entries:
        group.is_all = is_first
        yield group


def chunk_of(group: Group[EntryT], build: Callable[[list[EntryT]], RequestT]) -> Chunk[RequestT]:
    """A group as a chunk; ``build`` makes the message of the entries that can be sent."""
    contents = [entry.content for entry in group.entries if not isinstance(entry.content, EmbedserveError)]
    return Chunk(
        request=build(contents) if contents else None,
        refused=[entry.content if isinstance(entry.content, EmbedserveError) else None for entry in group.entries],
        ids=[entry.id for entry in group.entries],
        size_bytes=group.size_bytes,
        is_all=group.is_all,
    )


def images_per_call(limits: Limits) -> int:
    """Largest number of images in one call."""
    # A call with more images than the queue holds could never be admitted.
    return min(limits.max_images, limits.max_queue_images)


def room_bytes_for(limits: Limits, request: Message) -> int:
    """Bytes of entries that fit one call beside the empty ``request``."""
    return min(limits.max_message_bytes, limits.max_queue_bytes) - request.ByteSize() - _FRAME_BYTES


def read_results(
    noun: str, results: Sequence[Any], field: str, value_of: Callable[[Any], ResultT]
) -> list[ResultT | EmbedserveError]:
    """The value in each result of a response, or its error.

    An error of the server names the input by its position in the call. The position is removed, since the caller does
    not know how the inputs were spread over calls.
    """
    outcomes: list[ResultT | EmbedserveError] = []
    for position, result in enumerate(results, start=1):
        kind = result.WhichOneof("result")
        if kind == field:
            outcomes.append(value_of(result))
        elif kind == "error":
            result.error.message = result.error.message.removeprefix(f"{noun} {position} of {len(results)}: ")
            outcomes.append(answers.error(result.error))
        else:
            outcomes.append(ProtocolError("the server gave an empty result"))
    return outcomes
