"""`make demo`: one real job, seen from outside. A mock endpoint with three tiers, `raycade batch` over 400 tickets.

The job is the command anybody would run, in a process of its own; this program only starts the endpoint before it and
afterwards holds what the endpoint counted against what the job says. It ends with the job's exit code.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.data.make_tickets import EQUAL, ROWS
from runtime.mock.process import MockProcess

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
INPUT = Path("benchmarks/data/tickets.jsonl")
CONFIG = ROOT / "benchmarks" / "demo.yaml"
WINDOW = 24
"""Rows in flight: few, so that the job outlasts the outage and one can watch it."""

STAGED = f"""\
{ROWS} support tickets, {EQUAL} of them equal to an earlier one, go through three tiers of a mock endpoint:
  premium   answers 500 to a fifth of its calls, allows 32 calls a second, and is down (503) from second 3 to 5.6
  standard  is steady; the configuration sends it at most 1,800 calls a minute
  basic     is fast and cheap, and gets what is too much for the other two
No key is used and nothing leaves this machine.
"""


def main(out: str = "demo-out") -> int:
    """Run the demo into the folder `out`, which is removed first; the job's exit code."""
    os.chdir(ROOT)
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    config, answers = Path(out, "raycade.yaml"), Path(out, "answers.jsonl")
    print(STAGED, flush=True)
    with MockProcess("demo") as mock:
        text = CONFIG.read_text("utf-8").replace(":8080/", f":{mock.port}/").replace("demo-out/", f"{out}/")
        config.write_text(text, "utf-8")
        command = ["batch", "-i", str(INPUT), "-o", str(answers), "-c", str(config), "--window", str(WINDOW)]
        command += ["--report", str(Path(out, "report.html"))]
        print(f"$ raycade {' '.join(command)}", flush=True)
        code = _run([sys.executable, "-m", "runtime", *command])
        if code in (0, 3):
            _tell(answers, config, mock.stats())
    return code


def _run(command: list[str]) -> int:
    """The job's exit code. Ctrl-C reaches the job by itself and it decides what to do; SIGTERM is handed on."""
    stopped: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        if child is not None and number == signal.SIGTERM:
            child.terminate()

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(command)
        if signal.SIGTERM in stopped:
            child.terminate()
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _tell(answers: Path, config: Path, stats: dict[str, Any]) -> None:
    """What happened, counted a second time: from the lines of the answers, and by the endpoint."""
    lines = [json.loads(line)["response"]["body"]["raycade"] for line in answers.read_bytes().splitlines()]
    led = [line for line in lines if not line.get("coalesced")]
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_column()
    for tier in ("premium", "standard", "basic"):
        attempts = [line["attempts"] for line in led if line["tier"] == tier]
        after = sum(count > 1 for count in attempts)
        label = f"answered by {tier}" if tier == "premium" else f"fell back to {tier}"
        table.add_row(label, str(len(attempts)), f"{after} after a failed call, {len(attempts) - after} without one")
    table.add_row("coalesced", str(len(lines) - len(led)), "had an equal row's answer: no call, no cost")
    statuses = Counter[str]()
    for seen in stats["tiers"].values():
        statuses.update(seen["by_status"])
    table.add_row("met the outage", str(statuses["503"]), "calls; the breaker kept the others away")
    told = ", ".join(f"{status}: {statuses[status]}" for status in sorted(statuses))
    table.add_row("calls received", str(stats["total"]["requests"]), told)
    cost = sum(line["cost_usd"] for line in lines)
    table.add_row("cost", f"${cost:.4f}", "of the $1.00 a day that the budget allows")
    console = Console()
    console.print(Text("\nCounted again, from the answers and at the endpoint", style="bold"))
    console.print(table)
    console.print(
        "A row falls back without a failed call while the tier above asks for a pause (429), while", soft_wrap=True
    )
    console.print("its circuit breaker is open, or when it has had its calls for the minute.", soft_wrap=True)
    files = f"answers: {answers}   report: {config.parent}/report.html   configuration: {config}"
    console.print(f"\n{files}   ledger: {config.parent}/state", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
