"""The coalescer actor: one table for the whole cluster, reached through lanes.

Items are claims and their ends. A claim's completion is a `Lead` (make the call) or a `Shared` (here is the answer).
The actor holds no result but those that `keep_s` asks for. When it dies, claims end as ActorLost at the routers, which
then make their calls themselves: coalescing saves money, it must never stop work.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, NamedTuple, assert_never

from actors.coalescer.table import Lead, Shared, Table
from actors.lane import Batch, Cancel, Complete, LaneHost, LaneServer
from actors.settings import CoalesceSettings

__all__ = ["Abandon", "Claim", "CoalescerActor", "Finish", "Publish"]

EXPIRE_S = 5.0


class Claim(NamedTuple):
    """Completes with Lead or Shared."""

    key: bytes
    lease_s: float


class Finish(NamedTuple):
    """Completes with the positions of the leads that should publish: those that somebody follows.

    Many leads in one item, since nearly all of them have no followers and the item costs more than they do.
    """

    leads: tuple[tuple[bytes, int], ...]
    """(key, generation) of each."""


class Publish(NamedTuple):
    """Completes with None. `keep`: the result may be kept for later claims (a failure may not)."""

    key: bytes
    generation: int
    result: Any
    size: int
    keep: bool


class Abandon(NamedTuple):
    """Completes with None."""

    key: bytes
    generation: int


Item = Claim | Finish | Publish | Abandon


class _Ticket:
    """A claimant: its lane and how it is told. Compared by identity."""

    __slots__ = ("complete", "lane")

    def __init__(self, lane: str, complete: Complete[Lead | Shared]) -> None:
        self.lane = lane
        self.complete = complete


class CoalescerActor(LaneHost):
    """Thin shell around Table. Does no I/O at all."""

    def __init__(self, settings: CoalesceSettings) -> None:
        self._table: Table[_Ticket] = Table(keep_s=settings.keep_s)
        self._expiring: asyncio.Task[None] | None = None
        self._server: LaneServer[Item, Any] = LaneServer(
            self._start, note=lambda: self._table.coalesced, on_closed=self._owner_gone, weigh=_weigh
        )

    async def completions(self, lane: str, generation: int) -> AsyncGenerator[Batch, None]:
        """See LaneServer."""
        if self._expiring is None:
            self._expiring = asyncio.create_task(self._expire())
        async for batch in super().completions(lane, generation):
            yield batch

    def _start(self, lane: str, item: Item, complete: Complete[Any]) -> Cancel | None:
        now = time.monotonic()
        match item:
            case Claim():
                ticket = _Ticket(lane, complete)
                answer = self._table.claim(item.key, ticket, item.lease_s, now)
                if answer is None:
                    return partial(self._leave, ticket)
                complete(answer)
            case Finish():
                complete([at for at, lead in enumerate(item.leads) if self._table.finish(*lead)])
            case Publish():
                _tell(self._table.publish(item.key, item.generation, item.result, item.size, now, item.keep))
                complete(None)
            case Abandon():
                _tell(self._table.abandon(item.key, item.generation, now))
                complete(None)
            case _:
                assert_never(item)
        return None

    def _leave(self, ticket: _Ticket) -> None:
        _tell(self._table.leave(ticket, time.monotonic()))

    def _owner_gone(self, lane: str) -> None:
        """A lane closed: its owner is dead or has opened it anew. What it led goes to the next in line."""
        for ticket in [ticket for ticket in self._table.tickets() if ticket.lane == lane]:
            self._leave(ticket)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_S)
            _tell(self._table.expire(time.monotonic()))


def _tell(told: list[tuple[_Ticket, Lead | Shared]]) -> None:
    for ticket, answer in told:
        ticket.complete(answer)


def _weigh(done: Any) -> int:
    return 200 + (len(getattr(done.result, "body", b"")) if isinstance(done, Shared) else 0)
