"""Runaway loops against an exact count of every claim and lead: refused never early, and late by two at most."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from actors.coalescer import runaway
from actors.coalescer.runaway import SUSPECT, WINDOW_S, Loops, Runaway

KEYS = [bytes([number]) * 32 for number in range(6)]


class Machine(RuleBasedStateMachine):
    """Remembers every time of every key. Few slots, so that keys collide; sometimes room for few keys only."""

    @initialize(limit=st.integers(1, 6), slots=st.sampled_from([1, 2, 4, 64]), keys=st.sampled_from([2, 100]))
    def start(self, limit: int, slots: int, keys: int) -> None:
        self.now = 1000.0
        self.limit = limit
        self.roomy = keys >= len(KEYS)
        self.loops = Loops(limit, slots=slots, keys=keys)
        self.most = Counter({"calls": limit, "requests": self.loops._max_requests})
        self.times: dict[tuple[str, bytes], list[float]] = {}

    def recent(self, what: str, key: bytes) -> int:
        return sum(at > self.now - WINDOW_S for at in self.times.get((what, key), []))

    def judge(self, key: bytes, told: Runaway | None, *counted: str) -> None:
        if told is not None:
            true = self.recent(told.what, key)
            assert true >= self.most[told.what], "refused, though it came no more often than it may"
            assert told.times <= true + 1
            assert 0 < told.retry_after_s <= WINDOW_S + 1e-6
            return
        for what in counted:
            assert not self.roomy or self.recent(what, key) < self.most[what] + SUSPECT - 1, "let in too late"
            self.times.setdefault((what, key), []).append(self.now)

    @rule(key=st.sampled_from(KEYS), leads=st.booleans(), times=st.integers(1, 4))
    def claim(self, key: bytes, leads: bool, times: int) -> None:
        for _ in range(times):
            told = self.loops.claim(key, self.now, leads)
            self.judge(key, told, "requests", *(["calls"] if leads else []))

    @rule(key=st.sampled_from(KEYS))
    def promote(self, key: bytes) -> None:
        """Of one who has claimed before: as often as that at most."""
        if self.recent("requests", key) > self.recent("calls", key):
            self.judge(key, self.loops.lead(key, self.now), "calls")

    @rule(seconds=st.sampled_from([0.001, 1.0, 10.0, 29.0, 31.0, 59.0, 60.0, 61.0, 121.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds


class Few(Machine):
    """The same with a bound on requests that is within reach."""

    @initialize(limit=st.integers(1, 3), slots=st.sampled_from([1, 64]), keys=st.sampled_from([2, 100]))
    def start(self, limit: int, slots: int, keys: int) -> None:
        super().start(limit, slots, keys)
        self.loops._max_requests = self.most["requests"] = limit * 2


def _case(machine: type[Machine], doc: str) -> type:
    case = machine.TestCase
    case.__doc__ = doc
    case.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
    return case


TestLoops = _case(Machine, "Never early; late by what the filter took, at most.")
TestRequests = _case(Few, "The same of requests that cost nothing.")


def test_the_filter_alone_remembers_what_comes_once() -> None:
    """Half a million keys in a minute, as at thousands of new rows a second: few are looked at one by one."""
    loops = Loops(60)
    for number in range(500_000):
        key = (number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "little") + b"rest"
        assert loops.claim(key, number / 10_000, True) is None
    assert len(loops) < 50_000
    assert len(loops) <= runaway.KEYS
