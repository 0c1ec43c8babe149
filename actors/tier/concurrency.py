"""How many calls one tier actor keeps in flight.

A number in the configuration is kept as it is. `auto` begins at `START` and grows by one for every success while the
limit is what holds calls back, so it doubles each round trip until the endpoint first says "too much"; after that it
grows by one a round trip. A refusal for load (429, 503, 529) shrinks it to 0.7 of itself, at most once in
`DEBOUNCE_S`, since the refusals of one moment are one message. Other failures leave it alone: they are the breaker's.
"""

from typing import Literal

__all__ = ["Concurrency"]

START = 20
CEILING = 4_096
SHRINK = 0.7
DEBOUNCE_S = 1.0


class Concurrency:
    """The current limit; the caller counts what is in flight."""

    def __init__(self, setting: Literal["auto"] | int) -> None:
        self._auto = setting == "auto"
        self._limit: float = START if setting == "auto" else setting
        self._slow_start = True
        self._shrunk_at = float("-inf")

    @property
    def limit(self) -> int:
        return int(self._limit)

    def succeeded(self, in_flight: int) -> None:
        """A call succeeded while `in_flight` calls (this one included) were under way."""
        if self._auto and in_flight >= self._limit - 1 and self._limit < CEILING:
            self._limit += 1.0 if self._slow_start else 1.0 / self._limit

    def refused(self, now: float) -> None:
        """The endpoint refused a call because of load."""
        if self._auto and now - self._shrunk_at >= DEBOUNCE_S:
            self._shrunk_at = now
            self._slow_start = False
            self._limit = max(1.0, self._limit * SHRINK)
