"""`raycade status --watch`: a live view of what runs with this state_dir, until Ctrl-C.

    each second: running_jobs -> /status and /metrics of each observer -> Rates -> view() -> the terminal

What is so now comes from /status; rates are differences of /metrics' counters over the last seconds. It changes nothing, and
what it costs a job is one scrape a second.
"""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from actors.budget.anomaly import shown
from actors.errors import ConfigError
from actors.events import BOUNDS_S
from actors.observer.history import quantile
from runtime.batch.scene import plain
from runtime.batch.summary import dollars, rows, short, span
from runtime.config import load_config
from runtime.running import Entry, running_jobs
from runtime.status import STYLES, Status, asked, fetched, requests_line

__all__ = ["Rates", "TierRates", "view", "watch"]

EVERY_S = 1.0
OVER_S = 15.0
"""Rates are of the last seconds."""
BUDGET_OVER_S = 60.0
"""Of budgets, over a longer time: their figures come every two seconds, and in steps."""
EVENTS = 8
WIDE = 110
BAR, NARROW_BAR = 24, 10
WORST = ("out", "restarting", "open", "cooling", "half-open", "starting", "closed")

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


class TierRates(NamedTuple):
    rows_per_s: float
    tokens_per_s: float
    usd_per_h: float
    refused: int
    """Calls that were refused for their rate (429) in the last seconds."""
    p50_s: float | None
    p95_s: float | None
    """Of the answers of the tier's model; None when there were none."""


