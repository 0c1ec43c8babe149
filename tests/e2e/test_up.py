"""A runtime that stays: jobs and programs find it, share its limits, and learn when theirs is another configuration."""

import os
import subprocess
import sys
from pathlib import Path

from runtime.mock.process import MockProcess
from runtime.running import running_jobs
from tests.e2e.jobs import ROOT, Job, chat, descendants, end

PROGRAM = """
import sys
from runtime import SyncClient

with SyncClient(sys.argv[1]) as client:
    text = client.complete("from a program").choices[0].message.content
    assert text == "".join(chunk.choices[0].delta.content or "" for chunk in client.stream("from a program"))
    outcomes = list(client.map([f"row {number}" for number in range(20)]))
    assert [outcome.error for outcome in outcomes] == [None] * 20
    for chunk in client.stream("left early"):
        break
"""


def environ(job: Job) -> dict[str, str]:
    """Without what a Ray in the tests' own process may have put there."""
    return {name: value for name, value in job.env.items() if name != "RAY_AUTH_MODE"}


def run(job: Job, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command],
        cwd=job.folder,
        env={**environ(job), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
    )


def test_jobs_and_programs_share_what_is_up(tmp_path: Path) -> None:
    """One set of rate limits over all of them, while each has its own answers; afterwards nothing is left."""
    with MockProcess({"tiers": {"a": {"tokens": 4, "latency": 0.02}}}) as mock:
        job = Job(tmp_path, [{"name": "a", "base_url": mock.tier_url("a"), "concurrency": 3}])
        up = run(job, "-m", "runtime", "up")
        assert up.returncode == 0, up.stderr
        try:
            [entry] = running_jobs(str(job.state))
            assert entry.kind == "runtime"
            assert f"runtime {entry.name}" in run(job, "-m", "runtime", "status").stdout
            again = run(job, "-m", "runtime", "up")
            assert (again.returncode, again.stderr.count("\n")) == (2, 1)
            job.rows(chat(number) for number in range(60))
            batch = job.start()
            try:
                program = run(job, "-c", PROGRAM, str(job.config))
                assert program.returncode == 0, program.stderr
                said, _ = batch.communicate(timeout=100)
                assert batch.returncode == 0, said
            finally:
                end(batch)
            job.check_answers(60)
            # Each with actors of its own would have had three calls in flight of its own.
            assert mock.stats()["tiers"]["a"]["max_in_flight"] <= 3
            job.configure([{"name": "a", "base_url": mock.tier_url("a"), "concurrency": 4}])
            other = job.run("--fresh")
            assert other.returncode == 1
            assert "another raycade.yaml" in other.stdout.splitlines()[-1]
        finally:
            down = run(job, "-m", "runtime", "down")
        assert down.returncode == 0, down.stderr
        assert "SIGTERM" not in (job.state / "up.log").read_text(), "it was killed, and gave nothing back"
        assert running_jobs(str(job.state)) == []
        assert descendants(entry.pid) == {}
        assert "nothing is up" in run(job, "-m", "runtime", "down").stdout


def test_what_is_wrong_is_said_before_anything_starts(tmp_path: Path) -> None:
    """One line, exit 2."""
    job = Job(tmp_path, [{"name": "a", "base_url": "http://127.0.0.1:9", "api_key_env": "NO_SUCH_KEY_HERE"}])
    os.environ.pop("NO_SUCH_KEY_HERE", None)
    wrong = run(job, "-m", "runtime", "up")
    assert wrong.returncode == 2
    assert "NO_SUCH_KEY_HERE" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
