"""Spend anomalies: what a tier or a key spends in a minute, against what it usually spends, and the halts that follow.

    ledger: a router's report -> Watch.spend(scope, amount, now) -> Anomaly: log line, webhook, perhaps a halt

What is usual is an exponentially weighted mean (EWMA) of the spend per ACTIVE minute. A minute without spend is no
history: nights and pauses between batches must not teach the watch that nothing is normal. A minute is an anomaly as
soon as it passes

    factor * max(usual, floor)

in tokens or in micro-dollars, once there are `min_minutes` of history. The running minute is judged with every report, so
a runaway is seen within the minute and not after it. One alarm a scope and minute.

Why an EWMA with a floor, and not a z-score, a median or a seasonal model. There are few data: a new installation has an
hour of history at most, and a week's season needs weeks. Batches start from nothing to full speed within a second, so the
spread is as large as the mean, and a z-score is either always or never out of bounds. A median needs the minutes
themselves; this needs two numbers a scope, which the store keeps in one row. And an alarm that stops somebody's job must be
explained in one sentence: "$9.20 this minute, usually $0.80". The floor is for scopes that usually spend nearly nothing:
five times a cent is no anomaly.

How it learns. The first ten minutes count alike (a plain mean), then each new minute weighs a tenth. A minute above the
threshold is learnt as if it had stood at the threshold: with a factor of 5 it raises `usual` by 40%, so a new normal
is accepted after some alarms, but one runaway minute does not teach the watch that runaways are usual.

What it cannot see: a runaway within the first `min_minutes` (it is taken for the normal case); a slow rise; spend below the
floor; a loop on one tier that hides in a larger normal spend of the same tier and key; one job among several (jobs
begin with no history: they have `--max-usd`). What a dead router held is booked as spent at once and is not spend per minute, so
the ledger does not tell it here. Where clocks of two budget actors differ by more than a minute, minutes are cut into
pieces and it sees less. It bounds nothing: that is what limits are for.

The clock of the ledger may step. A minute back belongs to the minute that runs; a larger step begins a new one.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from actors.messages import Amount

__all__ = ["Anomaly", "HaltRow", "PaceRow", "PaceRules", "Watch", "in_words", "shown", "spend", "utc"]

UNITS = ("usd", "tokens")
"""In the order in which they are judged: where both are out of bounds, people ask for the money."""
RECENT = 0.1
"""The weight of the newest minute once there are ten."""


class PaceRules(NamedTuple):
    """The settings of `budget.anomaly` in whole units."""

    factor: float
    floor: Amount
    min_minutes: int
    stop: bool = False


class PaceRow(NamedTuple):
    """How fast a watched scope spends: the minute that runs, and what is usual for it. One row a scope."""

    scope: str
    minute: int = 0
    """Minutes since 1970."""
    tokens: int = 0
    usd_micros: int = 0
    usual_tokens: float = 0.0
    usual_usd_micros: float = 0.0
    minutes: int = 0
    """How many minutes of history stand behind `usual`."""
    alarmed: int = 0
    """The last minute that was an anomaly; 0: none was."""


class HaltRow(NamedTuple):
    """A scope that is granted nothing until somebody lets it go on."""

    scope: str
    since: float
    """Unix seconds."""
    reason: str


class Anomaly(NamedTuple):
    """A minute that spent far more than is usual. Amounts in tokens or micro-dollars."""

    scope: str
    unit: str
    """`tokens` or `usd`."""
    spent: int
    """In this minute, up to the report that passed the threshold."""
    usual: int
    threshold: int
    minute: int
    """Minutes since 1970."""
    stopped: bool


# -- the rules -----------------------------------------------------------------------------------------------------


def spend(pace: PaceRow, minute: int, amount: Amount, rules: PaceRules) -> tuple[PaceRow, Anomaly | None]:
    """Add what was spent in `minute`; the anomaly that makes, if it is one."""
    if not pace.minute - 1 <= minute <= pace.minute:
        pace = _learnt(pace, rules)._replace(minute=minute, tokens=0, usd_micros=0)
    pace = pace._replace(tokens=pace.tokens + amount.tokens, usd_micros=pace.usd_micros + amount.usd_micros)
    if pace.minutes < rules.min_minutes or pace.alarmed == pace.minute:
        return pace, None
    most = _thresholds(pace, rules)
    for unit in UNITS:
        spent, usual, threshold = _of(unit, pace.tokens, pace.usd_micros), _usual(pace, unit), _of(unit, *most)
        if spent > threshold:
            anomaly = Anomaly(pace.scope, unit, spent, round(usual), threshold, pace.minute, rules.stop)
            return pace._replace(alarmed=pace.minute), anomaly
    return pace, None


def resumed(pace: PaceRow, rules: PaceRules) -> PaceRow:
    """Somebody who knows has seen the running minute and lets it go on: from here on it is usual, up to the threshold."""
    tokens, usd_micros = _clipped(pace, rules)
    return pace._replace(
        tokens=0,
        usd_micros=0,
        usual_tokens=max(pace.usual_tokens, tokens),
        usual_usd_micros=max(pace.usual_usd_micros, usd_micros),
    )


def _learnt(pace: PaceRow, rules: PaceRules) -> PaceRow:
    """The running minute becomes history."""
    if not pace.tokens and not pace.usd_micros:
        return pace
    if pace.minutes >= rules.min_minutes:
        tokens, usd_micros = _clipped(pace, rules)
    else:
        tokens, usd_micros = pace.tokens, pace.usd_micros  # before there is a verdict, nothing can be out of bounds
    weight = max(RECENT, 1 / (pace.minutes + 1))
    return pace._replace(
        usual_tokens=pace.usual_tokens + weight * (tokens - pace.usual_tokens),
        usual_usd_micros=pace.usual_usd_micros + weight * (usd_micros - pace.usual_usd_micros),
        minutes=pace.minutes + 1,
    )


def _thresholds(pace: PaceRow, rules: PaceRules) -> Amount:
    return Amount(
        int(rules.factor * max(pace.usual_tokens, rules.floor.tokens)),
        int(rules.factor * max(pace.usual_usd_micros, rules.floor.usd_micros)),
    )


def _clipped(pace: PaceRow, rules: PaceRules) -> Amount:
    most = _thresholds(pace, rules)
    return Amount(min(pace.tokens, most.tokens), min(pace.usd_micros, most.usd_micros))


def _usual(pace: PaceRow, unit: str) -> float:
    return pace.usual_usd_micros if unit == "usd" else pace.usual_tokens


def _of(unit: str, tokens: int, usd_micros: int) -> int:
    return usd_micros if unit == "usd" else tokens


# -- the ledger's part that watches --------------------------------------------------------------------------------


class Watch:
    """The paces and halts of a ledger, and which of them its store does not know yet."""

    def __init__(self, rules: PaceRules | None) -> None:
        """`rules` None: nothing is watched, but halts hold."""
        self._rules = rules
        self._paces: dict[str, PaceRow] = {}
        self._halts: dict[str, HaltRow] = {}
        self._changed_paces: set[str] = set()
        self._changed_halts: set[str] = set()
        self._found: list[Anomaly] = []

    def load(self, paces: Iterable[PaceRow], halts: Iterable[HaltRow]) -> None:
        """Carry on from a store."""
        self._paces = {row.scope: row for row in paces}
        self._halts = {row.scope: row for row in halts}

    @property
    def paces(self) -> tuple[PaceRow, ...]:
        return tuple(sorted(self._paces.values()))

    @property
    def halts(self) -> tuple[HaltRow, ...]:
        return tuple(sorted(self._halts.values()))

    def spend(self, scope: str, amount: Amount, now: float) -> None:
        """Take in what a watched scope has spent; a halted one is not judged, its minute is kept for `resume`."""
        if self._rules is None or scope in self._halts:
            return
        before = self._paces.get(scope) or PaceRow(scope)
        self._paces[scope], anomaly = spend(before, int(now // 60), amount, self._rules)
        self._changed_paces.add(scope)
        if anomaly is not None:
            self._found.append(anomaly)
            if anomaly.stopped:
                usual = shown(anomaly.usual, anomaly.unit)
                self.halt(scope, f"{shown(anomaly.spent, anomaly.unit)} this minute, usually {usual}", now)

    def halt(self, scope: str, reason: str, now: float) -> None:
        """Grant nothing more to a scope. One that is halted already keeps its first reason."""
        if scope not in self._halts:
            self._halts[scope] = HaltRow(scope, now, reason)
            self._changed_halts.add(scope)

    def resume(self, scope: str) -> bool:
        """Let a scope go on; False if it was not halted."""
        if self._halts.pop(scope, None) is None:
            return False
        self._changed_halts.add(scope)
        pace = self._paces.get(scope)
        if pace is not None and self._rules is not None:
            self._paces[scope] = resumed(pace, self._rules)
            self._changed_paces.add(scope)
        return True

    def halt_of(self, scopes: Iterable[str]) -> HaltRow | None:
        """The first halt among these scopes."""
        return next((self._halts[scope] for scope in scopes if scope in self._halts), None) if self._halts else None

    def found(self) -> tuple[Anomaly, ...]:
        """The anomalies since the last call."""
        found, self._found = tuple(self._found), []
        return found

    def changes(self) -> tuple[tuple[PaceRow, ...], tuple[HaltRow, ...], tuple[str, ...]]:
        """Rows for the store since the last call: paces, halts, and the scopes whose halt has ended."""
        paces = tuple(self._paces[scope] for scope in sorted(self._changed_paces))
        halts = tuple(self._halts[scope] for scope in sorted(self._changed_halts) if scope in self._halts)
        ended = tuple(sorted(self._changed_halts - self._halts.keys()))
        self._changed_paces.clear()
        self._changed_halts.clear()
        return paces, halts, ended


# -- in words ------------------------------------------------------------------------------------------------------


def shown(amount: int, unit: str) -> str:
    """Tokens or micro-dollars as people read them; of dollars below one cent as much as tells them from nothing."""
    if unit != "usd":
        return f"{amount:,} tokens"
    if amount >= 10_000 or not amount:
        return f"${amount / 1e6:,.2f}"
    whole, _, cents = f"{amount / 1e6:.{4 if amount >= 1000 else 6}f}".partition(".")
    return f"${whole}.{cents.rstrip('0'):0<2}"


def utc(at: float, now: float) -> str:
    """A time of day, with its date where that is not today's."""
    moment, today = datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(now, UTC)
    return f"{moment:%H:%M} UTC" if moment.date() == today.date() else f"{moment:%Y-%m-%d %H:%M} UTC"


def in_words(anomaly: Anomaly) -> str:
    """One line for logs and people."""
    scope, unit, spent, usual, threshold, minute, stopped = anomaly
    return (
        f"spend anomaly: {scope.replace(':', ' ', 1)} spent {shown(spent, unit)} in the minute of "
        f"{datetime.fromtimestamp(minute * 60, UTC):%H:%M} UTC, usually {shown(usual, unit)}, "
        f"alarm above {shown(threshold, unit)}"
        + (f'; it was stopped, "raycade budget resume {scope}" lets it go on' if stopped else "")
    )