class Rates:
    """What counters say of the last seconds. No clock: `now` is an argument."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Samples]] = deque()
        self._spent: dict[tuple[str, str, str], deque[tuple[float, int]]] = {}

    def take(self, text: str, now: float) -> None:
        """Take in a scrape."""
        self._seen.append((now, _samples(text)))
        while len(self._seen) > 2 and now - self._seen[1][0] >= OVER_S:
            self._seen.popleft()

    def take_budgets(self, budgets: Iterable[Status], now: float) -> None:
        """Take in what budgets have spent; a window that turned begins anew."""
        for row in budgets:
            seen = self._spent.setdefault((row["scope"], row["window"], row["unit"]), deque())
            if seen and row["spent"] < seen[-1][1]:
                seen.clear()
            seen.append((now, row["spent"]))
            while len(seen) > 2 and now - seen[1][0] >= BUDGET_OVER_S:
                seen.popleft()

    def tier(self, name: str, model: str) -> TierRates:
        requests = self._grown("raycade_requests_total", tier=name, outcome="ok")
        refused = self._grown("raycade_attempts_total", tier=name, kind="rate_limited")
        tokens = self._grown("raycade_tier_tokens_total", tier=name)
        cost = self._grown("raycade_tier_cost_dollars_total", tier=name)
        span_s = self._span_s()
        per_s = 1 / span_s if span_s else 0.0
        return TierRates(
            requests * per_s,
            tokens * per_s,
            cost * per_s * 3600,
            round(refused),
            self._quantile(0.5, model),
            self._quantile(0.95, model),
        )

    def lasts_s(self, row: Status) -> float | None:
        """For how long what is left of a budget lasts at the present pace; None: for ever, or nobody knows."""
        seen = self._spent.get((row["scope"], row["window"], row["unit"]))
        if row["limit"] is None or not seen or seen[-1][0] - seen[0][0] < 5.0:
            return None
        pace = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
        left: float = max(0, row["limit"] - row["spent"])
        return left / pace if pace > 0 else None

    def _span_s(self) -> float:
        return self._seen[-1][0] - self._seen[0][0] if len(self._seen) > 1 else 0.0

    def _grown(self, name: str, **labels: str) -> float:
        """By how much counters have grown, those together that have these labels."""
        if len(self._seen) < 2:
            return 0.0
        before, wanted = self._seen[0][1], set(labels.items())
        return sum(
            max(0.0, value - before.get(key, 0.0))
            for key, value in self._seen[-1][1].items()
            if key[0] == name and wanted <= set(key[1])
        )

    def _quantile(self, share: float, model: str) -> float | None:
        name = "llm_request_duration_seconds_bucket"
        below = [self._grown(name, model=model, le=f"{bound:g}") for bound in BOUNDS_S]
        below.append(self._grown(name, model=model, le="+Inf"))
        return quantile([count - before for before, count in pairwise((0.0, *below))], share)


def _samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        if family.type in ("counter", "histogram")
        for sample in family.samples
    }


# -- the view ------------------------------------------------------------------------------------------------------


def watch(config_file: str | None, console: Console | None = None) -> int:
    """Show until Ctrl-C, which is how one leaves; exit code. Raises ConfigError."""
    config = load_config(config_file, os.environ, check_keys=False)
    console = console or Console(highlight=False)
    if not console.is_terminal:
        raise ConfigError("needs a terminal; leave it out, or use --json", key="--watch")
    kept: dict[str, Rates] = {}
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                parts = list(_look(config.state_dir, kept, console.width))
                live.update(Group(*parts), refresh=True)
                time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return 0


def _look(state_dir: str, kept: dict[str, Rates], width: int) -> Iterator[RenderableType]:
    entries = running_jobs(state_dir)
    for name in kept.keys() - {entry.name for entry in entries}:
        del kept[name]
    if not entries:
        yield Text(f"nothing is running with state_dir {state_dir}; this goes on when something does. Ctrl-C ends it.")
    for entry in entries:
        told, rates = asked(entry), kept.setdefault(entry.name, Rates())
        if told is not None:
            now = time.monotonic()
            rates.take_budgets(told["budgets"], now)
            if (text := fetched(entry, "/metrics")) is not None:
                rates.take(text, now)
        yield from view(entry, told, rates, time.time(), width)


def view(entry: Entry, told: Status | None, rates: Rates, now: float, width: int) -> Iterator[RenderableType]:
    """One job as it is now: progress, tiers, budgets, what happened last."""
    yield Text.assemble(
        (f"{entry.kind} {entry.run}", "bold"), f"  {plain(entry.output)}, for {span(max(0.0, now - entry.started))}"
    )
    if told is None:
        yield Text("  its observer does not answer; it may be restarting" if entry.address else "  starting", "yellow")
        return
    for job in told["jobs"]:
        yield _progress(job)
        yield from (Text(f"  {plain(notice)}", style="yellow") for notice in job["notices"])
    if gateways := told.get("gateways"):
        yield requests_line(gateways)
        notices = dict.fromkeys(notice for gateway in gateways for notice in gateway["notices"])
        yield from (Text(f"  {plain(notice)}", style="yellow") for notice in notices)
    yield Text()
    yield _tiers(told, rates, width)
    budgets = [row for row in told["budgets"] if row["limit"] is not None]
    if budgets or told["halts"] or told["anomalies"]:
        yield Text()
    for scope, reason in told["halts"]:
        yield Text(f"  {scope} is stopped ({plain(reason)}) until: raycade budget resume {scope}", style="bold red")
    for scope in told["anomalies"]:
        yield Text(f"  {scope} spends far more than usual", style="bold red")
    if budgets:
        yield _budgets(budgets, rates, told["age_s"], width)
    if told.get("events", ()):
        yield Text()
    for ago_s, text in told.get("events", ())[-EVENTS:]:
        line = Text(f"  {span(round(ago_s + told['age_s'])) + ' ago':>14}  ", style="dim")
        line.append(plain(text), style="not dim")
        line.truncate(width, overflow="ellipsis")
        yield line
    yield Text()


def _progress(job: Status) -> Text:
    fraction, total = job["fraction"], job["total"]
    of = f" of {total:,}" if total is not None else ""
    parts = [f"{job['done']:,}{of} rows", f"{job['rows_per_s']:,.0f} rows/s", f"{job['failed']:,} failed"]
    parts += [f"{job['coalesced']:,} coalesced", dollars(job["usd_micros"])]
    if job["waiting_for_budget"]:
        parts.append(f"{rows(job['waiting_for_budget'])} wait for budget")
    parts.append(f"done in about {span(round(job['eta_s']))}" if job["eta_s"] is not None else "end unknown")
    bar = Text("  ") if fraction is None else _bar(fraction, "green").append(f" {fraction:>4.0%}  ")
    return bar.append(", ".join(parts))


def _bar(share: float, style: str, length: int = BAR) -> Text:
    filled = min(length, int(share * length))
    return Text("  ").append("━" * filled, style=style).append("─" * (length - filled), style="dim")


def _tiers(told: Status, rates: Rates, width: int) -> Table:
    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    names = ["  tier", "state", "in flight", "rows/s", "p50", "p95", "429s", *(["tokens/s"] if wide else []), "$/h"]
    for name in names:
        table.add_column(name, justify="left" if name in ("  tier", "state") else "right", header_style="dim")
    if wide:
        table.add_column("why", header_style="dim", no_wrap=True, overflow="ellipsis")
    for tier in told["tiers"]:
        actors, found = tier["actors"], rates.tier(tier["name"], tier["model"])
        limit, queued = sum(actor["limit"] for actor in actors), sum(actor["queued"] for actor in actors)
        calls = f"{sum(actor['in_flight'] for actor in actors)}/{limit}" + (f" +{queued}" if queued else "")
        cells = [f"{found.rows_per_s:,.1f}", _short_s(found.p50_s), _short_s(found.p95_s), f"{found.refused:,}"]
        cells += [short(round(found.tokens_per_s))] if wide else []
        cells.append(f"{found.usd_per_h:,.2f}")
        why = next((plain(actor["why"], 160) for actor in actors if actor["why"]), "")
        table.add_row(
            f"  {tier['name']}", _state(actors, told["age_s"]), calls, *cells, *([Text(why, "yellow")] if wide else [])
        )
    return table


def _short_s(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _state(actors: Iterable[Status], age_s: float) -> Text:
    """Of a tier: that of its worst actor, and how many are so."""
    ordered = sorted(actors, key=lambda actor: WORST.index(actor["state"]))
    if not ordered:
        return Text("starting", style="yellow")
    worst = ordered[0]
    state = worst["state"]
    if state == "closed":
        return Text("ok", style="green")
    alike = sum(actor["state"] == state for actor in ordered)
    word = state if alike == len(ordered) else f"{alike} of {len(ordered)} {state}"
    if (left_s := worst["again_in_s"]) is not None and left_s > age_s:
        word += f", {span(round(left_s - age_s))}"
    return Text(word, style=STYLES.get(state, "yellow"))


def _budgets(budgets: Iterable[Status], rates: Rates, age_s: float, width: int) -> Table:
    """A bar for each: spent of the limit, and whether it lasts until its window turns. In a narrow terminal each has one
    line all the same: a shorter bar, short numbers, and of the two times the one that comes first."""
    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for row in budgets:
        limit, spent, unit = row["limit"], row["spent"], row["unit"]
        share = spent / limit if limit else 1.0
        lasts_s, turns_in_s = rates.lasts_s(row), row["turns_in_s"]
        turns_in_s = None if turns_in_s is None else max(0.0, turns_in_s - age_s)
        early = lasts_s is not None and (turns_in_s is None or lasts_s < turns_in_s)
        style = "red" if share >= 0.9 else "yellow" if early else "green"
        outlook = (
            []
            if lasts_s is None
            else [f"{'used up' if early else 'would last'} {'in ' if early else ''}{span(round(lasts_s))}"]
        )
        outlook += [] if turns_in_s is None else [f"turns in {span(round(turns_in_s))}"]
        if not wide:
            outlook = outlook[:1] if early else outlook[-1:]
        amount = f"{shown(spent, unit)} of {shown(limit, unit)}"
        if not wide and unit == "tokens":
            amount = f"{short(spent)} of {short(limit)} tokens"
        window = (
            "in all" if row["window"] == "total" else f"this {row['window']}" if row["window"] == "hour" else "today"
        )
        table.add_row(
            f"  {row['scope']} {window}",
            _bar(share, style, BAR if wide else NARROW_BAR),
            f"{share:.0%}",
            amount,
            Text(", ".join(outlook), style if early else ""),
        )
    return table
