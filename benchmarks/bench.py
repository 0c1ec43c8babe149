"""What all throughput benchmarks share: a mock endpoint, an input, and runs of clients (overhead_clients.py) in turn.

Ratios are taken within a round and their median is shown, since whatever else the machine does hits neighbours alike.
"""

import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.overhead_clients import CLIENTS
from runtime.mock.process import MockProcess

__all__ = ["ROOT", "WORDS", "Bench", "Run", "Spread", "machine", "pooled", "ratio", "spread", "text", "versions"]

ROOT = Path(__file__).resolve().parents[1]
PROMPT_BYTES = 500
MAX_TOKENS = 16
WARMUP_ROWS = 500
TRIES = 2
"""How often each setting of a loop is tried; its best try counts."""
RUN_TIMEOUT_S = 1800.0
QUIET_LITELLM = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
PACKAGES = ("raycade", "ray", "aiohttp", "openai", "uvloop", "orjson", "httptools")
WORDS = (
    "the a parcel order came late my account invoice was charged twice please refund answer within two days number "
    "address changed router does not connect since update Monday thank you colleague promised call back nobody did"
)
_WORDS = WORDS.split()

Run = dict[str, Any]
Spread = dict[str, float]


class Bench:
    """Runs against one endpoint at a time, in a folder that goes away."""

    def __init__(self, folder: Path, console: Console, quick: bool = False) -> None:
        self._folder = folder
        self._console = console
        self._quick = quick
        self.mock: MockProcess
        """The endpoint, while there is one."""

    @contextlib.contextmanager
    def endpoint(self, latency_s: float = 0.0, tiers: Mapping[str, Any] | None = None) -> Iterator[None]:
        """The mock that all runs within ask."""
        with MockProcess({"tiers": dict(tiers)} if tiers else "ok", latency_s=latency_s or None) as self.mock:
            yield

    def tier(self, **more: Any) -> dict[str, Any]:
        """A tier of raycade's configuration: two actors, one price."""
        return {
            "name": "main",
            "model": "mock-model",
            "base_url": self.mock.url,
            "replicas": 2,
            "timeout_s": 60,
            "price": {"prompt": 0.15, "completion": 0.6},
            **more,
        }

    def choose(self, name: str, rows: int, counts: Sequence[int], warmup: int) -> list[Run]:
        """The settings that serve a loop best, found by trying all numbers in flight and loops; best first."""
        if self._quick:
            counts = counts[:1]
        trials = [
            {"in_flight": count, "uvloop": uvloop}
            for count in sorted(set(counts))
            for uvloop in CLIENTS[name].uvloop[-1 if self._quick else 0 :]
        ]
        if len(trials) == 1:
            return [{"settings": trials[0]}]
        best = [0.0] * len(trials)
        for _ in range(TRIES):  # a disturbance then seldom decides
            for number, settings in enumerate(trials):
                run = self.run(name, rows, warmup, f"trying {shown(settings)}", settings)
                best[number] = max(best[number], run["rows_per_s"])
        ranked = sorted(zip(best, range(len(trials)), strict=True), reverse=True)
        return [{"settings": trials[number], "rows_per_s": rate} for rate, number in ranked]

    def run(
        self,
        name: str,
        rows: int,
        warmup: int,
        what: str,
        settings: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        copies: int = 1,
    ) -> Run:
        """One client, one process, one result.

        `config`: sections that replace those of raycade's configuration. `copies`: how often each prompt is in the input.
        """
        load = os.getloadavg()[0]
        source = self._input(rows + warmup, copies)
        command = self._command(name, source, rows, warmup, settings or {}, config or {})
        child = subprocess.run(command, **self._surroundings(), timeout=RUN_TIMEOUT_S, check=False)
        run = self._result(name, child.returncode, child.stdout, child.stderr)
        self._say(name, what, run["rows_per_s"])
        return run | {"load_before": load}

    def drivers(self, count: int, rows: int, warmup: int, what: str, settings: Mapping[str, Any]) -> Run:
        """So many drivers of raycade at once, with one ledger: each has a file of so many rows, a Ray and actors of its own.

        Their clocks start together; the rate is of all rows, until the last driver has written its last line.
        """
        with tempfile.TemporaryDirectory(dir=self._folder) as together, contextlib.ExitStack() as stack:
            children = []
            for number in range(count):
                source = self._input(rows + warmup, part=number)
                shared = {**settings, "together": together}
                command = self._command("raycade", source, rows, warmup, shared, {}, f"-{number}")
                child = stack.enter_context(subprocess.Popen(command, **self._surroundings()))
                stack.callback(child.kill)  # has no effect on one that has ended
                children.append(child)
            until = time.monotonic() + RUN_TIMEOUT_S
            while len(list(Path(together).glob("warm-*"))) < count and time.monotonic() < until:
                if any(child.poll() for child in children):
                    break  # it says why below
                time.sleep(0.02)
            Path(together, "go").touch()
            said = [(child, *child.communicate(timeout=RUN_TIMEOUT_S)) for child in children]
        runs = [self._result("raycade", child.returncode, out, error) for child, out, error in said]
        seconds = max(run["ended"] for run in runs) - min(run["began"] for run in runs)
        cpu = statistics.fmean(run["cpu_us_per_row"] for run in runs)
        found = {"rows": count * rows, "rows_per_s": count * rows / seconds, "cpu_us_per_row": cpu, "drivers": runs}
        self._say("raycade", what, found["rows_per_s"])
        return found

    def program(self, module: str, name: str, asked: Mapping[str, Any], what: str) -> Run:
        """One run of a program that keeps its own clock and needs no input file, with the endpoint and raycade's configuration."""
        load = os.getloadavg()[0]
        options = {"url": self.mock.url, "config": str(self._config({})), **asked}
        command = [sys.executable, "-P", "-m", module, name, json.dumps(options)]
        child = subprocess.run(command, **self._surroundings(), timeout=RUN_TIMEOUT_S, check=False)
        run = self._result(name, child.returncode, child.stdout, child.stderr)
        self._say(name, what, run["rows_per_s"])
        return run | {"load_before": load}

    def _command(
        self,
        name: str,
        source: Path,
        rows: int,
        warmup: int,
        settings: Mapping[str, Any],
        config: Mapping[str, Any],
        suffix: str = "",
    ) -> list[str]:
        asked = {
            "url": self.mock.url,
            "input": str(source),
            "output": str(self._folder / f"{name}{suffix}.jsonl"),
            "rows": rows + warmup,
            "warmup": warmup,
            "window": 2000,
            "config": str(self._config(config)),
            **settings,
        }
        return [str(CLIENTS[name].python), "-P", "-m", "benchmarks.overhead_clients", name, json.dumps(asked)]

    def _surroundings(self) -> dict[str, Any]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", **QUIET_LITELLM}
        return {"env": env, "cwd": self._folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def _result(self, name: str, code: int, out: bytes, error: bytes) -> Run:
        if code:
            raise SystemExit(f"{name} failed ({code}): {error.decode(errors='replace')[-2000:]}")
        run: Run = json.loads(out.splitlines()[-1])
        return run

    def _say(self, name: str, what: str, rows_per_s: float) -> None:
        self._console.print(f"{name:<14} {what:<44} {rows_per_s:>9,.0f} rows/s", highlight=False)

    def _input(self, rows: int, copies: int = 1, part: int = 0) -> Path:
        """Prompts of about `PROMPT_BYTES` bytes; the same ones whenever it is called. Equal ones stand far apart."""
        path = self._folder / f"input-{rows}-{copies}-{part}.jsonl"
        if not path.exists():
            chance, distinct = random.Random(1 + part), -(-rows // copies)
            with open(path, "w", encoding="utf-8") as file:
                for number in range(rows):
                    if number % distinct == 0:
                        chance.seed(1 + part)
                    file.write(_row(number, f"{part}.{number % distinct}", chance))
        return path

    def _config(self, replaced: Mapping[str, Any]) -> Path:
        """Every guard on: limits that are counted but never reached, coalescing, the breaker; two actors in one tier."""
        path = self._folder / "raycade.yaml"
        limits = {
            "tokens": {"per_request": 1e6, "per_hour": 1e12, "per_day": 1e12},
            "usd": {"per_request": 1e3, "per_hour": 1e8, "per_day": 1e8},
        }
        config = {"state_dir": str(self._folder / "state"), "tiers": [self.tier()], "budget": limits, **replaced}
        path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        return path


def text(ticket: str, chance: random.Random) -> str:
    """A prompt of `PROMPT_BYTES` bytes."""
    return f"Ticket {ticket}: {' '.join(chance.choices(_WORDS, k=PROMPT_BYTES // 4))}"[:PROMPT_BYTES]


def _row(number: int, ticket: str, chance: random.Random) -> str:
    # `main` is the tier's name, the model's to an endpoint: raycade takes it for the one, the loops send it as the other.
    body = {"model": "main", "messages": [{"role": "user", "content": text(ticket, chance)}], "max_tokens": MAX_TOKENS}
    row = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(row) + "\n"


# -- what came of it -----------------------------------------------------------------------------------------------


def spread(values: Iterable[float]) -> Spread:
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "least": ordered[0], "most": ordered[-1]}


def ratio(ours: Sequence[Run], theirs: Sequence[Run], field: str = "rows_per_s") -> Spread:
    """Of rows/s, or of another field, round by round, of those rounds that both were in."""
    return spread(our[field] / their[field] for our, their in zip(ours, theirs, strict=False))


def pooled(runs: Sequence[Run]) -> float:
    """CPU a row of all rows of all runs, in microseconds: for runs so short that one of them says little."""
    return float(sum(run["cpu_us_per_row"] * run["rows"] for run in runs) / sum(run["rows"] for run in runs))


def shown(settings: Mapping[str, Any]) -> str:
    """Settings of a loop, in words."""
    connections = f"{settings['in_flight']:,} connections, " if settings["in_flight"] else ""
    return f"{connections}{'uvloop' if settings['uvloop'] else 'asyncio'}"


def machine() -> dict[str, Any]:
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


def versions() -> dict[str, str]:
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
