"""The retry budget: retries may be a tenth of recent calls, with a small floor, so that they cannot become a storm.

A token bucket: every call deposits `RATIO` of a retry, and time deposits `FLOOR_PER_S`, so that a quiet router may
still retry. Asking the next tier is no retry: it adds no load where the trouble is.
"""

__all__ = ["RetryBudget"]

RATIO = 0.1
FLOOR_PER_S = 10.0
CAPACITY = 100.0


class RetryBudget:
    """`deposit` a call, `withdraw` a retry. Times in seconds of one monotonic clock."""

    __slots__ = ("_at", "_tokens")

    def __init__(self, now: float) -> None:
        self._tokens = FLOOR_PER_S
        self._at = now

    def deposit(self, now: float) -> None:
        self._tokens = min(CAPACITY, self._tokens + RATIO + (now - self._at) * FLOOR_PER_S)
        self._at = now

    def allows(self, now: float) -> bool:
        return self._tokens + (now - self._at) * FLOOR_PER_S >= 1.0

    def withdraw(self) -> None:
        self._tokens -= 1.0
