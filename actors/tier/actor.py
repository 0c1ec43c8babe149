"""The tier actor: one process that calls a tier's endpoints, and everything that keeps it from calling too much.

A call passes, in this order: the queue, in turns (turns.py), the choice of an endpoint that is well and has room
(upstream.py), the rate limits, the wire. Whatever holds it back before it is sent gives it back as a `Refusal`, which is not an attempt. When
the last endpoint goes out or asks for a pause, everything queued is given back at once, so that the router can go
elsewhere within microseconds; while others are well, what waits goes to them. A part of the queue is given back when a
router says that another actor of the tier has nothing to send.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, assert_never

from actors.errors import ConfigError
from actors.lane import Cancel, Complete, LaneServer, Part
from actors.lane_peers import LaneHost
from actors.messages import Answer, Chunk, Failure, GiveBack, Health, Heed, Refusal, TierCall, ToTier
from actors.settings import TierSettings
from actors.tier.breaker import Outcome, Permit
from actors.tier.classify import Whole, classify_error, classify_reply
from actors.tier.limiter import RateLimits
from actors.tier.streaming import stream_call
from actors.tier.transport import Transport, TransportError
from actors.tier.turns import Turns
from actors.tier.upstream import Balancer, Busy, Upstream

__all__ = ["TierActor", "TierReply"]

TierReply = Answer | Failure | Refusal

RATE_PAUSE_S = 0.25
"""How long routers are told to stay away when the tier's own rate limit makes calls wait too long."""
QUEUE_SWEEP_S = 0.25
HURRIED_S = 5.0
"""Who waits no longer than this for a slot is a person, or about to miss a deadline."""
SHORTEST_PACE_S = 0.001


