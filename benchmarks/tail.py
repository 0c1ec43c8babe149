"""What hedging does to the slow end: the same batch with `router.hedge` off, for the last rows only, and after p95.

    python -m benchmarks.tail [--rows 2000] [--window 100] [--slow 30] [--rounds 1] [--json FILE] [--quick]

One mock endpoint whose answers take a lognormal time (median 0.8 s, sigma 0.4), but one in a hundred takes `--slow`
seconds. Each setting is `raycade batch` in a process of its own, observed at three names that it imports. A row's time is from
its request being made to its line being handed to the writer; the window is below the tier's slots, so no row waits for
one. Calls are counted by the endpoint, and money is what the ledger books: the loser of two copies at its worst case.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from runtime.mock.process import MockProcess

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
MEDIAN_S, SIGMA, SLOW_SHARE = 0.8, 0.4, 0.01
MAX_TOKENS = 16
RUN_TIMEOUT_S = 600.0
SETTINGS: dict[str, Any] = {
    "off": "off",
    "last rows only": {"after": "p95", "max_fraction": 0},
    "p95, 5%": {"after": "p95", "max_fraction": 0.05},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Always 0 when everything ran, whatever the numbers are."""
    options = _options(arguments)
    if options.one:
        print(json.dumps(_one(json.loads(options.one))))
        return 0
    console = Console(width=max(110, Console().width))  # a table that is cut tells nothing
    console.print(
        f"{options.rows:,} rows, {options.window} in flight; lognormal around {MEDIAN_S:g} s, "
        f"{SLOW_SHARE:.0%} at {options.slow:g} s",
        highlight=False,
    )
    latency = {
        "lognormal": {"median_s": MEDIAN_S, "sigma": SIGMA},
        "outlier": {"fraction": SLOW_SHARE, "s": options.slow},
    }
    runs: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="raycade-tail-") as folder,
        MockProcess({"tiers": {"default": {"latency": latency}}}) as mock,
    ):
        for number in range(options.rounds):
            for name, hedge in SETTINGS.items():
                mock.reset()  # the same draws by number of call, as far as the calls are the same
                run = _run(Path(folder, f"{number}-{len(runs)}"), options, mock.url, hedge)
                runs.append({"hedge": name, "round": number, "calls": mock.stats()["total"]["requests"], **run})
                console.print(f"  {name}: {run['job_s']:.1f} s", highlight=False)
    console.print(_table(runs))
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "runs": runs}, indent=2) + "\n", "utf-8")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tail", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, help="rows a run (default 2000)")
    parser.add_argument("--window", type=int, default=100, help="rows in flight")
    parser.add_argument("--slow", type=float, help="seconds that one call in a hundred takes (default 30)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each setting")
    parser.add_argument("--json", help="write everything here")
    parser.add_argument("--quick", action="store_true", help="600 rows, 5 s: to see that it works")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.rows = options.rows or (600 if options.quick else 2_000)
    options.slow = options.slow or (5.0 if options.quick else 30.0)
    if options.rows < 1 or options.rounds < 1 or options.window < 1 or options.slow <= 0:
        parser.error("expected at least one row, one round, a window of one and a slow call")
    return options


def _run(folder: Path, options: argparse.Namespace, url: str, hedge: Any) -> dict[str, Any]:
    """One job, in a process of its own."""
    folder.mkdir()
    chance = random.Random(1)
    with open(folder / "in.jsonl", "w", encoding="utf-8") as file:
        for number in range(options.rows):
            content = f"Ticket {number}: {chance.getrandbits(256):x}"
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": MAX_TOKENS}
            row = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(row) + "\n")
    tier = {
        "name": "main",
        "model": "mock-model",
        "base_url": url,
        "replicas": 2,
        "concurrency": options.window,
        "timeout_s": 2 * options.slow + 10,
        "price": {"prompt": 0.15, "completion": 0.6},
    }
    config = {"state_dir": str(folder / "state"), "tiers": [tier], "router": {"hedge": hedge}}
    (folder / "raycade.yaml").write_text(json.dumps(config), "utf-8")  # JSON is YAML
    asked = {"folder": str(folder), "window": options.window}
    child = subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.tail", "--one", json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        cwd=folder,
        capture_output=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    if child.returncode:
        raise SystemExit(f"the job failed ({child.returncode}): {child.stderr.decode(errors='replace')[-2000:]}")
    run: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return run


def _one(asked: dict[str, Any]) -> dict[str, Any]:
    """`raycade batch`, with a clock at both ends of each row."""
    from runtime.batch import job, rows, writer
    from runtime.batch.summary import summary_dict

    made_at: dict[int, float] = {}
    took_s: list[float] = []
    told: dict[str, Any] = {}

    class Encoder(rows.Encoder):
        def encode(self, row: Any) -> Any:
            made_at[row.number] = time.perf_counter()
            return super().encode(row)

    class Writer(writer.OutputWriter):
        def add_result(self, row: Any, *rest: Any) -> bool:
            took_s.append(time.perf_counter() - made_at[row.number])
            return super().add_result(row, *rest)

    def print_summary(*args: Any, **kwargs: Any) -> None:
        told.update(summary_dict(*args[:7]))

    folder = Path(asked["folder"])
    options = job.BatchOptions(
        str(folder / "in.jsonl"),
        str(folder / "out.jsonl"),
        config=str(folder / "raycade.yaml"),
        window=asked["window"],
        address="local",
        progress="none",
    )
    with patch.multiple(job, Encoder=Encoder, OutputWriter=Writer, print_summary=print_summary):
        code = job.run_job(options)
    if code:
        raise SystemExit(f"raycade batch: exit code {code}, {told}")
    ordered = sorted(took_s)
    return {
        "rows": len(ordered),
        **{f"p{share}_s": ordered[min(len(ordered) - 1, int(share / 100 * len(ordered)))] for share in (50, 95, 99)},
        "most_s": ordered[-1],
        "job_s": told["duration_s"],
        "copies": told["hedged"]["copies"],
        "won": told["hedged"]["won"],
        "cost_usd": told["cost_usd"],
    }


def _table(runs: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("hedge", "p50", "p95", "p99", "slowest", "job", "calls", "second copies", "won", "booked"):
        table.add_column(name, justify="left" if name == "hedge" else "right", no_wrap=True)
    for run in runs:
        times = [f"{run[name]:.2f} s" for name in ("p50_s", "p95_s", "p99_s", "most_s", "job_s")]
        counts = [f"{run[name]:,}" for name in ("calls", "copies", "won")]
        table.add_row(run["hedge"], *times, *counts, f"${run['cost_usd']:.4f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
