"""Limits as the configuration gives them, in whole units, by scope and window; and the one that each request has.

Scopes are `all`, `tier:NAME`, `job:NAME` and `key:NAME`. Windows are the calendar hour and day in UTC, and `total`, which
never turns. `per_request` is the router's to enforce (`RequestLimits`); all others are the ledger's.
"""

from collections.abc import Iterator
from decimal import ROUND_FLOOR, Decimal
from typing import NamedTuple

from actors.budget.anomaly import PaceRules
from actors.budget.exchange import BudgetRefusal
from actors.messages import Account, Amount
from actors.settings import BudgetSettings, ScopeSettings

__all__ = [
    "HIGHEST",
    "UNITS",
    "WINDOWS",
    "LimitKey",
    "RequestLimits",
    "pace_rules",
    "request_limits",
    "scopes_of",
    "whole_units",
    "window_limits",
]

UNITS = ("tokens", "usd")
"""In the order of an Amount's fields."""
WINDOWS = {"hour": 3600, "day": 86_400, "total": 0}
"""Seconds; 0: never turns."""
HIGHEST = 2**62
"""Any larger limit is cut to this, so that sums fit the store's 64 bits."""


class LimitKey(NamedTuple):
    scope: str
    window: str
    unit: str


def whole_units(value: float, unit: str) -> int:
    """A configured number as tokens or micro-dollars, exact in decimal and rounded down: 0.29 USD is 290,000."""
    exact = Decimal(repr(value)) * (1_000_000 if unit == "usd" else 1)
    return min(int(exact.to_integral_value(ROUND_FLOOR)), HIGHEST)


def scopes_of(account: Account) -> tuple[str, ...]:
    named = (("tier", account.tier), ("job", account.job), ("key", account.key))
    return ("all", *(f"{kind}:{name}" for kind, name in named if name))


def _configured(settings: BudgetSettings) -> Iterator[tuple[str, ScopeSettings]]:
    yield "all", settings
    for kind, named in (("tier", settings.tiers), ("job", settings.jobs), ("key", settings.keys)):
        for name, scope_settings in named.items():
            yield f"{kind}:{name}", scope_settings


def window_limits(settings: BudgetSettings) -> dict[LimitKey, int]:
    limits = {}
    for scope, scope_settings in _configured(settings):
        for unit, given in zip(UNITS, (scope_settings.tokens, scope_settings.usd), strict=True):
            for window, value in (("hour", given.per_hour), ("day", given.per_day)):
                if value is not None:
                    limits[LimitKey(scope, window, unit)] = whole_units(value, unit)
    return limits


def pace_rules(settings: BudgetSettings) -> PaceRules:
    """What counts as an anomaly (anomaly.py), in whole units."""
    anomaly = settings.anomaly
    floor = Amount(anomaly.floor_tokens_per_minute, whole_units(anomaly.floor_usd_per_minute, "usd"))
    return PaceRules(anomaly.factor, floor, anomaly.min_minutes, anomaly.stop)


class RequestLimits(NamedTuple):
    """`per_request`, which the router enforces: the least over an account's scopes, with the scope it comes from."""

    tokens: int | None = None
    usd_micros: int | None = None
    tokens_scope: str = ""
    usd_scope: str = ""

    def refuse(self, spent: Amount, amount: Amount) -> BudgetRefusal | None:
        """Whether another reservation of `amount` is too much for a request that has `spent` (or left unknown) so far."""
        if self.tokens is not None and spent.tokens + amount.tokens > self.tokens:
            return BudgetRefusal(self.tokens_scope, "request", "tokens", self.tokens, spent.tokens, None)
        if self.usd_micros is not None and spent.usd_micros + amount.usd_micros > self.usd_micros:
            return BudgetRefusal(self.usd_scope, "request", "usd", self.usd_micros, spent.usd_micros, None)
        return None


def request_limits(settings: BudgetSettings, account: Account) -> RequestLimits:
    scopes = set(scopes_of(account))
    mine = [(scope, scope_settings) for scope, scope_settings in _configured(settings) if scope in scopes]
    tokens = [(whole_units(s.tokens.per_request, "tokens"), n) for n, s in mine if s.tokens.per_request is not None]
    usd = [(whole_units(s.usd.per_request, "usd"), n) for n, s in mine if s.usd.per_request is not None]
    least_tokens, tokens_scope = min(tokens, default=(None, ""))
    least_usd, usd_scope = min(usd, default=(None, ""))
    return RequestLimits(least_tokens, least_usd, tokens_scope, usd_scope)
