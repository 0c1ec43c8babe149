"""The circuit breaker of one endpoint: fail fast, and give the endpoint time to recover.

    state      event              next        when
    closed     failures_in_a_row  open        the `failure_threshold`th failure without a success between
    closed     failure_rate       open        `failure_rate` of the calls within `window_s` failed, of at least `min_calls`
    closed     slow_call_rate     open        `slow_call_rate` of them took `slow_call_s` or longer, likewise
    open       recovery_time      half_open   a call asks for leave, and the recovery time has passed
    half_open  probe_success      closed      a probe succeeded, in less than `slow_call_s`
    half_open  probe_failure      open        a probe failed
    half_open  probe_slow         open        a probe succeeded too slowly

Whatever is not in the table changes no state. Every transition begins a new generation, and a settle of an older
generation is inert.

- A call counts as slow by how long it took, whether it failed or not (as Resilience4j has it). Neutral ends (the
  request's own fault, a cancelled call, a 429) count as nothing.
- Half-open, at most `half_open_calls` probes are under way. A probe that ends neutral frees its place at once; one that
  has not ended frees it when the recovery time has passed again, so a lost or hanging probe wedges nothing. It may
  still succeed; its failure counts only while no other has its place.
- The next probe is due one recovery time after the last one was *sent*, not after it failed. So an endpoint that hangs
  until the timeout is asked as often as one that refuses at once: at most `half_open_calls` probes per recovery time,
  and its recovery is seen within one.
- The recovery time is `recovery_timeout_s` however long an outage lasts, since a probe costs little. It doubles, up to
  `RECOVERY_CAP` times as much, when the breaker opens again within one recovery time of having closed: an endpoint that
  comes back only to fail costs its callers `failure_threshold` calls each time.

`admit(now) -> Permit | Refused`, then exactly one `settle(permit, outcome, now, duration_s)`. Times are seconds of one
monotonic clock that the caller reads.
"""

from collections import deque
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

from actors.settings import BreakerSettings

__all__ = [
    "EVENTS",
    "RECOVERY_CAP",
    "STATES",
    "TRANSITIONS",
    "Breaker",
    "Event",
    "Outcome",
    "Permit",
    "Refused",
    "State",
]

State = Literal["closed", "open", "half_open"]
Outcome = Literal["success", "failure", "neutral"]
Event = Literal[
    "failures_in_a_row",
    "failure_rate",
    "slow_call_rate",
    "recovery_time",
    "probe_success",
    "probe_failure",
    "probe_slow",
]

STATES: Final[tuple[State, ...]] = get_args(State)
EVENTS: Final[tuple[Event, ...]] = get_args(Event)
TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    ("closed", "failures_in_a_row"): "open",
    ("closed", "failure_rate"): "open",
    ("closed", "slow_call_rate"): "open",
    ("open", "recovery_time"): "half_open",
    ("half_open", "probe_success"): "closed",
    ("half_open", "probe_failure"): "open",
    ("half_open", "probe_slow"): "open",
}

RECOVERY_GROWTH = 2.0
RECOVERY_CAP = 8.0
SLICES = 10
"""The window moves on by a tenth of itself at a time, so its memory does not grow with the calls."""


class Permit(NamedTuple):
    """Leave to make one call, given in `generation`."""

    generation: int
    probe: int
    """Number of the probe in the half-open state; 0 for an ordinary call."""


class Refused(NamedTuple):
    """No call now; ask again at `retry_at`."""

    retry_at: float


