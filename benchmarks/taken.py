"""Scenarios of `benchmarks.page` that programs of their own measure: the slow end, the gateway, Ray Data. Their JSON is taken over."""

import json
import os
import subprocess
import sys
from typing import Any

from benchmarks import gateway
from benchmarks.aims import judged
from benchmarks.bench import ROOT, ratio
from benchmarks.scenarios import Result, Setup, bars, fields, result

__all__ = ["gateway_costs", "ray_data", "tail"]

TIMEOUT_S = 3_600.0


def _program(setup: Setup, name: str, *options: str) -> Any:
    """What `python -m benchmarks.NAME` writes; what it prints goes on to the terminal."""
    target = setup.folder / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json", str(target)]
    command += ["--quick"] if setup.quick else []
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    code = subprocess.run(command, cwd=ROOT, env=env, timeout=TIMEOUT_S, check=False).returncode
    if code:
        raise SystemExit(f"python -m benchmarks.{name} ended with {code}")
    return json.loads(target.read_text(encoding="utf-8"))


def tail(setup: Setup) -> Result:
    """Answers of a lognormal time, one in a hundred much slower: `router.hedge` off, for the last rows, and after p95."""
    told = _program(setup, "tail", "--rounds", str(setup.rounds))
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
    return result(table, columns, told, plots=[bars("slowest row, s", table, "most_s", "hedge")])


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
    told = _program(
        setup, "ray_data", "--rounds", str(setup.rounds), "--latency", "0", *(() if setup.quick else ("0.2",))
    )
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
    return result(table, columns, told, measured=measured, plots=[bars("rows/s, 0 ms", at_once, label="step")])
