"""The breaker under any order of calls, late settles, lost probes and time."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.settings import BreakerSettings
from actors.tier.breaker import RECOVERY_CAP, Breaker, Permit, Refused

LEASE_S = 20.0
SETTINGS = st.builds(
    BreakerSettings,
    failure_threshold=st.integers(1, 5),
    recovery_timeout_s=st.sampled_from([0.5, 30.0]),
    failure_rate=st.sampled_from([0.1, 0.5, 1.0]),
    min_calls=st.integers(1, 8),
    window_s=st.sampled_from([5.0, 60.0]),
    half_open_calls=st.integers(1, 3),
)
OUTCOMES = st.sampled_from(["success", "failure", "failure", "neutral"])


class Machine(RuleBasedStateMachine):
    @initialize(settings=SETTINGS)
    def start(self, settings: BreakerSettings) -> None:
        self.settings_ = settings
        self.now = 100.0
        self.breaker = Breaker(settings, LEASE_S)
        self.calls: list[tuple[Permit, float]] = []
        self.settled: list[Permit] = []
        self.generation = 0

    @rule()
    def admit(self) -> None:
        answer = self.breaker.admit(self.now)
        if isinstance(answer, Refused):
            assert answer.retry_at > self.now
            return
        assert answer.generation == self.breaker.generation
        assert self.breaker.state != "open"
        self.calls.append((answer, self.now))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), outcome=OUTCOMES)
    def settle(self, data: st.DataObject, outcome: str) -> None:
        permit, _ = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        self.settle_one(permit, outcome)
        self.settled.append(permit)

    @precondition(lambda self: self.settled)
    @rule(data=st.data(), outcome=OUTCOMES)
    def settle_a_stale_one_again(self, data: st.DataObject, outcome: str) -> None:
        stale = [permit for permit in self.settled if permit.generation != self.breaker.generation or permit.probe]
        if stale:
            self.settle_one(data.draw(st.sampled_from(stale)), outcome, inert=True)

    def settle_one(self, permit: Permit, outcome: str, inert: bool = False) -> None:
        before = (self.breaker.state, self.breaker.generation, self.breaker.open_until)
        self.breaker.settle(permit, outcome, self.now)  # type: ignore[arg-type]
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
        assert self.breaker.generation >= self.generation
        self.generation = self.breaker.generation
        probes = [
            permit
            for permit, since in self.calls
            if permit.probe and permit.generation == self.breaker.generation and self.now < since + LEASE_S
        ]
        assert len(probes) <= self.settings_.half_open_calls

    def teardown(self) -> None:
        """Never wedged: after enough time a call is admitted, and successes close it."""
        if not hasattr(self, "breaker"):
            return
        self.now += max(self.settings_.recovery_timeout_s * RECOVERY_CAP, LEASE_S)
        permit = self.breaker.admit(self.now)
        assert isinstance(permit, Permit)
        self.breaker.settle(permit, "success", self.now)
        assert self.breaker.state == "closed"
        self.breaker.check()


TestBreaker = Machine.TestCase
TestBreaker.__doc__ = "Probes are bounded, stale settles are inert, and no sequence of events wedges it."
TestBreaker.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
