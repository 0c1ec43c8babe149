"""Scenarios of `benchmarks.page` that programs of their own measure, such as the slow end and the gateway. Their JSON is taken over."""

import json
import os
import subprocess
import sys
from typing import Any

from benchmarks import gateway
from benchmarks.aims import judged
from benchmarks.bench import ROOT, ratio, spread
from benchmarks.scenarios import WITHOUT_AIM, Result, Setup, bars, fields, result

__all__ = ["capacity", "gateway_costs", "guards", "overspend", "ray_data", "tail"]

TIMEOUT_S = 3_600.0
OVERSPEND_MINUTES = 4.0
"""No run of it begins after so many; those that matter most come first."""


def _program(setup: Setup, name: str, *options: str, in_part: bool = False) -> Any:
    """What `python -m benchmarks.NAME` writes; what it prints goes on to the terminal. `in_part`: it says what of it failed."""
    target = setup.folder / f"{name}.json"
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json", str(target)]
    command += ["--quick"] if setup.quick else []
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    code = subprocess.run(command, cwd=ROOT, env=env, timeout=TIMEOUT_S, check=False).returncode
    if code and not (in_part and target.exists()):
        raise SystemExit(f"python -m benchmarks.{name} ended with {code}")
    return json.loads(target.read_text(encoding="utf-8"))


def tail(setup: Setup) -> Result:
    """Answers of a lognormal time, one in a hundred much slower: `router.hedge` off, for the last rows, and after p95."""
    rounds = min(setup.rounds, WITHOUT_AIM)
    told = _program(setup, "tail", "--rounds", str(rounds))
    by_hedge: dict[str, list[dict[str, Any]]] = {}
    for run in told["runs"]:
        by_hedge.setdefault(run["hedge"], []).append(run)
    keys = ("p50_s", "p95_s", "p99_s", "most_s", "job_s", "calls", "copies", "cost_usd")
    table = [
        {
            "hedge": name,
            **fields(runs, *keys),
            "times": None if name == "off" else ratio(by_hedge["off"], runs, "job_s"),
        }
        for name, runs in by_hedge.items()
    ]
    columns: list[list[Any]] = [["hedge", "hedge", 0]]
    columns += [
        [key, heading, 2]
        for key, heading in zip(keys[:4], ("p50, s", "p95, s", "p99, s", "slowest row, s"), strict=True)
    ]
    columns += [
        ["job_s", "job, s", 1],
        ["calls", "calls", 0],
        ["copies", "second copies", 0],
        ["cost_usd", "booked, USD", 4],
    ]
    columns.append(["times", "times as fast as off", 2])
    return result(table, columns, told, plots=[bars("slowest row, s", table, "most_s", "hedge")]) | {"rounds": rounds}


def gateway_costs(setup: Setup) -> Result:
    """What the gateway costs its callers: plain and streamed, beside a direct connection and LiteLLM's proxy."""
    told = _program(setup, "gateway", *(() if setup.peers else ("--no-litellm",)))
    table = []
    for phase, found in told["phases"].items():
        for system, run in found.items():
            times = run.get("first_ms") or run.get("took_ms") or {}
            table.append(
                {
                    "load": phase,
                    "system": system,
                    "rate": run["chunks_per_s"] or run["answers_per_s"],
                    **{name: times.get(name) for name in ("p50", "p99")},
                    "lag": (run.get("lag_ms") or {}).get("p99"),
                    "broken": run["broken"],
                }
            )
    columns = [["load", "load", 0], ["system", "system", 0], ["rate", "chunks/s, or answers/s", 0]]
    columns += [
        ["p50", "p50, ms", 1],
        ["p99", "p99, ms", 1],
        ["lag", "lag of a chunk, p99, ms", 1],
        ["broken", "broken", 0],
    ]
    notes = ["p50 and p99: of the whole answer, and in a stream of its first token."]
    return result(table, columns, told, judged=judged(list(gateway.aims(told))), notes=notes) | {"rounds": 1}


def ray_data(setup: Setup) -> Result:
    """A step of a Ray Data pipeline, from Parquet to Parquet: ours, ray.data.llm's HTTP processor, plain aiohttp."""
    told = _program(setup, "ray_data", "--rounds", str(setup.rounds), "--latency", "0")
    if not setup.quick:  # no aim is about it, and the HTTP processor makes it long
        told |= _program(setup, "ray_data", "--rounds", "1", "--rows", "2000", "--latency", "0.2")
    table: list[dict[str, Any]] = []
    for latency, found in told.items():
        table += [
            {
                "latency": f"{1000 * float(latency):g} ms",
                "step": name,
                **fields(runs, "rows_per_s", "whole_s"),
                "times": None if name == "raycade" else ratio(found["raycade"], runs),
            }
            for name, runs in found.items()
        ]
    columns = [["latency", "latency", 0], ["step", "step", 0], ["rows_per_s", "rows/s", 0]]
    columns += [["times", "raycade is, as a multiple", 2], ["whole_s", "whole pipeline, s", 1]]
    first = next(iter(told.values()))
    at_once = [line for line in table if line["latency"] == "0 ms"]
    measured = {"over llm": ratio(first["raycade"], first["llm"])}
    notes = ["With a latency of 200 ms one round, which no aim is about."]
    return result(
        table, columns, told, measured=measured, plots=[bars("rows/s, 0 ms", at_once, label="step")], notes=notes
    )


