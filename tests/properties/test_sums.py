"""Whatever happens to reports between doors and the observer, sums are exact and never fall."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actors.events import Tally, Totals
from actors.messages import Amount, Attempt
from actors.observer.sums import Sums

DOORS = st.integers(0, 2)
SECONDS = st.floats(0, 200, allow_nan=False)
NAMES = st.sampled_from(["premium", "basic"])


class Reporting(RuleBasedStateMachine):
    """Doors count, report, end and begin anew; reports are lost, doubled and reordered; the observer dies at any time.

    Each report is stored before the next act, as the actor does before it answers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lives = 0
        self.doors = [self.new_door() for _ in range(3)]
        self.truth: dict[str, Totals] = {}
        """The newest report of each source that has arrived: what the sums must be made of."""
        self.under_way: list[tuple[Totals, bool]] = []
        self.ended: set[str] = set()
        self.observer = Sums()
        self.shown: dict[Any, int] = {}

    def new_door(self) -> Tally:
        self.lives += 1
        return Tally(f"door-{self.lives}", {"premium": "m1", "basic": "m1"})

    @rule(door=DOORS, tier=NAMES, tokens=st.integers(0, 10**9), usd=st.integers(0, 10**9), seconds=SECONDS)
    def count(self, door: int, tier: str, tokens: int, usd: int, seconds: float) -> None:
        attempt = Attempt(tier, 0, "ok", 200, seconds, prompt_tokens=tokens, booked=Amount(tokens, usd))
        self.doors[door].request(tier, "ok", (attempt,), "/chat/completions", "", f"req_{tokens}", seconds)

    @rule(door=DOORS)
    def report(self, door: int) -> None:
        self.under_way.append((self.doors[door].totals(), False))

    @rule(door=DOORS)
    def door_ends(self, door: int) -> None:
        """It says its last word, which is said again when no answer comes."""
        self.under_way += [(self.doors[door].totals(), True) for _ in range(2)]
        self.doors[door] = self.new_door()

    @rule(door=DOORS)
    def door_dies(self, door: int) -> None:
        self.doors[door] = self.new_door()

    @rule(data=st.data(), again=st.booleans())
    def arrive(self, data: st.DataObject, again: bool) -> None:
        """Any report that is under way, also one that arrived before."""
        if not self.under_way:
            return
        position = data.draw(st.integers(0, len(self.under_way) - 1))
        totals, last = self.under_way[position]
        if not again:
            del self.under_way[position]
        self.observer.take(totals, last)
        known = self.truth.get(totals.source)
        if totals.source not in self.ended and (known is None or known.sequence < totals.sequence):
            self.truth[totals.source] = totals
            if last:
                self.ended.add(totals.source)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if self.under_way:
            del self.under_way[data.draw(st.integers(0, len(self.under_way) - 1))]

    @rule()
    def observer_dies(self) -> None:
        plain = self.observer.plain()
        self.observer = Sums()
        self.observer.load(plain)

    @rule()
    def all_report_at_last(self) -> None:
        """What a door has counted in its life is in the sums once its newest report has come, whatever came before."""
        for door in self.doors:
            totals = door.totals()
            self.observer.take(totals)
            self.truth[totals.source] = totals
        assert len(self.observer) == len(self.truth)

    @invariant()
    def exact(self) -> None:
        counters = self.observer.counters()
        expected: dict[Any, int] = {}
        for totals in self.truth.values():
            for key, count in totals.counters.items():
                expected[key] = expected.get(key, 0) + count
        assert counters == expected
        distributions = self.observer.distributions()
        for key, distribution in distributions.items():
            parts = [totals.distributions[key] for totals in self.truth.values() if key in totals.distributions]
            assert distribution.sum_us == sum(part.sum_us for part in parts)
            assert sum(distribution.counts) == sum(sum(part.counts) for part in parts)

    @invariant()
    def never_falls(self) -> None:
        counters = self.observer.counters()
        assert all(counters.get(key, 0) >= before for key, before in self.shown.items())
        self.shown = counters


TestReporting = Reporting.TestCase
