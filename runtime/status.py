"""`raycade status`: what runs with this state_dir, and how it fares.

    running_jobs(state_dir) -> address of each job's observer -> GET /status -> lines, or JSON

Needs no Ray and changes nothing. Jobs on other machines keep their own state_dir, and are shown there.
"""

import json
import os
import sys
import time
import webbrowser
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from actors.budget.anomaly import shown
from runtime.batch.scene import plain
from runtime.batch.summary import dollars, kinds_in_words, short, span
from runtime.config import load_config
from runtime.running import Entry, running_jobs

__all__ = ["STYLES", "Status", "asked", "drawn", "fetched", "pages", "requests_line", "status"]

TIMEOUT_S = 3.0
STYLES = {"closed": "green", "half-open": "cyan", "open": "red", "out": "bold red"}
"""Of states; the others are yellow."""
SILENT_S = 5.0
"""A report that is older than this is worth a word."""

Status = Mapping[str, Any]


def status(config_file: str | None, as_json: bool, console: Console | None = None) -> int:
    """Print how each running job fares; exit code."""
    config = load_config(config_file, os.environ, check_keys=False)
    jobs = [(entry, asked(entry)) for entry in running_jobs(config.state_dir)]
    if as_json:
        print(json.dumps({"jobs": [{**entry._asdict(), "status": told} for entry, told in jobs]}, indent=2))
        return 0
    console = console or Console(highlight=False)
    if not jobs:
        console.print(f"nothing is running with state_dir {config.state_dir}", markup=False, soft_wrap=True)
    for entry, told in jobs:
        for part in drawn(entry, told, time.time()):
            console.print(part, soft_wrap=isinstance(part, Text) and not console.is_terminal)
    return 0


def pages(config_file: str | None) -> int:
    """Say where the page of each running job or gateway is, and open the first where there is a browser; exit code."""
    config = load_config(config_file, os.environ, check_keys=False)
    entries = running_jobs(config.state_dir)
    served = [entry for entry in entries if entry.address]
    for entry in served:
        print(f"{entry.address}/ui  {entry.kind} {entry.run}")
    if not served:
        why = "it serves no metrics (telemetry.metrics_port)" if entries else "nothing is running"
        print(f"no page: {why} with state_dir {config.state_dir}", file=sys.stderr)
        return 1
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(f"{served[0].address}/ui")
    return 0


def asked(entry: Entry) -> dict[str, Any] | None:
    """What the job's observer says; None when it does not answer."""
    text = fetched(entry, "/status")
    try:
        told: dict[str, Any] | None = None if text is None else json.loads(text)
    except ValueError:
        return None
    return told


def fetched(entry: Entry, path: str) -> str | None:
    """What the job's observer serves under a path; None when it does not answer."""
    if not entry.address:
        return None
    try:
        # no proxy: it is this machine that is asked
        with build_opener(ProxyHandler({})).open(f"{entry.address}{path}", timeout=TIMEOUT_S) as answer:
            text: str = answer.read().decode()
    except (URLError, OSError, ValueError):
        return None
    return text


def drawn(entry: Entry, told: Status | None, now: float) -> Iterator[RenderableType]:
    """One job or gateway: its progress, its tiers, its budgets."""
    head = Text(f"{entry.kind} {entry.run}", style="bold")
    head.append(
        f"  {plain(entry.output)}, running {span(max(0.0, now - entry.started))}, pid {entry.pid}", style="none"
    )
    yield head
    if told is None:
        why = "its observer does not answer; it may be restarting" if entry.address else "no metrics are served for it"
        yield Text(f"  {why}", style="yellow")
        return
    yield from (_progress(job) for job in told["jobs"])
    gateways = told.get("gateways", ())
    if gateways:
        yield requests_line(gateways)
    notices = dict.fromkeys(notice for each in (*told["jobs"], *gateways) for notice in each["notices"])
    yield from (Text(f"  {plain(notice, 300)}", style="yellow") for notice in notices)
    if told["age_s"] > SILENT_S:
        said = f"  all of this was so {span(told['age_s'])} ago: the {entry.kind} has said nothing since"
        yield Text(said, style="yellow")
    yield _tiers(told["tiers"], told["age_s"])
    for scope, reason in told["halts"]:
        yield Text(f"  {scope} is stopped ({plain(reason)}) until: raycade budget resume {scope}", style="bold red")
    for scope in told["anomalies"]:
        yield Text(f"  {scope} spends far more than usual", style="bold red")
    yield from (_budget(row, told["age_s"]) for row in told["budgets"] if row["limit"] is not None)
    yield Text(f"  metrics at {entry.address}/metrics", style="dim")


