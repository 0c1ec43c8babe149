"""`raycade batch` over an input that asks the same again and again: every row its line, every question one call."""

from collections import Counter
from pathlib import Path

from runtime.mock.process import MockProcess
from tests.e2e.jobs import Job, chat

ROWS, BODIES = 5_000, 500


def test_rows_with_equal_bodies_are_paid_for_once(tmp_path: Path) -> None:
    """5,000 rows of 500 bodies through two routers: at most 500 calls, each row its line with its own question's answer."""
    with MockProcess("ok", latency_s=0.05) as mock:
        job = Job(tmp_path, [{"name": "only", "base_url": mock.url, "replicas": 2}], router={"replicas": 2})
        job.rows(chat(number, f"Question {number % BODIES}: which queue?") for number in range(ROWS))
        ended = job.run()
        assert ended.returncode == 0, ended.stdout
        meter = mock.stats()["tiers"]["default"]
    assert (meter["requests"], meter["distinct_bodies"]) == (BODIES, BODIES)
    job.check_answers(ROWS)
    shared = Counter(line["response"]["body"]["raycade"].get("coalesced", False) for line in job.lines())
    assert shared == {False: BODIES, True: ROWS - BODIES}
    assert not job.errors.exists()
