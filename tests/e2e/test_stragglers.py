"""A batch whose last rows hang, on a real Ray: second copies end the job, and the ledger has the first ones at their worst."""

from pathlib import Path
from typing import Any

import pytest

from runtime.mock.process import MockProcess
from tests.e2e.jobs import Job, booked, chat
from tests.e2e.test_money import LIMITS, bound, tier

ROWS = 60
SCENARIO: dict[str, Any] = {"seed": 5, "tiers": {"stuck": {"hang": 0.1}, "ok": {}}}


@pytest.mark.slow
def test_the_last_rows_of_a_job_are_hedged(tmp_path: Path) -> None:
    """A tenth of the calls never answers. `max_fraction: 0` hedges the last rows alone, and these are the last rows."""
    with MockProcess(SCENARIO) as mock:
        tiers = [tier(mock, "stuck", timeout_s=300, concurrency=100), tier(mock, "ok")]
        hedge = {"after": 0.5, "max_fraction": 0}
        job = Job(tmp_path, tiers, budget=LIMITS, router={"hedge": hedge, "replicas": 2})
        job.rows(chat(number) for number in range(ROWS))
        done = job.run(timeout_s=100.0)  # without hedging it takes five minutes
        stats = mock.stats()["tiers"]
    assert done.returncode == 0, done.stdout
    job.check_answers(ROWS)
    hung = [line for line in job.lines() if line["response"]["body"]["raycade"].get("hedged")]
    assert len(hung) == stats["stuck"]["hangs"] > 0
    assert {line["response"]["body"]["raycade"]["attempts"] for line in hung} == {2}
    assert {line["response"]["body"]["raycade"]["tier"] for line in hung} == {"ok"}
    assert stats["ok"]["requests"] == len(hung), "one second copy each, and none of the others has one"
    assert stats["stuck"]["in_flight"] == 0, "the losers' connections are closed"
    worst = sum(bound(int(line["custom_id"][4:])) for line in hung)
    billed = sum(counts["total_tokens"] for counts in stats.values())
    assert booked(job) == (billed + worst, 0, worst, 0)
    assert f"{len(hung)} rows had a second call" in " ".join(done.stdout.split())
