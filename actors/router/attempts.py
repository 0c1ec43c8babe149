"""One attempt of a request at a tier: reserve its worst case, call, settle what it cost.

Stands between the cascade (actors/router/flow.py) and the lanes to the tier actors. Every reservation that is taken here
is settled in a `finally`, and every failure is noted in the request's past.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import orjson

from actors.budget.lease import Reserved
from actors.budget.limits import request_limits
from actors.errors import ActorLost, BudgetExceeded, LaneClosed, LaneTimeout
from actors.lane import Lane, resolve
from actors.messages import (
    Account,
    Amount,
    Answer,
    Attempt,
    Billed,
    Chunk,
    Failure,
    Refusal,
    Request,
    StreamTerms,
    TierCall,
    ToTier,
    Usage,
)
from actors.router.cost import NO_MARGINS, Bound, Tariff
from actors.router.demands import format_refused, instructed, native_format
from actors.router.notes import TierNote
from actors.router.plan import Past, TierState
from actors.router.purse import Purse
from actors.router.resume import Prefill
from actors.router.retries import RetryBudget
from actors.router.telling import Divergence
from actors.settings import BudgetSettings, Price, RouterSettings, TierSettings

__all__ = ["NOTHING", "Attempts", "Copy", "OnAttempt", "RouterTier"]

INTERACTIVE_QUEUE_S = 2.0
RATE_PATIENCE_S = 0.5
"""With `on_rate_limit: fallback`, how long a call waits for its tier's own rate limit before the next tier has it."""
HALTED_LOOK_S = 30.0
"""Nobody knows when a halted scope goes on; look again so often."""
EXHAUSTED_LOOK_S = 5.0
"""A tier without budget is asked for some again so often: somebody may have raised its limit."""
OVERTAKEN = "another copy of the request answered first"
MODELS = 16
OTHER_MODELS = "(others)"
"""An endpoint that names another model with every answer fills no memory: the last of `MODELS` names stands for the rest."""
NOTHING = Amount()
WITHDRAWN = Refusal("queue", 0.0, "cancelled before it was sent")


Hear = Callable[[list[Chunk]], object]
OnAttempt = Callable[[Request, Attempt], object]


class RouterTier:
    """A tier as the router uses it: the plan's view of it, the lanes to its actors, what it counts and charges."""

    def __init__(self, index: int, settings: TierSettings, price: Price, now: float) -> None:
        self.state = TierState(index, settings)
        self.tariff = Tariff(price, settings)
        self.margins = NO_MARGINS
        self.overrun = NOTHING
        self.lanes: list[Lane[ToTier, Any]] = []
        self.retries = RetryBudget(now)
        self.kinds: dict[str, int] = {}
        self.last_failure = ""
        self.native_schema = settings.native_schema
        """Whether it takes `response_format`; False as soon as it has said that it does not."""
        self.models: dict[str, int] = {}
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

    def note(self) -> TierNote:
        """The tier as this router sees it now."""
        return TierNote(
            self.state.settings.name,
            tuple(actor.health for actor in self.state.actors),
            tuple(actor.up for actor in self.state.actors),
            self.kinds.get("ok", 0),
            dict(self.kinds),
            self.last_failure,
            self.overrun,
            self.margins.widest_milli,
            dict(self.models),
        )

    def answered_as(self, model: str) -> None:
        """Count an answer by the model that it names."""
        name = model if model in self.models or len(self.models) < MODELS - 1 else OTHER_MODELS
        self.models[name] = self.models.get(name, 0) + 1

    def body(self, request: Request) -> bytes:
        """The request's body with the tier's model, its bound on the completion where the request has none, and the schema."""
        head = self._head if request.max_tokens else self._bounded_head.get(request.path, self._head)
        body = request.body
        if request.schema and self.native_schema:
            head += b',"response_format":' + (request.response_format or native_format(request.schema))
        elif request.schema:
            body = instructed(body, request.schema)
        if request.stream:
            head += b',"stream":true'
        return head + (b"," if len(body) > 2 else b"") + body[1:]

    def terms(self, request: Request) -> StreamTerms:
        """How a stream of this tier is read."""
        settings = self.state.settings
        return StreamTerms(
            settings.first_token_timeout_s or settings.timeout_s, settings.stall_timeout_s, request.choices
        )

    @property
    def prefill(self) -> Prefill:
        """How it takes the beginning of an answer."""
        prefill = self.state.settings.prefill
        return prefill if isinstance(prefill, str) else "message" if prefill else "no"


def _max_tokens_name(settings: TierSettings) -> str:
    # OpenAI's reasoning models refuse the old name; many other servers ignore the new one, and then nothing is bounded.
    return "max_completion_tokens" if "api.openai.com" in settings.base_url[0] else "max_tokens"


