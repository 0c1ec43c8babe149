"""How much of a tier's calls one endpoint takes: calls in flight, calls per second, and pauses that it asks for.

The objects, and how long they live. The tier actor has one `Capacity` per endpoint, for its own life. It holds
- a `Concurrency` (concurrency.py): the limit of calls in flight, moved by what a step of it brings. For ever;
- a `Pace` (pacing.py): calls per second, from the first refusal on; forgotten after 30 s in which it held nothing back;
- in it an `Advice` (advice.py): what `x-ratelimit-*` headers say, for 30 s after they came;
- `cooling_until`: the end of a pause that the endpoint asked for (`Retry-After`).
The actor asks `ready_at` before each call and tells what came of it: `succeeded`, `refused`, `failed`, or nothing.

A call must pass all of them, and each minds one thing only: a queue and an overload (503, 529) move the limit, a 429
moves the pace. A limit
cannot express a rate: at 1 ms, 400 calls/s are less than one call in flight. And a rate cannot see a queue.

Retry-After is obeyed to the letter: nothing is sent before. It costs little since refusals are rare, not because some
are overlooked: the pace stays below what was refused, and probes about once in ten seconds. What waits is given back
to the router, which goes elsewhere or waits (`router.on_rate_limit`). A refusal that names no time stops nothing; but
when nothing at all gets through, pauses of half a second to ten come by themselves.

A configured number is the limit and stays so: no pace is learned or believed, and a refusal that names no time cools for
COOLING_S, as there is nothing else that could slow the calls down.

What was compared, in simulated time (tests/unit/simulated_endpoint.py), callers that always have more to send; after 10 s:

    400/s allowed, 0.05 s, 429 above              burst 400     burst 40     then 800/s   64 slots, 0.2 s   lognormal
                                                  got, refused  got, refused within       of best, p99      of best, p99
    AIMD of inspect_ai (20, slow start, +5% a     98%, 20%      10%, 27%     never        100%, 64 x        100%, 23 x
      clean round, x0.8 an episode, 15 s)
    doubling while it pays, +3%/s, x0.7           100%, 0%      79%, 0%      8.5 s        100%, 6.0 x       100%, 2.4 x
      (before this), 1 s pause a refusal
    Netflix Gradient2 (tolerance 1.5, x0.9)       101%, 0%      68%, 0%      11.5 s       69%, 1.0 x        73%, 1.0 x
    Envoy's gradient (minimum latency each 60 s)  100%, 87%     10%, 97%     never        93%, 3.0 x        59%, 1.7 x
    AWS SDKs' adaptive rate, 256 in flight        101%, 0%      AWS40        8.5 s        100%, 4.0 x       100%, 2.1 x
    this: a pace and a limit                      100%, 0.4%    99%, 0.0%    12.5 s       99%, 1.37 x       98%, 1.05 x

The others have one number for both, and a pause of a second a refusal or they would be refused thousands of times a
second. It is the pause that makes them look well at a bucket of a whole second: it fills up meanwhile. At a latency of
2 ms and a burst of 40 they get 10% to 14%. AIMD sees no queue at all, the gradients mistake one that was there first.
Two at one endpoint had 38% to 97% of it with the others, the later one against the earlier; here 40% to 60%.

Pure: `now` (monotonic seconds) is an argument of every event, and the caller counts what is in flight.
"""

from collections.abc import Mapping
from typing import Literal

from actors.tier.concurrency import Concurrency
from actors.tier.pacing import Pace

__all__ = ["COOLING_LEAST_S", "COOLING_S", "Capacity"]

COOLING_S = 1.0
"""The pause after a 429 that names none, where a configured number is all that holds calls back."""
COOLING_LEAST_S = 0.1
"""And after one that names none to speak of (`Retry-After: 0`)."""


class Capacity:
    """One endpoint's capacity, from its configured concurrency: a number of calls in flight, or `auto`."""

    def __init__(self, setting: Literal["auto"] | int) -> None:
        self._concurrency = Concurrency(setting)
        self._pace = Pace() if setting == "auto" else None
        self.cooling_until = 0.0
        """Nothing is sent before: the endpoint asked for a pause. What waits is given back, to go elsewhere."""

    @property
    def limit(self) -> int:
        """Calls in flight allowed now."""
        return self._concurrency.limit

    @property
    def rate(self) -> float | None:
        """Calls per second allowed now; None: not paced."""
        return None if self._pace is None else self._pace.rate

    @property
    def paced(self) -> bool:
        """Whether the pace, and not the limit, is what has held calls back of late."""
        return self._pace is not None and self._pace.binds

    def ready_at(self, in_flight: int, now: float) -> float | None:
        """When the next call may be sent. At most `now`: at once; later: paced or cooling; None: only once a call in
        flight has ended."""
        if self.cooling_until > now:
            return self.cooling_until
        free_at = self._concurrency.ready_at(in_flight, now)
        if free_at is None or free_at > now or self._pace is None:
            return free_at
        return self._pace.ready_at(now)

    def sent(self, now: float) -> None:
        """A call is sent."""
        if self._pace is not None:
            self._concurrency.sent(now)
            self._pace.sent(now)

    def succeeded(self, in_flight: int, duration_s: float, now: float) -> None:
        """A call succeeded while `in_flight` calls (this one included) were under way."""
        if self._pace is not None:
            self._pace.succeeded()
            if self._pace.binds:
                self._concurrency.void()
            else:
                self._concurrency.succeeded(in_flight, duration_s, now)

    def refused(self, retry_after_s: float | None, sent_at: float, now: float, *, overloaded: bool = False) -> None:
        """The endpoint refused a call because of load: a 429, or (`overloaded`) a 503 or 529 that says so.

        The latter is also a failure in the breaker's eyes, and does not cool.
        """
        if overloaded:
            self._concurrency.overloaded(sent_at, now)
            return
        self._concurrency.ended(now)
        pause_s = 0.0 if retry_after_s is None else max(COOLING_LEAST_S, retry_after_s)
        pace = self._pace
        resumes_at = now + (pause_s or COOLING_S) if pace is None else pace.refused(pause_s, sent_at, now)
        self.cooling_until = max(self.cooling_until, resumes_at)

    @property
    def cut_at(self) -> float:
        """When a refusal last slowed the pace down; -inf: never."""
        return float("-inf") if self._pace is None else self._pace.cut_at

    def heed(self, at: float, now: float) -> None:
        """A refusal has slowed another actor down that calls the same endpoint."""
        if self._pace is not None:
            self._pace.heed(at, now)

    def wanted(self, calls: int, now: float) -> None:
        """So many calls have waited for a slot that cannot wait."""
        if now >= self.cooling_until and not self.paced:
            self._concurrency.wanted(calls)

    def failed(self, now: float) -> None:
        """A timeout, a server error or a broken connection: growth waits, and nothing shrinks; the rest is the breaker's."""
        self._concurrency.ended(now)
        self._concurrency.void()
        if self._pace is not None:
            self._pace.failed(now)

    def advised(self, headers: Mapping[str, str], now: float) -> None:
        """What `x-ratelimit-*` headers of a reply say, whatever its status."""
        if self._pace is not None:
            self._pace.advice.read(headers, now)
