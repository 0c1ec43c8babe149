"""What an endpoint says of its own rate limit in `x-ratelimit-{limit,remaining,reset}-requests`, as a pace.

Two ways to count are about, and nobody says which one is meant; the headers themselves tell:

- A bucket that refills all the time (OpenAI, Groq): `reset` is how long it would take to fill up again, so the used
  part over `reset` is what comes in per second, always. What `remaining` is above a reserve is spread over `SPREAD_S`.
- A window at whose end everything is there again: `reset` falls as the clock goes. What remains is spread over it.

Pure: `now` is monotonic seconds.
"""

from collections.abc import Mapping

from actors.tier.retry_after import duration_s

__all__ = ["Advice"]

BELIEVED_S = 30.0
"""Headers older than this say nothing any more."""
COMPARE_S = 2.0
SPREAD_S = 10.0
RESERVE = 0.05
"""Of the limit; calls of others and those under way may need it."""
LOW, SLOWER = 0.25, 0.97
"""When less than that part of the limit remains, the pace is that part of what comes in: a small bucket would run dry, since
headers are rounded and tell what was when their call was sent."""
FORGETS = 0.98
BURST = 0.25
"""Of what remains, so much may go at once; what is under way has not been counted yet."""


class Advice:
    """The pace that the headers advise."""

    def __init__(self) -> None:
        self.rate: float | None = None
        """Calls per second; None: nothing was said."""
        self.burst_s = 0.0
        """Calls that are allowed at once, as their time at the pace."""
        self._until = float("-inf")
        self._compared: tuple[float, float] | None = None
        self._window = False
        self._used = self._reset_s = 0.0

    def read(self, headers: Mapping[str, str], now: float) -> None:
        said = headers.get("x-ratelimit-remaining-requests")
        if said is None:
            if self.rate is not None and now > self._until:
                self.rate = None
            return
        limit, remaining = _count(headers.get("x-ratelimit-limit-requests", "")), _count(said)
        reset_s = duration_s(headers.get("x-ratelimit-reset-requests", ""))
        if limit is None or remaining is None or reset_s is None or remaining > limit:
            return
        self._until = now + BELIEVED_S
        if self._compared is None:
            self._compared = (now, reset_s)
        elif now - self._compared[0] >= COMPARE_S:
            then, was_s = self._compared
            self._window = abs(was_s - reset_s - (now - then)) < 0.3 * (now - then)
            self._compared = (now, reset_s)
        if self._window:
            self.rate = max(remaining, 1.0) / max(reset_s, 0.1)
            self.burst_s = 0.0
            return
        self._used = FORGETS * self._used + limit - remaining
        self._reset_s = FORGETS * self._reset_s + reset_s
        if self._reset_s > 0 and self._used > 0:
            refill = self._used / self._reset_s
            spare = remaining - RESERVE * limit
            low = remaining < LOW * limit
            self.rate = max(refill / 2, (SLOWER if low else 1.0) * refill + spare / SPREAD_S)
            self.burst_s = max(0.0, BURST * spare / self.rate)


def _count(text: str) -> float | None:
    return float(text) if text.isdecimal() and len(text) < 16 else None
