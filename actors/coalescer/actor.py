"""The coalescer actor: one table for the whole cluster, reached through lanes.

Items are claims and their ends. A claim's completion is a `Lead` (make the call), a `Shared` (here is the answer) or a
`Runaway` (asked too often, make no call). The actor holds no result but those that `keep_s` asks for. When it dies,
claims end as ActorLost at the routers, which then make their calls themselves: coalescing saves money, it must never
stop work.

A claimant is named by a number of its router's own, so that it can be spoken of before the router knows whether it
leads: who leaves while `Lead` is on its way to it must give that lead up, or its key is held until the lease ends.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, NamedTuple, assert_never

from actors.coalescer.runaway import Loops
from actors.coalescer.table import Lead, Shared, Table, Told, Unwanted
from actors.lane import MAX_GAP_S, Batch, Cancel, Complete, LaneHost, LaneServer
from actors.messages import pickled_flat
from actors.settings import CoalesceSettings

__all__ = ["Claim", "CoalescerActor", "Finish", "Leave", "Linger", "Publish"]

EXPIRE_S = 5.0


class Claim(NamedTuple):
    """Completes with Lead, Shared or Runaway."""

    key: bytes
    lease_s: float
    claimant: int
    """Never used before in this lane."""


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


class Linger(NamedTuple):
    """A lead's caller is gone, and its call goes on for those who follow. Completes, with None, when nobody does any
    more: at once, when the last of them leaves, or when the lead has ended."""

    claimant: int


class Leave(NamedTuple):
    """Completes with None. A lead gives up, in a way that is its own, or a claimant that does not know what it is."""

    claimant: int


pickled_flat(Claim, Finish, Publish, Linger, Leave, Lead, Shared)

Item = Claim | Finish | Publish | Linger | Leave
_Ticket = tuple[str, int]  # lane and claimant


class CoalescerActor(LaneHost):
    """Thin shell around Table. Does no I/O at all."""

    def __init__(self, settings: CoalesceSettings) -> None:
        most = settings.runaway.max_per_minute
        self._table: Table[_Ticket] = Table(settings.keep_s, settings.keep_mb << 20, Loops(most) if most else None)
        self._waiting: dict[_Ticket, Complete[Any]] = {}  # followers, and leads that linger
        self._expiring: asyncio.Task[None] | None = None
        self._server: LaneServer[Item, Any] = LaneServer(
            self._start, note=lambda: self._table.coalesced, on_closed=self._owner_gone, weigh=_weigh
        )

    async def completions(
        self, lane: str, generation: int, max_gap_s: float = MAX_GAP_S
    ) -> AsyncGenerator[Batch, None]:
        """See LaneServer."""
        if self._expiring is None:
            self._expiring = asyncio.create_task(self._expire())
        async for batch in super().completions(lane, generation, max_gap_s):
            yield batch

    def _start(self, lane: str, item: Item, complete: Complete[Any]) -> Cancel | None:
        now = time.monotonic()
        match item:
            case Claim():
                ticket = (lane, item.claimant)
                answer = self._table.claim(item.key, ticket, item.lease_s, now)
                if answer is None:
                    self._waiting[ticket] = complete
                    return partial(self._leave, ticket)
                complete(answer)
            case Finish():
                complete([at for at, lead in enumerate(item.leads) if self._table.finish(*lead)])
            case Publish():
                self._tell(self._table.publish(item.key, item.generation, item.result, item.size, now, item.keep))
                complete(None)
            case Linger():
                ticket = (lane, item.claimant)
                if self._table.linger(ticket):
                    complete(None)
                else:
                    self._waiting[ticket] = complete
            case Leave():
                self._leave((lane, item.claimant))
                complete(None)
            case _:
                assert_never(item)
        return None

    def _leave(self, ticket: _Ticket) -> None:
        told = self._table.leave(ticket, time.monotonic())
        self._tell(told)
        self._waiting.pop(ticket, None)

    def _owner_gone(self, lane: str) -> None:
        """A lane closed: its owner is dead or has opened it anew. What it led goes to the next in line.

        The lane has cancelled its own followers before, so none of them is promoted only to leave again.
        """
        for ticket in [ticket for ticket in self._table.tickets() if ticket[0] == lane]:
            self._leave(ticket)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_S)
            self._tell(self._table.expire(time.monotonic()))

    def _tell(self, told: Told[_Ticket]) -> None:
        for ticket, answer in told:
            complete = self._waiting.pop(ticket, None)
            if complete is not None:
                complete(None if isinstance(answer, Unwanted) else answer)


def _weigh(done: Any) -> int:
    return 200 + (len(getattr(done.result, "body", b"")) if isinstance(done, Shared) else 0)
