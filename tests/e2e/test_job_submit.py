"""`ray job submit` on a cluster with token authentication: keys stay hidden, a stopped job goes on, limits are shared."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import orjson
import pytest

from runtime.mock.process import MockProcess
from tests.e2e.jobs import ROOT, Job, chat

PYTHON = sys.executable
ON_NODES, IN_A_FILE = (f"sk-canary-{uuid4().hex}" for _ in range(2))  # not in this file, which is submitted too
RAY = [PYTHON, "-m", "ray.scripts.scripts"]
API = (
    "/api/jobs/",
    *(
        f"/api/v0/{what}?detail=true&limit=1000"
        for what in ("actors", "jobs", "tasks", "workers", "nodes", "runtime_envs")
    ),
    "/logical/actors",
    "/nodes?view=summary",
    "/api/cluster_status",
)


class Head:
    """A cluster of one node, as `ray start --head` makes it, away from every default port."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rjs"))  # short: Ray puts sockets below it
        (self.folder / "home").mkdir()
        names = ("dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port", "port")
        with ExitStack() as stack:
            held = [stack.enter_context(socket.socket()) for _ in names]
            for each in held:
                each.bind(("127.0.0.1", 0))
            ports = {name: each.getsockname()[1] for name, each in zip(names, held, strict=True)}
        self.dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
        plain = {
            name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "PYTHONPATH"
        }
        self.env = plain | {
            "HOME": str(self.folder / "home"),
            "RAY_AUTH_MODE": "token",
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.token = uuid4().hex + uuid4().hex  # as `ray get-auth-token --generate` makes one
        (self.folder / "home" / ".ray").mkdir()
        (self.folder / "home" / ".ray" / "auth_token").write_text(self.token)
        command = ["start", "--head", "--block", f"--temp-dir={self.folder}/t", "--num-cpus=2", "--disable-usage-stats"]
        command += ["--object-store-memory=100000000", *(f"--{name}={port}" for name, port in ports.items())]
        env = self.env | {"CANARY_ON_NODES": ON_NODES}
        with open(self.folder / "start.log", "wb") as said:
            self._process = subprocess.Popen(
                [*RAY, *command], env=env, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            until(lambda: self.get("/api/version") is not None, 60)
        except BaseException:
            self.end()
            raise

    def ray(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*RAY, *command], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
        )

    def submit(self, *command: str, options: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
        return self.ray("job", "submit", "--working-dir", str(ROOT), *options, "--", *command)

    def get(self, path: str, method: str = "GET") -> bytes | None:
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.dashboard + path, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                told: bytes = reply.read()
                return told
        except OSError:
            return None

    def status(self, job: str) -> str:
        return str(orjson.loads(self.get(f"/api/jobs/{job}") or b"{}").get("status"))

    def log(self, job: str) -> str:
        return str(orjson.loads(self.get(f"/api/jobs/{job}/logs") or b"{}").get("logs"))

    def stop(self, job: str) -> None:
        """What `ray job stop` does, without the seconds that it takes to start."""
        assert self.get(f"/api/jobs/{job}/stop", "POST") is not None
        until(lambda: self.status(job) == "STOPPED", 30)

    def places_of(self, canaries: tuple[str, ...]) -> list[str]:
        """Where any of them stands: in what the dashboard tells, in the session's files."""
        told = [(path, self.get(path) or b"") for path in API]
        assert all(len(text) > 50 for _, text in told), [path for path, text in told if len(text) <= 50]
        for job in orjson.loads(told[0][1]):
            told.append((job["submission_id"], self.log(job["submission_id"]).encode()))
        for path in (self.folder / "t").rglob("*"):
            if path.is_file() and not path.is_symlink():
                told.append((str(path), path.read_bytes()))
        assert sum("/logs/" in place for place, _ in told) > 20
        return [place for place, text in told if any(canary.encode() in text for canary in canaries)]

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)  # it ends what it has started
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def until(true: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    cluster = Head()
    try:
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    tiers = {name: {"latency": 0.3} for name in ("a", "b")}
    with MockProcess({"require_key": True, "tiers": tiers}) as process:
        yield process


def job_of(folder: Path, mock: MockProcess, **config: object) -> Job:
    """One tier with its key in the nodes' environment, and one with it in a file whose path comes with the job."""
    tiers = [
        {"name": name, "base_url": mock.tier_url(name), "api_key_env": key, "concurrency": 4}
        for name, key in (("a", "CANARY_ON_NODES"), ("b", "CANARY_IN_A_FILE"))
    ]
    return Job(folder, tiers, telemetry={"metrics_port": None}, **config)


def with_key_file(folder: Path) -> tuple[str, ...]:
    (folder / "key").write_text(f"{IN_A_FILE}\n")
    return ("--runtime-env-json", f'{{"env_vars": {{"CANARY_IN_A_FILE_FILE": "{folder}/key"}}}}')


def test_a_job_that_is_stopped_goes_on_and_its_keys_stay_hidden(head: Head, mock: MockProcess, tmp_path: Path) -> None:
    """From a checkout; stopped in mid-run and submitted again: every row once, and neither key anywhere in Ray."""
    job = job_of(tmp_path, mock)
    job.rows(chat(number, model="ab"[number % 2]) for number in range(120))
    options = with_key_file(tmp_path)
    first = head.submit(*job.command(), options=(*options, "--no-wait", "--submission-id", "first"))
    assert first.returncode == 0, first.stdout
    until(lambda: job.written() >= 8, 60)
    head.stop("first")
    assert "goes on where it stopped" in head.log("first")
    before = job.out.read_bytes()
    assert 8 <= job.written() < 120
    again = head.submit(*job.command(), options=options)
    assert again.returncode == 0, again.stdout
    assert "resuming" in again.stdout
    assert job.out.read_bytes().startswith(before)
    job.check_answers(120)
    assert {line["response"]["body"]["raycade"]["tier"] for line in job.lines()} == {"a", "b"}
    assert head.places_of((ON_NODES, IN_A_FILE)) == []


@pytest.mark.slow
def test_what_is_wrong_is_said_before_anything_is_called(head: Head, mock: MockProcess, tmp_path: Path) -> None:
    """One line in the job's log, with our own exit code, for each thing that only a submitted job can have wrong."""
    mock.reset()
    job = job_of(tmp_path, mock)
    job.rows([chat(0)])
    more = ["-c", str(job.config), "--progress", "none"]
    shown = ("--runtime-env-json", f'{{"env_vars": {{"CANARY_IN_A_FILE": "{IN_A_FILE}"}}}}')
    program = [PYTHON, "-m", "runtime", "batch"]
    for command, options, line in (
        (job.command(), (), "there is no key in CANARY_IN_A_FILE"),
        ([*program, "-i", str(job.input), "-o", "out.jsonl", *more], (), "-o: would be written into this job's copy"),
        ([*program, "-i", "no.jsonl", "-o", str(job.out), *more], (), "no.jsonl: -i: is not in the copy"),
        (job.command(), shown, "the key in CANARY_IN_A_FILE was submitted with the job"),
    ):
        ended = head.submit(*command, options=options)
        assert ended.returncode == 1
        assert "exit code 2" in ended.stdout
        assert len(re.findall(f"raycade: .*{re.escape(line)}", ended.stdout)) >= 1, ended.stdout
        assert "Traceback" not in ended.stdout
    assert job.written() == 0
    assert mock.stats()["tiers"]["a"]["requests"] == 0


@pytest.mark.slow
def test_jobs_that_are_submitted_share_a_runtime_that_is_up(head: Head, mock: MockProcess, tmp_path: Path) -> None:
    """`up` by one job, used by two others at once: four calls in flight together, and the later one is not made to wait."""
    mock.reset()
    options = with_key_file(tmp_path)
    jobs = []
    for name, rows in (("long", 200), ("short", 20)):
        (tmp_path / name).mkdir()
        jobs.append(job_of(tmp_path / name, mock))
        jobs[-1].config = tmp_path / "long" / "raycade.yaml"
        jobs[-1].rows(chat(number, f"[[tag:row-{number}]] of {name}", model="a") for number in range(rows))
    long, short = jobs
    up = head.submit(PYTHON, "-m", "runtime", "up", "-c", str(long.config), options=options)
    assert up.returncode == 0, up.stdout
    try:
        began = head.submit(*long.command(), options=("--no-wait", "--submission-id", "long"))
        assert began.returncode == 0, began.stdout
        until(lambda: long.written() > 0, 60)
        ended = head.submit(*short.command())
        assert ended.returncode == 0, ended.stdout
        assert long.written() < 200, "the short job had to wait for the long one"
        short.check_answers(20)
        until(lambda: head.status("long") == "SUCCEEDED", 100)
        long.check_answers(200)
        assert mock.stats()["tiers"]["a"]["max_in_flight"] <= 4
    finally:
        down = head.submit(PYTHON, "-m", "runtime", "down", "-c", str(long.config))
    assert down.returncode == 0, down.stdout
