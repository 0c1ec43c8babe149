"""A job that works for half an hour at half of what it could, with a fault every 20 seconds.

    python -m benchmarks.soak [--minutes 30] [--every 20] [--rate ROWS_PER_S] [--json FILE]

One `raycade batch` over two tiers: the first lies behind the fault proxy and has bad times of its own, the second is
well. In turn the endpoint fails, the network breaks, and processes are killed or stopped. At the end: is every row there
once with its own answer, and did the memory and the open files of the driver and the router stay where they were? The
rate is half of a short run's without faults. Memory is what is a process' own: what it shares with others and what it has
mapped of files, which the system can drop at any time, stands beside it and is not judged. It is fitted with least squares
after each process' warm-up; a router that was killed is another process and has a line of its own, of one slope for all.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from rich.console import Console
from rich.table import Table

from runtime.mock.content import echo
from runtime.mock.process import MockProcess
from runtime.mock.proxy import FaultProxy, Faults

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
LATENCY_S = 0.2
LOOK_S = 1.0
WARM_UP_S = 60.0
SLOPE_MB = 1.0
"""A minute, of the driver and of the router: what is asked for."""
FILES_SLOPE = 1.0
"""Open files a minute."""
TRIAL_ROWS = 15_000
TRIAL_WINDOW = 2000
PAGE = os.sysconf("SC_PAGE_SIZE")


class Fault(NamedTuple):
    """`conduct` is the first tier's for `for_s`; `act` is done to the network or to a process, and undone after `for_s`."""

    name: str
    for_s: float
    conduct: dict[str, Any] | None = None
    act: "Callable[[Soak], Callable[[], None] | None] | None" = None


def _network(faults: Faults) -> "Callable[[Soak], Callable[[], None]]":
    def act(soak: "Soak") -> Callable[[], None]:
        soak.proxy.faults = faults

        def undo() -> None:
            soak.proxy.faults = Faults()

        return undo

    return act


def _refuse(soak: "Soak") -> Callable[[], None]:
    soak.on_loop(soak.proxy.refuse())
    soak.loop.call_soon_threadsafe(soak.proxy.reset_all)
    return lambda: soak.on_loop(soak.proxy.accept())


def _reset(soak: "Soak") -> None:
    soak.loop.call_soon_threadsafe(soak.proxy.reset_all)


def _kill(kind: str) -> "Callable[[Soak], None]":
    def act(soak: "Soak") -> None:
        for pid in soak.pids(kind)[:1]:
            os.kill(pid, signal.SIGKILL)

    return act


def _stop(kind: str) -> "Callable[[Soak], Callable[[], None]]":
    def act(soak: "Soak") -> Callable[[], None]:
        chosen = soak.pids(kind)[:1]
        for pid in chosen:
            os.kill(pid, signal.SIGSTOP)

        def undo() -> None:
            for pid in chosen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

        return undo

    return act


def _few_files(soak: "Soak") -> Callable[[], None]:
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in soak.pids("TierActor")}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 1, hard))
    _reset(soak)

    def undo() -> None:
        for pid, limit in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)

    return undo


FAULTS = (
    Fault("503", 5, {"status": 503}),
    Fault("all connections reset", 0, act=_reset),
    Fault("kill the router", 0, act=_kill("RouterActor")),
    Fault("429, Retry-After 1", 5, {"errors": [{"fraction": 1, "status": 429, "retry_after_s": 1}]}),
    Fault("a third hangs", 5, {"hang": 0.3}),
    Fault("black hole", 4, act=_network(Faults(black_hole=True))),
    Fault("kill a tier", 0, act=_kill("TierActor")),
    Fault("half of the bodies break off", 5, {"reset_mid_body": 0.5}),
    Fault("connections refused", 3, act=_refuse),
    Fault("stop a tier", 4, act=_stop("TierActor")),
    Fault("slow-loris bodies", 5, {"trickle": 0.3}),
    Fault("kill the budget", 0, act=_kill("BudgetActor")),
    Fault("replies of 100 MB", 5, {"huge": 0.02}),
    Fault("latency of 0.5 s", 5, act=_network(Faults(latency_s=0.5))),
    Fault("stop the router", 4, act=_stop("RouterActor")),
    Fault("broken JSON", 5, {"malformed": 0.5}),
    Fault("kill the coalescer", 0, act=_kill("CoalescerActor")),
    Fault("replies cut after 300 bytes", 4, act=_network(Faults(cut_after_down=300))),
    Fault("no open files for the tiers", 3, act=_few_files),
    Fault("stop the budget", 4, act=_stop("BudgetActor")),
    Fault("a pause of the network", 2, act=_network(Faults(paused=True))),
    Fault("web pages", 5, {"html": 0.5}),
    Fault("stop the coalescer", 4, act=_stop("CoalescerActor")),
)


