"""What every door that sends through router actors has in common: which lane, how often again, and what is told of a result."""

from collections.abc import Sequence
from typing import Any

import orjson

from actors.lane import Lane
from actors.messages import Failure, Request, Result

__all__ = ["CLOSED", "GAP_S", "REDO_LIMIT", "budget_pause_s", "how", "latency_s", "least_loaded", "weight"]

REDO_LIMIT = 20
"""How often a request is sent again after actors died with it; then it is the request that is suspected of killing them."""


GAP_S = 0.01
"""Of lanes that streams and many rows share: between what is cheapest and what is soonest."""
BUDGET_LOOK_S = 30.0
CLOSED = Failure("cancelled", "the client was closed while this was under way")


def least_loaded(lanes: "Sequence[Lane[Request, Any]]") -> "Lane[Request, Any]":
    """The lane for the next request: of those that are up, the one with the least to do."""
    return min(lanes, key=lambda lane: lane.outstanding + (0 if lane.up else 1_000_000))


def weight(request: Request) -> int:
    """About how many bytes a request has on its way to a router."""
    return len(request.body) + 350


def budget_pause_s(failure: Failure, waits: bool) -> float | None:
    """How long what a budget has put off waits before another try; None: it does not. `waits`: on_exhausted is `wait`."""
    if not failure.resumable or failure.retry_after_s is None or not waits:
        return None
    return min(failure.retry_after_s + 0.5, BUDGET_LOOK_S)


def how(result: Result, prompt: str = "") -> dict[str, Any]:
    """How an answer came about: the key `raycade` beside it. `prompt`: `name@version`, where one made the request."""
    told: dict[str, Any]
    if result.coalesced:
        told = {"tier": result.tier, "coalesced": True, "cost_usd": 0}
    else:
        told = {"tier": result.tier, "attempts": len(result.attempts), "cost_usd": result.cost.usd_micros / 1e6}
        if any(attempt.hedged for attempt in result.attempts):
            told["hedged"] = True
        told["latency_s"] = latency_s(result)
        if not result.metered:
            told["usage"] = "unknown"
        if result.refused_replies:  # the body's usage is of the last reply only
            told |= {"refused_replies": result.refused_replies, "tokens": result.cost.tokens}
    if prompt:
        told["prompt"] = prompt
    if result.parsed:
        told["parsed"] = orjson.loads(result.parsed)
    return told


def latency_s(result: Result) -> float:
    """How long the endpoints took that answered, refused replies included; waits and failed attempts are not in it."""
    attempts = result.attempts
    return round(attempts[0].duration_s if len(attempts) == 1 else sum(one.duration_s for one in attempts), 4)
