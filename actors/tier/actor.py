"""The tier actor: one process that calls one model endpoint, and everything that keeps it from calling too much.

A call passes, in this order: the queue for a slot (concurrency), the breaker, the rate limits, the wire. Whatever holds
it back before it is sent gives it back as a `Refusal`, which is not an attempt. When the breaker opens or the endpoint
asks for a pause, everything queued is given back at once, so that the router can go elsewhere within microseconds.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import assert_never

from actors.errors import ConfigError
from actors.lane import Cancel, Complete, LaneHost, LaneServer
from actors.messages import Answer, Failure, Health, Refusal, TierCall
from actors.settings import TierSettings
from actors.tier.breaker import Breaker, Outcome, Permit, Refused
from actors.tier.classify import Whole, classify_error, classify_reply
from actors.tier.concurrency import Concurrency
from actors.tier.endpoints import make_transport
from actors.tier.limiter import RateLimits
from actors.tier.transport import Transport, TransportError

__all__ = ["TierActor", "TierReply"]

TierReply = Answer | Failure | Refusal

AUTH_PAUSE_S = 300.0
"""A tier whose key is refused, or a path or model that is not there, is asked again this much later."""
FORBIDDEN = 403
COOLING_S = 1.0
"""The pause after a 429 that names none."""
COOLING_LEAST_S = 0.1
"""And after one that names none to speak of (`Retry-After: 0`): a 429 is not an attempt, so nothing else would slow it down."""
RATE_PAUSE_S = 0.25
"""How long routers are told to stay away when the tier's own rate limit makes calls wait too long."""
QUEUE_SWEEP_S = 0.25


class _Queued:
    """A call that waits for a slot, or runs."""

    __slots__ = ("call", "cancelled", "complete", "expires", "started", "task")

    def __init__(self, call: TierCall, complete: Complete[TierReply], expires: float) -> None:
        self.call = call
        self.complete = complete
        self.expires = expires
        self.cancelled = False
        self.started = False
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        self.cancelled = True
        # A task that is cancelled before its first step never runs at all, and would not give back its slot.
        if self.task is not None and self.started:
            self.task.cancel()


