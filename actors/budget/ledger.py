"""The ledger: how much each scope has spent and set aside, and who may have how much more.

Scopes are `all`, `tier:NAME`, `job:NAME` and `key:NAME`; an account is charged to every scope it belongs to. Windows
are the calendar hour and day in UTC, and `total`, which never turns. Units are tokens and micro-dollars, whole numbers only.

For every scope, window and unit that has a limit, a grant leaves

    spent + reserved <= limit

where reserved is all that holders (routers) were granted and have neither spent nor returned. Only two things can
pass a limit, and both are counted: usage above its reservation (it has happened), and a limit that was lowered later.
What nobody saw the outcome of is spent: a holder that falls silent until its lease ends, or comes back under a new
incarnation, has spent everything it held.

How much is granted. An account gets what it wants as long as that is at most an equal share, among all holders, of what
is left in its tightest window. Near the limit the share is what it gets, so that no holder's idle lease shuts the others
out; but never less than the smallest reservation that waits there, as long as that fits, since a smaller grant
would only lie about. If it does not fit there is no grant: a refusal when it would not fit even if everything reserved came back
(spent + least > limit), otherwise nothing, and the holder asks again when others have settled. So a budget is always used up to
the last reservation that fits.

When a window turns, what is reserved counts in the new one, and a late report is charged to it too: an amount is
never outside every window. The clock may step back: windows go by the latest time seen, leases by the sum of its steps forward.

Several ledgers on one store (two jobs, several clusters, a stopped actor that wakes up beside its successor). Each
commit is made on the newest version of the store or not at all, so every grant is checked against all there is. A
ledger that was not the newest is loaded again with `carry`: the old one's clocks, and its leases of those holders
of whom nothing was heard elsewhere. So it never ends the lease of a holder that talks to another one: each exchange
raises the holder's sequence in the store, the commit that would close it therefore fails, and what is loaded then has
a sequence this ledger has not seen, which earns a whole lease. Leases may end too early all the same, by a clock
that jumps; that costs budget, and cannot overspend it, since closing a holder turns what is reserved into spent and frees
nothing, and the holder hears that it was closed before it is granted more. Clocks that differ: the one that is ahead turns the
windows for all, as a period in the store raises the latest time of whoever loads it.

A halted scope (anomaly.py, or by hand) is granted nothing, whatever its limits leave: no account in it is unlimited, and
every answer to its holders carries a refusal, upon which they give back what is free.

Where it stands: `actor.py` calls `exchange`, writes `changes()` to the store, and only then answers.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from actors.budget.anomaly import Anomaly, HaltRow, PaceRules, Watch, utc
from actors.budget.exchange import AccountGrant, AccountReport, BudgetRefusal, Exchange, Exchanged, Totals
from actors.budget.limits import HIGHEST, UNITS, WINDOWS, LimitKey, scopes_of
from actors.budget.rows import CounterRow, HeldRow, HolderRow, LimitRow, LimitStatus, Rows, Snapshot
from actors.errors import ConfigError
from actors.messages import Account, Amount

__all__ = ["Ledger"]

REMEMBER_CLOSED_S = 3600.0
"""An opening message that comes later than this would be taken for a new one; that wastes budget, it cannot overspend."""
EXCHANGES_PER_S = 32
"""Of all holders together, which keep their distance accordingly: one process commits them all, and the promise is at most 50.
The rest is for those who begin, since the first message of each comes unasked."""
LEAST_GAPS = 4

NOTHING = Amount()


class _Cell:
    """One window of one scope. `ceiling` is what check() holds it to: the limit, or what was already used when it was lowered."""

    __slots__ = ("ceiling", "overrun", "period", "spent", "unknown")

    def __init__(self, period: int) -> None:
        self.period = period
        self.spent = self.unknown = self.overrun = NOTHING
        self.ceiling = NOTHING


class _Held:
    __slots__ = ("granted", "totals")

    def __init__(self) -> None:
        self.granted = NOTHING
        self.totals = Totals()

    @property
    def outstanding(self) -> Amount:
        spent, unknown, returned, beyond = self.totals
        return self.granted.plus(beyond).minus(spent).minus(unknown).minus(returned)


class _Closed(NamedTuple):
    """What is remembered of a closed incarnation; the last two in case the closing is never committed."""

    closed_at: float
    sequence: int
    expires_at_s: float


class _Holder:
    __slots__ = ("accounts", "expires_at_s", "incarnation", "sequence")

    def __init__(self, incarnation: str, expires_at_s: float) -> None:
        self.incarnation = incarnation
        self.expires_at_s = expires_at_s
        self.sequence = 0
        self.accounts: dict[Account, _Held] = {}


class Ledger:
    """All budgets of a runtime. `now` is unix seconds; every method that takes it also turns windows and ends leases."""

    def __init__(self, limits: Mapping[LimitKey, int], lease_s: float = 10.0, rules: PaceRules | None = None) -> None:
        """`rules`: when spend per minute is an anomaly; None: never."""
        self._lease_s = lease_s
        self._watch = Watch(rules)
        self._configured = dict(limits)
        self._set: dict[LimitKey, int | None] = {}
        self._cells: dict[tuple[str, str], _Cell] = {}
        self._reserved: dict[str, Amount] = {}
        self._holders: dict[str, _Holder] = {}
        self._closed: dict[tuple[str, str], _Closed] = {}
        self._news: set[str] = set()
        """Holders just loaded: their lease begins when the clock is read next."""
        self._latest = 0.0
        """The latest time seen: windows go by it."""
        self._last: float | None = None
        self._lease_clock_s = 0.0
        self._changed_counters: set[tuple[str, str]] = set()
        self._changed_holders: set[tuple[str, str]] = set()
        self._changed_held: set[tuple[str, str, Account]] = set()
        self._changed_limits: set[LimitKey] = set()
        self._forgotten: list[tuple[str, str]] = []
        for scope, _, _ in limits:
            self._open_scope(scope)

    @classmethod
    def load(
        cls,
        rows: Rows,
        limits: Mapping[LimitKey, int],
        lease_s: float = 10.0,
        carry: "Ledger | None" = None,
        rules: PaceRules | None = None,
    ) -> "Ledger":
        """Carry on from a store. Holders get a whole lease to be heard of again: their own may still run.

        `carry` is the ledger that was in use here until now, whatever of it was never committed.
        """
        ledger = cls(limits, lease_s, rules)
        ledger._watch.load(rows.paces, rows.halts)
        leases = ledger._carry(carry) if carry is not None else {}
        ledger._set = {LimitKey(row.scope, row.window, row.unit): row.amount for row in rows.limits}
        for counter in rows.counters:
            cell = ledger._cells[counter.scope, counter.window] = _Cell(counter.period)
            cell.spent = Amount(counter.spent_tokens, counter.spent_usd_micros)
            cell.unknown = Amount(counter.unknown_tokens, counter.unknown_usd_micros)
            cell.overrun = Amount(counter.overrun_tokens, counter.overrun_usd_micros)
            ledger._latest = max(ledger._latest, counter.period * WINDOWS[counter.window])
        for row in rows.holders:
            if row.closed_at is None:
                expires_at_s = leases.get(row)
                holder = ledger._holders[row.holder] = _Holder(row.incarnation, expires_at_s or 0.0)
                holder.sequence = row.sequence
                if expires_at_s is None:
                    ledger._news.add(row.holder)
            else:
                ledger._closed[row.holder, row.incarnation] = _Closed(row.closed_at, 0, 0.0)
        for held_row in rows.held:
            account = Account(held_row.tier, held_row.job, held_row.key)
            held = ledger._holders[held_row.holder].accounts[account] = _Held()
            held.granted = Amount(held_row.granted_tokens, held_row.granted_usd_micros)
            held.totals = Totals(
                Amount(held_row.spent_tokens, held_row.spent_usd_micros),
                Amount(held_row.unknown_tokens, held_row.unknown_usd_micros),
                Amount(held_row.returned_tokens, held_row.returned_usd_micros),
                Amount(held_row.beyond_tokens, held_row.beyond_usd_micros),
            )
            ledger._reserve(account, held.outstanding)
        for scope in {key.scope for key in ledger._set} | set(ledger._reserved):
            ledger._open_scope(scope)
        ledger._turn()
        for scope, window in ledger._cells:
            ledger._raise_ceiling(scope, window)
        # rows of a window that has turned go back with the next commit, so that slower clocks learn of it
        ledger._changed_counters.intersection_update((row.scope, row.window) for row in rows.counters)
        return ledger

    def _carry(self, old: "Ledger") -> dict[HolderRow, float]:
        """Take over the clocks, and tell when leases end: also of those closed, in case that was never committed."""
        self._latest, self._last, self._lease_clock_s = old._latest, old._last, old._lease_clock_s
        leases = {
            HolderRow(name, incarnation, closed.sequence, None): closed.expires_at_s
            for (name, incarnation), closed in old._closed.items()
        }
        for name, holder in old._holders.items():
            if name not in old._news:
                leases[HolderRow(name, holder.incarnation, holder.sequence, None)] = holder.expires_at_s
        return leases

    # -- what holders say ----------------------------------------------------------------------------------------

    def exchange(self, message: Exchange, now: float) -> Exchanged:
        """Book a holder's report, grant what it wants as far as there is room."""
        self.expire(now)
        holder = self._admit(message)
        if holder is None:
            return Exchanged(message.sequence, False, 0.0, (), self._gap_s)
        for report in message.accounts:
            self._book_report(message.holder, holder, report)
        fresh = message.sequence > holder.sequence
        if fresh:
            holder.sequence = message.sequence
            # many holders speak seldom: a lease is worth some of their gaps
            holder.expires_at_s = self._lease_clock_s + max(self._lease_s, LEAST_GAPS * self._gap_s)
            self._changed_holders.add((message.holder, holder.incarnation))
        if message.closing and fresh:  # a late one takes nobody away who has gone on since
            self._close(message.holder)
        # only the newest message tells what is wanted now; an older one just gets the totals repeated
        granting = fresh and not message.closing
        grants = tuple(self._answer(message.holder, holder, report, granting) for report in message.accounts)
        expires_in_s = max(0.0, holder.expires_at_s - self._lease_clock_s)
        return Exchanged(message.sequence, True, expires_in_s, grants, self._gap_s)

    def expire(self, now: float) -> None:
        """Let time pass: windows turn, then silent holders are closed, then old closed ones forgotten."""
        if self._last is not None:
            self._lease_clock_s += max(0.0, now - self._last)
        self._last = now
        for name in self._news:
            self._holders[name].expires_at_s = self._lease_clock_s + self._lease_s
        self._news.clear()
        if now > self._latest:
            hour_has_turned = now // WINDOWS["hour"] > self._latest // WINDOWS["hour"]
            self._latest = now
            if hour_has_turned:
                self._turn()
        for name in [name for name, holder in self._holders.items() if holder.expires_at_s <= self._lease_clock_s]:
            self._close(name)
        for key in [key for key, closed in self._closed.items() if self._latest - closed.closed_at > REMEMBER_CLOSED_S]:
            del self._closed[key]
            self._forgotten.append(key)
            self._changed_holders.discard(key)

    def dismiss(self, prefix: str, now: float) -> None:
        """Close every holder whose name begins so, as when its lease ends: they have ended, and will not be heard of."""
        self.expire(now)
        for name in [name for name in self._holders if name.startswith(prefix)]:
            self._close(name)

    def set_limit(self, scope: str, window: str, unit: str, limit: int | None, now: float) -> None:
        """Set a limit over the configured one; None means no limit. Holders hear of it with their next exchange."""
        _check_scope(scope)
        if window not in WINDOWS or unit not in UNITS:
            raise ConfigError(
                f"no such limit: {unit} per {window}; expected {' or '.join(UNITS)} per {', '.join(WINDOWS)}"
            )
        if limit is not None and limit < 0:
            raise ConfigError(f"a limit cannot be negative: {limit}")
        self.expire(now)
        key = LimitKey(scope, window, unit)
        self._set[key] = None if limit is None else min(limit, HIGHEST)
        self._open_scope(scope)
        self._raise_ceiling(scope, window)
        self._changed_limits.add(key)

    def halt(self, scope: str, reason: str, now: float) -> None:
        """Grant a scope nothing until `resume`; its holders hear of it with their next exchange."""
        _check_scope(scope)
        self.expire(now)
        self._watch.halt(scope, reason, now)

    def resume(self, scope: str, now: float) -> bool:
        """Let a scope go on; False if it was not halted."""
        self.expire(now)
        return self._watch.resume(scope)

    # -- what others ask -----------------------------------------------------------------------------------------

    def snapshot(self, now: float) -> Snapshot:
        self.expire(now)
        limits = []
        for (scope, window), cell in sorted(self._cells.items()):
            reserved = self._reserved.get(scope, NOTHING)
            for index, unit in enumerate(UNITS):
                key = LimitKey(scope, window, unit)
                amounts = (cell.spent[index], reserved[index], cell.unknown[index], cell.overrun[index])
                limits.append(
                    LimitStatus(*key, self._limit(key), *amounts, self._turns_in_s(window, cell, now), key in self._set)
                )
        return Snapshot(tuple(limits), len(self._holders), self._watch.halts, self._watch.paces)

    def anomalies(self) -> tuple[Anomaly, ...]:
        """Those that the reports since the last call have brought."""
        return self._watch.found()

    def changes(self) -> Rows:
        """The rows that have changed since the last call."""
        paces, halts, resumed = self._watch.changes()
        rows = Rows(
            tuple(self._counter_row(*key) for key in self._changed_counters),
            tuple(self._holder_row(*key) for key in self._changed_holders),
            tuple(self._held_row(*key) for key in self._changed_held),
            tuple(LimitRow(*key, self._set[key]) for key in self._changed_limits),
            tuple(self._forgotten),
            paces,
            halts,
            resumed,
        )
        self._changed_counters.clear()
        self._changed_holders.clear()
        self._changed_held.clear()
        self._changed_limits.clear()
        self._forgotten.clear()
        return rows

    def check(self) -> None:
        """Raise AssertionError if the books do not add up, or a limit is passed by more than was counted."""
        reserved: dict[str, Amount] = {}
        for name, holder in self._holders.items():
            for account, held in holder.accounts.items():
                assert min(held.outstanding) >= 0, f"{name} owes {held.outstanding} on {account}"
                for scope in scopes_of(account):
                    reserved[scope] = reserved.get(scope, NOTHING).plus(held.outstanding)
        for scope in {scope for scope, _ in self._cells} | set(reserved):
            booked = self._reserved.get(scope, NOTHING)
            assert booked == reserved.get(scope, NOTHING), f"{scope}: reserved {booked}, held {reserved.get(scope)}"
        for (scope, window), cell in self._cells.items():
            for index, unit in enumerate(UNITS):
                limit = self._limit(LimitKey(scope, window, unit))
                used = cell.spent[index] + self._reserved.get(scope, NOTHING)[index]
                most = None if limit is None else max(limit, cell.ceiling[index]) + cell.overrun[index]
                assert most is None or used <= most, f"{scope} per {window}: {used} of {limit} {unit} used"
                assert 0 <= cell.unknown[index] <= cell.spent[index], f"{scope} per {window}: more unknown than spent"

    @property
    def _gap_s(self) -> float:
        return len(self._holders) / EXCHANGES_PER_S

    # -- holders -------------------------------------------------------------------------------------------------

    def _admit(self, message: Exchange) -> _Holder | None:
        holder = self._holders.get(message.holder)
        if holder is not None and holder.incarnation == message.incarnation:
            return holder
        if not message.opening or (message.holder, message.incarnation) in self._closed:
            return None
        if holder is not None:
            self._close(message.holder)
        holder = self._holders[message.holder] = _Holder(message.incarnation, self._lease_clock_s + self._lease_s)
        self._changed_holders.add((message.holder, message.incarnation))
        return holder

    def _close(self, name: str) -> None:
        """End an incarnation: all it held counts as spent."""
        holder = self._holders.pop(name)
        for account, held in holder.accounts.items():
            if held.outstanding != NOTHING:
                self._reserve(account, NOTHING.minus(held.outstanding))
                self._charge(account, NOTHING, held.outstanding, NOTHING)
            self._changed_held.discard((name, holder.incarnation, account))
        self._closed[name, holder.incarnation] = _Closed(self._latest, holder.sequence, holder.expires_at_s)
        self._changed_holders.add((name, holder.incarnation))

    def _book_report(self, name: str, holder: _Holder, report: AccountReport) -> None:
        held = holder.accounts.get(report.account)
        if held is None:
            held = holder.accounts[report.account] = _Held()
        before, old = held.outstanding, held.totals
        held.totals = Totals(*(_larger(mine, said) for mine, said in zip(old, report.totals, strict=True)))
        # a holder that accounts for more than it was given (no book does) has spent it all the same
        uncovered = _larger(NOTHING, NOTHING.minus(held.outstanding))
        held.totals = held.totals._replace(beyond=held.totals.beyond.plus(uncovered))
        self._changed_held.add((name, holder.incarnation, report.account))
        if held.totals == old:
            return
        spent, unknown, _, beyond = (new.minus(was) for new, was in zip(held.totals, old, strict=True))
        self._reserve(report.account, held.outstanding.minus(before))
        self._charge(report.account, spent, unknown, beyond)
        # not for what a dead holder held: that is booked at once, and says nothing about spend per minute
        for scope in scopes_of(report.account):
            if scope.startswith(("tier:", "key:")):
                self._watch.spend(scope, spent.plus(unknown), self._last or self._latest)

    def _answer(self, name: str, holder: _Holder, report: AccountReport, granting: bool) -> AccountGrant:
        held = holder.accounts[report.account]
        halt = self._watch.halt_of(scopes_of(report.account))
        unlimited = halt is None and not self._limited(report.account)
        refusal = None
        if halt is not None:
            refusal = self._halted(halt)
        elif granting and not unlimited:
            size = self._size(report.account, report.want, report.least)
            if size != NOTHING:
                held.granted = held.granted.plus(size)
                self._reserve(report.account, size)
            else:
                refusal = self._refusal(report.account, report.least)
        return AccountGrant(report.account, held.granted, unlimited, refusal)

    def _size(self, account: Account, want: Amount, least: Amount) -> Amount:
        sizes = []
        for index, unit in enumerate(UNITS):
            size = max(want[index], least[index])
            room = self._room(account, index, unit)
            if room is not None:
                size = min(size, room, max(least[index], room // len(self._holders)))
            if size < least[index]:
                return NOTHING
            sizes.append(size)
        return Amount(*sizes)

    def _room(self, account: Account, index: int, unit: str) -> int | None:
        """What is left in the tightest of the account's windows; None: no limit."""
        rooms = []
        for scope, window, cell in self._cells_of(account):
            limit = self._limit(LimitKey(scope, window, unit))
            if limit is not None:
                rooms.append(max(0, limit - cell.spent[index] - self._reserved.get(scope, NOTHING)[index]))
        return min(rooms, default=None)

    def _halted(self, halt: HaltRow) -> BudgetRefusal:
        when = utc(halt.since, self._last or self._latest)
        return BudgetRefusal(halt.scope, "halted", "usd", 0, 0, None, f"at {when}: {halt.reason}")

    def _refusal(self, account: Account, least: Amount) -> BudgetRefusal | None:
        """The limit that is in the way longest, among those that would be even if everything reserved came back."""
        refusals = []
        for scope, window, cell in self._cells_of(account):
            for index, unit in enumerate(UNITS):
                limit = self._limit(LimitKey(scope, window, unit))
                if limit is not None and least[index] and cell.spent[index] + least[index] > limit:
                    turns_in_s = self._turns_in_s(window, cell, self._last or self._latest)
                    refusals.append(BudgetRefusal(scope, window, unit, limit, cell.spent[index], turns_in_s))
        return max(
            refusals,
            key=lambda refusal: float("inf") if refusal.turns_in_s is None else refusal.turns_in_s,
            default=None,
        )

    # -- cells ---------------------------------------------------------------------------------------------------

    def _limit(self, key: LimitKey) -> int | None:
        return self._set[key] if key in self._set else self._configured.get(key)

    def _limited(self, account: Account) -> bool:
        keys = (LimitKey(scope, window, unit) for scope in scopes_of(account) for window in WINDOWS for unit in UNITS)
        return any(self._limit(key) is not None for key in keys)

    def _open_scope(self, scope: str) -> None:
        for window in WINDOWS:
            if (scope, window) not in self._cells:
                self._cells[scope, window] = _Cell(_period(window, self._latest))
                self._raise_ceiling(scope, window)

    def _cells_of(self, account: Account) -> Iterator[tuple[str, str, _Cell]]:
        for scope in scopes_of(account):
            self._open_scope(scope)
            for window in WINDOWS:
                yield scope, window, self._cells[scope, window]

    def _charge(self, account: Account, spent: Amount, unknown: Amount, beyond: Amount) -> None:
        overrun = beyond if self._limited(account) else NOTHING
        for scope, window, cell in self._cells_of(account):
            cell.spent = cell.spent.plus(spent).plus(unknown)
            cell.unknown = cell.unknown.plus(unknown)
            cell.overrun = cell.overrun.plus(overrun)
            self._changed_counters.add((scope, window))

    def _reserve(self, account: Account, amount: Amount) -> None:
        for scope in scopes_of(account):
            self._reserved[scope] = self._reserved.get(scope, NOTHING).plus(amount)

    def _turn(self) -> None:
        for (scope, window), cell in self._cells.items():
            period = _period(window, self._latest)
            if period > cell.period:
                cell.period = period
                cell.spent = cell.unknown = cell.overrun = NOTHING
                self._raise_ceiling(scope, window)
                self._changed_counters.add((scope, window))

    def _raise_ceiling(self, scope: str, window: str) -> None:
        cell = self._cells[scope, window]
        cell.ceiling = cell.spent.plus(self._reserved.get(scope, NOTHING)).minus(cell.overrun)

    def _turns_in_s(self, window: str, cell: _Cell, now: float) -> float | None:
        length_s = WINDOWS[window]
        return (cell.period + 1) * length_s - now if length_s else None

    # -- rows ----------------------------------------------------------------------------------------------------

    def _counter_row(self, scope: str, window: str) -> CounterRow:
        cell = self._cells[scope, window]
        return CounterRow(scope, window, cell.period, *cell.spent, *cell.unknown, *cell.overrun)

    def _holder_row(self, name: str, incarnation: str) -> HolderRow:
        closed = self._closed.get((name, incarnation))
        if closed is not None:
            return HolderRow(name, incarnation, 0, closed.closed_at)
        return HolderRow(name, incarnation, self._holders[name].sequence, None)

    def _held_row(self, name: str, incarnation: str, account: Account) -> HeldRow:
        held = self._holders[name].accounts[account]
        spent, unknown, returned, beyond = held.totals
        return HeldRow(name, incarnation, *account, *held.granted, *spent, *unknown, *returned, *beyond)


def _check_scope(scope: str) -> None:
    kind, _, name = scope.partition(":")
    if scope != "all" and (kind not in ("tier", "job", "key") or not name):
        raise ConfigError(f"no such scope: {scope!r}; expected all, tier:NAME, job:NAME or key:NAME")


def _period(window: str, now: float) -> int:
    return int(now // WINDOWS[window]) if WINDOWS[window] else 0


def _larger(one: Amount, other: Amount) -> Amount:
    return Amount(max(one.tokens, other.tokens), max(one.usd_micros, other.usd_micros))