def _progress(job: Status) -> Text:
    total, fraction = job["total"], job["fraction"]
    done = f"{job['done']:,} of {total:,} rows" if total is not None else f"{job['done']:,} rows"
    parts = [
        f"  {done} done" + (f" ({fraction:.0%})" if fraction is not None else ""),
        f"{job['rows_per_s']:,.0f} rows/s",
        f"{job['failed']:,} failed",
        f"{job['coalesced']:,} coalesced",
        f"{job['in_flight']:,} in flight",
        f"{short(job['tokens'])} tokens",
        dollars(job["usd_micros"]),
    ]
    if job["eta_s"] is not None:
        parts.append(f"done in about {span(job['eta_s'])}")
    if job["waiting_for_budget"]:
        parts.append(f"{job['waiting_for_budget']:,} wait for budget")
    return Text(", ".join(parts))


def requests_line(gateways: Iterable[Status]) -> Text:
    """What a gateway's replicas do, in all."""
    replicas = list(gateways)

    def total(name: str) -> Any:
        return sum(replica[name] for replica in replicas)

    many = f" over {len(replicas)} replicas" if len(replicas) > 1 else ""
    parts = [
        f"  {total('requests_per_s'):,.1f} requests/s{many}",
        f"{total('in_flight'):,} in hand ({total('streams'):,} streams)",
        f"{total('answered'):,} answered",
        f"{total('failed'):,} failed",
        f"{total('coalesced'):,} coalesced",
        f"{short(total('tokens'))} tokens",
        dollars(total("usd_micros")),
    ]
    if waiting := total("waiting_for_budget"):
        parts.append(f"{waiting:,} wait for budget")
    return Text(", ".join(parts))


def _tiers(tiers: Iterable[Status], age_s: float) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("  tier", "actor", "state", "since", "tried again", "in flight", "answered", "failed", "why"):
        table.add_column(name, justify="right" if name in ("in flight", "answered") else "left", header_style="dim")
    for tier in tiers:
        calls = (f"{tier['answered']:,}", kinds_in_words(tier["kinds"]) or "0")
        if not tier["actors"]:
            table.add_row(f"  {tier['name']}", "", "starting", "", "", "", *calls, "")
        for number, actor in enumerate(tier["actors"]):
            name, told = ("", ("", "")) if number else (f"  {tier['name']}", calls)
            table.add_row(
                name, Text(plain(actor["actor"])), *_actor(actor, age_s), *told, Text(plain(actor["why"], 160))
            )
    return table


def _actor(actor: Status, age_s: float) -> tuple[Text | str, ...]:
    """State, since when, when it is tried again, calls in flight of those it may have."""
    left_s = actor["again_in_s"]
    again = "" if left_s is None else f"in {span(max(0.0, left_s - age_s))}" if left_s > age_s else "now"
    calls = f"{actor['in_flight']}/{actor['limit']}" + (f" +{actor['queued']}" if actor["queued"] else "")
    state = Text(actor["state"], style=STYLES.get(actor["state"], "yellow"))
    return state, span(round(actor["since_s"] + age_s)), again, calls


def _budget(row: Status, age_s: float) -> Text:
    """One line: spent, of the limit, reserved, left, when it turns."""
    limit, spent, reserved, unit = row["limit"], row["spent"], row["reserved"], row["unit"]
    percent = f"{spent * 100 // limit}%" if limit else "100%"
    turns_in_s = row["turns_in_s"]
    turns = "" if turns_in_s is None else f", turns in {span(max(0.0, turns_in_s - age_s))}"
    window = "in all" if row["window"] == "total" else f"this {row['window']}" if row["window"] == "hour" else "today"
    full = spent + reserved >= limit
    return Text(
        f"  {row['scope']} {window}: {shown(spent, unit)} of {shown(limit, unit)} ({percent}), "
        f"{shown(reserved, unit)} reserved{turns}",
        style="yellow" if full else "",
    )
