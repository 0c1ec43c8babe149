"""The breaker under any order of calls, late settles, lost probes and time."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.settings import BreakerSettings
from actors.tier.breaker import RECOVERY_CAP, STATES, TRANSITIONS, Breaker, Permit, Refused

SETTINGS = st.builds(
    BreakerSettings,
    failure_threshold=st.integers(1, 5),
    recovery_timeout_s=st.sampled_from([0.5, 30.0]),
    failure_rate=st.sampled_from([0.1, 0.5, 1.0]),
    min_calls=st.integers(1, 8),
    window_s=st.sampled_from([5.0, 60.0]),
    half_open_calls=st.integers(1, 3),
    slow_call_s=st.sampled_from([None, 2.0]),
    slow_call_rate=st.sampled_from([0.3, 1.0]),
)
OUTCOMES = st.sampled_from(["success", "failure", "failure", "neutral"])


class Machine(RuleBasedStateMachine):
    @initialize(settings=SETTINGS)
    def start(self, settings: BreakerSettings) -> None:
        self.settings_ = settings
        self.now = 100.0
        self.breaker = Breaker(settings)
        self.calls: list[tuple[Permit, float]] = []
        self.settled: list[Permit] = []
        self.generation, self.state = 0, "closed"
        self.probed: list[float] = []

    @rule()
    def admit(self) -> None:
        retry_at = self.breaker.retry_at(self.now)
        answer = self.breaker.admit(self.now)
        if isinstance(answer, Refused):
            assert answer.retry_at == retry_at > self.now
            return
        assert retry_at <= self.now
        if answer.probe:
            self.probed.append(self.now)
        assert answer.generation == self.breaker.generation
        assert self.breaker.state != "open"
        self.calls.append((answer, self.now))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), outcome=OUTCOMES)
    def settle(self, data: st.DataObject, outcome: str) -> None:
        permit, since = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        if permit.probe and outcome == "neutral":
            self.probed.clear()  # its place is free at once
        self.settle_one(permit, outcome, duration_s=self.now - since)
        self.settled.append(permit)

    @precondition(lambda self: self.settled)
    @rule(data=st.data(), outcome=OUTCOMES)
    def settle_a_stale_one_again(self, data: st.DataObject, outcome: str) -> None:
        stale = [permit for permit in self.settled if permit.generation != self.breaker.generation]
        if stale:
            self.settle_one(data.draw(st.sampled_from(stale)), outcome, inert=True)

    def settle_one(self, permit: Permit, outcome: str, inert: bool = False, duration_s: float = 0.0) -> None:
        before = (self.breaker.state, self.breaker.generation, self.breaker.open_until)
        self.breaker.settle(permit, outcome, self.now, duration_s)  # type: ignore[arg-type]
        if inert or permit.generation != before[1] or outcome == "neutral":
            assert (self.breaker.state, self.breaker.generation, self.breaker.open_until) == before

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """The caller vanished: its permit is never settled."""
        self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 10.0, 31.0, 300.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "breaker"):
            return
        self.breaker.check()
        step = self.breaker.generation - self.generation
        assert 0 <= step <= 1
        if step:
            assert self.breaker.state in {TRANSITIONS[row] for row in TRANSITIONS if row[0] == self.state}
            if self.breaker.state == "closed":
                self.probed.clear()
        else:
            assert self.breaker.state == self.state
        self.generation, self.state = self.breaker.generation, self.breaker.state
        recent = [at for at in self.probed if at > self.now - self.settings_.recovery_timeout_s]
        assert len(recent) <= self.settings_.half_open_calls, "more probes than places within a recovery time"

    def teardown(self) -> None:
        """Never wedged: after enough time a call is admitted, and successes close it."""
        if not hasattr(self, "breaker"):
            return
        assert self.breaker.state in STATES
        self.now += self.settings_.recovery_timeout_s * RECOVERY_CAP
        permit = self.breaker.admit(self.now)
        assert isinstance(permit, Permit)
        self.breaker.settle(permit, "success", self.now)
        assert self.breaker.state == "closed"
        self.breaker.check()


TestBreaker = Machine.TestCase
TestBreaker.__doc__ = "Probes are bounded, stale settles are inert, and no sequence of events wedges it."
TestBreaker.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
