"""The circuit breaker of one tier actor: fail fast, and give the endpoint time to recover.

    state      event                                              next       generation
    closed     failure, the `failure_threshold`th in a row        open       +1
    closed     failure, rate over the window >= `failure_rate`
               with at least `min_calls` in it                    open       +1
    open       admit, and recovery time has passed                half_open  +1
    half_open  success of a probe                                 closed     +1
    half_open  failure of a probe                                 open       +1 (recovery time doubles, to a cap)
    half_open  neutral end of a probe, or its lease runs out      half_open  (its place is free again)
    any        a settle from an older generation                  unchanged

`admit(now) -> Permit | Refused`, then exactly one `settle(permit, outcome, now)`. Probes are leased: one whose caller
vanished frees its place after `probe_lease_s`, so a lost probe never wedges the breaker. Times are seconds of one
monotonic clock that the caller reads.
"""

from collections import deque
from typing import Literal, NamedTuple

from actors.settings import BreakerSettings

__all__ = ["Breaker", "Outcome", "Permit", "Refused", "State"]

State = Literal["closed", "open", "half_open"]
Outcome = Literal["success", "failure", "neutral"]

RECOVERY_GROWTH = 2.0
RECOVERY_CAP = 8.0
"""The recovery time grows with every failed probe, to at most this multiple of `recovery_timeout_s`."""


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

    def __init__(self, settings: BreakerSettings, probe_lease_s: float = 60.0) -> None:
        self._settings = settings
        self._probe_lease_s = probe_lease_s
        self.state: State = "closed"
        self.generation = 0
        self.opened = 0
        """How often it has opened."""
        self.open_until = 0.0
        self._recovery_s = settings.recovery_timeout_s
        self._consecutive = 0
        self._calls: deque[tuple[float, bool]] = deque()
        self._failures = 0
        self._probes: dict[int, float] = {}
        self._probe_number = 0

    def admit(self, now: float) -> Permit | Refused:
        if self.state == "closed":
            return Permit(self.generation, 0)
        if self.state == "open":
            if now < self.open_until:
                return Refused(self.open_until)
            self.state = "half_open"
            self.generation += 1
            self._probes.clear()
        self._probes = {number: until for number, until in self._probes.items() if until > now}
        if len(self._probes) >= self._settings.half_open_calls:
            return Refused(min(self._probes.values()))
        self._probe_number += 1
        self._probes[self._probe_number] = now + self._probe_lease_s
        return Permit(self.generation, self._probe_number)

    def settle(self, permit: Permit, outcome: Outcome, now: float) -> None:
        if permit.generation != self.generation:
            return
        if self.state == "half_open":
            if self._probes.pop(permit.probe, None) is None:
                return  # its lease ran out: another probe has its place
            if outcome == "success":
                self._close()
            elif outcome == "failure":
                self._recovery_s = min(
                    self._recovery_s * RECOVERY_GROWTH, self._settings.recovery_timeout_s * RECOVERY_CAP
                )
                self._open(now)
        elif outcome != "neutral":
            self._count(outcome == "failure", now)

    def _count(self, failed: bool, now: float) -> None:
        calls = self._calls
        calls.append((now, failed))
        self._failures += failed
        horizon = now - self._settings.window_s
        while calls[0][0] < horizon:
            self._failures -= calls.popleft()[1]
        if not failed:
            self._consecutive = 0
            return
        self._consecutive += 1
        rate_passed = len(calls) >= self._settings.min_calls and self._failures >= self._settings.failure_rate * len(
            calls
        )
        if rate_passed or self._consecutive >= self._settings.failure_threshold:
            self._open(now)

    def _open(self, now: float) -> None:
        self.state = "open"
        self.generation += 1
        self.opened += 1
        self.open_until = now + self._recovery_s
        self._probes.clear()

    def _close(self) -> None:
        self.state = "closed"
        self.generation += 1
        self._recovery_s = self._settings.recovery_timeout_s
        self._consecutive = 0
        self._calls.clear()
        self._failures = 0
        self._probes.clear()

    def check(self) -> None:
        """Assert what always holds; for tests."""
        assert self._failures == sum(failed for _, failed in self._calls)
        assert 0 <= self._consecutive < max(self._settings.failure_threshold, 1) or self.state != "closed"
        assert not self._probes or self.state == "half_open"
        assert len(self._probes) <= self._settings.half_open_calls