class Copy:
    """The handle of one call, where another copy of the same request may answer first (actors/router/hedger.py)."""

    __slots__ = ("_future", "_lane", "_number", "among", "handed_over_at", "overtaken")

    def __init__(self) -> None:
        self._future: asyncio.Future[Answer | Failure | Refusal] | None = None
        self.among: dict[Copy, None] = {}
        """It stands among these while it is under way."""
        self.handed_over_at = 0.0
        self.overtaken = False

    async def call(
        self, lane: Lane[ToTier, Any], call: TierCall, timeout_s: float, on_withdrawn: Callable[[], object]
    ) -> Answer | Failure | Refusal:
        """As Lane.call. Ends as `cancelled` when it is overtaken, and its call is cancelled at the other end."""
        future: asyncio.Future[Answer | Failure | Refusal] = asyncio.get_running_loop().create_future()
        self._future = future
        self.handed_over_at = time.monotonic()
        self._lane = lane
        self._number = lane.post(call, partial(resolve, future), timeout_s)
        self.among[self] = None
        try:
            return await future
        except asyncio.CancelledError:
            if lane.cancel(self._number):
                on_withdrawn()
            raise
        finally:
            self.among.pop(self, None)

    def overtake(self) -> bool:
        """Another copy has answered. False: this one has not been handed over yet, so there is nothing to end."""
        if self._future is None:
            return False
        if not self._future.done():
            self.overtaken = True
            billed: Billed = "no" if self._lane.cancel(self._number) else "unknown"
            self._future.set_result(Failure("cancelled", OVERTAKEN, billed=billed))
        return True


class Attempts:
    """Makes a router's attempts. `tiers`: all of the cascade, in order."""

    def __init__(
        self,
        tiers: Sequence[RouterTier],
        settings: RouterSettings,
        budget: BudgetSettings,
        purse: Purse,
        on_attempt: OnAttempt | None = None,
    ) -> None:
        """`on_attempt` is told every attempt when it has been settled, also one whose caller has left."""
        self._on_attempt = on_attempt
        self._tiers = tiers
        self._states = [tier.state for tier in tiers]
        self.settings = settings
        self._budget = budget
        self._purse = purse
        self._limits: dict[Account, Any] = {}

    async def make(
        self,
        request: Request,
        tier: RouterTier,
        index: int,
        past: Past,
        spent: Amount,
        copy: Copy | None = None,
        hear: Hear | None = None,
    ) -> tuple[Answer | Failure | Refusal | None, Amount]:
        """Reserve, call, settle. Returns what came and what it cost; failures are noted in `past`.

        `copy`: the handle of this one, when there may be another that overtakes it. `hear`: the call is streamed, and this
        gets what it says.
        """
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
            reserved = self._purse.reserve_now(account, bound)  # as a rule it is there, and nothing need be awaited
            if reserved is None:
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
        native = bool(request.schema) and tier.native_schema

        def withdrawn() -> None:
            nonlocal done
            done = WITHDRAWN

        try:
            done = await self._call(request, tier, index, tokens, past, withdrawn, copy, hear)
            margins = tier.margins
        finally:
            cost = self._settle(tier, tokens, reserved, done)
            if done is None and self._on_attempt is not None:  # cancelled: what nobody waits for is in no result
                self._on_attempt(request, Attempt(state.settings.name, index, "cancelled", 0, 0.0, booked=cost))
        if isinstance(done, Refusal):
            return done, cost
        if isinstance(done, Failure) and native and done.kind == "bad_request" and _format_refused(done):
            tier.native_schema = False
            past.attempts.append(self._counted(tier, index, done))  # no strike: the same tier is asked again, in words
            if self._on_attempt is not None:
                self._on_attempt(request, past.attempts[-1])
            return None, cost
        if isinstance(done, Failure):
            self._note(tier, index, past, done, overtaken=copy is not None and copy.overtaken)
            made = past.attempts.pop()[:6]
        else:
            kinds = tier.kinds
            kinds["ok"] = kinds.get("ok", 0) + 1
            state.served = True
            if done.model:
                tier.answered_as(done.model)
            made = state.settings.name, index, "ok", done.status, done.duration_s, ""
        margin_milli = 0 if tier.margins is margins else tier.margins.widest_milli
        attempt = _settled(made, done, cost, reserved.amount, margin_milli)
        past.attempts.append(attempt)
        if self._on_attempt is not None:
            self._on_attempt(request, attempt)
        return done, cost

    async def _call(
        self,
        request: Request,
        tier: RouterTier,
        index: int,
        tokens: Bound,
        past: Past,
        on_withdrawn: Callable[[], None],
        copy: Copy | None,
        hear: Hear | None,
    ) -> Answer | Failure | Refusal:
        actor = tier.state.actors[index]
        if not actor.up:  # it died while the call waited for its budget
            return Refusal("queue", 0.0, "its actor is away")
        now = time.monotonic()
        left_s = max(0.05, past.deadline - now)
        settings = tier.state.settings
        body = tier.body(request)
        waits = not request.interactive and (
            self.settings.on_rate_limit == "wait"
            or not any(
                _might_serve(other, request, past)
                for other in self._states[request.start_tier :]
                if other is not tier.state
            )
        )
        call = TierCall(
            request.id,
            request.path,
            body,
            min(settings.timeout_s, left_s) if hear is None else left_s,
            INTERACTIVE_QUEUE_S if request.interactive else left_s,
            left_s if waits else RATE_PATIENCE_S,
            tokens.prompt_tokens // 4 + (request.max_tokens or settings.max_output_tokens) * request.choices,
            past.endpoint_of(tier.state),
            tier.state.held(index),
            None if hear is None else tier.terms(request),
            request.job or request.key,
        )
        actor.sent()
        tier.retries.deposit(now)
        try:
            lane = tier.lanes[index]
            ask = lane.call if copy is None else partial(copy.call, lane)
            if hear is not None:
                ask = partial(_listen, lane, hear)
            done: Answer | Failure | Refusal = await ask(call, left_s + settings.timeout_s, on_withdrawn)
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
        self, tier: RouterTier, tokens: Bound, reserved: Reserved, done: Answer | Failure | Refusal | None
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
        elif isinstance(done, Answer) and done.streaming is not None:
            # What was sent bounds what was made; the prompt's bound stays.
            most = tier.tariff.cost(Usage(tokens.prompt_tokens, done.streaming.most_tokens))
            spent, unknown = NOTHING, Amount(*map(min, most, reserved.amount))
        else:
            spent, unknown = NOTHING, reserved.amount
        self._purse.settle(reserved, spent, unknown)
        return spent if unknown is NOTHING else unknown

    def fits(self, request: Request, tier: RouterTier, spent: Amount) -> bool:
        """Whether the limits of one request have room for an attempt at `tier` after `spent`."""
        account = Account(tier.state.settings.name, request.job, request.key)
        return self._request_limits(account).refuse(spent, tier.tariff.bound(request, tier.margins)) is None

    def _note(self, tier: RouterTier, index: int, past: Past, failure: Failure, overtaken: bool = False) -> Failure:
        if not overtaken:  # which says nothing of the tier, and does not end the request
            past.note(tier.state, self._states, failure, time.monotonic())
        past.attempts.append(self._counted(tier, index, failure, overtaken))
        return failure

    def _counted(self, tier: RouterTier, index: int, failure: Failure, overtaken: bool = False) -> Attempt:
        tier.kinds[failure.kind] = tier.kinds.get(failure.kind, 0) + 1
        if not overtaken:
            tier.last_failure = failure.message
        return Attempt(
            tier.state.settings.name, index, failure.kind, failure.status, failure.duration_s, failure.message
        )

    def _request_limits(self, account: Account) -> Any:
        limits = self._limits.get(account)
        if limits is None:
            if len(self._limits) > 10_000:
                self._limits.clear()
            limits = self._limits[account] = request_limits(self._budget, account)
        return limits


