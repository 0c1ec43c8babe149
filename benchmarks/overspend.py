"""How far past a budget the money goes: the same demand against Raycade and against LiteLLM, side by side.

    python -m benchmarks.overspend [--budget-rows 2000] [--in-flight 50 2000] [--redis-server PATH] [--json FILE] [--quick]

One mock endpoint, one price, one budget in dollars, demand for three times the budget. What counts is what the endpoint
served, by its own meter, and not what a system says about itself. LiteLLM runs in an environment of its own
(`make overspend` makes it); without it, Raycade runs alone. Nothing is asserted and nothing here is about speed.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.bench import WORDS
from runtime.mock.ask import count_tokens
from runtime.mock.process import MockProcess

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / "build" / "peers" / "litellm" / "bin" / "python"
DEMAND = 3
"""Times the budget."""
ROUTERS = 4
PRICE = {"prompt": 1, "completion": 8}
"""Micro-dollars per token: whole numbers, so that both sides and the meter agree to the micro-dollar."""
MODEL = "mock-model"
PROMPT_BYTES = (200, 800)
MAX_TOKENS = 32
ANSWER_TOKENS = 20
SCENARIO = {
    "seed": 1,
    "tiers": {"*": {"tokens": ANSWER_TOKENS, "latency": {"lognormal": {"median_s": 0.2, "sigma": 0.4}}}},
}
LOOK_S = 0.05
RUN_TIMEOUT_S = 300.0
OFFER_TIMEOUT_S = 90.0
"""After this no further row is offered."""

Run = dict[str, Any]


class RunFailed(Exception):
    """One run did not end well; the others go on."""


class System(NamedTuple):
    """One thing that is measured."""

    name: str
    how: str
    """How it is configured, for the reader."""
    kind: str
    """raycade, or what overspend_litellm.py calls it."""
    processes: int = 1
    redis: bool = False
    strict: bool = False
    levels: str = "all"
    """Which numbers in flight: all, or the highest or the lowest alone."""


SYSTEMS = (
    System("Raycade", f"usd per_day, {ROUTERS} routers, on_exhausted: stop", "raycade", ROUTERS),
    System("LiteLLM Router", "provider_budget_config, one process, in memory", "router"),
    System("LiteLLM Router x4", "provider_budget_config, 4 processes, Redis", "router", 4, redis=True, levels="lowest"),
    System("LiteLLM proxy, provider", "provider_budget_config, one worker", "proxy-provider", levels="highest"),
    System("LiteLLM proxy, key", "max_budget of a key, one worker, no database (see below)", "proxy-key"),
    System(
        "LiteLLM proxy, key, strict",
        "the same with fail_closed_budget_enforcement",
        "proxy-key",
        strict=True,
        levels="highest",
    ),
    System("LiteLLM proxy x4, key", "the same, default, 4 workers, Redis", "proxy-key", 4, redis=True, levels="lowest"),
)
NOTES = (
    "served: by the endpoint's meter, after every request was offered once and, with LiteLLM, the refused ones again by a "
    "patient client. Raycade's job stops by itself (exit 4) and is counted as it stood then.",
    "stops at the first no: what a client gets served that sends nothing more after the first refusal, as a batch job "
    "would. sent later: calls that reached the endpoint after it had served the whole budget.",
    "A key of LiteLLM's proxy needs PostgreSQL and Prisma, whose engine cannot be installed as a Python package. Here the "
    "key comes from custom_auth, which LiteLLM documents as unsupported for a key's max_budget, with LiteLLM's own cost "
    "callback added by hand; reserving, counting and settling are LiteLLM's code. litellm_settings.max_budget is left "
    "out: without a database it does nothing.",
    "x4 runs with the fewest in flight alone. With hundreds, four LiteLLM processes on a small machine wait too long for "
    "Redis and then let requests through uncounted (its default): that measures the machine. time was up: not all was "
    "offered, so more might have been served.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0 when everything ran, whatever the numbers are; 1 when something did not run."""
    options = _options(arguments)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="rc-over-") as folder:
        report = _Bench(Path(folder), options, console).report()
    _print(report, console)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        console.print(f"\nall of it: {options.json}", soft_wrap=True)
    return 1 if report["failed"] else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overspend", description=__doc__.partition("\n")[0])
    parser.add_argument("--budget-rows", type=int, help="the budget, as the cost of so many rows (default 2000)")
    parser.add_argument("--in-flight", type=int, nargs="+", help="requests in flight (default 50 2000)")
    parser.add_argument("--minutes", type=float, default=4.0, help="no further run begins after so many (default 4)")
    parser.add_argument("--only", default="", help="only systems whose name contains this")
    parser.add_argument("--litellm", default=str(PEER), metavar="PYTHON", help="the Python that has LiteLLM")
    parser.add_argument("--redis-server", default=shutil.which("redis-server"), metavar="PATH")
    parser.add_argument("--json", help="write everything here")
    parser.add_argument(
        "--quick", action="store_true", help="a budget of 300 rows, 300 in flight: to see that it works"
    )
    options = parser.parse_args(arguments)
    options.budget_rows = options.budget_rows or (300 if options.quick else 2000)
    options.in_flight = sorted(options.in_flight or ([300] if options.quick else [50, 2000]))
    if options.budget_rows < 10 or options.in_flight[0] < ROUTERS:
        parser.error(f"expected a budget of at least 10 rows, and at least {ROUTERS} in flight")
    return options


