"""The path of a request, top to bottom: claim, then reserve, attempt, settle until it is done, then publish.

    run        one request, door to door
      Claims.share   claim its key: follow somebody's call, or make it and publish (actors/router/claims.py)
        _answer    ask until the answer satisfies the request's schema
          _cascade   ask tiers as the plan says until one answers
            _attempt   reserve, call, settle

Only the router holds lanes to the other actors. Every claim, reservation and slot that is taken here is given back in
a `finally`. A plain class: a router actor hosts it, a gateway embeds it.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, assert_never
from uuid import uuid4

import orjson

from actors.budget.exchange import Exchange, Exchanged
from actors.budget.lease import LeaseBook, Reserved
from actors.budget.limits import request_limits
from actors.errors import ActorLost, BudgetExceeded, LaneClosed, LaneTimeout
from actors.lane import Lane, Peer
from actors.messages import Account, Amount, Answer, Attempt, Failure, Health, Refusal, Request, Result, TierCall, Usage
from actors.router.claims import Claims
from actors.router.cost import NO_MARGINS, Bound, Tariff
from actors.router.plan import ActorState, GiveUp, Past, TierState, Try, Wait, decide
from actors.router.purse import Purse
from actors.router.retries import RetryBudget
from actors.router.structured import Parsed, ask_again, content_of, parse_reply, validator_of
from actors.settings import BudgetSettings, CoalesceSettings, Price, RouterSettings, TierSettings

__all__ = ["Peers", "Router", "RouterNote", "TierNote"]

INTERACTIVE_QUEUE_S = 2.0
RATE_PATIENCE_S = 0.5
"""With `on_rate_limit: fallback`, how long a call waits for its tier's own rate limit before the next tier has it."""
STRUCTURED_RETRIES = 2
HALTED_LOOK_S = 30.0
"""Nobody knows when a halted scope goes on; look again so often."""
EXHAUSTED_LOOK_S = 5.0
"""A tier without budget is asked for some again so often: somebody may have raised its limit."""
NOTHING = Amount()
NO_USAGE = Usage(0, 0)
WITHDRAWN = Refusal("queue", 0.0, "cancelled before it was sent")


class Peers(NamedTuple):
    """The other actors, as the router reaches them."""

    tiers: Sequence[Sequence[Peer]]
    coalescer: Peer | None
    exchange: Callable[[Exchange], Awaitable[Exchanged]]


class TierNote(NamedTuple):
    """A tier as the router sees it, for progress and status."""

    name: str
    actors: tuple[Health, ...]
    up: tuple[bool, ...]
    answered: int
    kinds: dict[str, int]
    """Attempts by kind: `ok` or a FailureKind."""
    last_failure: str = ""
    """What the last failed attempt said."""
    overrun: Amount = NOTHING
    """Usage above its reservations: charged all the same."""
    margin_milli: int = 1000
    """By how much the tier's bounds are multiplied by now, in thousandths (actors/router/cost.py)."""


class RouterNote(NamedTuple):
    """What a router tells its callers about itself, a few times a second."""

    tiers: tuple[TierNote, ...]
    waiting_for_budget: int
    trouble: str
    """Why the budget actor does not answer; empty when it does."""


class _Tier:
    """A tier as the router uses it: the plan's view of it, the lanes to its actors, what it counts and charges."""

    def __init__(self, index: int, settings: TierSettings, price: Price, now: float) -> None:
        self.state = TierState(index, settings)
        self.tariff = Tariff(price, settings)
        self.margins = NO_MARGINS
        self.overrun = NOTHING
        self.lanes: list[Lane[TierCall, Any]] = []
        self.retries = RetryBudget(now)
        self.kinds: dict[str, int] = {}
        self.last_failure = ""
        model = orjson.dumps(settings.model)
        names = {
            "/chat/completions": _max_tokens_name(settings),
            "/completions": "max_tokens",
            "/responses": "max_output_tokens",
        }
        self._head = b'{"model":' + model
        self._bounded_head = {
            path: b'{"model":%s,"%s":%d' % (model, name.encode(), settings.max_output_tokens)
            for path, name in names.items()
        }

    def body(self, request: Request) -> bytes:
        """The request's body with the tier's model, and its bound on the completion where the request has none."""
        head = self._head if request.max_tokens else self._bounded_head.get(request.path, self._head)
        return head + (b"," if len(request.body) > 2 else b"") + request.body[1:]


