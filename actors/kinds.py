"""What each way to fail means, as data: one line a kind, read by all who act on it.

The wire names an attempt's failure once (actors/tier/rules.py says how); here stands what follows from the name:

    then      what the plan does with the request        (actors/router/plan.py)
    counts    whether it is one of `max_attempts`        (actors/router/plan.py)
    fault     whose it is: the `request`'s would be the same for anyone who sends the same, so it is shared with equal
              requests; `setup` is the key, the account, the address or the model of the tier
    breaker   what the tier's circuit breaker counts it as  (actors/tier/breaker.py)
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from actors.messages import FailureKind

__all__ = ["KINDS", "Kind", "Then"]

Then = Literal["wait", "again", "elsewhere", "larger", "out", "refused", "final"]
"""wait: for this tier's pause to end, or go elsewhere. again: here once more, if this failure came first and quickly;
else elsewhere. elsewhere: here only when the others had their turns. larger: where the context window is larger.
out: never here again. refused: final, or never here again, as `router.on_content_filter` says. final: nowhere again."""


class Kind(NamedTuple):
    then: Then
    counts: bool
    fault: Literal["request", "endpoint", "setup", "nobody"]
    breaker: Literal["failure", "neutral"]


KINDS: Final[Mapping[FailureKind, Kind]] = {
    # kind                    then         counts fault       breaker
    "rate_limited": Kind("wait", False, "endpoint", "neutral"),
    "overloaded": Kind("again", True, "endpoint", "failure"),
    "server": Kind("again", True, "endpoint", "failure"),
    "connection": Kind("again", True, "endpoint", "failure"),
    "malformed": Kind("again", True, "endpoint", "failure"),
    "lost": Kind("again", True, "nobody", "neutral"),
    "timeout": Kind("elsewhere", True, "endpoint", "failure"),
    "context_length": Kind("larger", True, "request", "neutral"),
    "auth": Kind("out", False, "setup", "neutral"),
    "not_found": Kind("out", False, "setup", "neutral"),
    "content_filter": Kind("refused", True, "request", "neutral"),
    "bad_request": Kind("final", True, "request", "neutral"),
    "cancelled": Kind("final", True, "nobody", "neutral"),
    "budget_exceeded": Kind("final", True, "nobody", "neutral"),
    "internal": Kind("final", True, "nobody", "neutral"),
}
"""All kinds that an attempt can end in; the others (`deadline`, `no_tier` ...) are ends of a whole request."""
