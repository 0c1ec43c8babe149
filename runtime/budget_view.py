"""What `raycade budget show` draws: each window as a bar, with its numbers and when it turns.

    Snapshot (actors/budget/rows.py) -> drawn() -> lines of text

Lines fit 80 columns with everyday numbers, say all without colour, and fall back to ASCII where nothing else can be shown.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.text import Text

from actors.budget.anomaly import HaltRow, PaceRow, shown, utc
from actors.budget.limits import WINDOWS
from actors.budget.rows import LimitStatus, Snapshot
from runtime.batch.summary import span

__all__ = ["bar", "drawn", "per"]

KINDS = ("all", "tier", "key", "job")
"""Scopes in the order in which they are shown."""
NAMES = {"hour": "this hour", "day": "today", "total": "in all"}
STYLES = ("bold green", "yellow", "cyan", "dim")
"""Of the bar's parts: spent, unknown, reserved, left."""
CHARS, ASCII = "█▓▒·", "#?=."
LEAST_BAR, MOST_BAR = 10, 40
BESIDE_BAR = 60
"""Columns that the rest of a bar's line takes with everyday numbers."""


def per(window: str) -> str:
    return "in all" if window == "total" else f"per {window}"


def drawn(snapshot: Snapshot, now: float, width: int, ascii_only: bool = False) -> Iterator[Text]:
    """All scopes that have a limit, have spent something today, or are stopped; then the legend."""
    scopes: dict[str, list[LimitStatus]] = {}
    for row in snapshot.limits:
        scopes.setdefault(row.scope, []).append(row)
    halts = {halt.scope: halt for halt in snapshot.halts}
    paces = {pace.scope: pace for pace in snapshot.paces}
    for scope in halts:
        scopes.setdefault(scope, [])
    chars = ASCII if ascii_only else CHARS
    shown_scopes = [scope for scope in sorted(scopes, key=_order) if scope in halts or _matters(scope, scopes[scope])]
    limited = False
    for scope in shown_scopes:
        yield Text(scope, style="bold")
        if scope in halts:
            yield _halted(halts[scope], now)
        yield _figures(scope, scopes[scope])
        for row in sorted(scopes[scope], key=lambda row: (list(WINDOWS).index(row.window), row.unit)):
            if row.limit is not None:
                limited = True
                yield from _limit(row, row.limit, width, chars)
        if scope in paces and paces[scope].minutes:
            yield _pace(paces[scope])
        yield Text("")
    if not shown_scopes:
        yield Text("nothing has been spent today, and there is no limit")
    if limited:
        yield from _legend(chars)
    if left_out := len(scopes) - len(shown_scopes):
        yield Text(f"{left_out} without limit and without spend today left out; --json has them", style="dim")


def bar(row: LimitStatus, limit: int, width: int, chars: str = CHARS) -> Text:
    """Spent, of it unknown, reserved, left. What is there at all has at least one place, as far as places reach."""
    used = row.spent + row.reserved
    whole = max(limit, used, 1)
    parts = (row.spent - row.unknown, row.unknown, row.reserved, whole - used)
    places = [max(1, part * width // whole) if part else 0 for part in parts]
    widest = max(range(len(parts)), key=lambda index: parts[index])
    places[widest] = max(0, places[widest] + width - sum(places))
    text = Text()
    for char, count, style in zip(chars, places, STYLES, strict=True):
        text.append(char * count, style=style)
    return text


def _order(scope: str) -> tuple[int, str]:
    return KINDS.index(scope.partition(":")[0]), scope


def _matters(scope: str, rows: list[LimitStatus]) -> bool:
    today = any(row.reserved or (row.spent and row.window == "day") for row in rows)
    limited = any(row.limit is not None for row in rows)
    if scope.startswith("job:"):  # of a job that is over, its limit is no news any more
        return today or (limited and not any(row.spent for row in rows))
    return today or limited or (scope == "all" and any(row.spent for row in rows))


def _halted(halt: HaltRow, now: float) -> Text:
    return Text(
        f"  stopped at {utc(halt.since, now)}: {halt.reason}.\n"
        f'  Nothing is granted until somebody says "raycade budget resume {halt.scope}".',
        style="bold red",
    )


def _figures(scope: str, rows: list[LimitStatus]) -> Text:
    """What was spent, whatever the limits: `spent this hour $0.12, 3,400 tokens`; of a job over its life."""
    windows = ("total",) if scope.startswith("job:") else ("hour", "day")
    spent = {(row.window, row.unit): row.spent for row in rows}
    parts = [
        f"{NAMES[window]} {shown(spent.get((window, 'usd'), 0), 'usd')}, "
        f"{shown(spent.get((window, 'tokens'), 0), 'tokens')}"
        for window in windows
        if spent.get((window, "usd")) or spent.get((window, "tokens"))
    ]
    return Text(f"  spent {'; '.join(parts)}" if parts else "  nothing spent today")


def _limit(row: LimitStatus, limit: int, width: int, chars: str) -> Iterator[Text]:
    line = Text(f"  {row.window:<5} {row.unit:<6} ")
    line.append_text(bar(row, limit, min(MOST_BAR, max(LEAST_BAR, width - BESIDE_BAR)), chars))
    turns = "never turns" if row.turns_in_s is None else f"turns in {span(max(0.0, row.turns_in_s))}"
    line.append(f" {_percent(row.spent, limit)} of {_bare(limit, row.unit)}, {turns}")
    line.append(" *" if row.set_at_run_time else "")
    yield line
    left = limit - row.spent - row.reserved
    parts = [
        f"spent {_bare(row.spent, row.unit)}" + (f" ({_bare(row.unknown, row.unit)} unknown)" if row.unknown else ""),
        f"reserved {_bare(row.reserved, row.unit)}",
        f"left {_bare(left, row.unit)}" if left >= 0 else f"over by {_bare(-left, row.unit)}",
    ]
    yield Text(f"               {', '.join(parts)}")


def _percent(spent: int, limit: int) -> str:
    if not limit:
        return "100%"
    return "<1%" if 0 < spent * 100 < limit else f"{spent * 100 // limit}%"


def _bare(amount: int, unit: str) -> str:
    return shown(amount, unit).removesuffix(" tokens")


def _pace(pace: PaceRow) -> Text:
    usual = f"{shown(round(pace.usual_usd_micros), 'usd')}, {shown(round(pace.usual_tokens), 'tokens')}"
    alarmed = datetime.fromtimestamp(pace.alarmed * 60, UTC)
    last = f"; last anomaly {alarmed:%Y-%m-%d %H:%M} UTC" if pace.alarmed else ""
    return Text(f"  a usual minute: {usual}{last}", style="dim")


def _legend(chars: str) -> Iterator[Text]:
    words = zip(chars, ("spent", "spent, outcome unknown", "reserved", "left"), strict=True)
    yield Text("  ".join([*(f"{char} {word}" for char, word in words), "* set at run time"]))
