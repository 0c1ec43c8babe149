"""The doing of hedging: watches the calls that are under way, sends second copies, and settles who was first.

    Hedger.make          stands in for Attempts.make (actors/router/attempts.py), and calls it for both copies
      first copy           in the request's own task, as ever
      _look                20 times a second: which calls are late, and may have a second copy (rules: hedging.py)
      _second              the second copy, a task: its own reservation, its own call, its own settlement

Both copies are attempts like any other, so whatever becomes of them is reserved, charged and told. The one that answers
first overtakes the other, whose call is cancelled: the connection to the endpoint closes, the breaker takes it as
neutral, and as nobody can tell what the endpoint charges for it, its whole reservation counts as spent. A copy that
fails leaves the other running. When both fail, the plan goes on from the first one's failure.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from actors.lane import Lane
from actors.messages import Amount, Answer, Attempt, Failure, Health, Refusal, Request, TierCall, ToTier
from actors.router.attempts import NOTHING, Attempts, Copy, RouterTier
from actors.router.hedging import Allowance, Latencies, Watch, where
from actors.router.plan import ActorState, Past, ends
from actors.router.purse import Purse
from actors.settings import HedgeSettings

__all__ = ["Hedger"]

LOOK_S = 0.05
LAST_ROWS_S = 5.0
"""For so long word that a job's last rows are under way holds; the job says it again every second."""

Done = Answer | Failure | Refusal | None


class _First(Copy):
    """A first copy, and the second one when there is one."""

    __slots__ = ("actor", "past", "request", "second", "spent", "tier")

    def __init__(self, request: Request, tier: RouterTier, actor: int, past: Past, spent: Amount) -> None:
        super().__init__()
        self.request = request
        self.tier = tier
        self.actor = actor
        self.past = past
        self.spent = spent
        self.second: _Second | None = None


class _Second(Copy):
    """A second copy, with a past of its own: nothing of it may touch the request while the first is under way."""

    __slots__ = ("_slot", "past", "task")

    def __init__(self, past: Past, actor: ActorState) -> None:
        super().__init__()
        self.past = past
        self.task: asyncio.Task[tuple[Done, Amount]]
        # Counted from now on, or all that are late at once would take the one slot that is free.
        self._slot: ActorState | None = actor
        actor.outstanding += 1

    def free_slot(self, task: object = None) -> None:
        """Its call is counted by itself from here on, or there is none."""
        if self._slot is not None:
            self._slot.outstanding -= 1
            self._slot = None

    async def call(
        self, lane: Lane[ToTier, Any], call: TierCall, timeout_s: float, on_withdrawn: Callable[[], object]
    ) -> Answer | Failure | Refusal:
        self.free_slot()
        return await super().call(lane, call, timeout_s, on_withdrawn)

    def stop(self) -> None:
        """The first one has ended the race."""
        if not self.overtake():  # it still waits for its budget
            self.task.cancel()


class _Tier:
    """What is known for hedging of one tier."""

    def __init__(self, actors: int, max_fraction: float) -> None:
        self.latencies = Latencies()
        self.allowance = Allowance(max_fraction)
        self.watches = [Watch() for _ in range(actors)]
        self.under_way: list[dict[Copy, None]] = [{} for _ in range(actors)]
        """By actor, the first copies that have no second yet; the oldest first."""

    def took(self, copy: Copy, actor: int, answer: Answer) -> None:
        """Learn from an answer: how long the router waited for it, as it is that which is found late; or what the
        tier measured, where a queue may be in it."""
        waited_in_no_queue = self.watches[actor].sent_by(copy.handed_over_at) == copy.handed_over_at
        self.latencies.add(time.monotonic() - copy.handed_over_at if waited_in_no_queue else answer.duration_s)