class _Queued:
    """A call that waits for an endpoint, or runs."""

    __slots__ = ("avoid", "call", "cancelled", "complete", "paid", "probe", "since", "started", "task")

    def __init__(self, call: TierCall, complete: Complete[TierReply | Part], since: float) -> None:
        self.call = call
        self.complete = complete
        self.since = since
        self.avoid = call.avoid
        self.paid = False
        """It has taken its share of the rate limits."""
        self.probe = False
        """It finds out whether an outage is over, which does not hold it."""
        self.cancelled = False
        self.started = False
        self.task: asyncio.Task[None] | None = None

    def slow(self, now: float) -> bool:
        """It has waited for the rate as long as it may."""
        return now - self.since >= self.call.rate_s

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
        make_transports: Callable[[TierSettings], tuple[Sequence[Transport], tuple[str, ...]]] | None = None,
    ) -> None:
        # Imported here: whoever finds or makes this actor imports this module, and has no use for the openai package.
        from actors.tier.endpoints import make_transports as make

        self._settings = settings
        self._make_transports = make_transports or make
        self._transports: Sequence[Transport] = ()
        self._secrets: tuple[str, ...] = ()
        self._balancer = Balancer(settings)
        self._under_way: dict[str, int] = {}
        """With several endpoints, where each request is: a second copy of one that is late goes to another."""
        self._limits = RateLimits(settings.requests_per_minute, settings.tokens_per_minute, 1.0 / settings.replicas)
        self._rate_pause_until = 0.0
        self._paced = 0
        """Calls that have a slot and wait for the tier's own rate limits."""
        self._queue: Turns[_Queued] = Turns()
        self._pump_at: asyncio.TimerHandle | None = None
        self._sweeping = False
        self._server: LaneServer[ToTier, Any] = LaneServer(self._start, note=self.health, weigh=_weigh)

    # ------------------------------------------------------------------ what the router calls

    def health(self) -> Health:
        """The actor's condition now; durations in seconds from now."""
        now = time.monotonic()
        health = self._balancer.health(now)
        pause_s, queued = self._rate_pause_until - now, len(self._queue) + self._paced
        if not queued and pause_s <= 0:
            return health
        return health._replace(queued=queued, cooling_for_s=max(pause_s, health.cooling_for_s))

    async def close(self) -> None:
        """Give back what waits, and close the connections."""
        self._server.close()
        if self._pump_at is not None:
            self._pump_at.cancel()
        transports, self._transports = self._transports, ()
        for transport in transports:
            await transport.aclose()

    # ------------------------------------------------------------------ the way of a call

    def _start(self, lane: str, call: ToTier, complete: Complete[Any]) -> Cancel | None:
        if not isinstance(call, TierCall):
            self._listen(call)
            complete(None)
            return None
        queued = _Queued(call, complete, time.monotonic())
        self._queue.add(call.whose, queued)
        self._pump()
        if self._queue and not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(QUEUE_SWEEP_S, self._sweep)
        return queued.cancel

    def _pump(self) -> None:
        """Start what may start; give back what has nowhere to go."""
        queue = self._queue
        while queue:
            queued = queue.first()
            if queued.cancelled:
                queue.take()
                continue
            now = time.monotonic()
            if self._rate_pause_until > now:
                self._give_back(Refusal("cooling", self._rate_pause_until - now))
                return
            call = queued.call
            avoid = self._under_way.get(call.id, queued.avoid)
            choice = self._balancer.choose(call.path, avoid, call.held, now, random.random())
            match choice:
                case Upstream():
                    queue.take()
                    self._send_to(choice, queued, now)
                case Busy():
                    if choice.ready_at is not None:
                        self._pump_later(max(SHORTEST_PACE_S, choice.ready_at - now))
                    return
                case Refusal():
                    queue.take()
                    queued.complete(choice)
                case _:
                    assert_never(choice)

    def _pump_later(self, delay_s: float) -> None:
        if self._pump_at is not None:
            self._pump_at.cancel()
        self._pump_at = asyncio.get_running_loop().call_later(delay_s, self._pump)

    def _give_back(self, refusal: Refusal) -> None:
        """Refuse what waits."""
        queue, self._queue = self._queue, Turns()
        for queued in queue:
            if not queued.cancelled:
                queued.complete(refusal)

    def _listen(self, word: GiveBack | Heed) -> None:
        match word:
            case GiveBack():
                self._part_with(word.calls)
            case Heed():
                now = time.monotonic()
                self._balancer.all[word.endpoint].capacity.heed(now - word.ago_s, now)
            case _:
                assert_never(word)

    def _part_with(self, calls: int) -> None:
        """Refuse so many of what waits, evenly of all lines."""
        size, places = len(self._queue), count()
        parted = self._queue.leave(lambda _: (at := next(places)) * calls // size != (at + 1) * calls // size)
        for queued in parted:
            if not queued.cancelled:
                queued.complete(Refusal("queue", 0.0, "another actor of the tier has nothing to send"))

    def _send_to(self, upstream: Upstream, queued: _Queued, now: float) -> None:
        permit = upstream.breaker.admit(now)
        assert isinstance(permit, Permit), "the balancer chose an endpoint that is out"
        upstream.in_flight += 1
        upstream.capacity.sent(now)
        if len(self._balancer.all) > 1:
            self._under_way[queued.call.id] = upstream.index
        queued.probe = upstream.probes(queued.call.path, now)
        queued.task = asyncio.get_running_loop().create_task(self._attempt(queued, upstream, permit))

    async def _attempt(self, queued: _Queued, upstream: Upstream, permit: Permit) -> None:
        """Make one call. Whatever happens, the slot and the permit are given back and the item completes or waits again."""
        outcome: Outcome = "neutral"
        done: TierReply | None = None
        began = time.monotonic()
        queued.started = True
        try:
            if queued.cancelled:
                return
            if not queued.paid and not self._limits.unlimited:
                done = await self._wait_for_rate(queued)
                began = time.monotonic()
            if done is None and upstream.takes(permit, began, queued.probe):  # else it went out meanwhile
                done = await self._send(queued, upstream)
                outcome = upstream.learn(done, queued.call.path, began, time.monotonic(), queued.probe)
                if isinstance(done, Failure) and done.kind in ("auth", "not_found"):
                    done = self._elsewhere(queued, upstream, done)
            if done is None:
                self._wait_again(queued)
        except Exception as error:  # a defect of ours must not swallow the row
            done = Failure("internal", f"{type(error).__name__}: {error}"[:300], billed="unknown")
        except asyncio.CancelledError:
            if not queued.cancelled:  # by something within the transport, and somebody still waits
                done = Failure("connection", "the call was cancelled on its way", billed="unknown")
            raise
        finally:
            now = time.monotonic()
            said = done.message if isinstance(done, Failure) else ""
            took_s = now - began
            if isinstance(done, Answer) and done.streaming is not None:
                took_s = done.streaming.first_token_s  # a long answer is no slow call
            self._balancer.settle(upstream, permit, outcome, now, took_s, said)
            if self._under_way.get(queued.call.id) == upstream.index:
                del self._under_way[queued.call.id]
            if done is not None:  # None: it waits again, or was cancelled and nobody waits for it
                queued.complete(done)
            self._pump()

    async def _wait_for_rate(self, queued: _Queued) -> Refusal | None:
        self._paced += 1
        try:
            async with asyncio.timeout(queued.call.rate_s):
                await self._limits.wait(queued.call.tokens)
        except TimeoutError:
            self._rate_pause_until = time.monotonic() + RATE_PAUSE_S
            return Refusal("rate", RATE_PAUSE_S)
        finally:
            self._paced -= 1
        queued.paid = True
        return None

    def _elsewhere(self, queued: _Queued, upstream: Upstream, failure: Failure) -> Failure | None:
        """One endpoint refuses the key or lacks the model, and bills nothing: None when another may take the call."""
        if not self._balancer.another(upstream, queued.call.path, time.monotonic()):
            return failure
        queued.avoid = upstream.index
        return None

    def _wait_again(self, queued: _Queued) -> None:
        queued.task, queued.started = None, False
        self._queue.put_back(queued.call.whose, queued)

    async def _send(self, queued: _Queued, upstream: Upstream) -> Answer | Failure:
        call = queued.call
        if not self._transports:
            try:
                self._transports, self._secrets = self._make_transports(self._settings)
            except ConfigError as error:
                return Failure("auth", str(error), endpoint=upstream.index)
        transport = self._transports[upstream.index]
        started = time.monotonic()
        if call.stream is not None:

            def say(chunks: list[Chunk]) -> None:
                upstream.heard_at = time.monotonic()
                queued.complete(Part(chunks))

            def advised(headers: Mapping[str, str]) -> None:
                upstream.capacity.advised(headers, time.monotonic())

            done = await stream_call(transport, call, call.stream, upstream.index, self._secrets, say, advised)
            return done._replace(duration_s=time.monotonic() - started) if isinstance(done, Failure) else done
        try:
            reply = await transport.send(call.path, call.body, call.timeout_s)
        except TransportError as error:
            failure = classify_error(error, self._secrets)
            return failure._replace(endpoint=upstream.index, duration_s=time.monotonic() - started)
        now = time.monotonic()
        upstream.capacity.advised(reply.headers, now)
        outcome = classify_reply(reply.status, reply.headers, reply.body, call.path, time.time(), self._secrets)
        if isinstance(outcome, Whole):
            return Answer(reply.body, reply.status, outcome.usage, outcome.model, now - started, upstream.index)
        return outcome._replace(endpoint=upstream.index, duration_s=now - started)

    def _sweep(self) -> None:
        """Give back what has waited too long."""
        now = time.monotonic()
        paced = self._balancer.paced
        for queued in self._queue.leave(lambda q: now - q.since >= q.call.queue_s or (paced and q.slow(now))):
            if not queued.cancelled:
                queued.complete(Refusal("rate", RATE_PAUSE_S) if queued.slow(now) and paced else Refusal("queue", 1.0))
        hurried = sum(q.call.queue_s <= HURRIED_S and not q.cancelled for q in self._queue)
        if hurried:
            self._balancer.wanted(hurried, now)
        self._pump()  # an endpoint may be due again, while those that are well are full of calls that hang
        self._sweeping = bool(self._queue)
        if self._sweeping:
            asyncio.get_running_loop().call_later(QUEUE_SWEEP_S, self._sweep)


def _weigh(done: object) -> int:
    if isinstance(done, list):
        return sum(len(chunk.data) + len(chunk.text) + 60 for chunk in done)
    return len(getattr(done, "body", b"")) + 200
