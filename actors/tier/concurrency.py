"""How many calls one tier actor keeps in flight.

A number in the configuration is kept as it is. `auto` finds one:

- It begins at `START`. While the limit is what holds calls back, it doubles each round (as many successes as the limit)
  for as long as that pays: a round must bring `GAIN` times the best rate so far. Two in a row that do not are taken
  back, since more calls in flight only wait longer, in the endpoint's queue or in ours. (Two: rates of short rounds are
  noisy, and to stop too early costs more than one round too many.)
- From then on it grows by `CREEP` of itself (at least by one) a second of saturation, so that an endpoint that gets
  faster is noticed.
- A refusal for load (429, 503, 529) shrinks it to 0.7 of itself, at most once in `DEBOUNCE_S`, since the refusals of one
  moment are one message, and ends the doubling. Other failures leave it alone: they are the breaker's.
"""

from typing import Literal

__all__ = ["Concurrency"]

START = 20
CEILING = 4_096
GAIN = 1.2
CREEP = 0.03
SHRINK = 0.7
DEBOUNCE_S = 1.0


class Concurrency:
    """The current limit; the caller counts what is in flight, and reads the clock (monotonic seconds)."""

    def __init__(self, setting: Literal["auto"] | int) -> None:
        self._auto = setting == "auto"
        self._limit: float = START if setting == "auto" else setting
        self._doubling = True
        self._successes = 0
        self._round_began: float | None = None
        self._rate = 0.0
        self._in_vain = False
        """Whether the last doubling brought nothing."""
        self._crept_at = float("-inf")
        self._shrunk_at = float("-inf")

    @property
    def limit(self) -> int:
        return int(self._limit)

    def succeeded(self, in_flight: int, now: float) -> None:
        """A call succeeded while `in_flight` calls (this one included) were under way."""
        if not self._auto:
            return
        if in_flight < int(self._limit):
            self._round_began = None  # calls were scarce: this round tells nothing of the endpoint
        elif not self._doubling:
            if now - self._crept_at >= 1.0:
                self._crept_at = now
                self._limit = min(CEILING, self._limit + max(1.0, self._limit * CREEP))
        elif self._round_began is None:
            self._round_began, self._successes = now, 0
        else:
            self._successes += 1
            if self._successes >= self._limit:
                self._end_round(now, now - self._round_began)

    def refused(self, now: float) -> None:
        """The endpoint refused a call because of load."""
        if self._auto and now - self._shrunk_at >= DEBOUNCE_S:
            self._shrunk_at = self._crept_at = now
            self._doubling = False
            self._limit = max(1.0, self._limit * SHRINK)

    def _end_round(self, now: float, took_s: float) -> None:
        rate = self._successes / max(took_s, 1e-6)
        if self._limit >= CEILING:
            self._doubling = False
        elif rate >= GAIN * self._rate or not self._in_vain:
            self._in_vain = rate < GAIN * self._rate
            self._rate = max(rate, self._rate)
            self._limit = min(CEILING, self._limit * 2)
        else:
            self._doubling = False
            self._crept_at = now
            self._limit = max(START, self._limit / 4)
        self._round_began = None
