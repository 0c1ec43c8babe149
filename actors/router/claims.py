"""The router's side of coalescing: claim a request's key, follow somebody's call or lead one, tell how it ended.

Stands between the door and the cascade: `share` gets a request and what answers it, and asks the coalescer first. The
rules are the table's (actors/coalescer/table.py); here are the waiting and the words that cross.

A lead's answer runs in a task of its own, because it can outlive its caller: when the caller cancels, the call goes on
as long as others wait for it, and the coalescer says when nobody does. Coalescing saves money and must never stop
work: with the coalescer lost, a request makes its own call, and a call that lingers is cancelled.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple, assert_never

from actors.coalescer.actor import Claim, CoalescerActor, Finish, Leave, Linger, Publish, Say
from actors.coalescer.runaway import Runaway
from actors.coalescer.table import Lead, Shared
from actors.errors import ActorLost, LaneClosed, LaneTimeout, RunawayLoop
from actors.lane import MAX_GAP_S, Lane, Peer
from actors.messages import Amount, Failure, Request, Result
from actors.near import NearLane
from actors.settings import CoalesceSettings

__all__ = ["Claims"]

LEAD_GRACE_S = 30.0
"""For so long beyond its deadline a request may hold its key, and word to the coalescer may be on its way."""
PROMPT_S = 1.0
"""A claim that took longer is taken off the request's deadline."""
FINISH_S = 0.01
"""For so long the ends of leads are gathered."""
NOTHING = Amount()


def _nothing() -> None:
    pass


class _Finished(NamedTuple):
    """A lead that has ended with what others may share."""

    key: bytes
    generation: int
    shared: Any
    size: int
    keep: bool
    then: Callable[[], object]


