"""The coalescer actor: one table for the whole cluster, reached through lanes. Where there is one router only, that one
keeps it in its own process (`near`): a claim then costs no way to another process and back.

Items are claims and their ends. A claim's completion is a `Lead` (make the call), a `Shared` (here is the answer) or a
`Runaway` (asked too often, make no call). The actor holds no result but those that `keep_s` asks for. When it dies,
claims end as ActorLost at the routers, which then make their calls themselves: coalescing saves money, it must never
stop work.

Streams: a stream's claim stays open while its claimant leads or follows, and says things (Parts) in between: `Lead`, to the
lead who has joined (`Joined`), to the followers what the lead says (`Said`). The actor only passes on; the lead keeps what
was said so far and tells it to those who join late.

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
from actors.lane import FAR, Batch, Cancel, Complete, Gap, LaneServer, Part
from actors.lane_peers import LaneHost
from actors.messages import Chunk, pickled_flat
from actors.near import NearLane
from actors.settings import CoalesceSettings

__all__ = ["Claim", "CoalescerActor", "Finish", "Joined", "Leave", "Linger", "Publish", "Said", "Say"]

EXPIRE_S = 5.0


class Claim(NamedTuple):
    """Completes with Lead, Shared or Runaway."""

    key: bytes
    lease_s: float
    claimant: int
    """Never used before in this lane."""
    stream: bool = False
    """Stays open, and completes with Shared or Runaway only. All claims of one key are of one kind."""


class Joined(NamedTuple):
    """To the lead of a stream: somebody follows, and has heard nothing yet."""

    follower: tuple[str, int]


class Said(NamedTuple):
    """To the followers of a stream: what its lead says, from the `at`th chunk on. -1: it no longer knows what it said."""

    at: int
    tier: str
    """Who said the first of it."""
    chunks: list[Chunk]


class Say(NamedTuple):
    """Completes with None. A lead passes on what it says: to all that follow, or to one."""

    key: bytes
    generation: int
    said: Said
    size: int
    to: tuple[str, int] | None = None


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


pickled_flat(Claim, Finish, Joined, Publish, Said, Say, Linger, Leave, Lead, Shared)

Item = Claim | Finish | Publish | Say | Linger | Leave
_Ticket = tuple[str, int]  # lane and claimant


class CoalescerActor(LaneHost):
    """Thin shell around Table. Does no I/O at all."""

    def __init__(self, settings: CoalesceSettings) -> None:
        most = settings.runaway.max_per_minute
        self._table: Table[_Ticket] = Table(settings.keep_s, settings.keep_mb << 20, Loops(most) if most else None)
        self._waiting: dict[_Ticket, Complete[Any]] = {}  # followers, and leads of streams
        self._streams: set[_Ticket] = set()
        self._lingering: dict[_Ticket, Complete[Any]] = {}
        self._expiring: asyncio.Task[None] | None = None
        self._server: LaneServer[Item, Any] = LaneServer(
            self._start, note=lambda: self._table.coalesced, on_closed=self._owner_gone, weigh=_weigh
        )

    def near(self, owner: str) -> NearLane[Item, Any]:
        """A lane for a router in this very process. Call it where an event loop runs."""
        self._watch()
        return NearLane(owner, self._start, self._owner_gone, name="coalescer")

    async def completions(self, lane: str, generation: int, gap: Gap = FAR) -> AsyncGenerator[Batch, None]:
        """See LaneServer."""
        self._watch()
        async for batch in super().completions(lane, generation, gap):
            yield batch

    def _start(self, lane: str, item: Item, complete: Complete[Any]) -> Cancel | None:
        now = time.monotonic()
        match item:
            case Claim():
                ticket = (lane, item.claimant)
                answer = self._table.claim(item.key, ticket, item.lease_s, now)
                if answer is None or (item.stream and isinstance(answer, Lead)):
                    self._waiting[ticket] = complete
                    if item.stream:
                        self._streams.add(ticket)
                        self._introduce(item.key, ticket, answer)
                    return partial(self._leave, ticket)
                complete(answer)
            case Finish():
                complete([at for at, lead in enumerate(item.leads) if self._table.finish(*lead)])
            case Publish():
                self._tell(self._table.publish(item.key, item.generation, item.result, item.size, now, item.keep))
                complete(None)
            case Say():
                if self._table.leads(item.key, item.generation):
                    for each in self._table.followers(item.key) if item.to is None else (item.to,):
                        if (hear := self._waiting.get(each)) is not None:
                            hear(Part(item.said))
                complete(None)
            case Linger():
                ticket = (lane, item.claimant)
                if self._table.linger(ticket):
                    complete(None)
                else:
                    self._lingering[ticket] = complete
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
        self._streams.discard(ticket)

    def _introduce(self, key: bytes, ticket: _Ticket, answer: Lead | None) -> None:
        """A claimant of a stream has its place: it leads, or its lead learns of it."""
        if answer is not None:
            self._waiting[ticket](Part(answer))
        elif (lead := self._table.lead(key)) is not None and lead in self._waiting:
            self._waiting[lead](Part(Joined(ticket)))

    def _owner_gone(self, lane: str) -> None:
        """A lane closed: its owner is dead or has opened it anew. What it led goes to the next in line.

        The lane has cancelled its own followers before, so none of them is promoted only to leave again.
        """
        for ticket in [ticket for ticket in self._table.tickets() if ticket[0] == lane]:
            self._leave(ticket)

    def _watch(self) -> None:
        if self._expiring is None:
            self._expiring = asyncio.create_task(self._expire())

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_S)
            self._tell(self._table.expire(time.monotonic()))

    def _tell(self, told: Told[_Ticket]) -> None:
        for ticket, answer in told:
            match answer:
                case Unwanted():
                    complete = self._lingering.pop(ticket, None)
                    if complete is not None:
                        complete(None)
                case Lead() if ticket in self._streams:
                    self._promote(ticket, answer)
                case _:
                    complete = self._waiting.pop(ticket, None)
                    self._streams.discard(ticket)
                    if complete is not None:
                        complete(answer)

    def _promote(self, ticket: _Ticket, lead: Lead) -> None:
        """A follower of a stream leads now, and must know of those who followed beside it."""
        self._waiting[ticket](Part(lead))
        key = self._table.key(ticket)
        for follower in self._table.followers(key) if key is not None else ():
            self._waiting[ticket](Part(Joined(follower)))


def _weigh(done: Any) -> int:
    if isinstance(done, Said):
        return 200 + sum(len(word.data) + len(word.text) + 60 for word in done.chunks)
    return 200 + (len(getattr(done.result, "body", b"")) if isinstance(done, Shared) else 0)
