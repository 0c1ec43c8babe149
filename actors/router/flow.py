"""The path of a request, top to bottom: claim, then reserve, attempt, settle until it is done, then publish.

    run        one request, door to door
      Claims.share   claim its key: follow somebody's call, or make it and publish (actors/router/claims.py)
        ask            where it has a schema: until the answer satisfies that (actors/router/asking.py)
          _cascade       ask tiers as the plan says until one answers
            Attempts.make  reserve, call, settle (actors/router/attempts.py)
            Hedger.make    the same, with a second copy of what is late (actors/router/hedger.py)
    stream     the same for a streamed request; an answer that breaks off goes on with the next tier (telling.py), and
               one that must satisfy a schema is said when it has been judged (whole.py)

Only the router holds lanes to the other actors. Every claim, reservation and slot that is taken here is given back in
a `finally`. A plain class: a router actor hosts it, a gateway embeds it.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, assert_never
from uuid import uuid4

from actors.budget.exchange import Exchange, Exchanged
from actors.budget.lease import LeaseBook
from actors.coalescer.actor import CoalescerActor
from actors.errors import LaneClosed
from actors.lane import MAX_GAP_S, Lane, Peer
from actors.messages import Amount, Answer, Failure, GiveBack, Health, Refusal, Request, Result, TierCall, ToTier, Usage
from actors.near import NearLane
from actors.router.asking import ask
from actors.router.attempts import NOTHING, Attempts, OnAttempt, RouterTier
from actors.router.claims import Claims
from actors.router.failures import FailureLog
from actors.router.hedger import Hedger
from actors.router.notes import RouterNote
from actors.router.plan import GiveUp, Past, Try, Wait, decide
from actors.router.purse import Purse
from actors.router.stream_claims import StreamClaims
from actors.router.telling import Telling
from actors.router.told import Listener, Told
from actors.router.whole import asked_whole, said_whole
from actors.settings import BudgetSettings, CoalesceSettings, Price, RouterSettings, TierSettings

if TYPE_CHECKING:
    from actors.router.tracing import Tracing

__all__ = ["Peers", "Router"]

NO_USAGE = Usage(0, 0)
WORD_S = 5.0
"""How long an actor may take to heed a word that is no call; nobody waits for its answer."""
Make = Callable[[Request, RouterTier, int, Past, Amount], Awaitable[tuple[Answer | Failure | Refusal | None, Amount]]]
"""Makes an attempt: Attempts.make, or Hedger.make around it."""


class Peers(NamedTuple):
    """The other actors, as the router reaches them."""

    tiers: Sequence[Sequence[Peer]]
    coalescer: Peer | CoalescerActor | None
    """CoalescerActor: one in this very process."""
    exchange: Callable[[Exchange], Awaitable[Exchanged]]


class Router:
    """Sends requests through the cascade. `open()` before use, `close()` at the end."""

    def __init__(
        self,
        name: str,
        tiers: Sequence[TierSettings],
        prices: Mapping[str, Price],
        settings: RouterSettings,
        budget: BudgetSettings,
        coalesce: CoalesceSettings,
        peers: Peers,
        failures: FailureLog | None = None,
        max_gap_s: float = MAX_GAP_S,
        tracing: "Tracing | None" = None,
        on_attempt: OnAttempt | None = None,
    ) -> None:
        """`max_gap_s`: of the lanes to the other actors; small where somebody waits for every word. `on_attempt` is told
        every attempt, also those of callers who have left: for a door whose callers do."""
        now = time.monotonic()
        self.name = name
        self._settings = settings
        self._coalesce = coalesce
        self._peers = peers
        self._max_gap_s = max_gap_s
        self._tiers = [RouterTier(index, tier, prices[tier.name], now) for index, tier in enumerate(tiers)]
        self._states = [tier.state for tier in self._tiers]
        self._names = [tier.name for tier in tiers]
        self._failures = failures
        self._claims: Claims | None = None
        self._stream_claims: StreamClaims | None = None
        # The book's incarnation must be new for ever: the ledger books what an older one of the same holder held.
        self._purse = Purse(LeaseBook(name, lambda: uuid4().hex), peers.exchange)
        self._attempts = attempts = Attempts(self._tiers, settings, budget, self._purse, on_attempt)
        self._make: Make = attempts.make
        self._hedger: Hedger | None = None
        if settings.hedge is not None:
            self._hedger = Hedger(self._tiers, attempts, self._purse, settings.hedge)
            self._make = self._hedger.make
        self._hear: Callable[..., Any] = attempts.make
        self._tracing = tracing
        if tracing is not None:
            self._make = partial(tracing.attempt, self._make)
            self._hear = partial(tracing.attempt, attempts.make)

    async def open(self) -> None:
        """Open the lanes to all peers. Does not wait for them: a tier that is down is treated as such."""
        for tier, peers in zip(self._tiers, self._peers.tiers, strict=True):
            for index, peer in enumerate(peers):
                actor = tier.state.actors[index]
                observe = partial(self._observe, tier.state.index, index)
                lane: Lane[ToTier, Any] = Lane(
                    self.name,
                    peer,
                    name=f"tier {tier.state.settings.name}/{index}",
                    on_note=observe,
                    on_up=partial(setattr, actor, "up"),
                    weigh=_weigh,
                    keep_waiting=False,
                    max_gap_s=self._max_gap_s,
                )
                tier.lanes.append(lane)
        if self._peers.coalescer is not None and self._coalesce.enabled:
            self._claims = Claims(self.name, self._peers.coalescer, self._coalesce, self._max_gap_s)
            self._stream_claims = StreamClaims(self._claims)
        self._purse.open()
        opening = [lane.open(10.0) for lane in self._lanes()]
        await asyncio.gather(*opening, return_exceptions=True)  # a lane that is late opens by itself

    async def close(self) -> None:
        """Give the budget back and close the lanes."""
        if self._claims is not None:
            await self._claims.close()
        await self._purse.close()
        await asyncio.gather(*(lane.close() for lane in self._lanes()))
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def note(self) -> RouterNote:
        """The router's view of the tiers."""
        return RouterNote(tuple(tier.note() for tier in self._tiers), self._purse.waiting, self._purse.trouble)

    def last_rows(self, job: str) -> None:
        """The job has no more rows to send; word of it holds a few seconds."""
        if self._hedger is not None:
            self._hedger.last_rows(job)

    # ------------------------------------------------------------------ the path

    # Those that only hand on are plain functions: every coroutine on the way of a row costs about a microsecond.

    def run(self, request: Request) -> Coroutine[Any, Any, Result | Failure]:
        """One request, door to door. Awaited, it never raises but CancelledError."""
        if self._tracing is not None:
            return self._tracing.request(request, self._run)
        return self._run(request)

    def _run(self, request: Request) -> Coroutine[Any, Any, Result | Failure]:
        if not request.digest or self._claims is None:
            return self._answer(request)
        if self._tracing is not None:
            return self._tracing.claim(request, self._claims.share, self._answer)
        return self._claims.share(request, self._answer)

    async def stream(self, request: Request, listener: Listener) -> Result | Failure:
        """One streamed request: `listener` hears the answer as it comes, and this returns how it ended, without a body.

        A failure before `listener.begin` is one like any other; after it, the answer is the beginning of none.
        """
        if self._tracing is not None:
            return await self._tracing.request(request, lambda request: self._stream(request, listener))
        return await self._stream(request, listener)

    async def _stream(self, request: Request, listener: Listener) -> Result | Failure:
        if request.schema:
            done = await self._run(asked_whole(request))
            if isinstance(done, Result):
                listener.begin(done.tier)
                listener.hear(said_whole(request, done))
            return done
        if not request.digest or self._stream_claims is None:
            return await self._tell(request, Told(listener))
        claims = self._stream_claims
        if self._tracing is not None:
            return await self._tracing.claim(
                request, lambda request, tell: claims.share(request, listener, tell), self._tell
            )
        return await claims.share(request, listener, self._tell)

    async def _tell(self, request: Request, told: Told) -> Result | Failure:
        past = Past(len(self._tiers), time.monotonic() + request.deadline_s)
        telling = Telling(request, told, self._settings.on_broken_stream == "resume")
        return await self._cascade(request, past, Amount(), telling)

    def _answer(self, request: Request) -> Coroutine[Any, Any, Result | Failure]:
        past = Past(len(self._tiers), time.monotonic() + request.deadline_s)
        if not request.schema:
            return self._cascade(request, past, NOTHING)
        return ask(request, past, self._cascade, self._names, self._failures)

    async def _cascade(
        self, request: Request, past: Past, spent: Amount, telling: Telling | None = None
    ) -> Result | Failure:
        """Ask tiers as the plan says. `spent`: what the request has cost before. `telling`: as a stream."""
        while True:
            now = time.monotonic()
            if past.attempts:
                for tier in self._tiers:
                    tier.state.retry_allowed = tier.retries.allows(now)
            step = decide(request, self._states, past, self._settings, now, random.random())
            match step:
                case Try():
                    tier = self._tiers[step.tier]
                    if step.retry:
                        tier.retries.withdraw()  # before the pause, or all who failed together would find it full
                    if step.delay_s:
                        await asyncio.sleep(step.delay_s)
                    asked, hear, before = request, None, past.failure
                    if telling is not None:
                        continued = telling.ask(tier.state.settings.name, step.tier, tier.prefill)
                        if isinstance(continued, Failure):
                            return continued._replace(attempts=tuple(past.attempts), cost=spent)
                        asked, hear = continued, telling.hear
                    if hear is None:
                        done, cost = await self._make(asked, tier, step.actor, past, spent)
                    else:  # a stream is never sent twice at once
                        done, cost = await self._hear(asked, tier, step.actor, past, spent, hear=hear)
                    spent = spent.plus(cost)
                    if telling is not None:
                        if telling.ended(done):
                            past.failure = before
                        if telling.broken is not None:
                            return telling.broken._replace(attempts=tuple(past.attempts), cost=spent)
                    if isinstance(done, Answer):
                        attempts = tuple(past.attempts)
                        return Result(
                            done.body, done.status, attempts[-1].tier, attempts, done.usage or NO_USAGE, spent
                        )
                    if isinstance(done, Failure) and done.resumable:
                        return done._replace(attempts=tuple(past.attempts), cost=spent)
                case Wait():
                    await asyncio.sleep(step.delay_s)
                case GiveUp():
                    return _failed(step, past, spent)
                case _:
                    assert_never(step)

    def _observe(self, tier: int, actor: int, health: Health) -> None:
        now = time.monotonic()
        state = self._states[tier]
        state.actors[actor].observe(health, now)
        if len(state.actors) > 1:
            uneven = state.uneven(now)
            if uneven is not None:
                at, calls = uneven
                self._say(tier, at, GiveBack(calls))
            for heed in state.slowed(health, now):
                for other in range(len(state.actors)):
                    if other != actor:
                        self._say(tier, other, heed)
        if self._hedger is not None:
            self._hedger.observe(tier, actor, health, now)

    def _say(self, tier: int, actor: int, word: ToTier) -> None:
        with contextlib.suppress(LaneClosed):
            self._tiers[tier].lanes[actor].post(word, lambda done: None, WORD_S)

    def _lanes(self) -> "list[Lane[Any, Any] | NearLane[Any, Any]]":
        lanes: list[Lane[Any, Any] | NearLane[Any, Any]] = [lane for tier in self._tiers for lane in tier.lanes]
        if self._claims is not None:
            lanes.append(self._claims.lane)
        return lanes


def _weigh(item: ToTier) -> int:
    return len(item.body) + 250 if type(item) is TierCall else 50


def _failed(step: GiveUp, past: Past, spent: Amount) -> Failure:
    last = past.failure
    same = last is not None and last.kind == step.kind
    return Failure(
        step.kind,
        step.message,
        status=last.status if last is not None else 0,
        retry_after_s=step.retry_after_s,
        body=last.body if last is not None else b"",
        attempts=tuple(past.attempts),
        cost=spent,
        own_fault=same and last is not None and last.own_fault,
    )