def _max_tokens_name(settings: TierSettings) -> str:
    # OpenAI's reasoning models refuse the old name; many other servers ignore the new one, and then nothing is bounded.
    return "max_completion_tokens" if "api.openai.com" in settings.base_url[0] else "max_tokens"


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
    ) -> None:
        now = time.monotonic()
        self.name = name
        self._settings = settings
        self._budget = budget
        self._coalesce = coalesce
        self._peers = peers
        self._tiers = [_Tier(index, tier, prices[tier.name], now) for index, tier in enumerate(tiers)]
        self._states = [tier.state for tier in self._tiers]
        self._claims: Claims | None = None
        # The book's incarnation must be new for ever: the ledger books what an older one of the same holder held.
        self._purse = Purse(LeaseBook(name, lambda: uuid4().hex), peers.exchange)
        self._limits: dict[Account, Any] = {}

    async def open(self) -> None:
        """Open the lanes to all peers. Does not wait for them: a tier that is down is treated as such."""
        for tier, peers in zip(self._tiers, self._peers.tiers, strict=True):
            for index, peer in enumerate(peers):
                actor = tier.state.actors[index]
                lane: Lane[TierCall, Any] = Lane(
                    self.name,
                    peer,
                    name=f"tier {tier.state.settings.name}/{index}",
                    on_note=partial(_observe, actor),
                    on_up=partial(setattr, actor, "up"),
                    weigh=lambda call: len(call.body) + 250,
                    keep_waiting=False,
                )
                tier.lanes.append(lane)
        if self._peers.coalescer is not None and self._coalesce.enabled:
            self._claims = Claims(self.name, self._peers.coalescer, self._coalesce)
        self._purse.open()
        opening = [lane.open(10.0) for lane in self._lanes()]
        await asyncio.gather(*opening, return_exceptions=True)  # a lane that is late opens by itself

    async def close(self) -> None:
        """Give the budget back and close the lanes."""
        if self._claims is not None:
            await self._claims.close()
        await self._purse.close()
        await asyncio.gather(*(lane.close() for lane in self._lanes()))

    def note(self) -> RouterNote:
        """The router's view of the tiers."""
        return RouterNote(
            tuple(
                TierNote(
                    tier.state.settings.name,
                    tuple(actor.health for actor in tier.state.actors),
                    tuple(actor.up for actor in tier.state.actors),
                    tier.kinds.get("ok", 0),
                    dict(tier.kinds),
                    tier.last_failure,
                    tier.overrun,
                    tier.margins.widest_milli,
                )
                for tier in self._tiers
            ),
            self._purse.waiting,
            self._purse.trouble,
        )

    # ------------------------------------------------------------------ the path

    async def run(self, request: Request) -> Result | Failure:
        """One request, door to door. Never raises but CancelledError."""
        if not request.digest or self._claims is None:
            return await self._answer(request)
        return await self._claims.share(request, self._answer)

    async def _answer(self, request: Request) -> Result | Failure:
        """Ask until the answer satisfies the request's schema, within `STRUCTURED_RETRIES` and the same deadline."""
        past = Past(len(self._tiers), time.monotonic() + request.deadline_s)
        done = await self._cascade(request, past, NOTHING)
        if not request.schema:
            return done
        asked = request
        for tries_left in range(STRUCTURED_RETRIES, -1, -1):
            if isinstance(done, Failure):
                return done
            reply = content_of(done.body) or ""
            parsed = parse_reply(reply)
            errors = (
                validator_of(request.schema).errors(parsed.value) if isinstance(parsed, Parsed) else [parsed.reason]
            )
            if isinstance(parsed, Parsed) and not errors:
                return done._replace(parsed=parsed.value)
            if not tries_left:
                return Failure(
                    "invalid_output",
                    f"the answer does not satisfy the schema after {STRUCTURED_RETRIES + 1} tries: {'; '.join(errors)}"[
                        :600
                    ],
                    status=done.status,
                    body=done.body,
                    attempts=done.attempts,
                    cost=done.cost,
                    own_fault=False,
                )
            body = ask_again(request.body, reply, errors)
            asked = request._replace(
                body=body, prompt_bound_tokens=request.prompt_bound_tokens + len(body) - len(request.body)
            )
            again = Past(len(self._tiers), past.deadline)
            again.attempts = list(done.attempts)
            done = await self._cascade(asked, again, done.cost)
        raise AssertionError("unreachable")

    async def _cascade(self, request: Request, past: Past, spent: Amount) -> Result | Failure:
        """Ask tiers as the plan says. `spent`: what the request has cost before."""
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
                    done, cost = await self._attempt(request, tier, step.actor, past, spent)
                    spent = spent.plus(cost)
                    if isinstance(done, Answer):
                        attempts = tuple(past.attempts)
                        return Result(
                            done.body, done.status, tier.state.settings.name, attempts, done.usage or NO_USAGE, spent
                        )
                    if isinstance(done, Failure) and done.resumable:
                        return done._replace(attempts=tuple(past.attempts), cost=spent)
                case Wait():
                    await asyncio.sleep(step.delay_s)
                case GiveUp():
                    return _failed(step, past, spent)
                case _:
                    assert_never(step)

    async def _attempt(
        self, request: Request, tier: _Tier, index: int, past: Past, spent: Amount
    ) -> tuple[Answer | Failure | Refusal | None, Amount]:
        """Reserve, call, settle. Returns what came and what it cost; failures are noted in `past`."""
        state = tier.state
        account = Account(state.settings.name, request.job, request.key)
        tokens = tier.tariff.tokens(request)
        bound = tier.tariff.most(tokens, tier.margins)
        refusal = self._request_limits(account).refuse(spent, bound)
        if refusal is not None:
            # One that had spent before had bad luck: who asks the same may well have an answer at the first attempt.
            # And the limit of a job or a key is nobody else's.
            last, own_fault = past.failure, spent == NOTHING and not refusal.scope.startswith(("job:", "key:"))
            failure = Failure("budget_exceeded", str(refusal.error()), own_fault=own_fault)
            self._note(tier, index, past, failure)
            if last is not None:  # the row's line shows the last response that there was
                past.failure = failure._replace(status=last.status, body=last.body)
            return failure, NOTHING
        try:
            reserved = await self._purse.reserve(account, bound, past.deadline - time.monotonic())
        except BudgetExceeded as error:
            # a halt ends when somebody ends it: look again as after a window that turns, not never
            again_s = HALTED_LOOK_S if error.halted else error.turns_in_s
            if error.scope.startswith("tier:"):
                state.exhausted_until = time.monotonic() + min(EXHAUSTED_LOOK_S, again_s or EXHAUSTED_LOOK_S)
                past.failure = Failure("all_tiers_exhausted", str(error))
                if any(_might_serve(other, request, past) for other in self._states[request.start_tier :]):
                    return None, NOTHING
            return Failure("budget_exceeded", str(error), retry_after_s=again_s, resumable=True), NOTHING
        except TimeoutError:
            return None, NOTHING  # the plan sees the deadline
        done: Answer | Failure | Refusal | None = None
        margins, cost = tier.margins, NOTHING

        def withdrawn() -> None:
            nonlocal done
            done = WITHDRAWN

        try:
            done = await self._call(request, tier, index, tokens, past, withdrawn)
            margins = tier.margins
        finally:
            cost = self._settle(tier, tokens, reserved, done)
        if isinstance(done, Refusal):
            return done, cost
        if isinstance(done, Failure):
            self._note(tier, index, past, done)
        else:
            kinds = tier.kinds
            kinds["ok"] = kinds.get("ok", 0) + 1
            past.attempts.append(Attempt(state.settings.name, index, "ok", done.status, done.duration_s))
        unmetered_tokens = cost.tokens if isinstance(done, Answer) and done.usage is None else 0
        overrun_tokens = max(0, cost.tokens - reserved.amount.tokens)
        margin_milli = 0 if tier.margins is margins else tier.margins.widest_milli
        if unmetered_tokens or overrun_tokens or margin_milli:
            past.attempts[-1] = past.attempts[-1]._replace(
                unmetered_tokens=unmetered_tokens, overrun_tokens=overrun_tokens, margin_milli=margin_milli
            )
        return done, cost

    async def _call(
        self,
        request: Request,
        tier: _Tier,
        index: int,
        tokens: Bound,
        past: Past,
        on_withdrawn: Callable[[], None],
    ) -> Answer | Failure | Refusal:
        actor = tier.state.actors[index]
        if not actor.up:  # it died while the call waited for its budget
            return Refusal("queue", 0.0, "its actor is away")
        now = time.monotonic()
        left_s = max(0.05, past.deadline - now)
        settings = tier.state.settings
        body = tier.body(request)
        waits = self._settings.on_rate_limit == "wait" and not request.interactive
        call = TierCall(
            request.id,
            request.path,
            body,
            min(settings.timeout_s, left_s),
            INTERACTIVE_QUEUE_S if request.interactive else left_s,
            left_s if waits else RATE_PATIENCE_S,
            tokens.prompt_tokens // 4 + (request.max_tokens or settings.max_output_tokens) * request.choices,
        )
        actor.outstanding += 1
        tier.retries.deposit(now)
        try:
            done: Answer | Failure | Refusal = await tier.lanes[index].call(
                call, left_s + settings.timeout_s, on_withdrawn
            )
        except (ActorLost, LaneTimeout) as error:
            return Failure("lost", str(error), billed="unknown" if error.sent else "no")
        except LaneClosed as error:
            return Failure("cancelled", str(error), billed="unknown")
        finally:
            actor.outstanding -= 1
        if isinstance(done, Refusal) and done.reason == "absent":
            past.excluded.add(tier.state.index)
            past.failure = past.failure or Failure("not_found", done.message)
        elif isinstance(done, Refusal):
            # The note that came with it tells more; this keeps the request away until the next one comes.
            actor.cooling_until = max(actor.cooling_until, time.monotonic() + min(done.retry_in_s, 1.0))
        return done

    def _settle(
        self, tier: _Tier, tokens: Bound, reserved: Reserved, done: Answer | Failure | Refusal | None
    ) -> Amount:
        """Charge what the attempt cost; what nobody can tell is charged whole. A bound that was passed widens the next."""
        usage = None if done is None or isinstance(done, Refusal) else done.usage
        if isinstance(done, Refusal) or (isinstance(done, Failure) and done.billed == "no"):
            spent = unknown = NOTHING
        elif usage is not None:
            spent, unknown = tier.tariff.cost(usage), NOTHING
            tier.margins = tier.margins.widened(tokens, usage)
            if spent.tokens > reserved.amount.tokens or spent.usd_micros > reserved.amount.usd_micros:
                over = spent.minus(reserved.amount)
                tier.overrun = tier.overrun.plus(Amount(max(0, over.tokens), max(0, over.usd_micros)))
        else:
            spent, unknown = NOTHING, reserved.amount
        self._purse.settle(reserved, spent, unknown)
        return spent if unknown is NOTHING else unknown

    # ------------------------------------------------------------------ small things

    def _note(self, tier: _Tier, index: int, past: Past, failure: Failure) -> Failure:
        kinds = tier.kinds
        kinds[failure.kind] = kinds.get(failure.kind, 0) + 1
        tier.last_failure = failure.message
        past.note(tier.state, self._states, failure)
        past.attempts.append(
            Attempt(tier.state.settings.name, index, failure.kind, failure.status, 0.0, failure.message)
        )
        return failure

    def _request_limits(self, account: Account) -> Any:
        limits = self._limits.get(account)
        if limits is None:
            if len(self._limits) > 10_000:
                self._limits.clear()
            limits = self._limits[account] = request_limits(self._budget, account)
        return limits

    def _lanes(self) -> "list[Lane[Any, Any]]":
        lanes: list[Lane[Any, Any]] = [lane for tier in self._tiers for lane in tier.lanes]
        if self._claims is not None:
            lanes.append(self._claims.lane)
        return lanes


def _observe(actor: ActorState, health: Health) -> None:
    actor.observe(health, time.monotonic())


def _might_serve(tier: TierState, request: Request, past: Past) -> bool:
    """Whether another tier, budget allowing, is a candidate for the request."""
    return (
        tier.rank >= request.min_quality
        and tier.index not in past.excluded
        and not tier.dead_reason
        and tier.exhausted_until <= time.monotonic()
    )


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
