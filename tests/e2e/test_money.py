"""Money as a batch job spends it, on a real Ray: the ledger beside the endpoint's own meter."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from actors.router.measure import TEMPLATE_TOKENS
from runtime.mock.process import MockProcess
from tests.e2e.jobs import Booked, Job, booked, chat

SCENARIO: dict[str, Any] = {
    "seed": 5,
    "tiers": {
        "ok": {},
        "flaky": {
            "errors": [{"fraction": 0.2, "status": 500}, {"fraction": 0.1, "status": 429, "retry_after_s": 0.1}],
            "cached": 0.5,
        },
        "slow": {"latency": 0.02, "hang": 0.05},
        "blind": {"usage": "absent"},
        "greedy": {"usage_factor": 12.0, "tokens": 4},
    },
}
LIMITS = {"tokens": {"per_day": 50_000_000}, "usd": {"per_day": 100}}
PRICE = {"prompt": 2, "completion": 4, "cached": 1}
PER_REQUEST = 350
"""Room for one attempt of a row, and not for two."""


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    with MockProcess(SCENARIO) as process:
        yield process


@pytest.fixture(autouse=True)
def _fresh_meter(mock: MockProcess) -> None:
    mock.reset()


def tier(mock: MockProcess, name: str, **settings: object) -> dict[str, Any]:
    return {"name": name, "base_url": mock.tier_url(name), "timeout_s": 20, "price": PRICE, **settings}


def bound(number: int) -> int:
    """What one attempt of a row reserves: the bytes of its body, the template's tokens and its max_tokens."""
    return len(orjson.dumps(chat(number)["body"])) + TEMPLATE_TOKENS + 16


def metered(mock: MockProcess) -> int:
    """Tokens that the endpoint has served, over all tiers."""
    return sum(counts["total_tokens"] for counts in mock.stats()["tiers"].values())


def test_the_ledger_equals_the_meter_when_every_outcome_is_known(mock: MockProcess, tmp_path: Path) -> None:
    """400 rows over a tier with 500s and 429s: what is booked is what was served, to the token and the micro-dollar."""
    job = Job(tmp_path, [tier(mock, "flaky", replicas=2), tier(mock, "ok")], budget=LIMITS)
    job.rows(chat(number) for number in range(400))
    ended = job.run()
    assert ended.returncode == 0, ended.stdout
    job.check_answers(400)
    failed = mock.stats()["tiers"]["flaky"]["by_status"]
    assert failed["500"] > 0
    assert failed["429"] > 0
    assert booked(job) == Booked(metered(mock), 0, 0, 0)
    usages = [line["response"]["body"]["usage"] for line in job.lines()]
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    prompt, completion = (sum(usage[name] for usage in usages) for name in ("prompt_tokens", "completion_tokens"))
    assert cached > 0
    dollars = booked(job, "usd")
    assert dollars == Booked((prompt - cached) * 2 + cached + completion * 4, 0, 0, 0)
    told = sum(round(line["response"]["body"]["raycade"]["cost_usd"] * 1e6) for line in job.lines())
    assert told == dollars.spent, "the lines tell what was booked"


def test_unknown_outcomes_stay_booked_and_a_request_keeps_to_its_own_budget(mock: MockProcess, tmp_path: Path) -> None:
    """A call in twenty is never answered, and no row may pay for two: those rows end with their cost, the rest is exact."""
    limits = {**LIMITS, "tokens": {**LIMITS["tokens"], "per_request": PER_REQUEST}}
    slow = tier(mock, "slow", timeout_s=1.5, breaker={"failure_threshold": 1000, "failure_rate": 1.0})
    job = Job(tmp_path, [slow, tier(mock, "ok")], budget=limits)
    job.rows(chat(number) for number in range(400))
    ended = job.run()
    assert ended.returncode == 3, ended.stdout
    hangs = mock.stats()["tiers"]["slow"]["hangs"]
    failed = job.failed()
    assert hangs > 0
    assert len(failed) == hangs
    assert len(job.lines()) == 400 - hangs
    assert {line["error"]["code"] for line in failed} == {"budget_exceeded"}
    assert all("per request: " in line["error"]["message"] for line in failed)
    assert not any(": 0 tokens of" in line["error"]["message"] for line in failed), "each tells what it spent"
    books = booked(job)
    assert (books.reserved, books.overrun) == (0, 0)
    assert books.spent - books.unknown == metered(mock)
    assert books.unknown == sum(bound(int(line["custom_id"][4:])) for line in failed)


def test_answers_that_tell_no_usage_or_too_much_of_it(mock: MockProcess, tmp_path: Path) -> None:
    """Without usage each is booked whole; far above its bound all is charged, and later reservations are wider."""
    job = Job(tmp_path, [tier(mock, "blind"), tier(mock, "greedy")], budget=LIMITS)
    job.rows(chat(number, model="blind" if number < 100 else "greedy") for number in range(200))
    ended = job.run("--window", "10")  # or all would be reserved before the first reply
    assert ended.returncode == 0, ended.stdout
    job.check_answers(200)
    for line in job.lines():
        unknown = int(line["custom_id"][4:]) < 100
        assert line["response"]["body"]["raycade"].get("usage") == ("unknown" if unknown else None)
    tiers = mock.stats()["tiers"]
    books = booked(job)
    assert books.reserved == 0
    assert books.unknown == sum(bound(number) for number in range(100))
    assert books.unknown > tiers["blind"]["total_tokens"]
    assert books.spent - books.unknown == tiers["greedy"]["total_tokens"]
    assert 0 < books.overrun < tiers["greedy"]["total_tokens"] // 4, "a widened margin leaves no overrun"
    assert f"100 answers came without usage; each was booked at its reservation ({books.unknown:,} tokens in all)." in (
        ended.stdout
    )
    assert f"{books.overrun:,} tokens above reservations, charged all the same (margin of greedy is now" in ended.stdout
