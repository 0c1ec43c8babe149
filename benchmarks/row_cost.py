"""Where a row's CPU goes: py-spy watches the driver, the router and a tier actor of one run with every guard on.

    python -m benchmarks.row_cost [--rows 100000] [--seconds 8] [--by file|function] [--least 0.5]

A sample is a moment in which a thread held the interpreter; it counts for the innermost frame that is the project's own, with
all that this called (orjson, pickle), else for the event loop, which also writes to sockets. Microseconds are each place's share
of the samples, times the process' CPU a row in the same run: what its threads do without the interpreter (Ray's own, mostly)
is spread over all. py-spy stops a process for each look, which needs leave, and slows the run down.
"""

import argparse
import ast
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.bench import ROOT, WARMUP_ROWS, Bench, Run

__all__ = ["main"]

WATCHED = {"driver": "benchmarks.overhead_clients raycade", "router": "ray::RouterActor", "tiers": "ray::TierActor"}
OURS = ("runtime/", "actors/")
RATE = 100
START_S = 90.0
ELSE = "the event loop, with what it reads and writes"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0 when everything ran."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.row_cost", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=12.0, help="to watch, beginning 2 s after the warm-up")
    parser.add_argument("--by", choices=("file", "function"), default="file")
    parser.add_argument("--least", type=float, default=0.5, help="microseconds a row that a line must have")
    options = parser.parse_args(arguments)
    console = Console()
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise SystemExit("py-spy is not installed: pip install py-spy")
    with tempfile.TemporaryDirectory(prefix="rcc-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        bench = Bench(folder, console)
        watch = threading.Thread(target=_watch, args=(spy, folder, options.seconds, console))
        with bench.endpoint():
            watch.start()
            run = bench.run("raycade", options.rows, WARMUP_ROWS, "watched", {"window": 2000})
            watch.join()
        for role in WATCHED:
            _print(role, run, folder / f"{role}.txt", options, console)
        console.print(f"all processes: {run['cpu_us_per_row']:.0f} us a row", highlight=False)
    return 0


def _watch(spy: str, folder: Path, seconds: float, console: Console) -> None:
    """Samples of each process, in a file of its role's name."""
    output, until = folder / "raycade.jsonl", time.monotonic() + START_S
    while not (output.exists() and output.stat().st_size) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(2.0)
    spies = []
    for role, title in WATCHED.items():
        found = _pid(title, str(folder))
        if found is None:
            console.print(f"there is no {role} to watch", style="red")
            continue
        command = [spy, "record", "--pid", str(found), "--gil", "--rate", str(RATE), "--duration", f"{seconds:.0f}"]
        command += ["--format", "raw", "--output", str(folder / f"{role}.txt")]
        spies.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    for child in spies:
        _, error = child.communicate(timeout=seconds + 60)
        if child.returncode:
            console.print(f"py-spy: {error.decode(errors='replace')[-300:]}", style="red", markup=False)


def _pid(title: str, folder: str) -> int | None:
    """The run's first process with this in its command line: one below the client that works in `folder`."""
    above: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                above[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue
    for pid in sorted(pid for pid, command in commands.items() if title in command):
        line = pid
        while line in above:
            if folder in commands.get(line, ""):
                return pid
            line = above[line]
    return None


def _print(role: str, run: Run, samples: Path, options: argparse.Namespace, console: Console) -> None:
    if not samples.exists():
        return
    counts: Counter[str] = Counter()
    for line in samples.read_text(encoding="utf-8").splitlines():
        stack, _, seen = line.rpartition(" ")
        counts[_owner(stack.split(";"), options.by)] += int(seen)
    whole = run["cpu_us_per_row_by_role"][role]
    each = whole / max(1, counts.total())
    table = Table(title=f"{role}: {whole:.0f} us a row", title_justify="left")
    for name in ("us", "where", "what"):
        table.add_column(name, justify="right" if name == "us" else "left", no_wrap=name != "what")
    rest = 0.0
    for place, count in counts.most_common():
        if count * each < options.least:
            rest += count * each
        else:
            table.add_row(f"{count * each:.1f}", place, _purpose(place))
    table.add_row(f"{rest:.1f}", "other files", "")
    console.print(table)


def _owner(frames: list[str], by: str) -> str:
    """The innermost frame of ours: `actors/lane.py`, or with its function."""
    for frame in reversed(frames):
        function, _, place = frame.partition(" (")
        path = place.rpartition(":")[0].removeprefix(f"{ROOT}/")
        if path.startswith(OURS):
            return path if by == "file" else f"{path} {function}"
    return ELSE


def _purpose(place: str) -> str:
    """The first line of a file's docstring."""
    path = ROOT / place.partition(" ")[0]
    if not path.is_file():
        return ""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0][:90]


if __name__ == "__main__":
    sys.exit(main())
