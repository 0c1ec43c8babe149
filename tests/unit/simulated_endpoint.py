"""An endpoint and those who call it, in simulated time: what `Capacity` finds out is seen in milliseconds, and the same each time.

The endpoint is the mock's (runtime/mock/gates.py): a token bucket that answers 429 at once, then slots with a queue, then a
latency. Callers always have more to send than they may, as a batch has.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import NamedTuple, Protocol

__all__ = ["Caller", "Endpoint", "Limiter", "Seen", "simulate"]

TICK_S = 0.001
"""Real timers are no finer, so whoever is told to wait for less wakes up late."""
TOLD_S = 0.05
"""So long word of a refusal takes to another actor of the tier."""


class Limiter(Protocol):
    """What is tried: the face of `Capacity` that the tier actor uses."""

    def ready_at(self, in_flight: int, now: float) -> float | None: ...
    def sent(self, now: float) -> None: ...
    def succeeded(self, in_flight: int, duration_s: float, now: float) -> None: ...
    def refused(self, retry_after_s: float | None, sent_at: float, now: float) -> None: ...
    def failed(self, now: float) -> None: ...
    def advised(self, headers: Mapping[str, str], now: float) -> None: ...
    def heed(self, at: float, now: float) -> None: ...
    @property
    def cut_at(self) -> float: ...


class Endpoint(NamedTuple):
    latency_s: Callable[[random.Random], float] = lambda chance: 0.1
    slots: int | None = None
    allowances: Sequence[tuple[float, float]] = ()
    """(from when, calls per second); none: no rate limit."""
    burst: int = 400
    retry_after_s: float | None = None
    headers: bool = False
    errors: float = 0.0
    """Share of calls that end in a 500."""
    refusals: float = 0.0
    """Share of calls that are refused whatever the pace."""


class Caller(NamedTuple):
    limiter: Limiter
    begins_s: float = 0.0
    tier: str = ""
    """Those of one tier hear of each other's refusals; empty: it has no others."""


class Seen(NamedTuple):
    """One call that ended."""

    caller: int
    at: float
    duration_s: float
    status: int


class _Bucket:
    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._level, self._at = float(endpoint.burst), 0.0

    def rate(self, now: float) -> float:
        return [rate for since, rate in self._endpoint.allowances if since <= now][-1]

    def take(self, now: float) -> tuple[bool, dict[str, str]]:
        rate, size = self.rate(now), self._endpoint.burst
        self._level = min(float(size), self._level + (now - self._at) * rate)
        self._at = now
        admitted = self._level >= 1
        self._level -= admitted
        if not self._endpoint.headers:
            return admitted, {}
        return admitted, {
            "x-ratelimit-limit-requests": str(size),
            "x-ratelimit-remaining-requests": str(int(self._level)),
            "x-ratelimit-reset-requests": f"{math.floor((size - self._level) / rate * 1000)}ms",
        }


def simulate(endpoint: Endpoint, callers: Sequence[Caller], seconds: float, seed: int = 1) -> list[Seen]:
    chance = random.Random(seed)
    order = count()
    events: list[tuple[float, int, Callable[[float], None]]] = []
    seen: list[Seen] = []
    in_flight = [0] * len(callers)
    pumping: list[float] = [math.inf] * len(callers)
    bucket = _Bucket(endpoint) if endpoint.allowances else None
    waiting: deque[Callable[[float], None]] = deque()
    busy = 0

    def at(when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, next(order), what))

    def pump(who: int, now: float) -> None:
        limiter = callers[who].limiter
        while True:
            ready = limiter.ready_at(in_flight[who], now)
            if ready is None:
                return
            if ready > now:
                when = max(ready, now + TICK_S)
                if not now < pumping[who] <= when:
                    pumping[who] = when
                    at(when, lambda t: pump(who, t))
                return
            limiter.sent(now)
            in_flight[who] += 1
            arrive(who, now)

    def arrive(who: int, now: float) -> None:
        nonlocal busy
        headers: dict[str, str] = {}
        if endpoint.refusals and chance.random() < endpoint.refusals:
            at(now + 0.002, lambda t: end(who, now, 429, headers, t))
            return
        if bucket is not None:
            admitted, headers = bucket.take(now)
            if not admitted:
                at(now + 0.002, lambda t: end(who, now, 429, headers, t))
                return

        def serve(then: float) -> None:
            status = 500 if chance.random() < endpoint.errors else 200
            at(then + max(endpoint.latency_s(chance), 0.0002), lambda t: served(who, now, status, headers, t))

        if endpoint.slots is None:
            serve(now)
        elif busy < endpoint.slots:
            busy += 1
            serve(now)
        else:
            waiting.append(serve)

    def served(who: int, sent_at: float, status: int, headers: dict[str, str], now: float) -> None:
        nonlocal busy
        if endpoint.slots is not None:
            if waiting:
                waiting.popleft()(now)
            else:
                busy -= 1
        end(who, sent_at, status, headers, now)

    def end(who: int, sent_at: float, status: int, headers: dict[str, str], now: float) -> None:
        limiter = callers[who].limiter
        if headers:
            limiter.advised(headers, now)
        if status == 200:
            limiter.succeeded(in_flight[who], now - sent_at, now)
        elif status == 429:
            limiter.refused(endpoint.retry_after_s, sent_at, now)
            if limiter.cut_at == now and callers[who].tier:
                for other in callers:
                    if other.tier == callers[who].tier and other.limiter is not limiter:
                        at(now + TOLD_S, lambda t, other=other: other.limiter.heed(now, t))  # type: ignore[misc]
        else:
            limiter.failed(now)
        in_flight[who] -= 1
        seen.append(Seen(who, now, now - sent_at, status))
        pump(who, now)

    for who, caller in enumerate(callers):
        at(caller.begins_s, lambda t, who=who: pump(who, t))  # type: ignore[misc]
    while events and events[0][0] <= seconds:
        now, _, what = heapq.heappop(events)
        what(now)
    return seen
