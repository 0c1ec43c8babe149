"""What may hold a request back: a rate limit (pure, the clock is an argument) and a number of slots with a queue."""

import math
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from typing import Literal, NamedTuple

from runtime.mock.scenario import RateLimit

__all__ = ["RateGate", "Slots", "Verdict"]


class Verdict(NamedTuple):
    admitted: bool
    headers: bytes
    """x-ratelimit-* and, for a refusal, Retry-After."""


class RateGate:
    """A token bucket that starts full."""

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self._rate, self._size = limit.rate_per_s, limit.bucket
        self._level, self._at = float(limit.bucket), 0.0

    def take(self, now: float) -> Verdict:
        if self._at:
            self._level = min(float(self._size), self._level + (now - self._at) * self._rate)
        self._at = now
        # A hair below one still counts: levels are sums of floats.
        admitted = self._level >= 1 - 1e-9
        if admitted:
            self._level = max(0.0, self._level - 1)
        tells = self.limit.tells
        if tells == "nothing" or (tells == "retry_after" and admitted):
            return Verdict(admitted, b"")
        headers = (
            b""
            if tells == "retry_after"
            else (
                b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\nx-ratelimit-reset-requests: %dms\r\n"
                % (self._size, self._level, (self._size - self._level) / self._rate * 1000)
            )
        )
        if admitted:
            return Verdict(True, headers)
        wait_s = self.limit.retry_after_s
        if wait_s is None:
            wait_s = max(1, math.ceil((1 - self._level) / self._rate))
        return Verdict(False, headers + retry_after(wait_s))


def retry_after(wait_s: float, as_: Literal["s", "ms", "date"] = "s", now_unix: float = 0.0) -> bytes:
    """The header's line; whole seconds wherever they are whole, since that is what the standard knows."""
    if as_ == "date":
        return b"Retry-After: %b\r\n" % formatdate(math.ceil(now_unix + wait_s), usegmt=True).encode()
    if as_ == "ms":
        return b"retry-after-ms: %d\r\n" % (wait_s * 1000)
    return b"Retry-After: %b\r\n" % f"{wait_s:g}".encode()


class Slots:
    """At most `size` starts at a time; further ones wait in order. A start that was dropped is skipped."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._busy = 0
        self._admitting = False
        self._waiting: deque[Callable[[], bool]] = deque()

    def enter(self, start: Callable[[], bool]) -> None:
        """Call `start` as soon as there is a slot. It returns False when it no longer needs one."""
        self._waiting.append(start)
        self._admit()

    def leave(self) -> None:
        self._busy -= 1
        self._admit()

    def resize(self, size: int) -> None:
        self.size = size
        self._admit()

    def _admit(self) -> None:
        # A start that answers at once leaves from within this loop: the loop goes on, instead of a recursion.
        if self._admitting:
            return
        self._admitting = True
        try:
            while self._busy < self.size and self._waiting:
                self._busy += 1
                if not self._waiting.popleft()():
                    self._busy -= 1
        finally:
            self._admitting = False