class Claims:
    """One a router. The lane is opened and closed with the router's others."""

    def __init__(
        self, owner: str, coalescer: Peer | CoalescerActor, settings: CoalesceSettings, max_gap_s: float = MAX_GAP_S
    ) -> None:
        self.lane: Lane[Any, Any] | NearLane[Any, Any]
        if isinstance(coalescer, CoalescerActor):
            self.lane = coalescer.near(owner)
        else:
            self.lane = Lane(
                owner,
                coalescer,
                name="coalescer",
                on_up=self._lane_is,
                weigh=_weigh,
                keep_waiting=False,
                max_gap_s=max_gap_s,
            )
        self._across_keys = settings.across_keys
        self._claimants = 0
        self._finished: list[_Finished] = []
        """Leads that have ended and that the coalescer has not been told of."""
        self._lingering: dict[asyncio.Task[Result | Failure], None] = {}
        self._closed = False

    async def close(self) -> None:
        """Cancel the calls whose callers are gone, and wait until they have settled. From here on no call lingers."""
        self._closed = True
        await asyncio.sleep(0)  # callers that were cancelled in this turn of the loop leave theirs now
        for call in self._lingering:
            _stop(call)
        await asyncio.gather(*self._lingering, return_exceptions=True)

    async def share(
        self, request: Request, answer: Callable[[Request], Coroutine[Any, Any, Result | Failure]]
    ) -> Result | Failure:
        """The answer to a request with a digest: another's, or what `answer` brings, which others may then share."""
        if not self.lane.up:
            return await answer(request)
        claimant = self.next_claimant()
        key = self.key(request)
        lease_s = request.deadline_s + LEAD_GRACE_S
        loop = asyncio.get_running_loop()
        began = loop.time()
        claimed = await self._claim(key, claimant, request.deadline_s, lease_s)
        waited_s = loop.time() - began
        if waited_s > PROMPT_S:  # the deadline is the request's, however much of it went by in another's line
            request = request._replace(deadline_s=max(0.0, request.deadline_s - waited_s))
        match claimed:
            case Lead():
                caller: asyncio.Future[Result | Failure] = loop.create_future()
                call = loop.create_task(answer(request))
                # Not a `finally` around the answer: a task that is cancelled before its first step runs none of it.
                call.add_done_callback(partial(self._lead_ended, key, claimed.generation, claimant, caller))
                try:
                    return await caller  # what asyncio.shield would do costs three times as much
                except asyncio.CancelledError:
                    self.linger(claimant, call, lease_s)
                    raise
            case Shared():
                shared: Result | Failure = claimed.result
                if isinstance(shared, Result):
                    return shared._replace(coalesced=True, cost=NOTHING, attempts=())
                return shared._replace(cost=NOTHING, attempts=())
            case Runaway():
                return refused(request, claimed)
            case None:
                return await answer(request)
            case _:
                assert_never(claimed)

    # ------------------------------------------------------------------ also for streams (stream_claims.py)

    def next_claimant(self) -> int:
        self._claimants += 1
        return self._claimants

    def key(self, request: Request) -> bytes:
        """Callers share with their own kind only, whichever door they come through, unless told otherwise."""
        if self._across_keys or not request.key:
            return request.digest
        return hashlib.sha256(request.digest + request.key.encode()).digest()

    def linger(self, claimant: int, call: "asyncio.Task[Result | Failure]", lease_s: float) -> None:
        """The caller is gone. The call ends as soon as nobody else waits for it, or nobody can tell."""
        if call.done():
            return
        self._lingering[call] = None
        call.add_done_callback(self._lingering.pop)
        if self._closed or not self.lane.up:
            _stop(call)
            return
        try:
            self.lane.post(Linger(claimant), lambda done: _stop(call), lease_s)
        except LaneClosed:
            _stop(call)

    def end_lead(
        self,
        key: bytes,
        generation: int,
        claimant: int,
        done: Result | Failure | None,
        shared: Any = None,
        size: int | None = None,
        keep: bool = True,
        then: Callable[[], object] = _nothing,
    ) -> None:
        """Tell the coalescer how a lead ended, without waiting for it. `done` None: in a way that is its own.

        `shared`: what followers get, where that is more than `done`, its size, and whether it may be kept for later claims.
        `then` is called when all is told.
        """
        if isinstance(done, Result) or (isinstance(done, Failure) and done.own_fault):
            keep = keep and isinstance(done, Result)
            size = _size(done) if size is None else size
            told = done if shared is None else shared
            self._finished.append(_Finished(key, generation, told, size, keep, then))
            if len(self._finished) == 1:
                asyncio.get_running_loop().call_later(FINISH_S, self._finish)
        else:
            self.tell(Leave(claimant))
            then()

    # ------------------------------------------------------------------ inside

    async def _claim(
        self, key: bytes, claimant: int, timeout_s: float, lease_s: float
    ) -> Lead | Shared | Runaway | None:
        """Claim a key. None: the coalescer is lost, or did not answer in time."""
        try:
            claimed: Lead | Shared | Runaway = await self.lane.call(Claim(key, lease_s, claimant), timeout_s)
        except (asyncio.CancelledError, LaneTimeout) as error:
            # The lane has cancelled the claim. But a Lead may have been on its way, and nobody else would ever get it.
            self.tell(Leave(claimant))
            if isinstance(error, LaneTimeout):
                return None
            raise
        except (ActorLost, LaneClosed):
            return None
        return claimed

    def _lane_is(self, up: bool) -> None:
        """What is still to be handed over to a lost coalescer would wait for the next one; a lingering call must not."""
        if not up:
            for call in self._lingering:
                _stop(call)

    def _lead_ended(
        self,
        key: bytes,
        generation: int,
        claimant: int,
        caller: "asyncio.Future[Result | Failure]",
        call: "asyncio.Task[Result | Failure]",
    ) -> None:
        """Give the caller what its call brought, and tell the coalescer how it ended, without waiting for it."""
        done: Result | Failure | None = None
        if call.cancelled():
            caller.cancel()
        elif (error := call.exception()) is not None:
            if not caller.done():
                caller.set_exception(error)
        else:
            done = call.result()
            if not caller.done():
                caller.set_result(done)
        self.end_lead(key, generation, claimant, done)

    def _finish(self) -> None:
        """Tell it of all that have finished lately; those that somebody follows are published."""
        finished, self._finished = self._finished, []

        def publish(wanted: object) -> None:
            for at in wanted if isinstance(wanted, list) else ():
                lead = finished[at]
                self.tell(Publish(lead.key, lead.generation, lead.shared, lead.size, lead.keep))
            for lead in finished:
                lead.then()

        self.tell(Finish(tuple((lead.key, lead.generation) for lead in finished)), publish)

    def tell(self, item: object, on_done: Callable[[object], None] = lambda done: None) -> None:
        if self.lane.up:  # else it is lost, and its table with it
            with contextlib.suppress(LaneClosed):
                self.lane.post(item, on_done, LEAD_GRACE_S)


def _stop(call: "asyncio.Task[Result | Failure]") -> None:
    if not call.cancelling():  # once: a second time could hit it while it settles
        call.cancel()


def refused(request: Request, runaway: Runaway) -> Failure:
    error = RunawayLoop(request.digest.hex()[:12], runaway.what, runaway.times, runaway.limit, runaway.window_s)
    return Failure("runaway_loop", str(error), retry_after_s=runaway.retry_after_s, own_fault=True)


def _size(done: Result | Failure) -> int:
    """What a result takes in the coalescer's memory, about."""
    return 500 + len(done.body) + (len(done.parsed) if isinstance(done, Result) else 0)


def _weigh(item: object) -> int:
    match item:
        case Publish() | Say():
            return 150 + item.size
        case Finish():
            return 100 + 50 * len(item.leads)
        case _:
            return 150
