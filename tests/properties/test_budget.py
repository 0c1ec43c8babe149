"""Budget rules under everything a cluster can do to them: lost, doubled, late messages; crashes; clocks; restarts."""

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.budget.exchange import Exchange, Exchanged
from actors.budget.lease import LeaseBook, Refused, Reserved, Short
from actors.budget.ledger import Ledger
from actors.budget.limits import UNITS, WINDOWS, LimitKey, scopes_of
from actors.budget.rows import Rows
from actors.messages import Account, Amount

LIMITS = {
    LimitKey("all", "hour", "tokens"): 1000,
    LimitKey("all", "day", "tokens"): 3000,
    LimitKey("all", "day", "usd"): 5000,
    LimitKey("tier:a", "hour", "tokens"): 600,
    LimitKey("job:j", "total", "usd"): 9000,
    LimitKey("key:k", "day", "tokens"): 500,
}
ACCOUNTS = (Account("a", "j", ""), Account("b", "j", "k"), Account("c", "other", ""))
WHO = st.integers(0, 2)
WHERE = st.integers(0, 1)
AMOUNTS = st.builds(Amount, st.integers(0, 400), st.integers(0, 400))
LEASE_S = 10.0
START = 1_700_000_000.0  # within an hour, not at its edge

T = TypeVar("T")


