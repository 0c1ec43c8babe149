"""Several jobs at once on one budget, each with a Ray and a budget actor of its own."""

import asyncio
from pathlib import Path

import pytest

from actors.budget.actor import BudgetActor
from runtime.config import load_config
from runtime.mock.process import MockProcess
from tests.e2e.jobs import Job, chat, end

LIMIT = 800_000
"""Well above what one job has in flight, or the second to start would find nothing free until the first one ends."""


@pytest.mark.parametrize(
    "ledger_place",
    [
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.slow),
    ],  # tests/unit/test_shared_ledger.py has both every time
    indirect=True,
)
def test_two_jobs_at_once_share_one_budget(ledger_place: str, tmp_path: Path) -> None:
    """Both run until the budget is used up, and the ledger has to the token what the endpoint has counted."""
    place = {"ledger" if ledger_place.startswith("postgresql:") else "state_dir": ledger_place}
    with MockProcess({"tiers": {"slow": {"latency": 1.0}}}) as mock:
        jobs = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            tier = {"name": "slow", "base_url": mock.tier_url("slow")}
            job = Job(tmp_path / name, [tier], budget={"tokens": {"per_day": LIMIT}}, **place)
            text = f"{name} " * 1500
            job.rows(chat(number, f"[[tag:row-{number}]] {text}") for number in range(1200))
            jobs.append(job)
        running = [job.start("--window", "64") for job in jobs]
        try:
            said = [process.communicate(timeout=120)[0] for process in running]
        finally:
            for process in running:
                end(process)
        served = mock.stats()["tiers"]["slow"]["total_tokens"]
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 4, text
        assert f"of {LIMIT:,} tokens" in text
    assert min(job.written() for job in jobs) >= 5, "\n".join(said)
    assert 0.97 * LIMIT <= served <= LIMIT
    config = load_config(str(jobs[0].config), {})
    shown = asyncio.run(BudgetActor(config.budget, config.ledger_place).show())
    day = next(row for row in shown.limits if row[:3] == ("all", "day", "tokens"))
    assert (day.limit, day.spent, day.reserved, day.unknown) == (LIMIT, served, 0, 0)
    assert shown.holders == 0
