"""What the runtime costs: `raycade batch` with every guard on, against two plain loops without any.

    python -m benchmarks.overhead [--rows 20000] [--rounds 3] [--window 2000] [--latency 0] [--json FILE] [--quick]

One mock endpoint in a process of its own, one input file, and three clients (overhead_clients.py), each run as a new process, in
turn: A B C A B C. Ratios are taken within a round and their median is shown, since whatever else the machine does
hits neighbours alike. Nothing is asserted: the aims are printed beside what was measured, met or not.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from runtime.mock.process import MockProcess

__all__ = ["Bench", "main", "ratio", "spread"]

ROOT = Path(__file__).resolve().parents[1]
PROMPT_BYTES = 500
MAX_TOKENS = 16
WARMUP_ROWS = 500
CONNECTIONS = (100, 200, 500)
"""What a loop may keep open at 0 ms, where more only costs it; with a latency it may have the whole window as well."""
OPENAI_SHARE = 8
"""The openai loop gets the rows divided by this, or it would take most of the time."""
TRIES = 2
"""How often each setting of a loop is tried; its best try counts."""
RUN_TIMEOUT_S = 1800.0
AIMS = {"aiohttp": 0.5, "openai": 4.0}
"""Rows/s of raycade over those of each loop, at 0 ms."""
PACKAGES = ("raycade", "ray", "aiohttp", "openai", "uvloop", "orjson", "httptools")
WORDS = (
    "the a parcel order came late my account invoice was charged twice please refund answer within two days number "
    "address changed router does not connect since update Monday thank you colleague promised call back nobody did"
)

Run = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Always 0 when everything ran, whatever the numbers are."""
    options = _options(arguments)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="raycade-bench-") as folder:
        bench = Bench(Path(folder), options, console)
        report = bench.report()
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


