"""A batch job as a user runs it: the real command in a process of its own, and what it leaves behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import yaml

from actors.budget.actor import BudgetActor
from runtime.config import load_config
from runtime.mock.content import echo

__all__ = ["ROOT", "Booked", "Job", "actor_pids", "booked", "chat", "descendants", "end", "wait_gone", "wait_until"]

PYTHON = sys.executable
ROOT = Path(__file__).parents[2]
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Of a Ray that was killed: they do nothing there, and outlive it by a minute."""


def chat(number: int, text: str | None = None, **body: object) -> dict[str, Any]:
    """A row whose answer can be told from every other row's."""
    content = text or f"[[tag:row-{number}]] Please sort this ticket into a queue: the printer on floor {number} hums."
    messages = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": content}]
    request = {"messages": messages, "max_tokens": 16, **body}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": request}


class Job:
    """One folder with input, configuration, output and state."""

    def __init__(self, folder: Path, tiers: list[dict[str, Any]], **config: object) -> None:
        self.folder = folder
        self.input, self.out = folder / "in.jsonl", folder / "out.jsonl"
        self.errors, self.state = folder / "out.errors.jsonl", folder / "state"
        self.config = folder / "raycade.yaml"
        self.env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "200"}
        self.configure(tiers, **config)

    def configure(self, tiers: list[dict[str, Any]], **config: object) -> None:
        for tier in tiers:
            tier.setdefault("model", f"model-{tier['name']}")
            tier.setdefault("price", {"prompt": 1, "completion": 2})
        self.config.write_text(yaml.safe_dump({"state_dir": str(self.state), "tiers": tiers, **config}))

    def rows(self, rows: Iterable[dict[str, Any] | bytes]) -> None:
        self.input.write_bytes(b"".join((row if isinstance(row, bytes) else orjson.dumps(row)) + b"\n" for row in rows))

    def command(self, *options: str) -> list[str]:
        files = ["-i", str(self.input), "-o", str(self.out), "-c", str(self.config), "--progress", "log"]
        return [PYTHON, "-m", "runtime", "batch", *files, *options]

    def run(self, *options: str, timeout_s: float = 100.0) -> "subprocess.CompletedProcess[str]":
        """Run to the end; everything it started is gone afterwards."""
        process = self.start(*options)
        try:
            said, _ = process.communicate(timeout=timeout_s)
        finally:
            end(process)
        return subprocess.CompletedProcess(process.args, process.returncode, said)

    def start(self, *options: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*options),
            cwd=self.folder,
            env={**self.env, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that a test can interrupt the whole group, as a terminal does
        )

    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.out.read_bytes().splitlines()] if self.out.exists() else []

    def failed(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.errors.read_bytes().splitlines()] if self.errors.exists() else []

    def written(self) -> int:
        return self.out.read_bytes().count(b"\n") if self.out.exists() else 0

    def check_answers(self, rows: int) -> None:
        """Every row stands once in OUT, with the answer to its own question."""
        lines = self.lines()
        assert sorted(int(line["custom_id"][4:]) for line in lines) == list(range(rows))
        questions = {row["custom_id"]: row["body"]["messages"][-1]["content"] for row in self.questions()}
        for line in lines:
            answer = line["response"]["body"]["choices"][0]["message"]["content"]
            assert answer.startswith(echo(questions[line["custom_id"]]))

    def questions(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.input.read_bytes().splitlines()]


def wait_until(true: Callable[[], bool], process: "subprocess.Popen[str]", timeout_s: float = 60.0) -> None:
    """Wait for a condition while the process lives."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert process.poll() is None, f"ended early: {process.stdout.read() if process.stdout else ''}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def descendants(pid: int) -> dict[int, str]:
    """All processes below `pid`, with what each calls itself."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                titles[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found, border = {}, {pid}
    while border:
        border = {child for child, parent in parents.items() if parent in border}
        found.update({child: titles[child] for child in border})
    return found


def actor_pids(pid: int, kind: str) -> list[int]:
    """Process ids of the Ray actors of a class below `pid`."""
    return [child for child, title in descendants(pid).items() if title.startswith(f"ray::{kind}")]


def end(process: "subprocess.Popen[str]") -> None:
    """Kill the process and wait until everything below it is gone too."""
    below = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait(10)
    wait_gone(below, 15.0)


def wait_gone(processes: dict[int, str], timeout_s: float) -> None:
    """Wait for the end of processes whose parent has ended."""
    for pid, title in processes.items():
        if title.startswith(AGENTS):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in processes):
        time.sleep(0.1)


class Booked(NamedTuple):
    """What the ledger has of all of today, in tokens or micro-dollars."""

    spent: int
    """Includes `unknown`, what nobody saw the end of."""
    reserved: int
    unknown: int
    overrun: int


def booked(job: Job, unit: str = "tokens") -> Booked:
    snapshot = asyncio.run(
        BudgetActor(load_config(str(job.config), {}, check_keys=False).budget, str(job.state)).show()
    )
    status = next(s for s in snapshot.limits if (s.scope, s.window, s.unit) == ("all", "total", unit))
    return Booked(status.spent, status.reserved, status.unknown, status.overrun)
