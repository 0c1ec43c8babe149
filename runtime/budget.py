"""`raycade budget show | set | halt | resume`: the ledger, looked at and changed from outside.

Each command opens the ledger's store through a BudgetActor of its own, as a plain object: no Ray, no running job is needed.
That is safe while jobs run, since every commit is made on the newest version of the store (actors/budget/store.py); they
hear of it with their next exchange. Nothing here makes a ledger where there is none, but `set` and `halt`, which must.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, TypeVar

from rich.console import Console

from actors.budget.actor import BudgetActor
from actors.budget.anomaly import shown
from actors.budget.limits import UNITS, WINDOWS, LimitKey
from actors.budget.rows import LimitStatus, Snapshot
from actors.budget.store import FILE_NAME
from actors.errors import ConfigError
from runtime.budget_view import drawn, per
from runtime.config import Config, load_config

__all__ = ["halt", "parse_limit", "resume", "set_limit", "show"]

T = TypeVar("T")

_AMOUNT = re.compile(r"(\$?) ?(\d+|\d{1,3}(?:[,_]\d{3})+)(\.\d+)? ?(tokens?|usd|\$)?", re.I)
_EXPECTED = "expected an amount like 500000tokens or 20usd, or none for no limit"
LEAST_PLAIN_TOKENS = 1000
"""A plain number below this is asked back for its unit: a shell makes 0 out of an unquoted $20, and 5 out of $15."""


# -- the commands --------------------------------------------------------------------------------------------------


def show(config_file: str | None, as_json: bool, console: Console | None = None) -> int:
    """Print every window of every scope; exit code."""
    config = _config(config_file)
    missing = _missing(config)
    snapshot = Snapshot((), 0) if missing else _ask(config, lambda ledger: ledger.show())
    if as_json:
        print(json.dumps(_plain(snapshot), indent=2))
        return 0
    console = console or Console(highlight=False)
    if missing:
        console.print(missing, markup=False, soft_wrap=True)
        return 0
    for line in drawn(snapshot, time.time(), console.width, console.options.ascii_only):
        console.print(line, soft_wrap=not console.is_terminal)
    return 0


def set_limit(config_file: str | None, scope: str, window: str, limit: str, unit: str | None = None) -> int:
    """Set a limit, or lift it, and say what it was before; exit code. Raises ConfigError for what cannot be."""
    config = _config(config_file)
    _check_scope(scope, config)
    if window == "request":
        raise ConfigError("the limit of one request stands in raycade.yaml: budget.tokens.per_request", key="WINDOW")
    if window not in WINDOWS:
        raise ConfigError(f"expected {', '.join(WINDOWS)}, found {window[:60]!r}", key="WINDOW")
    amount, units = parse_limit(limit, unit)

    async def set_all(ledger: BudgetActor) -> list[str]:
        before = {row[:3]: row for row in (await ledger.show()).limits}
        lines = []
        for each in units:
            was = before.get((scope, window, each))
            old = None if was is None else was.limit
            if amount is None and old is None and len(units) > 1:
                continue
            await ledger.set_limit(scope, window, each, amount)
            lines.append(_changed(LimitKey(scope, window, each), was, old, amount))
        return lines or [f"{scope} {per(window)}: there was no limit"]

    for line in _ask(config, set_all):
        print(line)
    return 0


def halt(config_file: str | None, scope: str) -> int:
    """Stop all spending of a scope; exit code."""
    config = _config(config_file)
    _check_scope(scope, config)
    _ask(config, lambda ledger: ledger.halt(scope, "by hand"))
    print(f'{scope} is stopped; "raycade budget resume {scope}" lets it go on')
    return 0


def resume(config_file: str | None, scope: str | None) -> int:
    """Let a scope, or all that are stopped, go on; exit code."""
    config = _config(config_file)
    if scope is not None:
        _check_scope(scope, config)
    if missing := _missing(config):
        print(missing)
        return 0
    resumed = _ask(config, lambda ledger: ledger.resume(scope))
    for each in resumed:
        print(f"{each} goes on")
    if not resumed:
        print(f"{scope} is not stopped" if scope else "nothing is stopped")
    return 0


def parse_limit(text: str, unit: str | None = None) -> tuple[int | None, tuple[str, ...]]:
    """Tokens or micro-dollars (None: no limit), and the units it is meant for. Raises ConfigError."""
    if unit is not None and unit not in UNITS:
        raise ConfigError(f"expected {' or '.join(UNITS)}, found {unit[:60]!r}", key="--unit")
    if text.strip().lower() == "none":
        return None, (unit,) if unit else UNITS
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or (found[1] and found[4]):
        raise ConfigError(f"{_EXPECTED}, found {text[:60]!r}", key="LIMIT")
    dollar, whole, fraction, word = found[1], re.sub("[,_]", "", found[2]), found[3] or "", (found[4] or "").lower()
    said = "usd" if dollar or word in ("usd", "$") else "tokens" if word else unit
    if unit is not None and said != unit:
        raise ConfigError(f"{text[:60]!r} is not an amount of {unit}", key="LIMIT")
    if said is None and (int(whole) < LEAST_PLAIN_TOKENS or fraction):
        hint = "write 20usd or '$20' in quotes, since a shell reads $20 as a variable"
        raise ConfigError(f"{text[:60]!r} of what? {_EXPECTED}; {hint}", key="LIMIT")
    if said == "usd":
        return int(Decimal(whole + fraction) * 1_000_000), ("usd",)
    if fraction:
        raise ConfigError(f"tokens are whole, found {text[:60]!r}", key="LIMIT")
    return int(whole), ("tokens",)


# -- inside --------------------------------------------------------------------------------------------------------


def _config(file: str | None) -> Config:
    return load_config(file, os.environ, check_keys=False)


def _missing(config: Config) -> str:
    """What to say when there is no ledger; empty when there is one, or when it lies in a database."""
    if config.ledger is not None or os.path.exists(os.path.join(config.state_dir, FILE_NAME)):
        return ""
    return f"no ledger yet in {config.state_dir}: no job has run with this state_dir"


def _ask(config: Config, question: Callable[[BudgetActor], Awaitable[T]]) -> T:
    async def ask() -> T:
        ledger = BudgetActor(config.budget, config.ledger_place)
        try:
            return await question(ledger)
        finally:
            await ledger.close()

    return asyncio.run(ask())


def _check_scope(scope: str, config: Config) -> None:
    kind, _, name = scope.partition(":")
    if scope != "all" and (kind not in ("tier", "key", "job") or not name):
        raise ConfigError(f"expected all, tier:NAME, key:NAME or job:NAME, found {scope[:80]!r}", key="SCOPE")
    names = [tier.name for tier in config.tiers]
    if kind == "tier" and name not in names:
        raise ConfigError(f"there is no tier {name[:80]!r}; there are: {', '.join(names)}", key="SCOPE")


def _changed(key: LimitKey, was: LimitStatus | None, old: int | None, new: int | None) -> str:
    scope, window, unit = key
    before, after = (f"no {unit} limit" if limit is None else shown(limit, unit) for limit in (old, new))
    spent = 0 if was is None else was.spent
    note = f"{shown(spent, unit)} spent so far"
    if was is None and scope.startswith(("key:", "job:")):
        note = f"nothing has been spent as {scope} yet"
    elif new is not None and spent >= new:
        note += ": nothing more is granted"
    return f"{scope} {per(window)}: {before} -> {after} ({note})"


def _plain(snapshot: Snapshot) -> dict[str, Any]:
    """For machines. Dollars are whole micro-dollars; windows without limit and without spend are left out."""
    limits = []
    for row in snapshot.limits:
        if row.limit is not None or row.spent or row.reserved:
            limits.append({**row._asdict(), "unit": "usd_micros" if row.unit == "usd" else row.unit})
    return {
        "limits": limits,
        "holders": snapshot.holders,
        "halts": [row._asdict() for row in snapshot.halts],
        "paces": [row._asdict() for row in snapshot.paces],
    }
