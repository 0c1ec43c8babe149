"""A whole answer for one request of a Python program: sent until it has ended, and counted once.

Client -> Sending.answer() -> a lane -> router actor -> Result, or RequestFailed
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from actors.errors import ActorLost, LaneClosed, LaneTimeout
from actors.lane import Lane
from actors.messages import Failure, Request, Result
from runtime.client_stream import GRACE_S
from runtime.client_telemetry import Telemetry
from runtime.client_values import failed
from runtime.routers import CLOSED, REDO_LIMIT, budget_pause_s

__all__ = ["Sending"]


class Sending:
    """One a client. `lane`: for the next request; `ended`: is told every request that ended, and its seconds."""

    def __init__(
        self,
        lane: "Callable[[], Lane[Request, Any]]",
        waits: bool,
        telemetry: Telemetry,
        ended: Callable[[Request, Result | Failure, float], None],
    ) -> None:
        """`waits`: what a budget puts off is sent again, unless somebody is waiting for it."""
        self._lane, self._waits, self._telemetry, self._ended = lane, waits, telemetry, ended

    async def answer(self, request: Request) -> Result:
        """Send a request until it has ended. Raises RequestFailed."""
        since = time.monotonic()
        try:
            while True:
                done = await self._sent(request)
                if isinstance(done, Result):
                    break
                pause_s = budget_pause_s(done, self._waits and not request.interactive)
                if pause_s is None:
                    break
                self._telemetry.put_off(request, done)
                await asyncio.sleep(pause_s)
        except asyncio.CancelledError:
            self._telemetry.left(request)
            raise
        self._ended(request, done, time.monotonic() - since)
        if isinstance(done, Failure):
            raise failed(done)
        return done

    async def _sent(self, request: Request) -> Result | Failure:
        until = time.monotonic() + request.deadline_s
        for _ in range(REDO_LIMIT):
            left_s = until - time.monotonic()
            try:
                done: Result | Failure = await self._lane().call(request, left_s + GRACE_S)
                return done
            except ActorLost:  # nobody knows what came of it: it is sent again, as rows are
                self._telemetry.redone()
                request = request._replace(deadline_s=max(0.0, until - time.monotonic()))
            except LaneTimeout as error:
                return Failure("deadline", str(error))
            except LaneClosed:
                return CLOSED
        return Failure("lost", f"sent {REDO_LIMIT} times, and the router died every time")