class Breaker:
    """See the module's table. Holds no clock: `now` is an argument of every event."""

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self.state: State = "closed"
        self.generation = 0
        self.opened = 0
        """How often it has opened."""
        self.open_until = 0.0
        self.changed_at: float | None = None
        """When the state began; None: it has never changed."""
        self.why = ""
        """What opened it last, in words; empty while it is closed."""
        self._recovery_s = settings.recovery_timeout_s
        self._consecutive = 0
        self._window = _Window(settings.window_s)
        self._probes: dict[int, float] = {}
        """Probes that hold a place -> when they were sent."""
        self._probe_number = 0
        self._probed_at = 0.0
        """When the last probe was sent."""

    def retry_at(self, now: float) -> float:
        """When `admit` gives leave: at once when that is not after `now`."""
        if self.state == "closed":
            return now
        if self.state == "open":
            return self.open_until
        self._free_places(now)
        if len(self._probes) < self._settings.half_open_calls:
            return now
        return min(self._probes.values()) + self._recovery_s

    def admit(self, now: float) -> Permit | Refused:
        if self.state == "closed":
            return Permit(self.generation, 0)
        retry_at = self.retry_at(now)
        if retry_at > now:
            return Refused(retry_at)
        self._happens("recovery_time", now)
        self._probe_number += 1
        self._probes[self._probe_number] = self._probed_at = now
        return Permit(self.generation, self._probe_number)

    def settle(self, permit: Permit, outcome: Outcome, now: float, duration_s: float = 0.0) -> None:
        if permit.generation != self.generation:
            return
        slow = self._settings.slow_call_s is not None and duration_s >= self._settings.slow_call_s
        if self.state == "half_open":
            counts = self._probes.pop(permit.probe, None) is not None or permit.probe == self._probe_number
            if outcome == "success" and not slow:
                self._happens("probe_success", now)
            elif outcome == "success" and counts:
                self._happens("probe_slow", now, f"a probe took {duration_s:.1f} s")
            elif outcome == "failure" and counts:
                self._happens("probe_failure", now, "a probe failed")
        elif outcome != "neutral":
            self._count(outcome == "failure", slow, now)

    def _free_places(self, now: float) -> None:
        self._probes = {number: sent for number, sent in self._probes.items() if now < sent + self._recovery_s}

    def _count(self, failed: bool, slow: bool, now: float) -> None:
        settings, window = self._settings, self._window
        window.add(failed, slow, now)
        self._consecutive = self._consecutive + 1 if failed else 0
        if not failed and not slow:
            return
        calls = window.calls
        if self._consecutive >= settings.failure_threshold:
            self._happens("failures_in_a_row", now, f"{self._consecutive} failures in a row")
        elif calls < settings.min_calls:
            return
        elif window.failed >= settings.failure_rate * calls:
            self._happens("failure_rate", now, f"{window.failed} of {calls} calls failed")
        elif settings.slow_call_s is not None and window.slow >= settings.slow_call_rate * calls:
            why = f"{window.slow} of {calls} calls took {settings.slow_call_s:g} s or longer"
            self._happens("slow_call_rate", now, why)

    def _happens(self, event: Event, now: float, why: str = "") -> None:
        """The one place where the state changes."""
        before, state = self.state, TRANSITIONS.get((self.state, event))
        if state is None:
            return
        base_s = self._settings.recovery_timeout_s
        if state == "open":
            self.opened += 1
            if before == "half_open":
                self.open_until = max(now, self._probed_at + self._recovery_s)
            else:
                relapsed = self.changed_at is not None and now < self.changed_at + self._recovery_s
                grown_s = min(self._recovery_s * RECOVERY_GROWTH, base_s * RECOVERY_CAP)
                self._recovery_s = grown_s if relapsed else base_s
                self.open_until = now + self._recovery_s
        if state != "half_open":
            self.why = why
        self.state = state
        self.changed_at = now
        self.generation += 1
        self._consecutive = 0
        self._probes.clear()
        self._window = _Window(self._settings.window_s)

    def check(self) -> None:
        """Assert what always holds; for tests."""
        self._window.check()
        assert 0 <= self._consecutive < self._settings.failure_threshold
        assert not self._probes or self.state == "half_open"
        assert len(self._probes) <= self._settings.half_open_calls
        assert self.state == "closed" or not self._window.calls
        base_s = self._settings.recovery_timeout_s
        assert base_s <= self._recovery_s <= base_s * RECOVERY_CAP
        assert bool(self.why) == (self.state != "closed")


class _Slice:
    __slots__ = ("began", "calls", "failed", "slow")

    def __init__(self, began: float) -> None:
        self.began = began
        self.calls = self.failed = self.slow = 0


class _Window:
    """Counts the calls of the last `window_s` seconds, of which up to a slice is let go early."""

    __slots__ = ("_slice_s", "_slices", "_window_s", "calls", "failed", "slow")

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._slice_s = window_s / SLICES
        self._slices: deque[_Slice] = deque()
        self.calls = self.failed = self.slow = 0

    def add(self, failed: bool, slow: bool, now: float) -> None:
        slices = self._slices
        if not slices or now >= slices[-1].began + self._slice_s:
            slices.append(_Slice(now))
            while slices[0].began < now - self._window_s + self._slice_s:
                old = slices.popleft()
                self.calls -= old.calls
                self.failed -= old.failed
                self.slow -= old.slow
        last = slices[-1]
        last.calls += 1
        self.calls += 1
        if failed:
            last.failed += 1
            self.failed += 1
        if slow:
            last.slow += 1
            self.slow += 1

    def check(self) -> None:
        assert self.calls == sum(each.calls for each in self._slices)
        assert self.failed == sum(each.failed for each in self._slices)
        assert self.slow == sum(each.slow for each in self._slices)
        assert len(self._slices) <= SLICES + 1
