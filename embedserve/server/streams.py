"""Bidirectional streams: bounded reading ahead, answers in order, nothing left running when the caller goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


async def ordered(
    requests: AsyncIterator[_In], work: Callable[[_In], Awaitable[_Out]], *, window: int
) -> AsyncIterator[_Out]:
    """``work`` on every request, at most ``window`` at a time, with the results in the order of the requests."""
    room = asyncio.Semaphore(window)
    # Unbounded by itself, so that the end can always be put in; the semaphore bounds what is read ahead.
    begun: asyncio.Queue[asyncio.Future[_Out] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                begun.put_nowait(asyncio.ensure_future(work(request)))
        finally:
            begun.put_nowait(None)

    reader = asyncio.create_task(read())
    current: asyncio.Future[_Out] | None = None
    try:
        while (current := await begun.get()) is not None:
            result = await current
            room.release()
            yield result
        await reader  # raises what reading raised
    finally:
        reader.cancel()
        while current is not None or not begun.empty():
            if current is not None:
                current.cancel()
            current = None if begun.empty() else begun.get_nowait()


async def grouped(requests: AsyncIterator[_In], *, size: int) -> AsyncIterator[list[_In]]:
    """The requests in groups of up to ``size``: whatever has come while the group before was worked on."""
    room = asyncio.Semaphore(size)
    arrived: asyncio.Queue[_In | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                arrived.put_nowait(request)
        finally:
            arrived.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        ended = False
        while not ended:
            group: list[_In] = []
            while not group or not arrived.empty():
                request = await arrived.get()
                if request is None:
                    ended = True
                    break
                room.release()
                group.append(request)
            if group:
                yield group
        await reader  # raises what reading raised
    finally:
        reader.cancel()
