"""The turn queue: orders worked out by hand, and any sequence of operations beside a slow model made of lists."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embedserve.engine.turn_queue import QueuedCall, TurnQueue


def filled(**calls: int) -> TurnQueue[QueuedCall]:
    """A queue with a call for each flow, ``a=3`` meaning three pieces; ``a1`` and ``a2`` are calls of flow a."""
    queue: TurnQueue[QueuedCall] = TurnQueue()
    for name, pieces in calls.items():
        queue.add(QueuedCall(name[0], pieces))
    return queue


def flows_taken(queue: TurnQueue[QueuedCall]) -> str:
    taken = []
    while piece := queue.take():
        taken.append(str(piece[0].flow))
    return "".join(taken)


def test_flows_take_turns_and_a_long_one_does_not_hold_back_a_short_one() -> None:
    assert flows_taken(filled(a=5, b=1, c=2)) == "abcacaaa"


def test_a_flow_that_becomes_empty_begins_again_behind_the_others() -> None:
    queue = filled(a=1, b=2, c=1)
    queue.take()
    queue.add(QueuedCall("a", 1))
    assert flows_taken(queue) == "bcab"


def test_the_calls_of_a_flow_are_served_one_after_the_other() -> None:
    queue = filled(a1=2, a2=2, b=1)
    order = []
    while piece := queue.take():
        order.append((piece[0].flow, piece[0].pieces, piece[1]))
    assert order == [("a", 2, 0), ("b", 1, 0), ("a", 2, 1), ("a", 2, 0), ("a", 2, 1)]


def test_a_share_has_some_pieces_of_each_call_of_one_flow() -> None:
    queue = filled(a1=100, a2=1, a3=10, b=1)
    found = [queue.take_share(2, least=4, most=12) for _ in range(3)]
    assert [[(call.pieces, start, stop) for call, start, stop in shares] for shares in found] == [
        [(100, 0, 4), (1, 0, 1), (10, 0, 4)],
        [(1, 0, 1)],
        [(100, 4, 10), (10, 4, 10)],
    ]


def test_where_calls_are_more_than_a_share_has_pieces_the_first_ones_are_served_and_go_behind_the_others() -> None:
    queue = filled(a1=1, a2=2, a3=3, a4=4)
    found = [queue.take_share(1, least=1, most=3) for _ in range(2)]
    assert [[(call.pieces, start) for call, start, _ in shares] for shares in found] == [
        [(1, 0), (2, 0), (3, 0)],
        [(4, 0), (2, 1), (3, 1)],
    ]


def test_a_share_is_the_part_of_one_taker_between_the_least_and_the_most() -> None:
    def size(waiting: int, takers: int) -> int:
        return sum(stop - start for _, start, stop in filled(a=waiting).take_share(takers, least=16, most=64))

    assert [size(5, 1), size(40, 4), size(65, 2), size(90, 2), size(500, 2)] == [5, 16, 33, 45, 64]


def test_a_new_flow_waits_for_one_turn_of_each_other_per_piece() -> None:
    queue = filled(a=100, b=2)
    assert [queue.ahead("new", pieces) for pieces in (1, 2, 3, 200)] == [2, 4, 5, 102]


class AgainstModel(RuleBasedStateMachine):
    """Every operation in any order; the model counts nothing, and walks its lists for every answer."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: TurnQueue[QueuedCall] = TurnQueue()
        self.rotation: list[str] = []
        """Flows with waiting pieces, in the order of their turns."""
        self.lines: dict[str, list[QueuedCall]] = {}
        """For each flow its calls with waiting pieces, the next one first."""
        self.waiting: dict[QueuedCall, list[int]] = {}
        self.in_flight: dict[QueuedCall, list[int]] = {}
        self.settled: Counter[QueuedCall] = Counter()
        self.gone: set[QueuedCall] = set()
        self.answered: list[QueuedCall] = []
        self.given: Counter[tuple[QueuedCall, int]] = Counter()

    def _take(self, call: QueuedCall, pieces: int) -> tuple[int, int]:
        """Take pieces of a call; the first position and the one behind the last."""
        taken, self.waiting[call] = self.waiting[call][:pieces], self.waiting[call][pieces:]
        self.in_flight[call] += taken
        self.given.update((call, position) for position in taken)
        return taken[0], taken[-1] + 1

    def _forget(self, call: QueuedCall) -> int:
        """Take a call back; how many of its pieces waited."""
        untaken = len(self.waiting[call])
        if untaken:
            flow = next(flow for flow, line in self.lines.items() if call in line)
            self.lines[flow].remove(call)
            if not self.lines[flow]:
                self.rotation.remove(flow)
        self.waiting[call], self.in_flight[call] = [], []
        self.gone.add(call)
        return untaken

    @rule(flow=st.sampled_from("abcd"), pieces=st.integers(1, 9))
    def add(self, flow: str, pieces: int) -> None:
        call = QueuedCall(flow, pieces)
        self.queue.add(call)
        self.waiting[call], self.in_flight[call] = list(range(pieces)), []
        self.lines.setdefault(flow, []).append(call)
        if flow not in self.rotation:
            self.rotation.append(flow)

    @rule()
    def take(self) -> None:
        found = self.queue.take()
        if not self.rotation:
            assert found is None
            return
        flow = self.rotation.pop(0)
        call = self.lines[flow][0]
        position, _ = self._take(call, 1)
        assert found == (call, position)
        if not self.waiting[call]:
            self.lines[flow].pop(0)
        if self.lines[flow]:
            self.rotation.append(flow)

    @rule(takers=st.integers(1, 4), least=st.integers(1, 4), more=st.integers(0, 8))
    def take_share(self, takers: int, least: int, more: int) -> None:
        found = self.queue.take_share(takers, least=least, most=least + more)
        if not self.rotation:
            assert found == []
            return
        flow = self.rotation.pop(0)
        line = self.lines[flow]
        fair = sum(len(self.waiting[call]) for call in line) / takers
        share = next(size for size in range(least, least + more + 1) if size >= fair or size == least + more)
        served, others = line[:share], line[share:]
        expected = [(call, *self._take(call, max(share // len(line), 1))) for call in served]
        assert found == expected
        assert sum(stop - start for _, start, stop in found) <= share
        self.lines[flow] = others + [call for call in served if self.waiting[call]]
        if self.lines[flow]:
            self.rotation.append(flow)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(list(self.waiting)))
        untaken = self.queue.take_back(call)
        assert untaken == (0 if call in self.gone else self._forget(call))

    @precondition(lambda self: any(self.in_flight.values()))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from([call for call, positions in self.in_flight.items() if positions]))
        pieces = data.draw(st.integers(1, len(self.in_flight[call])))
        wake = self.queue.settle(call, pieces)
        self.in_flight[call] = self.in_flight[call][pieces:]
        self.settled[call] += pieces
        is_answered = self.settled[call] == call.pieces
        assert wake == (is_answered and not self.answered)
        if is_answered:
            self.answered.append(call)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def settle_what_is_gone(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from([call for call in self.waiting if call in self.gone]))
        assert not self.queue.settle(call)

    @precondition(lambda self: any(self.settled[call] < call.pieces for call in self.waiting))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from([call for call in self.waiting if self.settled[call] < call.pieces]))
        wake = self.queue.end(call)
        assert wake == (call not in self.gone and not self.answered)
        if call not in self.gone:
            self._forget(call)
            self.answered.append(call)

    @rule()
    def deliver(self) -> None:
        delivered, self.queue.answered = self.queue.answered, []
        assert delivered == self.answered
        self.answered = []

    @rule(flow=st.sampled_from("abcdx"), pieces=st.integers(1, 12))
    def ahead(self, flow: str, pieces: int) -> None:
        left = {other: sum(len(self.waiting[call]) for call in self.lines[other]) for other in self.rotation}
        left[flow] = left.get(flow, 0) + pieces
        rotation, taken = list(left), 0
        while left[flow]:
            other = rotation.pop(0)
            left[other] -= 1
            taken += 1
            if left[other]:
                rotation.append(other)
        assert self.queue.ahead(flow, pieces) == taken - pieces

    @invariant()
    def counters_add_up(self) -> None:
        assert self.queue.waiting == sum(map(len, self.waiting.values()))
        assert self.queue.in_flight == sum(map(len, self.in_flight.values()))
        assert self.queue.answered == self.answered

    @invariant()
    def no_piece_is_given_twice(self) -> None:
        assert max(self.given.values(), default=1) == 1

    def teardown(self) -> None:
        """Everything that was neither taken nor taken back is still there, once."""
        expected = Counter((call, position) for call, positions in self.waiting.items() for position in positions)
        found: Counter[tuple[QueuedCall, int]] = Counter()
        while piece := self.queue.take():
            found[piece] += 1
        assert found == expected
        assert self.queue.waiting == 0


AgainstModel.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
test_any_sequence_of_operations_is_that_of_the_model = AgainstModel.TestCase