def guards(setup: Setup) -> Result:
    """What each guard costs: the same batch with all of them, with all again, and without one at a time. 0 ms."""
    rounds = min(setup.rounds, WITHOUT_AIM)
    told = _program(setup, "guards", "--rounds", str(rounds))
    table = [
        {
            "guards": name,
            **fields(runs, "rows_per_s", "cpu_us_per_row"),
            "share": ratio(runs, told["all"]),
            "cpu": ratio(runs, told["all"], "cpu_us_per_row"),
        }
        for name, runs in told.items()
    ]
    columns = [["guards", "guards", 0], ["rows_per_s", "rows/s", 0], ["share", "of the rate with all", 2]]
    columns += [["cpu_us_per_row", "CPU us/row", 0], ["cpu", "of the CPU with all", 2]]
    notes = ["The same twice, `all` and `all again`, says how far apart chance alone puts two runs."]
    plots = [bars("rows/s", table, label="guards")]
    return result(table, columns, told, plots=plots, notes=notes) | {"rounds": rounds}


def overspend(setup: Setup) -> Result:
    """One budget in dollars and three times the demand for it: what the endpoint served, by its own meter, beside LiteLLM."""
    options = ["--minutes", f"{OVERSPEND_MINUTES:g}"]
    if not setup.peers:
        options += ["--only", "raycade"]
    told = _program(setup, "overspend", *options, in_part=True)
    table = [
        {
            "system": run["system"],
            "in_flight": f"{run['in_flight']:,}",
            "served": run["served_percent"],
            "after": run["calls_after_exhaustion"],
            "first_no": run["until_first_refusal_percent"],
            "cut_off": "time was up" if run["cut_off"] else "",
        }
        for run in told["runs"]
    ]
    columns = [["system", "system", 0], ["in_flight", "in flight", 0], ["served", "served, % of the budget", 1]]
    columns += [["after", "calls after it was spent", 0], ["first_no", "served until the first refusal, %", 1]]
    columns.append(["cut_off", "", 0])
    notes = [f"{name}: left out, {why}" for name, why in told["skipped"].items()]
    notes += [f"{name}: failed, {why}" for name, why in told["failed"].items()]
    shares = [run["served_percent"] for run in told["runs"] if run["system"] == "Raycade"]
    judging = []
    if shares:
        what = "most that raycade spent of a budget, by the endpoint's meter"
        judging.append(
            {"what": what, "measured": f"{max(shares):.1f}%", "aim": "at most 100%", "met": max(shares) <= 100}
        )
    bar = [
        {"label": f"{line['system'].lower()}, {line['in_flight']} in flight", **spread([line["served"]])}
        for line in table
    ]
    plots = [{"kind": "bars", "title": "served, % of the budget", "bars": bar}]
    return result(table, columns, told, judged=judging, plots=plots, notes=[*notes, *told["notes"]]) | {"rounds": 1}


def capacity(setup: Setup) -> Result:
    """What a tier actor finds out about its endpoint's limits by itself, beside limits and slots that are known."""
    told = _program(setup, "capacity")
    table = [{**row, "met": "met" if row["met"] else "not met"} for row in told]
    columns = [["scenario", "endpoint", 0], ["reached", "reached", 0], ["refused", "of calls refused", 3]]
    columns += [["level_s", "s to the level", 1], ["p99", "p99", 0], ["aim", "aim", 0], ["met", "", 0]]
    judging = [
        {"what": row["scenario"], "measured": _reached(row), "aim": row["aim"], "met": row["met"]} for row in told
    ]
    return result(table, columns, told, judged=judging) | {"rounds": 1}


def _reached(row: dict[str, Any]) -> str:
    parts = [row["reached"]]
    if row["level_s"] is not None:
        parts.append(f"after {row['level_s']:.1f} s")
    if row["refused"] is not None:
        parts.append(f"{row['refused']:.1%} refused")
    if row["p99"]:
        parts.append(f"p99 {row['p99']}")
    return ", ".join(parts)