class _Bench:
    """One run of the benchmark, in a folder that goes away."""

    def __init__(self, folder: Path, options: argparse.Namespace, console: Console) -> None:
        self._folder, self._options, self._console = folder, options, console
        self._input, costs = _write_rows(folder / "input.jsonl", options.budget_rows * DEMAND)
        self._rows = len(costs)
        self._budget_usd_micros = sum(costs) * options.budget_rows // len(costs)
        self._versions = {"python": ".".join(map(str, sys.version_info[:3]))}
        self._skipped: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._no_later_than = time.monotonic() + 60 * options.minutes

    def report(self) -> dict[str, Any]:
        """Everything that was measured, as it stands in the JSON."""
        began = datetime.now(UTC)
        runs = []
        for system, in_flight in self._plan():
            try:
                runs.append(self._run(system, in_flight))
            except RunFailed as error:
                self._failed[f"{system.name}, {in_flight:,} in flight"] = str(error)
                self._console.print(f"{system.name}: {error}", highlight=False, markup=False)
        names = [system.name for system in SYSTEMS]
        runs.sort(key=lambda run: (names.index(run["system"]), run["in_flight"]))
        if datetime.now(UTC).date() != began.date():
            raise SystemExit("midnight (UTC) passed and turned a day's budget; run it again")
        return {
            "benchmark": "overspend",
            "date": began.isoformat(timespec="seconds"),
            "versions": self._versions,
            "budget_usd_micros": self._budget_usd_micros,
            "rows": self._rows,
            "demand": DEMAND,
            "price_usd_micros_per_token": PRICE,
            "max_tokens": MAX_TOKENS,
            "answer_tokens": ANSWER_TOKENS,
            "skipped": self._skipped,
            "failed": self._failed,
            "notes": NOTES,
            "runs": runs,
        }

    def _plan(self) -> Iterator[tuple[System, int]]:
        """The runs, those that matter most first, so that a slow machine leaves out the least. What is left out is said."""
        levels = self._options.in_flight
        pairs = [(system, level) for level in reversed(levels) for system in SYSTEMS if system.levels == "all"]
        pairs += [(system, levels[-1]) for system in SYSTEMS if system.levels == "highest"]
        pairs += [(system, levels[0]) for system in SYSTEMS if system.levels == "lowest"]
        for system, level in pairs:
            if self._options.only.lower() not in system.name.lower():
                continue
            if system.kind != "raycade" and not Path(self._options.litellm).exists():
                self._skipped[system.name] = "LiteLLM is not installed; `make overspend` does it"
            elif system.redis and not self._options.redis_server:
                self._skipped[system.name] = "there is no redis-server; name one with --redis-server"
            elif time.monotonic() > self._no_later_than:
                minutes = f"{self._options.minutes:g} minutes were up; give it more with --minutes"
                self._skipped[f"{system.name}, {level:,} in flight"] = minutes
            else:
                yield system, level

    def _run(self, system: System, in_flight: int) -> Run:
        folder = self._folder / f"run-{time.monotonic_ns()}"
        folder.mkdir()
        began = time.monotonic()
        with MockProcess(SCENARIO) as mock:
            with _Watch(mock, self._budget_usd_micros) as watch:
                act = self._raycade if system.kind == "raycade" else self._litellm
                said = act(system, in_flight, mock.url, folder)
            stats = mock.stats()["tiers"]["default"]
        served = _cost(stats)
        run = {
            "system": system.name,
            "how": system.how,
            "in_flight": in_flight,
            "in_flight_at_endpoint": stats["max_in_flight"],
            "budget_usd_micros": self._budget_usd_micros,
            "served_usd_micros": served,
            "served_percent": round(100 * served / self._budget_usd_micros, 2),
            "calls": stats["requests"],
            "calls_after_exhaustion": stats["requests"] - watch.calls if watch.calls is not None else 0,
            "seconds": round(time.monotonic() - began, 1),
            "until_first_refusal_usd_micros": served,
            **said,
        }
        until = run["until_first_refusal_usd_micros"]
        run["until_first_refusal_percent"] = round(100 * until / self._budget_usd_micros, 2)
        self._console.print(
            f"{system.name:<28} {in_flight:>5} in flight   served {run['served_percent']:>6.1f} % of the budget"
            f"   ({run['seconds']:.0f} s)",
            highlight=False,
        )
        return run

    def _raycade(self, system: System, in_flight: int, url: str, folder: Path) -> dict[str, Any]:
        """`raycade batch`, as a user runs it. It must end by itself, stopped by its budget."""
        tier = {
            "name": MODEL,
            "model": MODEL,
            "base_url": url,
            "replicas": 2,
            "concurrency": math.ceil(in_flight / 2),  # so that the endpoint can have as many as are in flight
            "timeout_s": 60,
            "price": PRICE,  # USD per million tokens is micro-dollars per token
        }
        config = {
            "state_dir": str(folder / "state"),
            "tiers": [tier],
            "budget": {"usd": {"per_day": self._budget_usd_micros / 1e6}, "on_exhausted": "stop"},
            "router": {"replicas": system.processes},
        }
        (folder / "raycade.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        out = folder / "out.jsonl"
        command = [sys.executable, "-P", "-m", "runtime", "batch", "-i", str(self._input), "-o", str(out)]
        command += ["-c", str(folder / "raycade.yaml"), "--window", str(in_flight), "--progress", "none"]
        command += ["--address", "local"]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        code, told = _ended(command, folder, PYTHONPATH=path, RAY_USAGE_STATS_ENABLED="0")
        if code not in (0, 4):
            raise RunFailed(f"raycade batch failed ({code}): {told[-2000:]}")
        lines = out.read_bytes().count(b"\n") if out.exists() else 0
        return {"answered": lines, "refused": self._rows - lines, "failed": 0, "cut_off": False, "exit_code": code}

    def _litellm(self, system: System, in_flight: int, url: str, folder: Path) -> dict[str, Any]:
        settings = {
            "kind": system.kind,
            "processes": system.processes,
            "redis": self._options.redis_server if system.redis else None,
            "strict": system.strict,
            "url": url,
            "model": MODEL,
            "price": PRICE,
            "budget_usd_micros": self._budget_usd_micros,
            "input": str(self._input),
            "in_flight": in_flight,
            "patient": True,
            "deadline_s": OFFER_TIMEOUT_S,
            "folder": str(folder),
        }
        script = str(ROOT / "benchmarks" / "overspend_litellm.py")
        code, told = _ended([self._options.litellm, script, "launch", json.dumps(settings)], folder)
        if code:
            raise RunFailed(f"failed ({code}): {told[-2000:]}")
        said: dict[str, Any] = json.loads(told.splitlines()[-1])
        self._versions["litellm"] = said.pop("litellm")
        return said


class _Watch:
    """Looks at the endpoint's meter all the time, to see with which call the budget was used up."""

    def __init__(self, mock: MockProcess, limit_usd_micros: int) -> None:
        self._mock, self._limit = mock, limit_usd_micros
        self.calls: int | None = None
        """How many calls had arrived when the budget was served; None: it never was."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            stats = self._mock.stats()["tiers"].get("default")
            if stats is not None and _cost(stats) >= self._limit:
                self.calls = stats["requests"]
                return


def _ended(command: list[str], folder: Path, **environment: str) -> tuple[int, str]:
    """Run in a session of its own, whose processes are all gone afterwards. Its input stays open until then."""
    with open(folder / "errors.log", "w+b") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            kill = threading.Timer(RUN_TIMEOUT_S, process.kill)
            kill.start()
            told = process.stdout.read().decode(errors="replace")
            code = process.wait()
            kill.cancel()
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        errors.seek(0)
        return code, told or errors.read().decode(errors="replace")


def _write_rows(path: Path, rows: int) -> tuple[Path, list[int]]:
    """Distinct prompts of different lengths, and what the endpoint will charge for each."""
    chance = random.Random(3)
    words = WORDS.split()
    costs = []
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            size = chance.randint(*PROMPT_BYTES)
            text = f"Ticket {number}: {' '.join(chance.choices(words, k=size // 3))}"[:size]
            body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": MAX_TOKENS}
            row = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(row) + "\n")
            costs.append((count_tokens(text) + 7) * PRICE["prompt"] + ANSWER_TOKENS * PRICE["completion"])
    return path, costs


def _cost(stats: dict[str, Any]) -> int:
    """Micro-dollars, at the endpoint's own count of tokens."""
    return int(stats["prompt_tokens"] * PRICE["prompt"] + stats["completion_tokens"] * PRICE["completion"])


def _print(report: dict[str, Any], console: Console) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    budget = report["budget_usd_micros"] / 1e6
    title = f"budget ${budget:.4f}, demand {report['demand']} times that ({report['rows']:,} requests); {versions}"
    table = Table(title=title, title_justify="left")
    table.add_column("system", overflow="fold")
    for name in ("in flight", "at endpoint", "served", "% of budget", "sent later", "refused", "stops at the first no"):
        table.add_column(name, justify="right")
    for run in report["runs"]:
        over = run["served_usd_micros"] > run["budget_usd_micros"]
        failed = f", {run['failed']:,} failed" if run["failed"] else ""
        failed += ", time was up" if run["cut_off"] else ""
        table.add_row(
            run["system"],
            f"{run['in_flight']:,}",
            f"{run['in_flight_at_endpoint']:,}",
            f"${run['served_usd_micros'] / 1e6:.4f}",
            f"[{'red' if over else 'green'}]{run['served_percent']:.1f} %[/]",
            f"{run['calls_after_exhaustion']:,}",
            f"{run['refused']:,}{failed}",
            f"{run['until_first_refusal_percent']:.1f} %",
        )
    console.print(table)
    for name, how in dict.fromkeys((run["system"], run["how"]) for run in report["runs"]):
        console.print(f"{name}: {how}", highlight=False)
    for name, why in report["skipped"].items():
        console.print(f"{name}: left out, {why}", highlight=False)
    for name, why in report["failed"].items():
        console.print(f"{name}: failed, {why}", highlight=False, markup=False)
    for note in report["notes"]:
        console.print(note, style="dim", highlight=False)


if __name__ == "__main__":
    raise SystemExit(main())
