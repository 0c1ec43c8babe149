"""The coalescing table under any order of claims, ends, lost leads and time."""

import itertools
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.coalescer.table import Lead, Shared, Table

KEYS = st.sampled_from([b"a", b"b", b"c"])
LEASES = st.sampled_from([1.0, 10.0, 60.0])


class Machine(RuleBasedStateMachine):
    """Remembers for every claimant how it stands; the table is told of every event, also of stale ones."""

    @initialize(keep_s=st.sampled_from([0.0, 0.0, 5.0]))
    def start(self, keep_s: float) -> None:
        self.now = 0.0
        self.keep_s = keep_s
        self.table: Table[int] = Table(keep_s=keep_s, keep_bytes=100)
        self.names = itertools.count()
        self.leads: dict[bytes, tuple[int, int]] = {}  # key -> ticket, generation
        self.lines: dict[bytes, list[int]] = {}
        self.old: list[tuple[bytes, int]] = []
        self.published: dict[bytes, tuple[Any, float]] = {}
        self.ended: set[int] = set()

    def told(self, key: bytes, told: "list[tuple[int, Lead | Shared]]", result: Any = None) -> None:
        """Check what the table says against who waits, and take it in."""
        line = self.lines.pop(key, [])
        if result is not None:
            assert told == [(ticket, Shared(result)) for ticket in line]
            self.ended.update(line)
        elif not line:
            assert told == []
        else:
            ((ticket, answer),) = told
            assert isinstance(answer, Lead)
            assert ticket == line[0], "the first in line leads next"
            self.leads[key] = (ticket, answer.generation)
            self.lines[key] = line[1:]

    def end_lead(self, key: bytes) -> tuple[int, int]:
        ticket, generation = self.leads.pop(key)
        assert ticket not in self.ended
        self.ended.add(ticket)
        self.old.append((key, generation))
        return ticket, generation

    @rule(key=KEYS, lease_s=LEASES)
    def claim(self, key: bytes, lease_s: float) -> None:
        ticket = next(self.names)
        answer = self.table.claim(key, ticket, lease_s, self.now)
        match answer:
            case Shared():
                assert self.published[key][0] == answer.result
                assert self.now - self.published[key][1] < self.keep_s
            case Lead():
                assert key not in self.leads, "two leads of one key"
                self.leads[key] = (ticket, answer.generation)
            case None:
                assert key in self.leads
                self.lines.setdefault(key, []).append(ticket)

    @precondition(lambda self: self.leads)
    @rule(data=st.data(), size=st.integers(1, 120))
    def publish(self, data: st.DataObject, size: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.leads)))
        ticket, generation = self.end_lead(key)
        wanted = self.table.finish(key, generation)
        assert wanted == (bool(self.lines.get(key)) or self.keep_s > 0)
        if wanted:
            self.told(key, self.table.publish(key, generation, ("result", ticket), size, self.now), ("result", ticket))
            self.published[key] = (("result", ticket), self.now)
        else:
            self.lines.pop(key, None)

    @precondition(lambda self: self.leads)
    @rule(data=st.data(), leave=st.booleans())
    def lose_the_lead(self, data: st.DataObject, leave: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.leads)))
        ticket, generation = self.end_lead(key)
        told = self.table.leave(ticket, self.now) if leave else self.table.abandon(key, generation, self.now)
        self.told(key, told)

    @precondition(lambda self: any(self.lines.values()))
    @rule(data=st.data())
    def a_follower_leaves(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key, line in self.lines.items() if line)))
        ticket = self.lines[key].pop(data.draw(st.integers(0, len(self.lines[key]) - 1)))
        assert self.table.leave(ticket, self.now) == []
        self.ended.add(ticket)

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def a_stale_word_changes_nothing(self, data: st.DataObject) -> None:
        key, generation = data.draw(st.sampled_from(self.old))
        before = sorted(self.table.tickets())
        assert not self.table.finish(key, generation)
        assert self.table.publish(key, generation, "stale", 1, self.now) == []
        assert self.table.abandon(key, generation, self.now) == []
        assert sorted(self.table.tickets()) == before

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def who_has_ended_may_leave(self, data: st.DataObject) -> None:
        assert self.table.leave(data.draw(st.sampled_from(sorted(self.ended))), self.now) == []

    @rule(seconds=st.sampled_from([0.5, 2.0, 11.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for ticket, answer in self.table.expire(self.now):
            assert isinstance(answer, Lead)
            key = next(key for key, line in self.lines.items() if ticket in line)
            self.end_lead(key)
            self.told(key, [(ticket, answer)])
        live = set(self.table.tickets())
        for key in [key for key, (ticket, _) in self.leads.items() if ticket not in live]:
            assert not self.lines.get(key), "a lead expired and nobody was promoted"
            self.end_lead(key)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check()
        waiting = [ticket for line in self.lines.values() for ticket in line]
        assert set(self.table.tickets()) == {ticket for ticket, _ in self.leads.values()} | set(waiting)

    def teardown(self) -> None:
        """When every lease has run out, nobody is left waiting and the table is empty."""
        if hasattr(self, "table"):
            for _ in range(1 + sum(len(line) for line in self.lines.values())):
                self.wait(61.0)
            assert len(self.table) == 0


TestTable = Machine.TestCase
TestTable.__doc__ = "One lead a key, exactly one end for each follower, and a lost lead promotes the next."
TestTable.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
