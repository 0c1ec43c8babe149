"""What the ledger shows of itself: the rows that the store keeps, and the snapshot that status shows."""

from typing import NamedTuple

from actors.budget.anomaly import Anomaly, HaltRow, PaceRow

__all__ = ["CounterRow", "HeldRow", "HolderRow", "LimitRow", "LimitStatus", "Rows", "Snapshot"]


class CounterRow(NamedTuple):
    scope: str
    window: str
    period: int
    """How many windows have turned since 1970."""
    spent_tokens: int
    spent_usd_micros: int
    unknown_tokens: int
    unknown_usd_micros: int
    overrun_tokens: int
    overrun_usd_micros: int


class HolderRow(NamedTuple):
    holder: str
    incarnation: str
    sequence: int
    closed_at: float | None
    """Unix seconds; a closed incarnation is remembered for a while so that its late messages are known for what they are."""


class HeldRow(NamedTuple):
    holder: str
    incarnation: str
    tier: str
    job: str
    key: str
    granted_tokens: int
    granted_usd_micros: int
    spent_tokens: int
    spent_usd_micros: int
    unknown_tokens: int
    unknown_usd_micros: int
    returned_tokens: int
    returned_usd_micros: int
    beyond_tokens: int
    beyond_usd_micros: int


class LimitRow(NamedTuple):
    """A limit that was set at run time, over the configured one. None: set to no limit at all."""

    scope: str
    window: str
    unit: str
    amount: int | None


class Rows(NamedTuple):
    """The rows that changed, or all of them. The held rows of a closed incarnation go with it."""

    counters: tuple[CounterRow, ...] = ()
    holders: tuple[HolderRow, ...] = ()
    held: tuple[HeldRow, ...] = ()
    limits: tuple[LimitRow, ...] = ()
    forgotten: tuple[tuple[str, str], ...] = ()
    """(holder, incarnation) of closed incarnations that need not be remembered any longer."""
    paces: tuple[PaceRow, ...] = ()
    halts: tuple[HaltRow, ...] = ()
    resumed: tuple[str, ...] = ()
    """Scopes whose halt has ended."""


class LimitStatus(NamedTuple):
    """One scope, window and unit; amounts in tokens or micro-dollars."""

    scope: str
    window: str
    unit: str
    limit: int | None
    spent: int
    """Includes `unknown`."""
    reserved: int
    unknown: int
    overrun: int
    """The part of spent that no reservation had covered."""
    turns_in_s: float | None
    set_at_run_time: bool


class Snapshot(NamedTuple):
    limits: tuple[LimitStatus, ...]
    holders: int
    halts: tuple[HaltRow, ...] = ()
    """Scopes that are granted nothing until somebody resumes them."""
    paces: tuple[PaceRow, ...] = ()
    anomalies: tuple[Anomaly, ...] = ()
    """The last ones that the budget actor that was asked has seen itself, oldest first."""
