"""Channels to several servers as one: calls go to them in turn, and past those that cannot be reached.

gRPC's own round_robin needs one name whose addresses all have the same certificate. Here each server has a channel of
its own, and is resolved, authenticated and reconnected by itself.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import grpc

_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
_RANKS = {
    grpc.ChannelConnectivity.READY: 0,
    grpc.ChannelConnectivity.IDLE: 0,  # it connects when a call comes
    grpc.ChannelConnectivity.CONNECTING: 1,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE: 2,
    grpc.ChannelConnectivity.SHUTDOWN: 3,
}

ROUND_ROBIN = ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')
"""For each channel: a name that stands for several addresses is several servers, too."""


class RotatingChannel:
    """A channel that sends each call, or stream, to the next of several servers.

    Args:
        channels: one to each server, of ``grpc`` or ``grpc.aio``.
    """

    def __init__(self, channels: Sequence[Any]) -> None:
        self._channels = channels
        self._turns = itertools.count()
        self._is_async = hasattr(channels[0], "get_state")
        self._states = [grpc.ChannelConnectivity.CONNECTING] * len(channels)
        for number, channel in enumerate(channels):
            if self._is_async:
                channel.get_state(try_to_connect=True)
            else:
                channel.subscribe(self._noting(number), try_to_connect=True)

    def __getattr__(self, name: str) -> Any:
        if name not in _KINDS:
            raise AttributeError(name)
        return lambda *args, **options: _RotatingCall(
            [getattr(channel, name)(*args, **options) for channel in self._channels], self.next
        )

    def next(self) -> int:
        """The number of the server whose turn it is, among those that can be reached best."""
        ranks = [_RANKS[state] for state in self._current_states()]
        best = [number for number, rank in enumerate(ranks) if rank == min(ranks)]
        return best[next(self._turns) % len(best)]

    def close(self, *args: Any) -> Any:
        """Close all; to be awaited if they are asynchronous."""
        closing = [channel.close(*args) for channel in self._channels]
        return asyncio.gather(*closing) if self._is_async else None

    async def channel_ready(self) -> None:
        """Wait until all are connected; for asynchronous channels."""
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    def _current_states(self) -> list[grpc.ChannelConnectivity]:
        if self._is_async:
            return [channel.get_state(try_to_connect=True) for channel in self._channels]
        return self._states

    def _noting(self, number: int) -> Callable[[grpc.ChannelConnectivity], None]:
        def note(state: grpc.ChannelConnectivity) -> None:
            self._states[number] = state

        return note


class _RotatingCall:
    """A method of a stub, sync or async, with one multi-callable for each server."""

    def __init__(self, methods: Sequence[Any], turn: Callable[[], int]) -> None:
        self._methods = methods
        self._turn = turn

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._methods[self._turn()](*args, **options)

    def future(self, *args: Any, **options: Any) -> Any:
        return self._methods[self._turn()].future(*args, **options)
