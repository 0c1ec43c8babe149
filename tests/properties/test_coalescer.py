"""The coalescing table under any order of claims, ends, lost leads and time."""

import itertools
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.coalescer.runaway import Loops, Runaway
from actors.coalescer.table import Lead, Shared, Table, Told, Unwanted

KEYS = st.sampled_from([b"a", b"b", b"c"])
LEASES = st.sampled_from([1.0, 10.0, 60.0])


class Machine(RuleBasedStateMachine):
    """Remembers for every claimant how it stands; the table is told of every event, also of stale ones."""

    @initialize(keep_s=st.sampled_from([0.0, 0.0, 5.0]), limit=st.sampled_from([0, 0, 2]))
    def start(self, keep_s: float, limit: int) -> None:
        self.now = 0.0
        self.keep_s = keep_s
        self.limit = limit
        self.table: Table[int] = Table(keep_s, 100, Loops(limit, slots=1) if limit else None)
        self.names = itertools.count()
        self.leads: dict[bytes, tuple[int, int]] = {}  # key -> ticket, generation
        self.lines: dict[bytes, list[int]] = {}
        self.lingering: set[int] = set()
        self.led: dict[bytes, list[float]] = {}
        self.old: list[tuple[bytes, int]] = []
        self.published: dict[bytes, tuple[Any, float]] = {}
        self.ended: set[int] = set()

    def end_lead(self, key: bytes) -> tuple[int, int, list[tuple[int, Any]]]:
        """Its ticket, its generation, and what it must be told."""
        ticket, generation = self.leads.pop(key)
        assert ticket not in self.ended
        self.ended.add(ticket)
        self.old.append((key, generation))
        unwanted: list[tuple[int, Any]] = [(ticket, Unwanted())] if ticket in self.lingering else []
        self.lingering.discard(ticket)
        return ticket, generation, unwanted

    def leads_now(self, key: bytes, ticket: int, answer: Lead) -> None:
        assert key not in self.leads, "two leads of one key"
        self.leads[key] = (ticket, answer.generation)
        self.led.setdefault(key, []).append(self.now)

    def refused(self, key: bytes, answer: Runaway) -> None:
        assert answer.what == "calls"
        assert sum(at > self.now - 60 for at in self.led.get(key, [])) >= self.limit > 0, "refused without a reason"

    def promoted(self, key: bytes, told: "Told[int]", unwanted: list[tuple[int, Any]]) -> None:
        """The first in line leads; those before it, or all, are refused; the old lead is told if it lingered."""
        assert told[: len(unwanted)] == unwanted
        line = self.lines.pop(key, [])
        for at, (ticket, answer) in enumerate(told[len(unwanted) :]):
            assert ticket == line[at], "not the next in line"
            if isinstance(answer, Lead):
                assert told[-1] == (ticket, answer)
                self.leads_now(key, ticket, answer)
                self.lines[key] = line[at + 1 :]
                return
            assert isinstance(answer, Runaway)
            self.refused(key, answer)
            self.ended.add(ticket)
        assert len(told) == len(unwanted) + len(line), "somebody is left waiting for nobody"

    @rule(key=KEYS, lease_s=LEASES)
    def claim(self, key: bytes, lease_s: float) -> None:
        ticket = next(self.names)
        answer = self.table.claim(key, ticket, lease_s, self.now)
        match answer:
            case Shared():
                assert self.published[key][0] == answer.result
                assert self.now - self.published[key][1] < self.keep_s
            case Lead():
                self.leads_now(key, ticket, answer)
            case Runaway():
                assert key not in self.leads, "it would only follow"
                self.refused(key, answer)
            case None:
                assert key in self.leads
                self.lines.setdefault(key, []).append(ticket)

    @precondition(lambda self: self.leads)
    @rule(data=st.data(), size=st.integers(1, 120))
    def publish(self, data: st.DataObject, size: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.leads)))
        ticket, generation, unwanted = self.end_lead(key)
        line = self.lines.pop(key, [])
        wanted = self.table.finish(key, generation)
        assert wanted == (bool(line) or self.keep_s > 0)
        if wanted:
            result = ("result", ticket)
            told = self.table.publish(key, generation, result, size, self.now)
            assert told == [(follower, Shared(result)) for follower in line] + unwanted
            self.published[key] = (result, self.now)
        else:
            assert not unwanted, "a lead lingered for nobody"
        self.ended.update(line)

    @precondition(lambda self: self.leads)
    @rule(data=st.data())
    def a_lead_leaves(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.leads)))
        ticket, _, unwanted = self.end_lead(key)
        self.promoted(key, self.table.leave(ticket, self.now), unwanted)

    @precondition(lambda self: self.leads)
    @rule(data=st.data())
    def a_leads_caller_leaves(self, data: st.DataObject) -> None:
        """Of a lead that lingers already, this changes nothing."""
        key = data.draw(st.sampled_from(sorted(self.leads)))
        followed = bool(self.lines.get(key))
        assert self.table.linger(self.leads[key][0]) == (not followed)
        if followed:
            self.lingering.add(self.leads[key][0])
        else:
            self.end_lead(key)

    @precondition(lambda self: any(self.lines.values()))
    @rule(data=st.data())
    def a_follower_leaves(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key, line in self.lines.items() if line)))
        ticket = self.lines[key].pop(data.draw(st.integers(0, len(self.lines[key]) - 1)))
        last = not self.lines[key] and self.leads[key][0] in self.lingering
        assert self.table.leave(ticket, self.now) == (self.end_lead(key)[2] if last else [])
        self.ended.add(ticket)

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def a_stale_word_changes_nothing(self, data: st.DataObject) -> None:
        key, generation = data.draw(st.sampled_from(self.old))
        before = sorted(self.table.tickets())
        assert not self.table.finish(key, generation)
        assert self.table.publish(key, generation, "stale", 1, self.now) == []
        assert sorted(self.table.tickets()) == before

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def who_has_ended_may_leave_or_linger(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.ended)))
        assert self.table.leave(ticket, self.now) == []
        assert self.table.linger(ticket)

    @rule(seconds=st.sampled_from([0.5, 2.0, 11.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        told = self.table.expire(self.now)
        live = set(self.table.tickets())
        for key in [key for key, (ticket, _) in self.leads.items() if ticket not in live]:
            ticket, _, unwanted = self.end_lead(key)
            concerned = {ticket, *self.lines.get(key, [])}
            self.promoted(key, [one for one in told if one[0] in concerned], unwanted)
            told = [one for one in told if one[0] not in concerned]
        assert not told

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
            assert not self.lingering


TestTable = Machine.TestCase
TestTable.__doc__ = (
    "One lead a key, exactly one end for each follower and for a lead that lingers; a lost lead promotes the next."
)
TestTable.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
