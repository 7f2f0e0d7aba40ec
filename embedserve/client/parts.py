"""A method with many inputs cut into parts: each is one message that stays below the server's limits.

Inputs that cannot be sent, such as a file that cannot be read, keep their place among the results of their part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from embedserve import wire
from embedserve.errors import EmbedserveError, InternalError, LimitExceeded
from embedserve.types import Limits

RequestT = TypeVar("RequestT", bound=Message)
EntryT = TypeVar("EntryT")
ResultT = TypeVar("ResultT")

_FRAME_BYTES = 16
"""Tag and length of one entry of a message, and of what it contains."""


@dataclass(frozen=True, slots=True)
class Part(Generic[RequestT]):
    """One message of several that together do the work of a method."""

    request: RequestT | None
    """None where nothing is left to send."""
    refused: Sequence[EmbedserveError | None]
    """For each input of this part: why it was not sent, or None if it was."""
    ids: Sequence[str] = ()
    """The ids of the inputs, where they have any."""
    size_bytes: int = 0
    """What the inputs take, about."""
    is_all: bool = False
    """There are no other parts."""

    @property
    def sent(self) -> int:
        """How many inputs the request holds."""
        return sum(error is None for error in self.refused)

    def merge(self, answers: Sequence[ResultT]) -> list[ResultT | EmbedserveError]:
        """For each input its answer or why it was refused, in order.

        Raises:
            InternalError: the server gave another number of answers than was asked for.
        """
        if len(answers) != self.sent:
            raise InternalError(f"the server gave {len(answers)} results for {self.sent} inputs")
        remaining = iter(answers)
        return [next(remaining) if error is None else error for error in self.refused]


@dataclass(frozen=True, slots=True)
class Entry(Generic[EntryT]):
    """One input of a bulk method, ready to be sent or refused."""

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
        """One more."""
        self.entries.append(entry)
        self.size_bytes += entry_bytes
        self.images += entry.is_image


def pack(
    entries: Iterable[Entry[EntryT]],
    *,
    room_bytes: int,
    most: int,
    most_images: int,
    full_bytes: int | None = None,
    full_after_s: float | None = None,
) -> Iterator[Group[EntryT]]:
    """Cut entries into groups that fit one message each.

    Args:
        entries: taken one by one.
        room_bytes: an entry that takes more is refused.
        most: entries in a group.
        most_images: images in a group.
        full_bytes: a group takes no more than that, unless one entry does by itself; None for ``room_bytes``.
        full_after_s: a group that has been gathered for so long is given as it is; None to wait for all it can hold.
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
            len(group.entries) >= most
            or group.size_bytes + entry_bytes > full_bytes
            or group.images + entry.is_image > most_images
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


def part_of(group: Group[EntryT], build: Callable[[list[EntryT]], RequestT]) -> Part[RequestT]:
    """The message for a group; ``build`` makes it of those entries that can be sent."""
    contents = [entry.content for entry in group.entries if not isinstance(entry.content, EmbedserveError)]
    return Part(
        request=build(contents) if contents else None,
        refused=[entry.content if isinstance(entry.content, EmbedserveError) else None for entry in group.entries],
        ids=[entry.id for entry in group.entries],
        size_bytes=group.size_bytes,
        is_all=group.is_all,
    )


def images_per_call(limits: Limits) -> int:
    """Images that one call may have."""
    # A call with more images than the queue holds could never be admitted.
    return min(limits.max_images, limits.max_queue_images)


def room_bytes_for(limits: Limits, request: Message) -> int:
    """Bytes of entries that fit a call beside what the empty ``request`` takes."""
    return min(limits.max_message_bytes, limits.max_queue_bytes) - request.ByteSize() - _FRAME_BYTES


def read_results(
    noun: str, results: Sequence[Any], field: str, value_of: Callable[[Any], ResultT]
) -> list[ResultT | EmbedserveError]:
    """The value in each result of a response, or its error.

    The server says in an error which of the call's inputs it is about. That is taken off, since the caller knows
    nothing of how his inputs were spread over calls.
    """
    answers: list[ResultT | EmbedserveError] = []
    for position, result in enumerate(results, start=1):
        kind = result.WhichOneof("result")
        if kind == field:
            answers.append(value_of(result))
        elif kind == "error":
            result.error.message = result.error.message.removeprefix(f"{noun} {position} of {len(results)}: ")
            answers.append(wire.error_from_status(result.error))
        else:
            answers.append(InternalError("the server gave an empty result"))
    return answers
