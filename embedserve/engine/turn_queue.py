"""Which call is served next: calls wait in flows, and the flows are served in rotation.

Only counts and order: no lock, thread or clock. The owner holds its own lock around every method.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar


@dataclass(slots=True, eq=False)
class QueuedCall:
    """Pieces of work that are answered together. Only the queue changes its counts."""

    flow: Hashable
    """Calls of one flow share its turn."""
    pieces: int
    """At least 1."""
    taken: int = field(default=0, init=False)
    """Pieces that have been taken; this is the position of the next one."""
    settled: int = field(default=0, init=False)
    """Pieces that have a result."""
    gone: bool = field(default=False, init=False)
    """Taken back: no result of it is wanted any more."""


CallT = TypeVar("CallT", bound=QueuedCall)


@dataclass(slots=True, eq=False)
class _Flow(Generic[CallT]):
    """The calls of one flow that have pieces waiting, and how many pieces those are."""

    calls: deque[CallT] = field(default_factory=deque)
    waiting: int = 0


class TurnQueue(Generic[CallT]):
    """Calls from when they are added until they are answered.

    Each turn serves one flow, which then goes behind all others, so a flow with many calls, or large ones, does not
    hold back a flow with few.
    """

    def __init__(self) -> None:
        self.waiting = 0
        """Pieces that have not been taken."""
        self.in_flight = 0
        """Pieces that have been taken and not settled, of calls that are not gone."""
        self.answered: list[CallT] = []
        """Calls with all their results. The owner takes them away."""
        self._flows: OrderedDict[Hashable, _Flow[CallT]] = OrderedDict()  # in the order of their turns

    def add(self, call: CallT) -> None:
        """Put a new call behind those of its flow."""
        flow = self._flows.get(call.flow)
        if flow is None:
            flow = self._flows[call.flow] = _Flow()
        flow.calls.append(call)
        flow.waiting += call.pieces
        self.waiting += call.pieces

    def take(self) -> tuple[CallT, int] | None:
        """The next piece of the first call of the flow whose turn it is, with its position; None if nothing waits."""
        if not self.waiting:
            return None
        key, flow = next(iter(self._flows.items()))
        call = flow.calls[0]
        position = call.taken
        call.taken = position + 1
        flow.waiting -= 1
        self.waiting -= 1
        self.in_flight += 1
        if call.taken == call.pieces:
            flow.calls.popleft()
        if flow.calls:
            self._flows.move_to_end(key)
        else:
            del self._flows[key]
        return call, position

    def take_share(
        self, takers: int, *, least: int, most: int, skipped: Collection[Hashable] = ()
    ) -> list[tuple[CallT, int, int]]:
        """Several pieces of the flow whose turn it is, some of each of its calls, which take turns as well.

        Args:
            takers: among how many the flow's waiting pieces are shared out; the share is rounded up.
            least: a smaller share is raised to this.
            most: a larger share is cut to this.
            skipped: flows that have no turn now, and keep their place.

        Returns:
            Calls, each with the position of the first piece taken and of the one behind the last; empty if nothing
            waits. Where fewer calls than pieces are taken, each gives the same number of pieces, or all it has.
        """
        if not self.waiting:
            return []
        if skipped:
            key = next((key for key in self._flows if key not in skipped), None)
            if key is None:
                return []
            flow = self._flows[key]
        else:
            key, flow = next(iter(self._flows.items()))
        share = min(max(-(-flow.waiting // takers), least), most)
        of_each = max(share // len(flow.calls), 1)
        shares: list[tuple[CallT, int, int]] = []
        for _ in range(min(len(flow.calls), share)):
            call = flow.calls.popleft()
            start = call.taken
            call.taken = stop = min(start + of_each, call.pieces)
            flow.waiting -= stop - start
            self.waiting -= stop - start
            self.in_flight += stop - start
            shares.append((call, start, stop))
            if stop < call.pieces:
                flow.calls.append(call)
        if flow.calls:
            self._flows.move_to_end(key)
        else:
            del self._flows[key]
        return shares

    def take_back(self, call: CallT) -> int:
        """Forget a call: its waiting pieces are not taken any more, and those in flight no longer count.

        Returns:
            How many pieces had not been taken.
        """
        if call.gone:
            return 0
        call.gone = True
        untaken = call.pieces - call.taken
        self.in_flight -= call.taken - call.settled
        if untaken:
            flow = self._flows[call.flow]
            flow.calls.remove(call)
            flow.waiting -= untaken
            self.waiting -= untaken
            if not flow.calls:
                del self._flows[call.flow]
        return untaken

    def settle(self, call: CallT, pieces: int = 1) -> bool:
        """Note that taken pieces of a call have their results; with the last one the call is answered.

        Returns:
            Whether ``answered`` was empty and now is not, so that the owner has to have it emptied.
        """
        if call.gone:
            return False
        call.settled += pieces
        self.in_flight -= pieces
        if call.settled < call.pieces:
            return False
        self.answered.append(call)
        return len(self.answered) == 1

    def end(self, call: CallT) -> bool:
        """Answer a call before all its pieces are settled, as with an error; the others are taken back.

        Returns:
            What ``settle`` returns.
        """
        if call.gone:
            return False
        self.take_back(call)
        self.answered.append(call)
        return len(self.answered) == 1

    def ahead(self, flow: Hashable, pieces: int) -> int:
        """How many waiting pieces ``take`` gives before the last of this many new ones of a flow."""
        own = self._flows.get(flow)
        ahead = 0 if own is None else own.waiting
        turns = ahead + pieces
        for other in self._flows.values():
            if other is own:
                turns -= 1  # the flows behind it have one turn less before its last one
            else:
                ahead += min(other.waiting, turns)
        return ahead
