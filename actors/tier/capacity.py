"""How much of a tier's calls one endpoint takes: calls in flight, calls per second, and pauses that it asks for.

The tier actor has one `Capacity` per endpoint. It asks `ready_at` before each call, and tells what came of it: one of
`succeeded`, `refused` and `failed`, or none of them for a call that says nothing (the request's own fault, cancelled).
Pure: `now` (monotonic seconds) is an argument of every event, and the caller counts what is in flight.
"""

from collections.abc import Mapping
from typing import Literal

from actors.tier.concurrency import Concurrency

__all__ = ["COOLING_LEAST_S", "COOLING_S", "Capacity"]

COOLING_S = 1.0
"""The pause after a 429 that names none."""
COOLING_LEAST_S = 0.1
"""And after one that names none to speak of (`Retry-After: 0`): a 429 is not an attempt, so nothing else would slow it down."""


class Capacity:
    """One endpoint's capacity, from its configured concurrency: a number of calls in flight, or `auto`."""

    def __init__(self, setting: Literal["auto"] | int) -> None:
        self._concurrency = Concurrency(setting)
        self.cooling_until = 0.0
        """Nothing is sent before: the endpoint asked for a pause. What waits is given back, to go elsewhere."""

    @property
    def limit(self) -> int:
        """Calls in flight allowed now."""
        return self._concurrency.limit

    @property
    def rate(self) -> float | None:
        """Calls per second allowed now; None: not paced."""
        return None

    def ready_at(self, in_flight: int, now: float) -> float | None:
        """When the next call may be sent. At most `now`: at once; later: paced or cooling; None: only once a call in
        flight has ended."""
        if self.cooling_until > now:
            return self.cooling_until
        return now if in_flight < self._concurrency.limit else None

    def sent(self, now: float) -> None:
        """A call is sent."""

    def succeeded(self, in_flight: int, duration_s: float, now: float) -> None:
        """A call succeeded while `in_flight` calls (this one included) were under way."""
        self._concurrency.succeeded(in_flight, now)

    def refused(self, retry_after_s: float | None, now: float, *, overloaded: bool = False) -> None:
        """The endpoint refused a call because of load: a 429, or (`overloaded`) a 503 or 529 that says so.

        The latter is also a failure in the breaker's eyes, and does not cool.
        """
        self._concurrency.refused(now)
        if not overloaded:
            pause_s = COOLING_S if retry_after_s is None else max(COOLING_LEAST_S, retry_after_s)
            self.cooling_until = max(self.cooling_until, now + pause_s)

    def failed(self, now: float) -> None:
        """A timeout, a server error or a broken connection, which are the breaker's: they never shrink the capacity."""

    def advised(self, headers: Mapping[str, str], now: float) -> None:
        """What `x-ratelimit-*` headers of a reply say, whatever its status."""
