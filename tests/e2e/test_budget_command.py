"""Spend anomalies and `raycade budget` beside real jobs: what stops one, what lets it go on, and who is told."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from runtime.mock.process import MockProcess
from tests.e2e.jobs import ROOT, Job, chat, end, wait_until


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    with MockProcess({"seed": 3, "tiers": {"slow": {"latency": 0.1}, "ok": {}}}) as process:
        yield process


def tiers(mock: MockProcess, *names: str) -> list[dict[str, Any]]:
    return [{"name": name, "base_url": mock.tier_url(name)} for name in names]


def budget(job: Job, *arguments: str) -> str:
    """What the command says; it must succeed."""
    command = [sys.executable, "-m", "runtime", "budget", *arguments, "-c", str(job.config)]
    env = {**job.env, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=job.folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A real HTTP server: its address, and what it was sent."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.timeout(400)  # Ray starts three times
def test_an_anomaly_stops_a_job_until_somebody_resumes_it(
    mock: MockProcess, receiver: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Exit 4 with the numbers, a webhook, a halt in `budget show`; after `resume` the same command does the rest."""
    url, got = receiver
    # without a history the floor alone judges: above 2,000 tokens a minute, about 45 rows
    anomaly = {"factor": 20, "floor_tokens_per_minute": 100, "min_minutes": 0, "stop": True, "webhook": url}
    job = Job(tmp_path, tiers(mock, "slow"), budget={"anomaly": anomaly})
    job.rows(chat(number) for number in range(400))
    ended = job.run("--window", "10")
    assert ended.returncode == 4, ended.stdout
    assert 0 < job.written() < 400
    assert "spend anomaly: tier slow spent " in ended.stdout
    assert "Stopped by a budget: spending of tier:slow was stopped at " in ended.stdout
    assert '"raycade budget resume tier:slow" lets it go on' in ended.stdout
    assert [(told["event"], told["scope"], told["unit"], told["stopped"]) for told in got] == [
        ("spend_anomaly", "tier:slow", "tokens", True)
    ]
    assert got[0]["spent"] > got[0]["threshold"] == 2000
    assert "tier:slow\n  stopped at " in budget(job, "show")
    done = job.written()
    assert job.run("--window", "10").returncode == 4
    assert job.written() == done, "a stopped tier was granted something"
    assert budget(job, "resume", "tier:slow") == "tier:slow goes on\n"
    ended = job.run("--window", "10")
    assert ended.returncode == 0, ended.stdout
    job.check_answers(400)
    assert json.loads(budget(job, "show", "--json"))["halts"] == []


def test_a_stopped_tier_lets_others_go_on(mock: MockProcess, tmp_path: Path) -> None:
    """Halted by hand before the job: every row is answered by the next tier, and no call goes to the stopped one."""
    job = Job(tmp_path, tiers(mock, "slow", "ok"))
    job.rows(chat(number) for number in range(200))
    budget(job, "halt", "tier:slow")
    before = mock.stats()["tiers"]["slow"]["requests"]
    ended = job.run()
    assert ended.returncode == 0, ended.stdout
    job.check_answers(200)
    assert mock.stats()["tiers"]["slow"]["requests"] == before


@pytest.mark.slow
def test_a_waiting_job_goes_on_when_its_limit_is_raised(mock: MockProcess, tmp_path: Path) -> None:
    """`budget set` beside the running job; `budget show` sees it waiting, and it ends well though its day has not turned."""
    limits = {"tokens": {"per_day": 6_000}, "on_exhausted": "wait"}
    job = Job(tmp_path, tiers(mock, "ok"), budget=limits)
    job.rows(chat(number) for number in range(400))
    process = job.start()
    try:
        wait_until(lambda: job.written() > 0, process)
        wait_until(lambda: _stands_still(job), process)
        assert job.written() < 400
        shown = budget(job, "show")
        assert "% of 6,000, turns in" in shown
        assert budget(job, "set", "all", "day", "1000000tokens").startswith(
            "all per day: 6,000 tokens -> 1,000,000 tok"
        )
        said, _ = process.communicate(timeout=100)
    finally:
        end(process)
    assert process.returncode == 0, said
    job.check_answers(400)


def _stands_still(job: Job) -> bool:
    before = job.written()
    time.sleep(2.0)
    return job.written() == before
