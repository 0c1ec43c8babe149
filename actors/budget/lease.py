"""The lease: the router's half of what it and the budget actor say to each other (exchange.py).

The budget actor grants amounts to holders (routers); a router reserves from what it was granted at once, with no call
and no await. A few times a second the two exchange running totals.

A lease ends for the book at the latest when it ends for the ledger, since the book counts from the moment it SENT the
question that was answered. Whatever was outstanding then, the ledger has booked as spent; so the book forgets it
and starts again from zero under a new incarnation, and reservations of the old one settle without effect.

All holders together ask so seldom that one process can commit every exchange: each answer says how long to wait until the next
message (`gap_s`), the longer the more holders there are.

What the book keeps: about one second of its recent reservations, and never less than two gaps of them. What it gives back:
what goes beyond twice that, all of it when an account has been idle for one second, and, so that the remainders of
several routers can never lock each other out, every remainder that is too small for the smallest reservation that waits.
"""

from collections.abc import Callable
from typing import NamedTuple

from actors.budget.exchange import AccountReport, BudgetRefusal, Exchange, Exchanged, Totals
from actors.messages import Account, Amount

__all__ = [
    "LeaseBook",
    "Refused",
    "Reserved",
    "Short",
]

REPORT_EVERY_S = 0.5  # while anything is held or unreported; well below the lease and the promised second
ASK_AT_ONCE_S = 0.02  # the least distance between two questions: questions asked sooner leave together
ASK_AGAIN_S = 0.1  # after an answer that brought nothing: others have to settle first
KEEP_S = 1.0  # how many seconds of recent reservations a book holds in reserve,
KEEP_GAPS = 2.0  # or how many gaps: it asks when half is left, and that must last until it may ask
SPARE = 2.0  # above so many times what is kept the surplus goes back
IDLE_S = 1.0
REFUSAL_HOLDS_S = 1.0  # then the ledger is asked again: somebody may have raised the limit

NOTHING = Amount()


class Reserved(NamedTuple):
    """An upper bound that is set aside for one attempt until it is settled."""

    id: int
    account: Account
    amount: Amount
    lease: int
    """Which incarnation of the book it stands in; 0: in none, because no limit applied."""


class Short(NamedTuple):
    """Not enough is held now: wait for the next answer, or for an attempt that settles."""


class Refused(NamedTuple):
    refusal: BudgetRefusal


SHORT = Short()
NEVER = float("-inf")


