"""`raycade batch` as its users run it: a real Ray, real HTTP to the mock endpoint, and bad days."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.batch.summary import dollars
from runtime.mock.process import MockProcess
from tests.e2e.jobs import Job, actor_pids, booked, chat, end, wait_until

SCENARIO: dict[str, Any] = {
    "seed": 11,
    "tiers": {
        "ok": {},
        "slow": {"latency": 0.1},
        "flaky": {"errors": [{"fraction": 0.2, "status": 500}]},
        "dead": {"status": 500},
        "hang": {"hang": 1.0},
    },
}


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    with MockProcess(SCENARIO) as process:
        yield process


@pytest.fixture(autouse=True)
def _fresh_meter(mock: MockProcess) -> None:
    mock.reset()


def tier(mock: MockProcess, name: str, **settings: object) -> dict[str, Any]:
    return {"name": name, "base_url": mock.tier_url(name), "timeout_s": 3 if name == "hang" else 20, **settings}


def meter(mock: MockProcess, name: str) -> dict[str, Any]:
    counts: dict[str, Any] = mock.stats()["tiers"][name]
    return counts


def test_every_row_has_its_own_answer_though_a_fifth_of_the_calls_fail(mock: MockProcess, tmp_path: Path) -> None:
    """3,000 rows over a first tier that answers 500 to a fifth of its calls: each once, its own answer, exit 0."""
    job = Job(tmp_path, [tier(mock, "flaky", replicas=2), tier(mock, "ok")])
    job.rows(chat(number) for number in range(3000))
    ended = job.run()
    assert ended.returncode == 0, ended.stdout
    job.check_answers(3000)
    assert not job.errors.exists()
    assert "Finished: every row has its answer." in ended.stdout


def test_a_job_killed_twice_resumes_without_losing_or_doubling_a_row(mock: MockProcess, tmp_path: Path) -> None:
    """6,000 rows, SIGKILL twice: all there once, earlier lines byte for byte, only rows in flight called again."""
    window = 800
    job = Job(tmp_path, [tier(mock, "ok", replicas=2)])
    job.rows(chat(number) for number in range(6000))
    before = b""
    for rows in (1500, 3500):
        process = job.start("--window", str(window))
        try:
            wait_until(lambda rows=rows: job.written() >= rows, process)
        finally:
            end(process)
        now = job.out.read_bytes()
        assert now.startswith(before)
        before = now[: now.rfind(b"\n") + 1]
    ended = job.run("--window", str(window))
    assert ended.returncode == 0, ended.stdout
    assert "resuming" in ended.stdout
    assert job.out.read_bytes().startswith(before)
    job.check_answers(6000)
    assert meter(mock, "ok")["duplicate_bodies"] <= 2 * (window + 64)


def test_a_job_survives_the_death_of_every_kind_of_actor(mock: MockProcess, tmp_path: Path) -> None:
    """A tier, the coalescer, the budget and a router are killed in mid-run, and one as it ends: every row once, nothing unbooked."""
    router = {"replicas": 2}  # a lone one keeps the coalescer's table itself
    job = Job(tmp_path, [tier(mock, "slow", replicas=2)], budget={"tokens": {"per_day": 50_000_000}}, router=router)
    job.rows(chat(number) for number in range(9000))
    process = job.start("--window", "500")
    try:
        for rows, kind in (
            (500, "TierActor"),
            (1700, "CoalescerActor"),
            (2900, "BudgetActor"),
            (4100, "RouterActor"),
            (8500, "RouterActor"),
        ):
            wait_until(lambda rows=rows: job.written() >= rows, process)
            victim, *_ = actor_pids(process.pid, kind)
            os.kill(victim, signal.SIGKILL)
        said, _ = process.communicate(timeout=100)
    finally:
        end(process)
    assert process.returncode == 0, said
    job.check_answers(9000)
    books = booked(job)
    assert books.spent >= meter(mock, "slow")["total_tokens"], "the endpoint served more than was booked"
    assert books.reserved == 0


@pytest.mark.slow
def test_sick_tiers_cost_little_but_probes(mock: MockProcess, tmp_path: Path) -> None:
    """4,000 rows over a tier that always fails and one that never answers: at most 120 calls reach each, exit 0."""
    sick = [tier(mock, "dead", replicas=2), tier(mock, "hang", replicas=2)]
    job = Job(tmp_path, [*sick, tier(mock, "ok", replicas=2)])
    job.rows(chat(number) for number in range(4000))
    ended = job.run()
    assert ended.returncode == 0, ended.stdout
    job.check_answers(4000)
    assert 0 < meter(mock, "dead")["requests"] <= 120
    assert 0 < meter(mock, "hang")["requests"] <= 120
    assert "dead keeps failing" in ended.stdout
    assert "hang keeps failing" in ended.stdout


@pytest.mark.slow
def test_a_budget_is_never_overspent_and_nearly_all_of_it_can_be_used(mock: MockProcess, tmp_path: Path) -> None:
    """A day's budget of 300,000 tokens for a job that needs three times that; then more budget, and it finishes."""
    tiers = [tier(mock, "ok", replicas=2)]
    job = Job(tmp_path, tiers, budget={"tokens": {"per_day": 300_000}})
    text = "word " * 430
    job.rows(chat(number, f"[[tag:row-{number}]] {text}") for number in range(1500))
    ended = job.run()
    assert ended.returncode == 4, ended.stdout
    served = meter(mock, "ok")["total_tokens"]
    assert 0.97 * 300_000 <= served <= 300_000, ended.stdout
    assert "per day" in ended.stdout
    assert "window turns in" in ended.stdout
    assert not job.errors.exists(), "a row that a budget put off is no failed row"
    job.configure(tiers, budget={"tokens": {"per_day": 5_000_000}})
    ended = job.run()
    assert ended.returncode == 0, ended.stdout
    job.check_answers(1500)
    assert meter(mock, "ok")["duplicate_bodies"] == 0


def test_equal_rows_share_one_call(mock: MockProcess, tmp_path: Path) -> None:
    """3,000 rows of 300 bodies make 300 calls; with --no-dedupe each row has its own."""
    job = Job(tmp_path, [tier(mock, "ok")])
    job.rows(chat(number, f"question {number % 300}") for number in range(3000))
    ended = job.run("--window", "700")
    assert ended.returncode == 0, ended.stdout
    job.check_answers(3000)
    assert meter(mock, "ok")["requests"] == 300
    assert "2,700 rows shared another row's answer" in ended.stdout


def test_ctrl_c_finishes_what_is_in_flight_and_the_job_goes_on_later(mock: MockProcess, tmp_path: Path) -> None:
    """One Ctrl-C, which every process of the group gets: exit 130 with the rows in flight done; later the rest is done."""
    job = Job(tmp_path, [tier(mock, "slow", replicas=2)])
    job.rows(chat(number) for number in range(4000))
    process = job.start("--window", "300")
    try:
        wait_until(lambda: job.written() >= 600, process)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        end(process)
    assert process.returncode == 130, said
    assert "goes on where it stopped" in said
    report = tmp_path / "report.html"
    ended = job.run("--report", str(report))
    assert ended.returncode == 0, ended.stdout
    job.check_answers(4000)
    cost = sum(round(line["response"]["body"]["raycade"]["cost_usd"] * 1e6) for line in job.lines())
    page = report.read_text()
    assert "rows had been done before it began" in page
    assert f"{dollars(cost)}<small>whole job" in page
    assert meter(mock, "slow")["duplicate_bodies"] == 0