def _settled(
    made: tuple[str, int, str, int, float, str],
    done: Answer | Failure | None,
    cost: Amount,
    reserved: Amount,
    margin_milli: int,
) -> Attempt:
    """The attempt with what it used and cost: whoever gets the result counts from it (actors/events.py).

    `made`: its first fields, to `message`.
    """
    usage = None if done is None else done.usage
    unmetered = usage is None and isinstance(done, Answer)
    prompt_tokens, completion_tokens = (0, 0) if usage is None else usage[:2]
    first_token_s, per_token_s, malformed_events = 0.0, 0.0, 0
    if isinstance(done, Answer) and done.streaming is not None:
        first_token_s, malformed_events = done.streaming.first_token_s, done.streaming.malformed
        # Reasoning that is not shown comes before the first token, and is counted all the same.
        tokens = done.streaming.events if usage is None else usage.completion_tokens - usage.reasoning_tokens
        if tokens > 1:
            per_token_s = max(0.0, done.duration_s - first_token_s) / (tokens - 1)
    return Attempt(
        *made,
        unmetered_tokens=cost.tokens if unmetered else 0,
        overrun_tokens=max(0, cost.tokens - reserved.tokens),
        margin_milli=margin_milli,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        booked=cost,
        overrun_usd_micros=max(0, cost.usd_micros - reserved.usd_micros),
        first_token_s=first_token_s,
        per_token_s=per_token_s,
        malformed_events=malformed_events,
    )


def _format_refused(failure: Failure) -> bool:
    return format_refused(failure.message) or format_refused(failure.body.decode(errors="replace"))


async def _listen(
    lane: Lane[ToTier, Any],
    hear: Hear,
    call: TierCall,
    timeout_s: float,
    on_withdrawn: Callable[[], object],
) -> Answer | Failure | Refusal:
    """As Lane.call, for a call that speaks before it ends."""
    words = lane.stream(call, timeout_s)
    try:
        while isinstance(heard := await words.read(), list):
            for chunks in heard:
                hear(chunks)
        done: Answer | Failure | Refusal = heard
        return done
    except Divergence:
        return Failure("malformed", "another answer than the one that was begun", billed="unknown")
    finally:
        if words.close():
            on_withdrawn()


def _might_serve(tier: TierState, request: Request, past: Past) -> bool:
    """Whether another tier, budget allowing, is a candidate for the request."""
    now = time.monotonic()
    return (
        tier.rank >= request.min_quality
        and not request.barred >> tier.index & 1
        and tier.index not in past.excluded
        and not tier.dead(now)
        and tier.exhausted_until <= now
    )