class Sample(NamedTuple):
    at_s: float
    pid: int
    mb: float
    mapped_mb: float
    files: int


class Soak:
    """One run: the mock, the proxy, the job, and what was seen."""

    def __init__(self, folder: Path, options: argparse.Namespace, console: Console) -> None:
        self._folder, self._options, self._console = folder, options, console
        self.loop = asyncio.new_event_loop()
        self.proxy: FaultProxy
        self.samples: dict[str, list[Sample]] = {}
        self.done: list[str] = []
        self._job: subprocess.Popen[bytes] | None = None

    def on_loop(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def pids(self, kind: str) -> list[int]:
        """Processes of the job's actors of a class."""
        return sorted(pid for pid, title in self._below().items() if title.startswith(f"ray::{kind}"))

    def run(self) -> dict[str, Any]:
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        rate = self._options.rate or self._capacity() / 2
        seconds = self._options.minutes * 60
        faults = self._timetable(seconds)
        rows = int(rate * seconds)
        self._console.print(f"{rows:,} rows at about {rate:,.0f} rows/s, {len(faults)} faults", highlight=False)
        with MockProcess(_scenario(faults)) as mock:
            self._through_proxy(mock)
            started = time.monotonic()
            # Little's law: so many rows under way make that rate at that latency.
            code = self._batch("soak", rows, max(10, int(rate * LATENCY_S * 1.15)), mock, 4 * seconds + 300, faults)
            took_s = time.monotonic() - started
            self.on_loop(self.proxy.__aexit__())
            stats = mock.stats()
        report = {"rows": rows, "rate": rate, "seconds": took_s, "exit": code, "faults": self.done}
        report |= _answers(self._folder / "soak.jsonl", self._folder / "soak.out.jsonl", rows)
        report["calls"] = {name: tier["requests"] for name, tier in stats["tiers"].items()}
        report["samples"] = self.samples
        report["processes"] = {name: _trend(samples) for name, samples in sorted(self.samples.items())}
        return report

    def _capacity(self) -> float:
        """Rows/s of a short run in which nothing is wrong."""
        with MockProcess(_scenario([])) as mock:
            self._through_proxy(mock)
            code = self._batch("trial", TRIAL_ROWS, TRIAL_WINDOW, mock, 300, [])
            self.on_loop(self.proxy.__aexit__())
        said = (self._folder / "trial.log").read_text()
        if code or " rows/s." not in said:
            raise SystemExit(f"the trial run failed with {code}:\n{said[-2000:]}")
        rate = float(said.rpartition(" rows/s.")[0].rpartition(" ")[2].replace(",", ""))
        self.samples.clear()
        self._console.print(f"without faults: {rate:,.0f} rows/s", highlight=False)
        return rate

    def _timetable(self, seconds: float) -> list[tuple[float, Fault]]:
        count = int(seconds / self._options.every)
        return [(self._options.every * (n + 0.5), FAULTS[n % len(FAULTS)]) for n in range(count)]

    def _through_proxy(self, mock: MockProcess) -> None:
        self.proxy = FaultProxy("127.0.0.1", mock.port)
        self.on_loop(self.proxy.accept())

    def _batch(
        self,
        name: str,
        rows: int,
        window: int,
        mock: MockProcess,
        patience_s: float,
        faults: list[tuple[float, Fault]],
    ) -> int:
        """Run a job to its end; the faults come meanwhile."""
        source, log = self._folder / f"{name}.jsonl", self._folder / f"{name}.log"
        with source.open("wb") as file:
            file.writelines(orjson.dumps(_row(number)) + b"\n" for number in range(rows))
        first = f"http://127.0.0.1:{self.proxy.port}/first/v1"
        common = {"replicas": 2, "price": {"prompt": 1, "completion": 2}, "model": "mock"}
        breaker = {"recovery_timeout_s": 3}
        tiers = [
            {"name": "first", "base_url": first, "timeout_s": 2, "breaker": breaker, **common},
            {"name": "second", "base_url": mock.tier_url("second"), "timeout_s": 10, **common},
        ]
        # Two routers, so that there is a coalescer to be killed: a lone one keeps its table itself.
        router = {"deadline_s": 120, "replicas": 2}
        config = {"state_dir": str(self._folder / "state"), "tiers": tiers, "router": router}
        config["telemetry"] = {"metrics_port": 0}
        (self._folder / "raycade.yaml").write_text(json.dumps(config))
        command = [
            sys.executable,
            "-m",
            "runtime",
            "batch",
            "-i",
            str(source),
            "-o",
            str(source.with_suffix(".out.jsonl")),
        ]
        command += ["-c", str(self._folder / "raycade.yaml"), "--progress", "log", "--window", str(window)]
        with log.open("wb") as out:
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            env = {**os.environ, "PYTHONPATH": path, "RAY_TMPDIR": str(self._folder)}
            job = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=self._folder, start_new_session=True)
        self._job = job
        try:
            self._watch(job, mock, time.monotonic() + patience_s, list(faults))
        finally:
            if job.poll() is None:
                self._console.print("the job takes too long and is ended")
                job.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.wait(60)
                job.kill()
            job.wait()
        return job.returncode

    def _watch(
        self, job: "subprocess.Popen[bytes]", mock: MockProcess, until: float, faults: list[tuple[float, Fault]]
    ) -> None:
        begun: float | None = None
        undo: list[tuple[float, Callable[[], None]]] = []
        while job.poll() is None and time.monotonic() < until:
            time.sleep(LOOK_S / 4 if undo else LOOK_S)
            now = time.monotonic()
            if begun is None:
                begun = now if mock.stats()["tiers"]["first"]["requests"] else None
                continue
            if faults and now - begun >= faults[0][0]:
                _, fault = faults.pop(0)
                self.done.append(fault.name)
                end = fault.act(self) if fault.act is not None else None
                if end is not None:
                    undo.append((now + fault.for_s, end))
            for due, end in [pair for pair in undo if pair[0] <= now]:
                undo.remove((due, end))
                end()
            self._sample(now - begun)
        for _, end in undo:
            end()

    def _sample(self, at_s: float) -> None:
        assert self._job is not None
        roles = {self._job.pid: "driver"}
        for pid, title in self._below().items():
            for kind in ("RouterActor", "TierActor", "BudgetActor", "CoalescerActor", "ObserverActor"):
                if title.startswith(f"ray::{kind}"):
                    roles[pid] = kind.removesuffix("Actor").lower()
        for pid, role in roles.items():
            with contextlib.suppress(OSError):
                resident, mapped = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
                files = len(os.listdir(f"/proc/{pid}/fd"))
                if not resident:  # it has ended and nobody has asked for its exit code yet
                    continue
                self.samples.setdefault(role, []).append(
                    Sample(at_s, pid, (resident - mapped) * PAGE / 2**20, mapped * PAGE / 2**20, files)
                )

    def _below(self) -> dict[int, str]:
        """All processes below the job's, with their titles."""
        children: dict[int, list[int]] = {}
        titles: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    titles[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1")
                    children.setdefault(parent, []).append(int(entry.name))
        found: dict[int, str] = {}
        border = [self._job.pid] if self._job is not None else []
        while border:
            border = [child for pid in border for child in children.get(pid, ())]
            found |= {pid: titles.get(pid, "") for pid in border}
        return found


def _scenario(faults: list[tuple[float, Fault]]) -> dict[str, Any]:
    """The first tier's bad times, by the seconds since its first call."""
    phases: list[dict[str, Any]] = []
    for at_s, fault in faults:
        if fault.conduct is not None:
            phases += [{"until_s": at_s}, {"until_s": at_s + fault.for_s, **fault.conduct}]
    return {
        "seed": 1,
        "tiers": {"first": {"latency": LATENCY_S, "phases": [*phases, {}]}, "second": {"latency": LATENCY_S}},
    }


def _question(number: int) -> str:
    return f"Row {number}: which queue does this ticket belong to? The printer on floor {number % 97} hums at night."


def _row(number: int) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": _question(number)}], "max_tokens": 16}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def _answers(source: Path, out: Path, rows: int) -> dict[str, int]:
    """Is every row there once, with its own answer?"""
    seen = bytearray(rows)
    doubled = wrong = failed = 0
    for path in (out, Path(f"{str(out).removesuffix('.jsonl')}.errors.jsonl")):
        if not path.exists():
            continue
        with path.open("rb") as file:
            for line in file:
                value = orjson.loads(line)
                number = int(value["custom_id"][4:])
                doubled += seen[number]
                seen[number] = 1
                if value["error"] is not None:
                    failed += 1
                elif not value["response"]["body"]["choices"][0]["message"]["content"].startswith(
                    echo(_question(number))
                ):
                    wrong += 1
    return {"lost": rows - sum(seen), "doubled": doubled, "wrong": wrong, "failed": failed}


def _trend(samples: list[Sample]) -> dict[str, Any]:
    """Slopes a minute over all processes of a role, each from its own warm-up on."""
    first: dict[int, float] = {}
    for sample in samples:
        first.setdefault(sample.pid, sample.at_s)
    span = samples[-1].at_s - samples[0].at_s
    warm = [s for s in samples if s.at_s - first[s.pid] >= min(WARM_UP_S, span / 4)]
    return {
        "processes": len(first),
        "mb_first": samples[0].mb,
        "mb_last": samples[-1].mb,
        "mb_most": max(sample.mb for sample in samples),
        "mb_per_minute": _slope([(s.pid, s.at_s / 60, s.mb) for s in warm]),
        "mapped_mb_last": samples[-1].mapped_mb,
        "files_first": samples[0].files,
        "files_last": samples[-1].files,
        "files_most": max(sample.files for sample in samples),
        "files_per_minute": _slope([(s.pid, s.at_s / 60, float(s.files)) for s in warm]),
    }


def _slope(points: list[tuple[int, float, float]]) -> float | None:
    """Least squares with one slope and a level for each process."""
    over = under = 0.0
    for pid in {pid for pid, _, _ in points}:
        own = [(x, y) for owner, x, y in points if owner == pid]
        mean_x, mean_y = sum(x for x, _ in own) / len(own), sum(y for _, y in own) / len(own)
        over += sum((x - mean_x) * (y - mean_y) for x, y in own)
        under += sum((x - mean_x) ** 2 for x, _ in own)
    return over / under if under else None


def _print(report: dict[str, Any], console: Console) -> bool:
    table = Table(title=f"{report['seconds'] / 60:.1f} minutes, {len(report['faults'])} faults", title_justify="left")
    for name in ("process", "of them", "own MB", "most", "MB/min", "mapped MB", "files", "most", "files/min"):
        table.add_column(name, justify="left" if name == "process" else "right")
    good = True
    for role, trend in report["processes"].items():
        slope, files = trend["mb_per_minute"], trend["files_per_minute"]
        flat = role not in ("driver", "router") or (
            slope is not None and slope < SLOPE_MB and files is not None and files < FILES_SLOPE
        )
        good = good and flat
        table.add_row(
            role if flat else f"[red]{role}[/]",
            str(trend["processes"]),
            f"{trend['mb_first']:.0f} to {trend['mb_last']:.0f}",
            f"{trend['mb_most']:.0f}",
            "" if slope is None else f"{slope:+.2f}",
            f"{trend['mapped_mb_last']:.0f}",
            f"{trend['files_first']} to {trend['files_last']}",
            str(trend["files_most"]),
            "" if files is None else f"{files:+.2f}",
        )
    console.print(table)
    counts = {name: report[name] for name in ("lost", "doubled", "wrong", "failed")}
    console.print(
        f"{report['rows']:,} rows, {report['rows'] / report['seconds']:,.0f} rows/s, exit {report['exit']}; "
        + ", ".join(f"{count} {name}" for name, count in counts.items())
        + "; calls: "
        + ", ".join(f"{name} {count:,}" for name, count in report["calls"].items()),
        highlight=False,
    )
    good = good and not any(counts.values()) and report["exit"] == 0
    console.print("[green]all held[/]" if good else "[red]not all held[/]")
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0 when nothing was lost and all is flat, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds from fault to fault")
    parser.add_argument("--rate", type=float, help="rows/s; default: half of a short run's without faults")
    parser.add_argument("--json", help="write everything here")
    parser.add_argument("--keep", action="store_true", help="leave the files, and say where they are")
    options = parser.parse_args(arguments)
    console = Console()
    # Or whoever ends this would leave the job behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        if options.keep:
            folder = tempfile.mkdtemp(prefix="rcs")
            console.print(folder)
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rcs", ignore_cleanup_errors=True))
        report = Soak(Path(folder), options, console).run()
        good = _print(report, console)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