class _Held:
    """One account in the book. Plain ints, since two of them change with every attempt."""

    __slots__ = (
        "acknowledged",
        "active_at",
        "answered",
        "asked",
        "asked_totals",
        "demand",
        "free_tokens",
        "free_usd_micros",
        "granted",
        "halted",
        "rate",
        "refusal",
        "refused_until",
        "taken",
        "totals",
        "unlimited_until",
        "used",
        "waiting",
    )

    def __init__(self) -> None:
        self.waiting: dict[Amount, int] = {}
        """How many wait for a reservation of this size."""
        self.demand = NOTHING
        """The sum of all that waits."""
        self.taken = [0, 0]
        """Reserved since the last look: tokens, micro-dollars."""
        self.rate = (0.0, 0.0)
        """Recent reservations per second (EWMA over about KEEP_S)."""
        self.active_at = NEVER
        self.begin(Totals())

    def begin(self, carried: Totals) -> None:
        """Start a new incarnation. `carried` has been spent, but no ledger has heard of it yet."""
        self.totals = carried
        self.acknowledged = Totals()
        self.granted = NOTHING
        self.free_tokens = self.free_usd_micros = 0
        self.asked = self.answered = -1
        self.asked_totals = Totals()
        self.unlimited_until = NEVER
        self.refusal: BudgetRefusal | None = None
        self.refused_until = NEVER
        self.halted = False
        """Nothing more may be spent: what is free, and what comes free, goes back."""
        self.used = False
        """Reserved from since the ledger was last asked: slow calls bring no other news, and a halt must be heard of."""

    @property
    def free(self) -> Amount:
        return Amount(self.free_tokens, self.free_usd_micros)

    @property
    def outstanding(self) -> Amount:
        """Everything that is held: free and in flight."""
        spent, unknown, returned, beyond = self.totals
        return self.granted.plus(beyond).minus(spent).minus(unknown).minus(returned)

    @property
    def unheard(self) -> bool:
        """The ledger has not confirmed all that was done or asked."""
        return self.totals != self.acknowledged or self.answered < self.asked

    def dormant(self, now: float) -> bool:
        """Nothing held, nothing to say, nobody waiting, and no answer that still counts."""
        idle = not self.waiting and now - self.active_at > IDLE_S and now >= self.unlimited_until
        return idle and not self.unheard and self.outstanding == NOTHING

    def covers(self, amount: Amount) -> bool:
        return not self.halted and self.free_tokens >= amount.tokens and self.free_usd_micros >= amount.usd_micros

    def least(self) -> Amount:
        """The smallest that waits. It is one of them, not a mix: a refusal of it must end somebody's wait."""
        return min(self.waiting) if self.waiting else NOTHING

    def look(self, now: float, elapsed_s: float) -> None:
        tokens, usd_micros = self.taken
        if tokens or usd_micros or self.waiting:
            self.active_at = now
        self.rate = (
            self.rate[0] + (tokens - self.rate[0] * elapsed_s) / (elapsed_s + KEEP_S),
            self.rate[1] + (usd_micros - self.rate[1] * elapsed_s) / (elapsed_s + KEEP_S),
        )
        if now - self.active_at > IDLE_S:
            self.rate = (0.0, 0.0)
        self.taken = [0, 0]

    def give_back(self, now: float, keep_s: float) -> None:
        """Return what is not needed here. It is gone from `free` at once: the ledger may grant it away at any time."""
        idle = now - self.active_at > IDLE_S
        if self.halted or idle or now < self.unlimited_until or not self.covers(self.least()):
            spare = self.free
        else:
            units = zip(self.free, self.demand, self.rate, strict=True)
            spare = Amount(*(_surplus(free, demand, rate * keep_s) for free, demand, rate in units))
        self.free_tokens -= spare.tokens
        self.free_usd_micros -= spare.usd_micros
        self.totals = self.totals._replace(returned=self.totals.returned.plus(spare))

    def want(self, keep_s: float) -> Amount:
        units = zip(self.free, self.demand, self.rate, strict=True)
        return Amount(*(max(0, demand + int(rate * keep_s) - free) for free, demand, rate in units))

    def unreported(self) -> Totals:
        """What was spent beyond all grants and is not known to have reached a ledger."""
        beyond = self.totals.beyond.minus(self.acknowledged.beyond)
        unknown = self.totals.unknown.minus(self.acknowledged.unknown)
        unknown = Amount(min(beyond.tokens, unknown.tokens), min(beyond.usd_micros, unknown.usd_micros))
        return Totals(spent=beyond.minus(unknown), unknown=unknown, beyond=beyond)


def _surplus(free: int, demand: int, kept: float) -> int:
    return free - demand - int(kept) if free > demand + kept * SPARE else 0


