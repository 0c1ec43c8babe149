"""What a router and the budget actor say to each other: running totals, counted since the holder's incarnation began.

    router -> ledger   spent, unknown, returned, beyond   (`Totals`), and what it wants
    ledger -> router   granted

Because both sides state totals and keep the larger one, a message that is lost, repeated, reordered or late changes
nothing, and no operation needs an id of its own. What a holder may still spend is, at any time and on both sides,

    outstanding = granted + beyond - spent - unknown - returned

`beyond` is usage that no grant stood behind: usage above its reservation, or made while no limit applied to the
account. It has happened, so it is charged whatever the limits say.
"""

from typing import NamedTuple

from actors.errors import BudgetExceeded
from actors.messages import Account, Amount

__all__ = ["AccountGrant", "AccountReport", "BudgetRefusal", "Exchange", "Exchanged", "Totals"]

NOTHING = Amount()


class Totals(NamedTuple):
    """What became of one account's grants since the incarnation began. None of them ever falls."""

    spent: Amount = NOTHING
    """Real usage, as the provider reports it."""
    unknown: Amount = NOTHING
    """Reservations whose outcome nobody saw; booked whole."""
    returned: Amount = NOTHING
    beyond: Amount = NOTHING
    """The part of spent and unknown that no grant stood behind."""


class BudgetRefusal(NamedTuple):
    """The limit that leaves no room, even if everything reserved came back unspent."""

    scope: str
    window: str
    unit: str
    """`tokens` or `usd`; limit and spent are in tokens or micro-dollars."""
    limit: int
    spent: int
    turns_in_s: float | None
    """None: this window never turns."""
    reason: str = ""
    """When and why, where the scope was halted (`window` is then `halted`)."""

    @property
    def halted(self) -> bool:
        return self.window == "halted"

    def error(self) -> BudgetExceeded:
        return BudgetExceeded(*self)


class AccountReport(NamedTuple):
    account: Account
    totals: Totals
    want: Amount
    """What the book would like to be granted on top of what it holds."""
    least: Amount
    """The smallest reservation that waits: a grant below it would be useless. Zero: nobody waits."""


class Exchange(NamedTuple):
    """Router -> budget."""

    holder: str
    incarnation: str
    """Unique for ever."""
    sequence: int
    """Grows with every message of a holder, across its incarnations."""
    accounts: tuple[AccountReport, ...]
    opening: bool = False
    """No answer has come yet: the ledger may not know this incarnation, and all totals are zero."""
    closing: bool = False
    """The holder takes its leave: what it has not returned counts as spent."""


class AccountGrant(NamedTuple):
    account: Account
    granted_total: Amount
    unlimited: bool
    """No limit applies to this account: reserve freely until the lease ends, and report what was spent."""
    refusal: BudgetRefusal | None


class Exchanged(NamedTuple):
    """Budget -> router."""

    sequence: int
    valid: bool
    """False: the incarnation is closed (it expired, or another one took its place)."""
    expires_in_s: float
    accounts: tuple[AccountGrant, ...]
    gap_s: float = 0.0
    """How long to wait from one message to the next: the more holders, the longer."""
