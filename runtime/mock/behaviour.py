"""From a scenario to decisions: what happens to request number n of a tier. Pure.

Every request has its own random numbers, derived from (seed, tier, request number), so a decision depends neither on
the order in which answers go out nor on what else was drawn before.
"""

import hashlib
import math
import struct
from bisect import bisect_right
from itertools import accumulate
from statistics import NormalDist
from typing import Literal, NamedTuple, get_args

from runtime.mock.scenario import Conduct, ErrorShare, Mishap, TierScenario

__all__ = ["Behaviour", "Outcome", "Script"]

Outcome = Literal["answer", "error"] | Mishap

_MISHAPS: tuple[Mishap, ...] = get_args(Mishap)
_NORMAL = NormalDist()
_DRAWS = struct.Struct("<3Q")


class Behaviour(NamedTuple):
    """What is done with one request."""

    outcome: Outcome
    latency_s: float
    conduct: Conduct
    number: int
    """The request's number in its tier, from 0: picks among `replies` and `dress`."""
    error: ErrorShare | None = None


class _Step:
    """One phase, prepared: its bounds, its conduct, and the shares as a cumulative list."""

    def __init__(self, conduct: Conduct, until_s: float, until_requests: float) -> None:
        self.conduct, self.until_s, self.until_requests = conduct, until_s, until_requests
        self.error = ErrorShare(fraction=1, status=conduct.status) if conduct.status is not None else None
        shares: list[tuple[Outcome, ErrorShare | None, float]] = [
            (name, None, getattr(conduct, name)) for name in _MISHAPS if getattr(conduct, name)
        ]
        shares += [("error", error, error.fraction) for error in conduct.errors]
        self.ends = list(accumulate(share for _, _, share in shares))
        self.picks = [(name, error) for name, error, _ in shares]
        latency = conduct.latency
        self.random = bool(shares or latency.lognormal or latency.outlier)

    def outcome(self, draw: float) -> tuple[Outcome, ErrorShare | None]:
        at = bisect_right(self.ends, draw)
        return self.picks[at] if at < len(self.picks) else ("answer", None)

    def latency_s(self, body: float, tail: float) -> float:
        latency = self.conduct.latency
        if latency.outlier is not None and tail < latency.outlier.fraction:
            return latency.outlier.s
        if latency.lognormal is not None:
            spread = _NORMAL.inv_cdf(min(max(body, 1e-12), 1 - 1e-12))
            return latency.lognormal.median_s * math.exp(latency.lognormal.sigma * spread)
        return latency.fixed_s


class Script:
    """The decisions of one tier."""

    def __init__(self, name: str, tier: TierScenario, seed: int = 0) -> None:
        self._key = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
        self._steps = [
            _Step(tier.during(phase), phase.until_s or math.inf, phase.until_requests or math.inf)
            for phase in tier.phases
        ] or [_Step(Conduct(**{name: getattr(tier, name) for name in Conduct.model_fields}), math.inf, math.inf)]

    def at(self, number: int, elapsed_s: float) -> Behaviour:
        """What happens to the tier's request `number`, which arrives `elapsed_s` after the tier's first one."""
        step = self._step(number, elapsed_s)
        if not step.random:
            outcome: Outcome = "answer" if step.error is None else "error"
            return Behaviour(outcome, step.conduct.latency.fixed_s, step.conduct, number, step.error)
        digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=24, key=self._key).digest()
        which, body, tail = (draw / 2**64 for draw in _DRAWS.unpack(digest))
        latency_s = step.latency_s(body, tail)
        if step.error is not None:
            return Behaviour("error", latency_s, step.conduct, number, step.error)
        outcome, error = step.outcome(which)
        return Behaviour(outcome, latency_s, step.conduct, number, error)

    def _step(self, number: int, elapsed_s: float) -> _Step:
        for step in self._steps[:-1]:
            if elapsed_s < step.until_s and number < step.until_requests:
                return step
        return self._steps[-1]