class RowStore:
    """The store's contract in a few dicts: rows replace rows, a closed incarnation takes its held rows with it."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[tuple[Any, ...], Any]] = {"counters": {}, "holders": {}, "held": {}, "limits": {}}
        self.version = 0

    def write(self, rows: Rows) -> None:
        self.version += 1
        gone = {(row.holder, row.incarnation) for row in rows.holders if row.closed_at is not None} | set(
            rows.forgotten
        )
        self.tables["held"] = {key: row for key, row in self.tables["held"].items() if key[:2] not in gone}
        for key in rows.forgotten:
            self.tables["holders"].pop(key, None)
        for table, length in (("counters", 2), ("holders", 2), ("held", 5), ("limits", 3)):
            for row in getattr(rows, table):
                self.tables[table][row[:length]] = row

    def load(self) -> Rows:
        return Rows(*(tuple(table.values()) for table in self.tables.values()))


class Actor:
    """A budget actor beside others on one store: what it commits, it commits on the newest version (actors/budget/actor.py)."""

    def __init__(self, store: RowStore) -> None:
        self.store = store
        self.clock_error_s = 0.0
        self.restart()

    def restart(self) -> None:
        self.ledger = Ledger.load(self.store.load(), LIMITS, LEASE_S)
        self.version = self.store.version

    def load(self) -> None:
        self.ledger = Ledger.load(self.store.load(), LIMITS, LEASE_S, carry=self.ledger)
        self.version = self.store.version

    def committed(self, act: Callable[[Ledger], T]) -> T:
        for _ in range(2):
            result = act(self.ledger)
            self.ledger.check()
            rows = self.ledger.changes()
            if self.version == self.store.version:
                if any(rows):
                    self.store.write(rows)
                    self.version = self.store.version
                return result
            self.load()
        raise AssertionError("nobody else writes meanwhile")


class Cluster(RuleBasedStateMachine):
    """Three books, two budget actors on one store, a network that does what it likes, and a record of what the endpoint
    could have served."""

    @initialize()
    def start(self) -> None:
        self.names = itertools.count()
        self.store = RowStore()
        self.actors = [Actor(self.store), Actor(self.store)]
        self.monotonic = 0.0
        self.latest = START
        self.stepped = False
        self.books = [self.new_book(f"router-{number}") for number in range(3)]
        self.open: list[tuple[LeaseBook, Reserved, list[tuple[str, int]]]] = []
        self.questions: list[tuple[LeaseBook, Exchange, float]] = []
        self.answers: list[tuple[LeaseBook, Exchanged, float]] = []
        self.served: dict[tuple[str, str, str, int], Amount] = {}
        self.booked = Amount()
        self.waits: list[tuple[LeaseBook, Account, Amount]] = []
        self.highest: dict[LimitKey, int | None] = dict(LIMITS)
        self.exact = True

    def new_book(self, holder: str) -> LeaseBook:
        return LeaseBook(holder, lambda: f"incarnation-{next(self.names)}")

    def wall(self, actor: Actor) -> float:
        return START + self.monotonic - actor.clock_error_s

    def committed(self, actor: Actor, act: Callable[[Ledger, float], T]) -> T:
        now = self.wall(actor)
        self.latest = max(self.latest, now)
        return actor.committed(lambda ledger: act(ledger, now))

    def serve(self, taken: Reserved, periods: list[tuple[str, int]], amount: Amount) -> None:
        """Count what the endpoint may serve, in the hour and day in which it was sent: as seen by the ledger, and as it truly is."""
        for scope in scopes_of(taken.account):
            for kind, period in periods:
                view, window = kind.split()
                key = (view, scope, window, period)
                self.served[key] = self.served.get(key, Amount()).plus(amount)

    # -- routers ---------------------------------------------------------------------------------------------------

    @rule(who=WHO, account=st.sampled_from(ACCOUNTS), amount=AMOUNTS, patient=st.booleans(), where=WHERE)
    def reserve(self, who: int, account: Account, amount: Amount, patient: bool, where: int) -> None:
        """An attempt begins; a patient one waits for one exchange and tries again."""
        book = self.books[who]
        outcome = book.reserve(account, amount, self.monotonic)
        if isinstance(outcome, Short):
            book.wait_for(account, amount)
            if patient:
                self.monotonic += 0.1
                self.exchange(book, self.actors[where])
                outcome = book.reserve(account, amount, self.monotonic)
                book.stop_waiting(account, amount)
            else:
                self.waits.append((book, account, amount))
        if isinstance(outcome, Refused):
            assert outcome.refusal.spent + amount[UNITS.index(outcome.refusal.unit)] > outcome.refusal.limit
        elif isinstance(outcome, Reserved):
            self.begin(book, outcome)

    def begin(self, book: LeaseBook, taken: Reserved) -> None:
        views = {"seen": self.latest}
        if not self.stepped:
            views["true"] = self.wall(self.actors[0])
        periods = [
            (f"{view} {window}", int(now // length_s) if length_s else 0)
            for view, now in views.items()
            for window, length_s in WINDOWS.items()
        ]
        if not taken.lease:  # made while nothing was limited: no promise was given
            periods = []
        self.serve(taken, periods, taken.amount)
        self.open.append((book, taken, periods))

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def stop_waiting(self, data: st.DataObject) -> None:
        book, account, amount = self.waits.pop(data.draw(st.integers(0, len(self.waits) - 1)))
        book.stop_waiting(account, amount)
        outcome = book.reserve(account, amount, self.monotonic)
        if isinstance(outcome, Reserved):
            self.begin(book, outcome)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), part=st.integers(0, 100), unknown=st.booleans(), over=st.sampled_from([0, 0, 0, 0, 0, 50]))
    def settle(self, data: st.DataObject, part: int, unknown: bool, over: int) -> None:
        book, taken, periods = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        used = taken.amount if unknown else Amount(*(unit * part // 100 for unit in taken.amount))
        self.serve(taken, periods, used.minus(taken.amount))
        if unknown:
            book.settle(taken, Amount(), used)
        else:
            used = used.plus(Amount(tokens=taken.amount.tokens - used.tokens + over if over else 0))
            self.serve(
                taken, periods, Amount(tokens=min(used.tokens, taken.amount.tokens) - taken.amount.tokens * part // 100)
            )
            book.settle(taken, used)
        book.settle(taken, Amount(10**9, 10**9))
        self.booked = self.booked.plus(used)

    @rule(who=WHO, where=WHERE)
    def talk(self, who: int, where: int) -> None:
        """An exchange as it nearly always goes."""
        self.exchange(self.books[who], self.actors[where])

    def exchange(self, book: LeaseBook, actor: Actor, *, closing: bool = False) -> bool:
        message = book.draw_up(self.monotonic, closing=closing)
        if message is None:
            return False
        answer = self.committed(actor, lambda ledger, now: ledger.exchange(message, now))
        self.exact = self.exact and answer.valid
        book.apply(answer, self.monotonic, self.monotonic)
        return True

    # -- the network -----------------------------------------------------------------------------------------------

    @rule(who=WHO, account=st.sampled_from(ACCOUNTS), amount=AMOUNTS, closing=st.sampled_from([False] * 9 + [True]))
    def send(self, who: int, account: Account, amount: Amount, closing: bool) -> None:
        """A question sets out, and may arrive at any time, more than once, or never."""
        book = self.books[who]
        closing = closing and not any(entry[0] is book for entry in self.open)
        if not closing:
            book.wait_for(account, amount)
            self.waits.append((book, account, amount))
        message = book.draw_up(self.monotonic, closing=closing)
        if message is not None:
            self.questions.append((book, message, self.monotonic))

    @precondition(lambda self: self.questions)
    @rule(
        data=st.data(),
        again=st.booleans(),
        where=WHERE,
        fate=st.sampled_from(["committed"] * 5 + ["not committed", "committed, but nobody knows"]),
    )
    def ask(self, data: st.DataObject, again: bool, where: int, fate: str) -> None:
        actor = self.actors[where]
        index = data.draw(st.integers(0, len(self.questions) - 1))
        book, message, sent_at = self.questions[index] if again else self.questions.pop(index)
        if fate == "not committed":
            actor.ledger.exchange(message, self.wall(actor))
            actor.load()
            return
        if fate == "committed, but nobody knows":
            answer = self.committed(actor, lambda ledger, now: ledger.exchange(message, now))
            self.exact = self.exact and answer.valid
            actor.load()
        answer = self.committed(actor, lambda ledger, now: ledger.exchange(message, now))
        self.exact = self.exact and answer.valid
        self.answers.append((book, answer, sent_at))

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), again=st.booleans())
    def answer(self, data: st.DataObject, again: bool) -> None:
        index = data.draw(st.integers(0, len(self.answers) - 1))
        book, answer, sent_at = self.answers[index] if again else self.answers.pop(index)
        book.apply(answer, sent_at, self.monotonic)

    # -- time, and what is rare ------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.02, 0.1, 0.6, 1.1, 4.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.monotonic += seconds

    @rule(what=st.sampled_from(["tick", "lose", "crash", "restart", "limit", "hours", "step back"]), data=st.data())
    def disturb(self, what: str, data: st.DataObject) -> None:
        actor = self.actors[data.draw(WHERE)]
        match what:
            case "tick":
                self.committed(actor, Ledger.expire)
            case "lose":
                self.questions.clear()
                self.answers.clear()
            case "crash":
                self.crash(data.draw(WHO), data.draw(st.booleans()))
            case "restart":
                self.restart(actor)
            case "limit":
                self.set_limit(
                    actor,
                    data.draw(st.sampled_from(sorted(LIMITS))),
                    data.draw(st.sampled_from([50, 100, 100, 120, None])),
                )
            case "hours":
                self.monotonic += data.draw(st.sampled_from([1800.0, 4000.0, 90_000.0]))
            case "step back":
                actor.clock_error_s += data.draw(st.sampled_from([1.0, 30.0, 4000.0, 90_000.0]))
                self.stepped = True

    def crash(self, who: int, renamed: bool) -> None:
        """The router dies without a word; what it had in flight may be served all the same."""
        book = self.books[who]
        self.open = [entry for entry in self.open if entry[0] is not book]
        self.waits = [entry for entry in self.waits if entry[0] is not book]
        self.books[who] = self.new_book(f"router-{next(self.names)}" if renamed else book.holder)
        self.exact = False

    def restart(self, actor: Actor) -> None:
        before = self.committed(actor, Ledger.snapshot)
        actor.restart()
        after = {row[:3]: row for row in self.committed(actor, Ledger.snapshot).limits}
        for row in before.limits:
            same = after.get(row[:3])
            assert row[3:8] == (same[3:8] if same else (None, 0, 0, 0, 0))

    def set_limit(self, actor: Actor, key: LimitKey, percent: int | None) -> None:
        limit = None if percent is None else LIMITS[key] * percent // 100
        self.committed(actor, lambda ledger, now: ledger.set_limit(*key, limit, now))
        highest = self.highest[key]
        self.highest[key] = None if limit is None or highest is None else max(highest, limit)

    # -- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def books_add_up(self) -> None:
        if hasattr(self, "actors"):
            for actor in self.actors:
                actor.ledger.check()
            for book in self.books:
                book.check()

    @invariant()
    def no_more_than_the_limit_is_served(self) -> None:
        for (view, scope, window, _), amount in getattr(self, "served", {}).items():
            for unit, served in zip(UNITS, amount, strict=True):
                limit = self.highest.get(LimitKey(scope, window, unit))
                assert limit is None or served <= limit, (
                    f"{view}: {scope} per {window} served {served} of {limit} {unit}"
                )

    def teardown(self) -> None:
        """When all is settled and closed nothing stays reserved, and without crashes the ledger agrees with the endpoint."""
        if not hasattr(self, "actors"):
            return
        for book, taken, _ in self.open:
            book.settle(taken, taken.amount)
            self.booked = self.booked.plus(taken.amount)
        for book in self.books:
            for number in range(8):
                self.monotonic += 1.0
                if not self.exchange(book, self.actors[number % 2], closing=True):
                    break
            else:
                raise AssertionError("closing does not come to an end")
        self.committed(self.actors[0], Ledger.expire)
        self.monotonic += 2 * LEASE_S
        snapshot = self.committed(self.actors[0], Ledger.snapshot)
        assert snapshot.holders == 0
        assert all(row.reserved == 0 for row in snapshot.limits)
        if self.exact:
            spent = {row.unit: row.spent for row in snapshot.limits if (row.scope, row.window) == ("all", "total")}
            assert Amount(spent["tokens"], spent["usd"]) == self.booked


TestCluster = Cluster.TestCase
TestCluster.__doc__ = "No sequence of events passes a limit, loses count or leaves something reserved."
TestCluster.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
