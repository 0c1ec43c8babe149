"""How well a tier actor finds what its endpoint takes: the real actor and wire against a mock endpoint in its own process.

    python -m benchmarks.capacity [--only WORDS] [--alone] [--json FILE] [--quick]

Each scenario is one mock endpoint and one or two tier actors that always have more to send than they may. No Ray: what is
measured is the tier alone. Nothing is asserted: the aims are printed beside what was measured, met or not.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from rich.console import Console
from rich.table import Table

from actors.lane import Lane
from actors.messages import Answer, Failure, Refusal, TierCall
from actors.settings import TierSettings
from actors.tier.actor import TierActor
from runtime.mock.process import MockProcess

__all__ = ["main"]

WARM_S = 10.0
ALLOWED_PER_S = 400.0
BODY = b'{"model":"m","messages":[{"role":"user","content":"%d"}],"max_tokens":8}'
SLOTS = 64
AT_ONCE = 2
"""Scenarios that run side by side: each takes up to half a core, and as much for its mock."""
HEAVY = ("a queue behind 64 slots, 0.01 s",)
"""Those that take all of it run alone."""


class Seen(NamedTuple):
    """One call that ended: when (seconds since the scenario began), how long it took from being sent, whose it was."""

    at: float
    duration_s: float
    kind: str
    job: int


async def _job(number: int, url: str, setting: Any, ask: int, began: float, start_s: float, end_s: float) -> list[Seen]:
    """One job: an actor of its own, and always `ask` calls waiting or under way."""
    await asyncio.sleep(max(0.0, began + start_s - time.monotonic()))
    settings = TierSettings.model_validate(
        {"name": "t", "model": "m", "base_url": url, "concurrency": setting, "timeout_s": 60}
    )
    actor = TierActor(settings)
    lane: Lane[TierCall, Any] = Lane(f"job-{number}", actor)
    await lane.open(10.0)
    seen: list[Seen] = []

    async def worker(which: int) -> None:
        count = 0
        while time.monotonic() < began + end_s:
            count += 1
            call = TierCall("", "/chat/completions", BODY % (which * 1_000_000 + count), 60.0, 600.0, 600.0, 10)
            done = await lane.call(call, 700.0)
            at = time.monotonic() - began
            match done:
                case Answer():
                    seen.append(Seen(at, done.duration_s, "ok", number))
                case Failure():
                    seen.append(Seen(at, 0.0, done.kind, number))
                case Refusal():
                    await asyncio.sleep(min(1.0, max(0.01, done.retry_in_s)))

    tasks = [asyncio.create_task(worker(which)) for which in range(ask)]
    await asyncio.sleep(max(0.0, began + end_s - time.monotonic()))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await lane.close()
    await actor.close()
    return seen


def _measured(
    scenario: dict[str, Any], end_s: float, setting: Any = "auto", ask: int = 1500, starts: Sequence[float] = (0.0,)
) -> list[Seen]:
    with MockProcess({"tiers": {"default": scenario}}) as mock:

        async def run() -> list[Seen]:
            began = time.monotonic()
            jobs = [_job(job, mock.url, setting, ask, began, start, end_s) for job, start in enumerate(starts)]
            return sorted(one for seen in await asyncio.gather(*jobs) for one in seen)

        return uvloop.run(run())


# -- what is asked of the numbers ----------------------------------------------------------------------------------


def _per_s(seen: Sequence[Seen], begin_s: float, end_s: float, job: int | None = None) -> float:
    return sum(begin_s <= one.at < end_s and one.kind == "ok" and (job is None or one.job == job) for one in seen) / (
        end_s - begin_s
    )


def _refused(seen: Sequence[Seen], begin_s: float, end_s: float) -> float:
    kinds = [one.kind for one in seen if begin_s <= one.at < end_s]
    return sum(kind == "rate_limited" for kind in kinds) / max(1, len(kinds))


def _level_after(seen: Sequence[Seen], since_s: float, until_s: float, per_s: float) -> float | None:
    """How long it took until `per_s` was reached, as a mean of 3 s."""
    at = since_s
    while at + 3.0 <= until_s:
        if _per_s(seen, at, at + 3.0) >= per_s:
            return at - since_s
        at += 0.25
    return None


def _p99(seen: Sequence[Seen], begin_s: float) -> float:
    durations = sorted(one.duration_s for one in seen if one.at >= begin_s and one.kind == "ok")
    return durations[int(0.99 * len(durations))] if durations else 0.0


class Row(NamedTuple):
    """One line of the table."""

    scenario: str
    reached: str
    refused: float | None
    level_s: float | None
    p99: str
    aim: str
    met: bool


Scenario = tuple[str, Callable[[str], Row]]


def _limit(per_s: float, burst: int, tells: str) -> dict[str, Any]:
    limit: dict[str, Any] = {"per_second": per_s, "burst": burst, "tells": "nothing" if tells == "none" else tells}
    if tells != "none":
        limit["retry_after_s"] = 1
    return limit


def _allowance(latency_s: float, burst: int, tells: str) -> Scenario:
    name = f"400/s, burst {burst}, {latency_s:g} s, {_TELLS[tells]}"

    def run(name: str) -> Row:
        end_s = 40.0
        seen = _measured({"latency": latency_s, "rate_limit": _limit(ALLOWED_PER_S, burst, tells)}, end_s)
        got, refused = _per_s(seen, WARM_S, end_s) / ALLOWED_PER_S, _refused(seen, WARM_S, end_s)
        level = _level_after(seen, 0.0, end_s, 0.85 * ALLOWED_PER_S)
        met = got >= 0.85 and refused <= 0.1
        return Row(name, f"{got:.0%}", refused, level, "", ">= 85%, <= 10% refused", met)

    return name, run


_TELLS = {"none": "no header", "retry_after": "Retry-After 1", "all": "x-ratelimit-*"}


def _change(before: float, after: float, latency_s: float, burst: int, tells: str) -> Scenario:
    name = f"{before:g}/s, then {after:g}/s, burst {burst}, {latency_s:g} s, {_TELLS[tells]}"

    def run(name: str) -> Row:
        turn_s, end_s = 25.0, 60.0
        phases = [
            {"until_s": turn_s, "rate_limit": _limit(before, burst, tells)},
            {"rate_limit": _limit(after, burst, tells)},
        ]
        seen = _measured({"latency": latency_s, "phases": phases}, end_s)
        level = _level_after(seen, turn_s, end_s, 0.85 * after)
        got, refused = _per_s(seen, turn_s + 15.0, end_s) / after, _refused(seen, turn_s + 15.0, end_s)
        met = level is not None and level <= 15.0 and refused <= 0.1
        return Row(name, f"{got:.0%}", refused, level, "", "85% within 15 s, <= 10% refused", met)

    return name, run


def _slots(latency: Any, settle_s: float, end_s: float) -> Scenario:
    told = (
        f"lognormal, median {latency['lognormal']['median_s']:g} s" if isinstance(latency, dict) else f"{latency:g} s"
    )
    name = f"a queue behind 64 slots, {told}"

    def run(name: str) -> Row:
        scenario = {"latency": latency, "capacity": SLOTS}
        best = _measured(scenario, end_s, SLOTS, ask=400)
        seen = _measured(scenario, end_s, ask=400)
        got = _per_s(seen, settle_s, end_s) / _per_s(best, settle_s, end_s)
        p99 = _p99(seen, settle_s) / _p99(best, settle_s)
        return Row(
            name,
            f"{got:.1%} of best fixed",
            None,
            None,
            f"{p99:.2f} x ({_p99(seen, settle_s):.3f} s)",
            ">= 95%, p99 <= 1.5 x",
            got >= 0.95 and p99 <= 1.5,
        )

    return name, run


def _shared(what: str, scenario: dict[str, Any], late_s: float) -> Scenario:
    name = f"two jobs, {what}, " + (f"one {late_s:g} s later" if late_s else "started together")

    def run(name: str) -> Row:
        begin_s, end_s = late_s + 15.0, late_s + 75.0
        seen = _measured(scenario, end_s, ask=600, starts=(0.0, late_s))
        rates = [_per_s(seen, begin_s, end_s, job) for job in (0, 1)]
        share = rates[0] / sum(rates)
        told = f"{share:.0%} : {1 - share:.0%} of {sum(rates):.0f}/s"
        return Row(name, told, _refused(seen, begin_s, end_s), None, "", "40% to 60%", 0.4 <= share <= 0.6)

    return name, run


def _scenarios() -> list[Scenario]:
    tells = ("none", "retry_after", "all")
    found = [_allowance(latency_s, 400, told) for told in tells for latency_s in (0.0, 0.05, 0.5)]
    found += [_allowance(0.05, 40, told) for told in tells]
    found += [_change(before, after, 0.05, 400, told) for told in tells for before, after in ((400, 800), (800, 400))]
    found += [_slots(0.2, 10.0, 40.0), _slots(0.01, 10.0, 30.0), _slots(1.0, 30.0, 75.0)]
    found += [_slots({"lognormal": {"median_s": 0.2}}, 10.0, 40.0)]
    for late_s in (0.0, 20.0):
        for told in ("none", "retry_after"):
            limited = {"latency": 0.05, "rate_limit": _limit(ALLOWED_PER_S, 400, told)}
            found.append(_shared(f"400/s, {_TELLS[told]}", limited, late_s))
        found.append(_shared("64 slots, 0.2 s", {"latency": 0.2, "capacity": SLOTS}, late_s))
    return found


def _run(name: str) -> Row:
    return dict(_scenarios())[name](name)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", default="", help="only scenarios with this in their name")
    parser.add_argument("--alone", action="store_true", help="one scenario at a time")
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--quick", action="store_true", help="one scenario, 40 s: to see that it works")
    options = parser.parse_args(arguments)
    console = Console()
    names = [name for name, _ in _scenarios() if options.only in name][: 1 if options.quick else None]
    light, heavy = [name for name in names if name not in HEAVY], [name for name in names if name in HEAVY]
    rows = []
    with ProcessPoolExecutor(max_workers=1 if options.alone else AT_ONCE, mp_context=get_context("spawn")) as pool:
        for row in pool.map(_run, light):
            rows.append(row)
            console.print(_told(row), highlight=False, soft_wrap=True)
    for name in heavy:
        rows.append(_run(name))
        console.print(_told(rows[-1]), highlight=False, soft_wrap=True)
    _print(rows, console)
    if options.json:
        Path(options.json).write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n", encoding="utf-8")
    return 0


def _told(row: Row) -> str:
    refused = "" if row.refused is None else f", {row.refused:.1%} refused"
    level = "" if row.level_s is None else f", level after {row.level_s:.1f} s"
    p99 = f", p99 {row.p99}" if row.p99 else ""
    return f"{row.scenario}: {row.reached}{refused}{level}{p99}: {'met' if row.met else 'NOT MET'}"


def _print(rows: Sequence[Row], console: Console) -> None:
    table = Table(title="what a tier actor finds by itself (concurrency: auto)", title_justify="left")
    for name in ("scenario", "reached", "refused", "to the level", "p99", "aim", ""):
        table.add_column(name, justify="left" if name in ("scenario", "aim", "") else "right")
    for row in rows:
        table.add_row(
            row.scenario,
            row.reached,
            "" if row.refused is None else f"{row.refused:.1%}",
            "" if row.level_s is None else f"{row.level_s:.1f} s",
            row.p99,
            row.aim,
            "[green]met[/]" if row.met else "[yellow]not met[/]",
        )
    console.print(table)
    console.print(f"{sum(row.met for row in rows)} of {len(rows)} met", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
