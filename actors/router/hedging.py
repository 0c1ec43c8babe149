"""The rule of hedging: when a second copy of a slow call is sent, and where to. The doing is in hedger.py.

A few calls in a hundred take many times as long as the rest, whatever the endpoint: a full queue behind it, a connection
that stalls. When a call has not answered after the time that most calls take, a second copy of it is sent, and whichever
answers first is the answer. Three things keep that from doing harm:

    after       a quantile of the times that the tier's recent successful calls took (`Latencies`), or a fixed time
    allowance   second copies are at most a fraction of recent calls (`Allowance`). The last rows of a job are free of it,
                since the whole job waits for them, and they are few
    queues      a call that waits in its tier's own queue has not been sent, so a copy of it would only wait behind it.
                `Watch` says from when on a call surely is with the endpoint, and `where` names only actors with a free slot

What a second copy is not: a retry, or an attempt that `max_attempts` or the plan's rounds would count. The first copy
speaks for the request. Pure: reads no clock, `now` is an argument.
"""

import math
from collections.abc import Sequence

from actors.messages import Health, Request
from actors.router.plan import ActorState, Past, TierState

__all__ = ["Allowance", "Latencies", "Watch", "where"]

LEAST_S = 0.001
STEP = math.log(1.1)
"""Buckets are 10% wide, so a quantile is right to 10%; from a millisecond to a thousand seconds."""
BUCKETS = 146
RECENT_CALLS = 4_096
"""At so many the counts are halved: what was measured long ago fades."""
MIN_CALLS = 30
MIN_SLOWER = 2
"""A quantile is known when so many calls may be expected above it: p95 after 40 calls, p99 after 200."""
ALLOWED_OF_CALLS = 200
"""An allowance that is not used is kept for so many calls."""
CROSSING_S = 0.1
"""Word of an actor's queue that is so much younger than a call has surely seen that call come in."""


class Latencies:
    """How long a tier's recent successful calls took: a histogram of logarithmic buckets that forgets.

    A first copy that was overtaken is added with the time it had waited. Left out, the slow calls that hedging ends would
    be missing, the quantile would sink with every hedge, and more and more calls would be hedged.
    """

    __slots__ = ("_counts", "_total")

    def __init__(self) -> None:
        self._counts = [0.0] * BUCKETS
        self._total = 0.0

    def add(self, duration_s: float) -> None:
        bucket = int(math.log(duration_s / LEAST_S) / STEP) if duration_s > LEAST_S else 0
        self._counts[min(bucket, BUCKETS - 1)] += 1.0
        self._total += 1.0
        if self._total >= RECENT_CALLS:
            self._counts = [count / 2 for count in self._counts]
            self._total /= 2

    def quantile(self, share: float) -> float | None:
        """The time that `share` of the calls kept to, rounded up to its bucket; None while there are too few to tell."""
        slower = (1.0 - share) * self._total
        if self._total < MIN_CALLS or slower < MIN_SLOWER:
            return None
        for bucket in range(BUCKETS - 1, -1, -1):
            slower -= self._counts[bucket]
            if slower < 0:
                break
        return LEAST_S * math.exp((bucket + 1) * STEP)


class Allowance:
    """Second copies may be `fraction` of recent calls: a call deposits that much of a copy, a copy withdraws a whole one."""

    __slots__ = ("_copies", "_fraction", "_most")

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._most = max(1.0, fraction * ALLOWED_OF_CALLS)
        self._copies = 0.0

    def deposit(self) -> None:
        self._copies = min(self._most, self._copies + self._fraction)

    @property
    def any(self) -> bool:
        """Whether there is a whole copy."""
        return self._copies >= 1.0 - 1e-9  # twenty times 0.05 is not quite one

    def withdraw(self) -> None:
        self._copies -= 1.0


class Watch:
    """What a router hears of one tier actor's queue. Word comes with every completion, and every second from an idle one."""

    __slots__ = ("_busy", "_calm_at", "_heard_at")

    def __init__(self) -> None:
        self._heard_at = self._calm_at = float("-inf")
        self._busy = False

    def observe(self, health: Health, now: float) -> None:
        busy = health.queued > 0 or health.cooling_for_s > 0 or health.state != "closed"
        if self._busy and not busy:
            self._calm_at = now
        self._busy = busy
        self._heard_at = now

    def sent_by(self, handed_over_at: float) -> float | None:
        """When at the latest a call that was handed over then was sent to the endpoint. None: it may still be waiting."""
        if self._busy or self._heard_at < handed_over_at + CROSSING_S:
            return None
        return max(handed_over_at, self._calm_at)


def where(
    request: Request, tier: TierState, actor: int, tiers: Sequence[TierState], past: Past, now: float
) -> tuple[TierState, int] | None:
    """Tier and actor for a second copy of the call that `actor` of `tier` has; None when nobody has a free slot for it.

    In this order: another actor of the tier, the same one when it calls several endpoints, another tier that the plan
    would allow, and at last the same place again, since one address is often many machines.
    """
    own = tier.actors[actor]
    if tier.exhausted_until <= now:
        other = _freest(tier, now, but=own)
        if other is not None:
            return tier, other
        if len(tier.settings.base_url) > 1 and _free(own, now):
            return tier, actor
    for next_tier in tiers[request.start_tier :]:
        if next_tier is not tier and _allowed(next_tier, request, past, now):
            other = _freest(next_tier, now)
            if other is not None:
                return next_tier, other
    return (tier, actor) if tier.exhausted_until <= now and _free(own, now) else None


def _allowed(tier: TierState, request: Request, past: Past, now: float) -> bool:
    window = tier.settings.context_tokens
    return (
        tier.rank >= request.min_quality
        and not request.barred >> tier.index & 1
        and tier.index not in past.excluded
        and tier.index not in past.failed
        and tier.exhausted_until <= now
        and not tier.dead(now)
        # about four bytes a token; one that does not fit after all is refused, which costs nothing
        and (window is None or request.prompt_bound_tokens // 4 + (request.max_tokens or 0) <= window)
    )


def _freest(tier: TierState, now: float, but: ActorState | None = None) -> int | None:
    free = [index for index, actor in enumerate(tier.actors) if actor is not but and _free(actor, now)]
    return min(free, key=lambda index: tier.actors[index].outstanding) if free else None


def _free(actor: ActorState, now: float) -> bool:
    """A copy that would be sent at once. A probe must be a call that is seen to its end, so no breaker may be half open."""
    health = actor.health
    taken = max(health.in_flight, actor.outstanding)
    return health.state == "closed" and not health.queued and taken < health.limit and actor.usable_at(now) <= now