class LeaseBook:
    """What one router holds. `now` is any clock that never steps back (monotonic); no method waits for anything.

    The router's loop: every 20 to 50 ms, and at once when somebody begins to wait, `draw_up(now)`; if that gives a
    message, send it (with a deadline) and `apply` the answer; then let all who wait try `reserve` again, in order, and not
    only the first of them: a smaller one behind it may fit. Answers may be lost, come late, twice or in any order.
    """

    def __init__(self, holder: str, new_incarnation: Callable[[], str]) -> None:
        """`new_incarnation` makes an id that no book has ever used, such as `lambda: uuid4().hex`."""
        self.holder = holder
        self._new_incarnation = new_incarnation
        self._accounts: dict[Account, _Held] = {}
        self._dormant: dict[Account, _Held] = {}
        """Out of the way, or a gateway with ten thousand keys would look at all of them many times a second."""
        self._open: dict[int, Reserved] = {}
        self._last_id = 0
        self._lease = 0
        self._sequence = 0
        self._expires_at = NEVER
        self._looked_at = self._sent_at = NEVER
        self._ask_gap_s = ASK_AT_ONCE_S
        self._gap_s = 0.0
        self._begin()

    # -- the router's hot path -------------------------------------------------------------------------------------

    def reserve(self, account: Account, amount: Amount, now: float) -> Reserved | Short | Refused:
        """Set `amount` aside if it is held. Never waits, never asks."""
        held = self._accounts.get(account)
        if held is None or now >= self._expires_at:
            return SHORT
        if now < held.unlimited_until:
            lease = 0
        elif held.free_tokens >= amount[0] and held.free_usd_micros >= amount[1] and not held.halted:
            held.free_tokens -= amount[0]
            held.free_usd_micros -= amount[1]
            held.taken[0] += amount[0]
            held.taken[1] += amount[1]
            lease = self._lease
        elif (refusal := held.refusal) is not None and now < held.refused_until and _refuses(refusal, amount):
            return Refused(refusal)
        else:
            return SHORT
        held.used = True
        self._last_id = number = self._last_id + 1
        self._open[number] = reserved = Reserved(number, account, amount, lease)
        return reserved

    def settle(self, reserved: Reserved, spent: Amount, unknown: Amount = NOTHING) -> None:
        """End a reservation: `spent` is real usage, `unknown` what must be assumed spent; the rest is free again.

        Twice is once: a second settle of the same reservation does nothing.
        """
        if self._open.pop(reserved.id, None) is None:
            return
        held = self._accounts.get(reserved.account) or self._account(reserved.account)
        tokens, usd_micros = spent[0] + unknown[0], spent[1] + unknown[1]
        over_tokens, over_usd_micros = tokens - reserved.amount[0], usd_micros - reserved.amount[1]
        all_spent, all_unknown, returned, beyond = held.totals
        if not reserved.lease:
            beyond = Amount(beyond[0] + tokens, beyond[1] + usd_micros)
        else:
            if over_tokens > 0 or over_usd_micros > 0:
                over = Amount(max(0, over_tokens), max(0, over_usd_micros))
                beyond = beyond.plus(over)
            else:
                over = NOTHING
            if reserved.lease == self._lease:
                held.free_tokens -= min(over_tokens, 0)
                held.free_usd_micros -= min(over_usd_micros, 0)
            else:  # it was booked whole when its lease ended; only the excess is news
                spent, unknown = over, NOTHING
        if unknown is not NOTHING:
            all_unknown = all_unknown.plus(unknown)
        held.totals = Totals(Amount(all_spent[0] + spent[0], all_spent[1] + spent[1]), all_unknown, returned, beyond)

    def wait_for(self, account: Account, amount: Amount) -> None:
        """Somebody waits for `amount` after a `Short`; pair it with `stop_waiting`, however the wait ends."""
        held = self._account(account)
        held.waiting[amount] = held.waiting.get(amount, 0) + 1
        held.demand = held.demand.plus(amount)

    def stop_waiting(self, account: Account, amount: Amount) -> None:
        held = self._account(account)
        held.waiting[amount] -= 1
        if not held.waiting[amount]:
            del held.waiting[amount]
        held.demand = held.demand.minus(amount)

    # -- the exchange with the budget actor ------------------------------------------------------------------------

    def draw_up(self, now: float, *, closing: bool = False) -> Exchange | None:
        """What to send now; None when there is nothing to say.

        With `closing` (once nothing is in flight): repeat, sending and applying, until it returns None. That is one
        message, or two when an answer is missing, since only a known grant can be returned.
        """
        elapsed_s = min(max(0.0, now - self._looked_at), KEEP_S)
        self._looked_at = now
        for account, held in list(self._accounts.items()):
            held.look(now, elapsed_s)
            if held.dormant(now):
                self._dormant[account] = self._accounts.pop(account)
        if closing:
            return self._draw_up_closing(now)
        return self._message(now) if self._due(now) else None

    def apply(self, answer: Exchanged, sent_at: float, now: float) -> None:
        """Take an answer to a message that was sent at `sent_at`; answers may come late, twice and in any order."""
        if answer.sequence <= self._begun_after:
            return
        self._gap_s = answer.gap_s
        if answer.valid:
            for held in self._accounts.values():
                if held.asked == answer.sequence:
                    held.acknowledged = held.asked_totals
        if not answer.valid or answer.sequence == self._closing:
            self._begin()
            return
        self._opened = True
        expires_at = sent_at + answer.expires_in_s
        self._expires_at = max(self._expires_at, expires_at)
        fruitless = False
        for grant in answer.accounts:
            held = self._account(grant.account)
            more = self._credit(held, grant.granted_total)
            if answer.sequence > held.answered:
                held.answered = answer.sequence
                held.unlimited_until = expires_at if grant.unlimited else NEVER
                held.refusal = grant.refusal
                held.halted = grant.refusal is not None and grant.refusal.halted
                if grant.refusal is not None:
                    turns_in_s = grant.refusal.turns_in_s
                    held.refused_until = now + min(
                        REFUSAL_HOLDS_S, REFUSAL_HOLDS_S if turns_in_s is None else turns_in_s
                    )
            fruitless = fruitless or (bool(held.waiting) and not more and not grant.unlimited)
        self._ask_gap_s = ASK_AGAIN_S if fruitless else ASK_AT_ONCE_S

    def check(self) -> None:
        """Raise AssertionError unless everything held is either free or in flight."""
        in_flight: dict[Account, Amount] = {}
        for reserved in self._open.values():
            if reserved.lease == self._lease:
                in_flight[reserved.account] = in_flight.get(reserved.account, NOTHING).plus(reserved.amount)
        for account, held in {**self._accounts, **self._dormant}.items():
            assert min(held.free) >= 0, f"{account} has less than nothing: {held.free}"
            assert held.outstanding == held.free.plus(in_flight.get(account, NOTHING)), f"{account} lost count"

    # -- inside ----------------------------------------------------------------------------------------------------

    def _account(self, account: Account) -> _Held:
        held = self._accounts.get(account)
        if held is None:
            held = self._dormant.pop(account) if account in self._dormant else _Held()
            self._accounts[account] = held
        return held

    @property
    def _keep_s(self) -> float:
        return max(KEEP_S, KEEP_GAPS * self._gap_s)

    def _begin(self) -> None:
        self._lease += 1
        self.incarnation = self._new_incarnation()
        self._begun_after = self._sequence
        self._closing = -1
        self._opened = False
        self._expires_at = NEVER
        self._dormant.clear()
        for account, held in list(self._accounts.items()):
            held.begin(held.unreported())
            if not held.waiting and not held.unheard:
                del self._accounts[account]

    def _credit(self, held: _Held, granted_total: Amount) -> bool:
        tokens = max(0, granted_total.tokens - held.granted.tokens)
        usd_micros = max(0, granted_total.usd_micros - held.granted.usd_micros)
        held.granted = held.granted.plus(Amount(tokens, usd_micros))
        held.free_tokens += tokens
        held.free_usd_micros += usd_micros
        return tokens > 0 or usd_micros > 0

    def _hungry(self, held: _Held, now: float) -> bool:
        """Somebody waits who cannot be served from what is held."""
        if not held.waiting:
            return False
        return now >= self._expires_at or (now >= held.unlimited_until and not held.covers(held.least()))

    def _low(self, held: _Held, now: float) -> bool:
        """Less than half of what should be held is left: ask before anybody has to wait."""
        if now < held.unlimited_until or held.answered < 0 or held.refusal is not None:
            return False
        return any(free < int(rate * self._keep_s / 2) for free, rate in zip(held.free, held.rate, strict=True))

    def _due(self, now: float) -> bool:
        quiet_s = now - self._sent_at
        if quiet_s < max(ASK_AT_ONCE_S, self._gap_s):
            return False
        accounts = self._accounts.values()
        if quiet_s >= REPORT_EVERY_S and any(
            held.used or held.unheard or held.outstanding != NOTHING for held in accounts
        ):
            return True
        if quiet_s >= self._ask_gap_s and any(self._hungry(held, now) for held in accounts):
            return True
        return quiet_s >= ASK_AGAIN_S and any(self._low(held, now) for held in accounts)

    def _message(self, now: float) -> Exchange:
        self._closing = -1  # whoever goes on has not closed
        self._sequence += 1
        self._sent_at = now
        reports = []
        for account, held in self._accounts.items():
            held.give_back(now, self._keep_s)
            want = NOTHING if now < held.unlimited_until else held.want(self._keep_s)
            if held.used or held.unheard or held.waiting or want != NOTHING:
                reports.append(self._report(account, held, want))
        return Exchange(self.holder, self.incarnation, self._sequence, tuple(reports), opening=not self._opened)

    def _report(self, account: Account, held: _Held, want: Amount) -> AccountReport:
        held.asked = self._sequence
        held.used = False
        # what was carried over waits until the ledger has admitted the incarnation
        held.asked_totals = held.totals if self._opened else Totals()
        least = held.least()
        return AccountReport(account, held.asked_totals, want, NOTHING if held.covers(least) else least)

    def _draw_up_closing(self, now: float) -> Exchange | None:
        said = self._opened or any(held.asked > 0 for held in self._accounts.values())
        if not said and not any(held.unheard for held in self._accounts.values()):
            return None
        unanswered = any(held.answered < held.asked for held in self._accounts.values())
        if (unanswered and self._closing < 0) or not self._opened:
            return self._message(now)
        self._sequence += 1
        self._sent_at = now
        self._closing = self._sequence
        for held in self._accounts.values():
            held.totals = held.totals._replace(returned=held.totals.returned.plus(held.free))
            held.free_tokens = held.free_usd_micros = 0
        reports = tuple(self._report(account, held, NOTHING) for account, held in self._accounts.items())
        return Exchange(self.holder, self.incarnation, self._sequence, reports, closing=True)


def _refuses(refusal: BudgetRefusal, amount: Amount) -> bool:
    wanted = amount.usd_micros if refusal.unit == "usd" else amount.tokens
    return refusal.halted or refusal.spent + wanted > refusal.limit
