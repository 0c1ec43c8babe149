"""The benchmark page: runs the scenarios and writes what was measured as one JSON and one HTML page.

    python -m benchmarks.page [SCENARIO ...] [--quick] [--out DIR] [--rounds N] [--no-peers] [--most-rows N] [--draw]

Each scenario's result is a file of its own, DIR/scenarios/NAME.json. DIR/results.json and DIR/index.html are made of all that are
there, whenever they were made, so that scenarios can be run one at a time. Every aim of aims.py is on the page beside what was
measured, met or not; nothing else is judged. The page asks for nothing from anywhere.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from rich.console import Console
from rich.table import Table

from benchmarks import scenarios, taken
from benchmarks.aims import Verdict, shown, verdicts
from benchmarks.bench import Bench, machine, versions
from benchmarks.charts import bars, curve
from benchmarks.growth import growth
from benchmarks.open_loop import open_loop
from benchmarks.scenarios import Result, Setup

__all__ = ["SCENARIOS", "main"]

SCENARIOS: dict[str, Callable[[Setup], Result]] = {
    "overhead": scenarios.overhead,
    "waiting": scenarios.waiting,
    "low-load": scenarios.low_load,
    "open-loop": open_loop,
    "tail": taken.tail,
    "rate-limited": scenarios.rate_limited,
    "flaky": scenarios.flaky,
    "duplicates": scenarios.duplicates,
    "growth": growth,
    "ray-data": taken.ray_data,
    "gateway": taken.gateway_costs,
    "guards": taken.guards,
    "overspend": taken.overspend,
    "capacity": taken.capacity,
}
ASKED_FOR = ("capacity",)
"""Those that run only when they are named: a quarter of an hour each."""
TEMPLATE = "page.html.j2"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0 when everything ran, whatever the numbers are; 1 when a scenario failed."""
    options = _options(arguments)
    out = Path(options.out)
    (out / "scenarios").mkdir(parents=True, exist_ok=True)
    console = Console(width=max(120, Console().width))
    failed = []
    for name in [] if options.draw else options.scenarios:
        console.print(f"== {name}: {SCENARIOS[name].__doc__}", highlight=False)
        try:
            found = _measured(name, options, console)
        except (Exception, SystemExit) as error:  # the others are worth having
            failed.append(name)
            console.print(f"{name} failed: {str(error) or repr(error)}", style="red", markup=False, highlight=False)
        else:
            _write(out / "scenarios" / f"{name}.json", json.dumps(found, indent=1) + "\n")
            draw(out)  # whoever stops the rest has what there is
    results = draw(out)
    _print(verdicts(results), console)
    console.print(f"\n{out / 'index.html'}\n{out / 'results.json'}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        help=f"which: {', '.join(SCENARIOS)} (default: all but {', '.join(ASKED_FOR)})",
    )
    parser.add_argument("--only", nargs="+", metavar="SCENARIO", default=[], help="the same")
    parser.add_argument(
        "--quick", action="store_true", help="to see that it works: few rows, one round; not to be quoted"
    )
    parser.add_argument("--out", default="bench-out", help="folder (default bench-out)")
    parser.add_argument("--rounds", type=int, help="runs of each client (default 3)")
    parser.add_argument("--no-peers", action="store_true", help="without those that have an environment of their own")
    parser.add_argument("--most-rows", type=int, help="of growth's longest input (default 1,000,000)")
    parser.add_argument("--draw", action="store_true", help="measure nothing: make the page again of what is there")
    options = parser.parse_args(arguments)
    options.scenarios = [*options.scenarios, *options.only] or [name for name in SCENARIOS if name not in ASKED_FOR]
    options.rounds = options.rounds or (1 if options.quick else 3)
    if unknown := [name for name in options.scenarios if name not in SCENARIOS]:
        parser.error(f"no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    if options.rounds < 1 or (options.most_rows is not None and options.most_rows < 1_000):
        parser.error("expected at least one round, and at least 1,000 rows")
    return options


def _measured(name: str, options: argparse.Namespace, console: Console) -> Result:
    began, started = datetime.now(UTC), time.monotonic()
    before = machine()
    with tempfile.TemporaryDirectory(prefix="rcb-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), console, options.quick)
        setup = Setup(
            bench, Path(folder), console, options.quick, options.rounds, not options.no_peers, options.most_rows
        )
        found = SCENARIOS[name](setup)
    return {
        "scenario": name,
        "about": SCENARIOS[name].__doc__,
        "date": began.isoformat(timespec="seconds"),
        "took_s": round(time.monotonic() - started, 1),
        "quick": options.quick,
        "rounds": options.rounds,
        "machine": before,
        "versions": versions(),
        **found,
    }


# -- from all results to one page ----------------------------------------------------------------------------------


def draw(out: Path) -> dict[str, Result]:
    """Write results.json and index.html of the results that are there; them, in the order of the scenarios."""
    results = {}
    for name in SCENARIOS:
        path = out / "scenarios" / f"{name}.json"
        if path.exists():
            results[name] = json.loads(path.read_text(encoding="utf-8"))
    lines = verdicts(results)
    whole = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "aims": [line._asdict() for line in lines]}
    _write(out / "results.json", json.dumps({**whole, "scenarios": results}, indent=1) + "\n")
    _write(out / "index.html", html(results, lines))
    return results


def html(results: Mapping[str, Result], lines: Sequence[Verdict]) -> str:
    loaders = [FileSystemLoader(Path(__file__).parent), PackageLoader("runtime.batch", "")]
    engine = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    engine.filters |= {"cell": shown, "count": lambda number: f"{number:,}", "drawn": _drawn}
    met = [line.met for line in lines]
    counts = {"met": met.count(True), "not met": met.count(False), "not measured": met.count(None)}
    return engine.get_template(TEMPLATE).render(results=results, verdicts=lines, counts=counts)


def _drawn(plot: Mapping[str, Any]) -> Any:
    return curve(plot["points"]) if plot["kind"] == "curve" else bars(plot["bars"])


def _write(path: Path, text: str) -> None:
    """Whoever reads it meanwhile sees the old one or the new one."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _print(lines: Sequence[Verdict], console: Console) -> None:
    table = Table(title="what is aimed for, and what was measured (median, least to most)", title_justify="left")
    for name in ("scenario", "ratio", "measured", "aim", ""):
        table.add_column(name)
    words = {True: "[green]met[/]", False: "[yellow]not met[/]", None: "not measured"}
    for line in lines:
        table.add_row(
            line.scenario, line.what, line.measured if line.met is not None else "", line.aim, words[line.met]
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
