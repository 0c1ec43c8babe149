"""What each guard costs: the same batch with all of them, and without one at a time.

    python -m benchmarks.guards [--rows 20000] [--rounds 5] [--json FILE] [--quick]

Rows/s of `raycade batch` as in overhead.py, on an endpoint of 0 ms, where nothing hides what a row costs. Runs are interleaved and
begin with another variant in each round; shares are taken within a round, and the median is shown. Two runs of the very same
configuration (`all`, `all again`) say how far apart chance alone puts them.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bench import WARMUP_ROWS, Bench, ratio, spread

__all__ = ["main"]

NO_BUDGET: dict[str, Any] = {"budget": {}}
NO_COALESCING: dict[str, Any] = {"coalesce": {"enabled": False}}
NO_METRICS: dict[str, Any] = {"telemetry": {"metrics_port": None}}
VARIANTS: dict[str, dict[str, Any]] = {
    "all": {},
    "all again": {},
    "no limits, no anomalies": NO_BUDGET,
    "no coalescing": NO_COALESCING,
    "no metrics": NO_METRICS,
    "none of them": NO_BUDGET | NO_COALESCING | NO_METRICS,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Always 0 when everything ran, whatever the numbers are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guards", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, help="rows a run (default 20000)")
    parser.add_argument("--rounds", type=int, help="runs of each variant (default 5)")
    parser.add_argument("--json", help="write everything here")
    parser.add_argument("--quick", action="store_true", help="600 rows, one round: to see that it works")
    options = parser.parse_args(arguments)
    options.rows = options.rows or (600 if options.quick else 20_000)
    options.rounds = options.rounds or (1 if options.quick else 5)
    if options.rows < 20 or options.rounds < 1:
        parser.error("expected at least 20 rows and one round")
    warmup = min(WARMUP_ROWS, options.rows // 10)
    console = Console()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="raycade-bench-") as folder:
        bench = Bench(Path(folder), console)
        with bench.endpoint():
            for number in range(options.rounds):
                names = list(VARIANTS)[number % len(VARIANTS) :] + list(VARIANTS)[: number % len(VARIANTS)]
                for name in names:
                    what = f"{name}, round {number + 1} of {options.rounds}"
                    runs[name].append(bench.run("raycade", options.rows, warmup, what, config=VARIANTS[name]))
    table = Table(title=f"{options.rows:,} rows, 0 ms, {options.rounds} rounds", title_justify="left")
    for column in ("guards", "rows/s", "of `all`", "least to most", "CPU us/row"):
        table.add_column(column, justify="left" if column == "guards" else "right")
    for name, of_one in runs.items():
        share = ratio(of_one, runs["all"])
        rates, cpu = (spread(run[field] for run in of_one) for field in ("rows_per_s", "cpu_us_per_row"))
        table.add_row(
            name,
            f"{rates['median']:,.0f}",
            f"{share['median']:.0%}",
            f"{share['least']:.0%} to {share['most']:.0%}",
            f"{cpu['median']:,.0f}",
        )
    console.print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