class TierActor(LaneHost):
    """One of a tier's actors. Does no I/O when made (a failing constructor is final in Ray)."""

    def __init__(
        self,
        settings: TierSettings,
        make_transport: Callable[[TierSettings], tuple[Transport, tuple[str, ...]]] = make_transport,
    ) -> None:
        self._settings = settings
        self._make_transport = make_transport
        self._transport: Transport | None = None
        self._secrets: tuple[str, ...] = ()
        self._breaker = Breaker(settings.breaker, probe_lease_s=settings.timeout_s + 5.0)
        self._concurrency = Concurrency(settings.concurrency)
        self._limits = RateLimits(settings.requests_per_minute, settings.tokens_per_minute, 1.0 / settings.replicas)
        self._queue: deque[_Queued] = deque()
        self._in_flight = 0
        self._paced = 0
        """Calls that have a slot and wait for the tier's own rate limits."""
        self._cooling_until = 0.0
        self._dead_until = 0.0
        self._dead_reason = ""
        self._has_answered = False
        self._absent: dict[str, tuple[float, str]] = {}
        """Paths that the endpoint does not have, until when that is believed, and what it said."""
        self._sweeping = False
        self._server: LaneServer[TierCall, TierReply] = LaneServer(
            self._start, note=self.health, weigh=lambda done: len(getattr(done, "body", b"")) + 200
        )

    # ------------------------------------------------------------------ what the router calls

    def health(self) -> Health:
        """The actor's condition now; durations in seconds from now."""
        now = time.monotonic()
        return Health(
            state=self._breaker.state,
            open_for_s=max(0.0, self._breaker.open_until - now) if self._breaker.state == "open" else 0.0,
            cooling_for_s=max(0.0, self._cooling_until - now, self._dead_until - now),
            in_flight=self._in_flight,
            queued=len(self._queue) + self._paced,
            limit=self._concurrency.limit,
            opened=self._breaker.opened,
            dead_reason=self._dead_reason if self._dead_until > now else "",
        )

    async def close(self) -> None:
        """Give back what waits, and close the connections."""
        self._server.close()
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None

    # ------------------------------------------------------------------ the way of a call

    def _start(self, lane: str, call: TierCall, complete: Complete[TierReply]) -> Cancel | None:
        now = time.monotonic()
        if self._absent and (known := self._absent.get(call.path)) is not None and known[0] > now:
            complete(Refusal("absent", known[0] - now, known[1]))
            return None
        queued = _Queued(call, complete, now + call.queue_s)
        self._queue.append(queued)
        self._pump()
        if self._queue and not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(QUEUE_SWEEP_S, self._sweep)
        return queued.cancel

    def _pump(self) -> None:
        """Start what may start; give everything back when nothing may."""
        queue = self._queue
        while queue and self._in_flight < self._concurrency.limit:
            if queue[0].cancelled:
                queue.popleft()
                continue
            now = time.monotonic()
            refusal = self._gate(now)
            if refusal is not None:
                self._give_back(refusal)
                return
            admitted = self._breaker.admit(now)
            match admitted:
                case Permit():
                    queued = queue.popleft()
                    self._in_flight += 1
                    queued.task = asyncio.get_running_loop().create_task(self._attempt(queued, admitted))
                case Refused():
                    self._give_back(Refusal("open", max(0.0, admitted.retry_at - now)))
                    return
                case _:
                    assert_never(admitted)
        if queue:  # no slot is free: but nobody waits for one while nothing may be sent
            now = time.monotonic()
            refusal = self._gate(now)
            if refusal is None and self._breaker.state == "open" and self._breaker.open_until > now:
                refusal = Refusal("open", self._breaker.open_until - now)
            if refusal is not None:
                self._give_back(refusal)

    def _gate(self, now: float) -> Refusal | None:
        pause = max(self._cooling_until, self._dead_until) - now
        return Refusal("cooling", pause) if pause > 0 else None

    def _give_back(self, refusal: Refusal, path: str | None = None) -> None:
        """Refuse what waits for a slot: all of it, or the calls to one path."""
        for _ in range(len(self._queue)):
            queued = self._queue.popleft()
            if path is not None and queued.call.path != path:
                self._queue.append(queued)
            elif not queued.cancelled:
                queued.complete(refusal)

    async def _attempt(self, queued: _Queued, permit: Permit) -> None:
        """Make one call. Whatever happens, the slot and the permit are given back and the item completes."""
        outcome: Outcome = "neutral"
        done: TierReply | None = None
        queued.started = True
        try:
            if queued.cancelled:
                return
            done = await self._wait_for_rate(queued.call, permit)
            if done is None:
                done = await self._send(queued.call)
                outcome = self._learn(done, queued.call.path)
        except Exception as error:  # a defect of ours must not swallow the row
            done = Failure("internal", f"{type(error).__name__}: {error}"[:300], billed="unknown")
        except asyncio.CancelledError:
            if not queued.cancelled:  # by something within the transport, and somebody still waits
                done = Failure("connection", "the call was cancelled on its way", billed="unknown")
            raise
        finally:
            self._in_flight -= 1
            now = time.monotonic()
            was_open = self._breaker.state == "open"
            self._breaker.settle(permit, outcome, now)
            if self._breaker.state == "open" and not was_open:
                self._give_back(Refusal("open", self._breaker.open_until - now))
            if done is not None:  # None: cancelled, and nobody waits for it
                queued.complete(done)
            self._pump()

    async def _wait_for_rate(self, call: TierCall, permit: Permit) -> Refusal | None:
        if self._limits.unlimited:
            return None
        self._paced += 1
        try:
            async with asyncio.timeout(call.rate_s):
                await self._limits.wait(call.tokens)
        except TimeoutError:
            self._cool(RATE_PAUSE_S)
            return Refusal("rate", RATE_PAUSE_S)
        finally:
            self._paced -= 1
        now = time.monotonic()
        if permit.generation != self._breaker.generation:  # it opened while this call waited
            return Refusal("open", max(0.0, self._breaker.open_until - now))
        return self._gate(now)

    async def _send(self, call: TierCall) -> Answer | Failure:
        if self._transport is None:
            try:
                self._transport, self._secrets = self._make_transport(self._settings)
            except ConfigError as error:
                return Failure("auth", str(error))
        started = time.monotonic()
        try:
            reply = await self._transport.send(call.path, call.body, call.timeout_s)
        except TransportError as error:
            return classify_error(error, self._secrets)
        outcome = classify_reply(reply.status, reply.headers, reply.body, call.path, time.time(), self._secrets)
        if isinstance(outcome, Whole):
            return Answer(reply.body, reply.status, outcome.usage, outcome.model, time.monotonic() - started)
        return outcome

    def _learn(self, done: Answer | Failure, path: str) -> Outcome:
        """What the answer says about the endpoint, for the breaker, the concurrency limit and the gates."""
        now = time.monotonic()
        if isinstance(done, Answer):
            self._has_answered = True
            self._concurrency.succeeded(self._in_flight, now)
            return "success"
        match done.kind:
            case "rate_limited":
                self._cool(COOLING_S if done.retry_after_s is None else max(COOLING_LEAST_S, done.retry_after_s))
                self._concurrency.refused(now)
                return "neutral"
            case "not_found":
                # A wrong address or model, for this path at least: a chat endpoint need not have embeddings.
                self._absent[path] = (now + AUTH_PAUSE_S, done.message)
                self._give_back(Refusal("absent", AUTH_PAUSE_S, done.message), path)
                return "neutral"
            case "auth" if done.status == FORBIDDEN and self._has_answered:
                return "neutral"  # the key serves others: it is this request that is forbidden
            case "auth":
                self._dead_until = now + AUTH_PAUSE_S
                self._dead_reason = done.message
                self._give_back(Refusal("cooling", AUTH_PAUSE_S))
                return "neutral"
            case "overloaded":
                self._concurrency.refused(now)
                return "failure"
            case "timeout" | "connection" | "server" | "malformed":
                return "failure"
            case _:
                return "neutral"

    def _cool(self, pause_s: float) -> None:
        self._cooling_until = max(self._cooling_until, time.monotonic() + pause_s)
        self._give_back(Refusal("cooling", pause_s))

    def _sweep(self) -> None:
        """Give back what has waited too long for a slot."""
        now = time.monotonic()
        late = [queued for queued in self._queue if queued.expires <= now]
        if late:
            for queued in late:
                self._queue.remove(queued)
            for queued in late:
                if not queued.cancelled:
                    queued.complete(Refusal("queue", 1.0))
        self._sweeping = bool(self._queue)
        if self._sweeping:
            asyncio.get_running_loop().call_later(QUEUE_SWEEP_S, self._sweep)
