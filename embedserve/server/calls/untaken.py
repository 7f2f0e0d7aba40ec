"""Ends calls whose callers do not take their answers: those hold room that other answers wait for.

gRPC waits for a caller that reads nothing for as long as its connection lives.
"""

from __future__ import annotations

import asyncio
import time

from embedserve.engine.answers import Answers

_LOOK_S = 1.0
TAKE_TIMEOUT_S = 60.0
"""An answer must be taken within this time: 32 MiB take as long at 4.5 Mbit/s."""
_TAKE_TIMEOUT_WHILE_OTHERS_WAIT_S = 10.0


async def end_untaken(answers: Answers) -> None:
    """Cancel the calls of answers that were complete long ago; runs until it is cancelled."""
    while True:
        await asyncio.sleep(_LOOK_S)
        now = time.monotonic()
        timeout_s = _TAKE_TIMEOUT_WHILE_OTHERS_WAIT_S if answers.waiting else TAKE_TIMEOUT_S
        for answer in list(answers.open):
            if answer.task is not None and answer.given_at is not None and now - answer.given_at > timeout_s:
                answer.task.cancel()