class Bench:
    """One run of the benchmark, in a folder that goes away."""

    def __init__(self, folder: Path, options: argparse.Namespace, console: Console) -> None:
        self._folder = folder
        self._options = options
        self._console = console
        self._url = ""

    def report(self) -> dict[str, Any]:
        """Everything that was measured, as it stands in the JSON."""
        options = self._options
        few = max(options.rows // OPENAI_SHARE, min(options.rows, 2 * max(CONNECTIONS)))
        began = datetime.now(UTC)
        with self.endpoint():
            tried = {"aiohttp": self._choose("aiohttp", few), "openai": self._choose("openai", few)}
            rows = {"aiohttp": options.rows, "openai": few, "raycade": options.rows}
            runs: dict[str, list[Run]] = {name: [] for name in rows}
            for round_ in range(options.rounds):
                for name in runs:
                    settings = tried[name][0]["settings"] if name in tried else {}
                    run = self.run(name, rows[name], settings, f"round {round_ + 1} of {options.rounds}")
                    runs[name].append(run)
        chosen = {name: trials[0]["settings"] for name, trials in tried.items()}
        return {
            "benchmark": "overhead",
            "date": began.isoformat(timespec="seconds"),
            "machine": _machine(),
            "versions": _versions(),
            "options": {
                name: getattr(options, name)
                for name in ("rows", "rounds", "window", "latency", "concurrency", "warmup", "quick")
            },
            "loops": {"chosen": chosen, "tried": tried},
            "clients": {name: _summary(of_one) for name, of_one in runs.items()},
            "ratios": {name: ratio(runs["raycade"], runs[name]) for name in AIMS},
            "aims": AIMS,
            "runs": runs,
        }

    def _choose(self, name: str, rows: int) -> list[Run]:
        """The settings that serve a loop best, found by trying them all; best first."""
        counts = CONNECTIONS + ((self._options.window,) if self._options.latency else ())
        if self._options.quick:
            counts = CONNECTIONS[:1]
        trials = [{"in_flight": count, "uvloop": uvloop} for count in sorted(set(counts)) for uvloop in (False, True)]
        best = [0.0] * len(trials)
        for _ in range(1 if self._options.quick else TRIES):  # a disturbance then seldom decides
            for number, settings in enumerate(trials):
                run = self.run(name, rows, settings, f"trying {_shown(settings)}")
                best[number] = max(best[number], run["rows_per_s"])
        ranked = sorted(zip(best, range(len(trials)), strict=True), reverse=True)
        return [{"settings": trials[number], "rows_per_s": rate} for rate, number in ranked]

    @contextlib.contextmanager
    def endpoint(self) -> Iterator[None]:
        """The mock that all runs ask."""
        with MockProcess("ok", latency_s=self._options.latency or None) as mock:
            self._url = mock.url
            yield

    def run(
        self, name: str, rows: int, settings: Mapping[str, Any], what: str, without: Mapping[str, Any] | None = None
    ) -> Run:
        """One client, one process, one result. `without`: sections that replace those of raycade's configuration."""
        options = self._options
        asked = {
            "url": self._url,
            "input": str(self._input(rows + options.warmup)),
            "output": str(self._folder / f"{name}.jsonl"),
            "rows": rows + options.warmup,
            "warmup": options.warmup,
            "window": options.window,
            "config": str(self._config(without or {})),
            **settings,
        }
        load = os.getloadavg()[0]
        child = subprocess.run(
            [sys.executable, "-P", "-m", "benchmarks.overhead_clients", name, json.dumps(asked)],
            env={**os.environ, "PYTHONPATH": _path(), "RAY_USAGE_STATS_ENABLED": "0"},
            cwd=self._folder,
            capture_output=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        if child.returncode:
            raise SystemExit(f"{name} failed ({child.returncode}): {child.stderr.decode(errors='replace')[-2000:]}")
        run: Run = json.loads(child.stdout.splitlines()[-1])
        self._console.print(f"{name:<8} {what:<40} {run['rows_per_s']:>9,.0f} rows/s", highlight=False)
        return run | {"load_before": load}

    def _input(self, rows: int) -> Path:
        """Distinct prompts of about `PROMPT_BYTES` bytes; the same ones whenever it is called."""
        path = self._folder / f"input-{rows}.jsonl"
        if not path.exists():
            chance = random.Random(1)
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(_row(number, chance) for number in range(rows))
        return path

    def _config(self, without: Mapping[str, Any]) -> Path:
        """Every guard on: limits that are counted but never reached, coalescing, the breaker; two actors in one tier."""
        path = self._folder / "raycade.yaml"
        tier = {
            "name": "main",
            "model": "mock-model",
            "base_url": self._url,
            "replicas": 2,
            "concurrency": self._options.concurrency,
            "timeout_s": 60,
            "price": {"prompt": 0.15, "completion": 0.6},
        }
        limits = {
            "tokens": {"per_request": 1e6, "per_hour": 1e12, "per_day": 1e12},
            "usd": {"per_request": 1e3, "per_hour": 1e8, "per_day": 1e8},
        }
        config = {"state_dir": str(self._folder / "state"), "tiers": [tier], "budget": limits, **without}
        path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        return path


def _row(number: int, chance: random.Random) -> str:
    text = f"Ticket {number}: {' '.join(chance.choices(WORDS.split(), k=PROMPT_BYTES // 4))}"
    # `main` is the tier's name, the model's to an endpoint: raycade takes it for the one, the loops send it as the other.
    body = {"model": "main", "messages": [{"role": "user", "content": text[:PROMPT_BYTES]}], "max_tokens": MAX_TOKENS}
    row = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(row) + "\n"


def _path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


# -- what came of it -----------------------------------------------------------------------------------------------


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        name: spread(run[name] for run in runs)
        for name in ("rows_per_s", "cpu_us_per_row", "start_s", "end_s")
        if name in runs[0]
    } | {"rows": runs[0]["rows"]}


def spread(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "least": ordered[0], "most": ordered[-1]}


def ratio(ours: Sequence[Run], theirs: Sequence[Run]) -> dict[str, float]:
    """Of rows/s, round by round."""
    return spread(our["rows_per_s"] / their["rows_per_s"] for our, their in zip(ours, theirs, strict=True))


def _machine() -> dict[str, Any]:
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 2**30, 1),
        "system": platform.platform(),
        "load": os.getloadavg(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        found["commit"] = subprocess.run(git, capture_output=True, timeout=10, check=True).stdout.decode().strip()
    except (OSError, subprocess.SubprocessError):
        found["commit"] = "unknown"
    return found


def _shown(settings: Mapping[str, Any]) -> str:
    return f"{settings['in_flight']} connections, {'uvloop' if settings['uvloop'] else 'asyncio'}"


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
            f"{name} ({_shown(chosen)})"
            if chosen
            else f"{name} (all guards, 2 tier actors, {options['window']:,} rows)"
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
