"""What the runtime costs: `raycade batch` with every guard on, against two plain loops without any.

    python -m benchmarks.overhead [--rows 20000] [--rounds 3] [--window 2000] [--latency 0] [--json FILE] [--quick]

One mock endpoint in a process of its own, one input file, and three clients (overhead_clients.py), each run as a new process, in
turn: A B C A B C (bench.py). Nothing is asserted: the aims are printed beside what was measured, met or not.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.aims import AIMS
from benchmarks.bench import WARMUP_ROWS, Bench, Run, machine, ratio, shown, spread, versions
from benchmarks.overhead_clients import CLIENTS

__all__ = ["main"]

LOOPS = ("aiohttp", "openai")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Always 0 when everything ran, whatever the numbers are."""
    options = _options(arguments)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="raycade-bench-") as folder:
        report = _report(Bench(Path(folder), console, options.quick), options)
    console.print()
    _print(report, console)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        console.print(f"\nall of it: {options.json}", soft_wrap=True)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, help="rows a run (default 20000)")
    parser.add_argument("--rounds", type=int, help="runs of each client (default 3)")
    parser.add_argument("--window", type=int, default=2000, help="rows that raycade has in flight")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer of the mock")
    parser.add_argument("--concurrency", default="auto", help="of each tier actor: auto or a number")
    parser.add_argument("--json", help="write everything here")
    parser.add_argument("--quick", action="store_true", help="3,000 rows, one round: to see that it works")
    options = parser.parse_args(arguments)
    options.rows = options.rows or (3000 if options.quick else 20_000)
    options.rounds = options.rounds or (1 if options.quick else 3)
    if options.rows < 20 or options.rounds < 1 or options.window < 1 or options.latency < 0:
        parser.error("expected at least 20 rows, one round, a window of one, and no negative latency")
    if options.concurrency != "auto":
        options.concurrency = int(options.concurrency)
    options.warmup = min(WARMUP_ROWS, options.rows // 10)
    return options


def _report(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured, as it stands in the JSON."""
    began = datetime.now(UTC)
    most = max(CLIENTS["aiohttp"].in_flight)
    few = max(options.rows // CLIENTS["openai"].share, min(options.rows, 2 * most))
    with bench.endpoint(options.latency):
        config = {"tiers": [bench.tier(concurrency=options.concurrency)]}
        tried = {}
        for name in LOOPS:
            counts = CLIENTS[name].in_flight + ((options.window,) if options.latency else ())
            tried[name] = bench.choose(name, few, counts, options.warmup)
        chosen = {name: trials[0]["settings"] for name, trials in tried.items()}
        rows = {"aiohttp": options.rows, "openai": few, "raycade": options.rows}
        runs: dict[str, list[Run]] = {name: [] for name in rows}
        for number in range(options.rounds):
            for name, of_one in runs.items():
                settings = chosen.get(name, {"window": options.window})
                what = f"round {number + 1} of {options.rounds}"
                of_one.append(bench.run(name, rows[name], options.warmup, what, settings, config))
    return {
        "benchmark": "overhead",
        "date": began.isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "options": {
            name: getattr(options, name)
            for name in ("rows", "rounds", "window", "latency", "concurrency", "warmup", "quick")
        },
        "loops": {"chosen": chosen, "tried": tried},
        "clients": {name: _summary(of_one) for name, of_one in runs.items()},
        "ratios": {name: ratio(runs["raycade"], runs[name]) for name in LOOPS},
        "aims": {name: AIMS[f"over {name}"].bound for name in LOOPS},
        "runs": runs,
    }


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        name: spread(run[name] for run in runs)
        for name in ("rows_per_s", "cpu_us_per_row", "start_s", "end_s")
        if name in runs[0]
    } | {"rows": runs[0]["rows"]}


def _between(spread: Mapping[str, float], digits: int = 0) -> str:
    return f"{spread['least']:,.{digits}f} to {spread['most']:,.{digits}f}"


def _print(report: Mapping[str, Any], console: Console) -> None:
    options, machine, versions = report["options"], report["machine"], report["versions"]
    console.print(
        f"{report['date']}, {machine['cpu']}, {machine['cores']} cores shared with the mock, load {machine['load'][0]:.1f}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items()),
        highlight=False,
    )
    title = (
        f"{options['rows']:,} rows, {options['latency'] * 1000:g} ms, {options['rounds']} rounds, "
        f"after {options['warmup']:,} rows of warm-up in each run"
    )
    table = Table(title=title, title_justify="left")
    for name in ("client", "rows/s", "least to most", "CPU us/row", "raycade is", "least to most"):
        table.add_column(name, justify="left" if name == "client" else "right")
    for name, client in report["clients"].items():
        chosen = report["loops"]["chosen"].get(name)
        label = (
            f"{name} ({shown(chosen)})" if chosen else f"{name} (all guards, 2 tier actors, {options['window']:,} rows)"
        )
        times = report["ratios"].get(name)
        table.add_row(
            label,
            f"{client['rows_per_s']['median']:,.0f}",
            _between(client["rows_per_s"]),
            f"{client['cpu_us_per_row']['median']:,.0f}",
            f"{times['median']:.2f} of it" if times else "",
            _between(times, 2) if times else "",
        )
    console.print(table)
    _print_roles(report, console)
    if options["latency"]:
        return
    for name, aim in report["aims"].items():
        got = report["ratios"][name]["median"]
        verdict = "[green]met[/]" if got >= aim else "[yellow]not met[/]"
        console.print(f"aim: at least {aim:g} times {name}; measured {got:.2f}: {verdict}", highlight=False)


def _print_roles(report: Mapping[str, Any], console: Console) -> None:
    runs = report["runs"]["raycade"]
    roles = sorted({role for run in runs for role in run["cpu_us_per_row_by_role"]})
    medians = {role: statistics.median(run["cpu_us_per_row_by_role"].get(role, 0.0) for run in runs) for role in roles}
    told = ", ".join(f"{role} {us:,.0f}" for role, us in sorted(medians.items(), key=lambda pair: -pair[1]))
    ours = report["clients"]["raycade"]
    console.print(f"CPU us/row of raycade by process: {told}", highlight=False)
    console.print(
        f"not counted above: {ours['start_s']['median']:.1f} s to start Ray and the actors, "
        f"{ours['end_s']['median']:.1f} s to end them",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