class Hedger:
    """One a router, when hedging is on. `tiers`: all of the cascade, in order."""

    def __init__(self, tiers: Sequence[RouterTier], attempts: Attempts, purse: Purse, settings: HedgeSettings) -> None:
        self._tiers = tiers
        self._states = [tier.state for tier in tiers]
        self._attempts = attempts
        self._purse = purse
        self._settings = settings
        self._known = [_Tier(len(tier.state.actors), settings.max_fraction) for tier in tiers]
        self._making = 0
        self._looking = False
        self._last_rows: dict[str, float] = {}
        """Until when a job has said that only its last rows are under way."""

    def observe(self, tier: int, actor: int, health: Health, now: float) -> None:
        """Take in what a tier actor says of itself."""
        self._known[tier].watches[actor].observe(health, now)

    def last_rows(self, job: str) -> None:
        """The job has no more rows to send: each one that is late may have a second copy, whatever the allowance."""
        now = time.monotonic()
        self._last_rows = {name: until for name, until in self._last_rows.items() if until > now}
        self._last_rows[job] = now + LAST_ROWS_S

    async def make(
        self, request: Request, tier: RouterTier, index: int, past: Past, spent: Amount
    ) -> tuple[Done, Amount]:
        """As Attempts.make, with a second copy when the first is late."""
        known = self._known[tier.state.index]
        known.allowance.deposit()
        first = _First(request, tier, index, past, spent)
        first.among = known.under_way[index]
        self._making += 1
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(LOOK_S, self._look)
        try:
            done, cost = await self._attempts.make(request, tier, index, past, spent, first)
            if first.second is not None:
                return await self._end(first, first.second, done, cost)
        finally:
            self._making -= 1
            if first.second is not None:
                first.second.task.cancel()  # it has ended, unless the request itself was cancelled
        if isinstance(done, Answer):
            known.took(first, index, done)
        return done, cost

    # ------------------------------------------------------------------ who is late

    def _look(self) -> None:
        self._looking = self._making > 0
        if not self._looking:
            return
        now = time.monotonic()
        for known in self._known:
            after_s = self._after_s(known)
            if after_s is not None:
                for watch, under_way in zip(known.watches, known.under_way, strict=True):
                    if under_way:
                        self._hedge_late(known, watch, under_way, after_s, now)
        asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _after_s(self, known: _Tier) -> float | None:
        share = self._settings.share
        return self._settings.after_s if share is None else known.latencies.quantile(share)

    def _hedge_late(self, known: _Tier, watch: Watch, under_way: dict[Copy, None], after_s: float, now: float) -> None:
        for first in list(under_way):
            assert isinstance(first, _First)
            sent_by = watch.sent_by(first.handed_over_at)
            if sent_by is None or now - sent_by < after_s:
                return  # nor are those behind it
            if self._purse.waiting:
                return  # the budget is short: what there is belongs to the rows that wait for it
            last = self._last_rows.get(first.request.job, 0.0) > now
            if not last and not known.allowance.any:
                continue
            place = where(first.request, first.tier.state, first.actor, self._states, first.past, now)
            if place is None:
                return  # for most of those behind it there would be no slot either
            tier = self._tiers[place[0].index]
            spent = first.spent.plus(first.tier.tariff.bound(first.request, first.tier.margins))
            if not self._attempts.fits(first.request, tier, spent):
                del under_way[first]  # the limit of one request has no room for two
            else:
                if not last:
                    known.allowance.withdraw()
                del under_way[first]
                self._send_second(first, tier, place[1], spent)

    # ------------------------------------------------------------------ the second copy

    def _send_second(self, first: _First, tier: RouterTier, actor: int, spent: Amount) -> None:
        past = Past(len(self._tiers), first.past.deadline)
        first.second = second = _Second(past, tier.state.actors[actor])
        run = self._second(first, second, tier, actor, spent)
        second.task = asyncio.get_running_loop().create_task(run, name=f"second copy of {first.request.id}")
        second.task.add_done_callback(second.free_slot)

    async def _second(
        self, first: _First, second: _Second, tier: RouterTier, actor: int, spent: Amount
    ) -> tuple[Done, Amount]:
        done, cost = await self._attempts.make(first.request, tier, actor, second.past, spent, second)
        if isinstance(done, Answer):
            self._known[tier.state.index].took(second, actor, done)
            first.overtake()
        return done, cost

    async def _end(self, first: _First, second: _Second, done: Done, cost: Amount) -> tuple[Done, Amount]:
        """The first copy has ended, and there is a second: what comes of both."""
        known = self._known[first.tier.state.index]
        if isinstance(done, Answer):
            known.took(first, first.actor, done)
        elif first.overtaken:
            known.latencies.add(time.monotonic() - first.handed_over_at)
        final = isinstance(done, Failure) and ends(done.kind, self._attempts.settings) and not first.overtaken
        if isinstance(done, Answer) or final:
            second.stop()
        await asyncio.wait({second.task})
        other, other_cost = (None, NOTHING) if second.task.cancelled() else second.task.result()
        told = [attempt._replace(hedged=True) for attempt in second.past.attempts]
        wins = isinstance(other, Answer) and not isinstance(done, Answer)
        _take_in(first.past, second.past, told, last=wins or isinstance(done, Refusal))
        return (other if wins else done), cost.plus(other_cost)


def _take_in(past: Past, other: Past, told: Sequence[Attempt], last: bool) -> None:
    """Put the second copy's attempt beside the first's, so that the last attempt is the one that decided."""
    at = len(past.attempts) - (0 if last else 1)
    past.attempts[at:at] = told
    past.take_in(other)
