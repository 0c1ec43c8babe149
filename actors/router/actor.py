"""The router actor: hosts one Router for batch jobs and Python clients, and serves requests through lanes.

A streamed request says what it hears in Parts of its item, so the tokens of all streams share the lane's yields.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import NamedTuple

from actors.lane import FAR, Batch, Gap, LaneServer, Part, as_tasks
from actors.lane_peers import LaneHost
from actors.messages import Chunk, Failure, Request, Result, pickled_flat
from actors.router.flow import Router
from actors.router.notes import RouterNote

__all__ = ["Heard", "RouterActor"]

NOTE_EVERY_S = 0.25


class Heard(NamedTuple):
    """What a Part of a streamed request holds."""

    tier: str
    """Who began to speak."""
    events: list[bytes]
    """The data of each, as it came."""


pickled_flat(Heard)


class _Teller:
    """Passes a stream on (a Listener, actors/router/told.py)."""

    def __init__(self, say: Callable[[Part], None]) -> None:
        self._say, self._tier = say, ""

    def begin(self, tier: str) -> None:
        self._tier = tier

    def hear(self, chunks: list[Chunk]) -> None:
        self._say(Part(Heard(self._tier, [chunk.data for chunk in chunks])))


class RouterActor(LaneHost):
    """Thin shell around Router. `make` builds the Router in this process, when it is first asked for."""

    def __init__(self, make: Callable[[], Router]) -> None:
        self._make = make
        self._router: Router | None = None
        self._opening: asyncio.Lock | None = None
        self._noted_at = 0.0
        self._server: LaneServer[Request, Result | Failure] = LaneServer(
            as_tasks(self._run, _internal), note=self._note, weigh=_weigh
        )

    async def open(self) -> None:
        """Build the router and open its lanes; raises what building raised. Idempotent."""
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._router is None:
                router = self._make()
                await router.open()
                self._router = router

    async def completions(self, lane: str, generation: int, gap: Gap = FAR) -> AsyncGenerator[Batch, None]:
        """See LaneServer."""
        await self.open()
        async for batch in super().completions(lane, generation, gap):
            yield batch

    async def close(self) -> None:
        """Give back the budget that is held and close the lanes. Idempotent."""
        self._server.close()
        if self._router is not None:
            router, self._router = self._router, None
            await router.close()

    def look(self) -> RouterNote | None:
        """See Router.note; for whoever hosts it in their own process. None: it is not open."""
        return None if self._router is None else self._router.note()

    async def last_rows(self, job: str) -> None:
        """See Router.last_rows."""
        if self._router is not None:
            self._router.last_rows(job)

    def _run(self, request: Request, say: Callable[[Part], None]) -> Awaitable[Result | Failure]:
        assert self._router is not None, "a lane is open, so the router is"
        if request.stream:
            return self._router.stream(request, _Teller(say))
        return self._router.run(request)

    def _note(self) -> RouterNote | None:
        now = time.monotonic()
        if self._router is None:
            return None
        if (
            now - self._noted_at < NOTE_EVERY_S and self._server.outstanding
        ):  # the last word is told: a job may end with it
            return None
        self._noted_at = now
        return self._router.note()


def _internal(error: Exception) -> Failure:
    return Failure("internal", f"{type(error).__name__}: {error}"[:300])


def _weigh(said: object) -> int:
    if isinstance(said, Heard):
        return sum(map(len, said.events)) + 60 * len(said.events)
    return len(getattr(said, "body", b"")) + 400
