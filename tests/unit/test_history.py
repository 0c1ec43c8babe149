"""The last minutes as the page draws them: differences of counters, bounded, and series of equal length."""

import pytest

from actors.events import BOUNDS_S, Distribution
from actors.observer.history import EVERY_S, KEPT, History, prompts
from actors.observer.page import HEADERS, PAGE

MODELS = {"premium": "gpt", "basic": "mini"}


def durations(model: str, **counts: int) -> dict[tuple[str, ...], Distribution]:
    buckets = [0] * (len(BOUNDS_S) + 1)
    for index, count in counts.items():
        buckets[int(index.removeprefix("at"))] = count
    return {("duration", model, "/v1/chat/completions"): Distribution(tuple(buckets), 0, (None,) * len(buckets))}


def test_a_sample_is_what_was_done_since_the_one_before() -> None:
    history = History()
    history.take({("attempts", "premium", "ok"): 100, ("tier_cost", "premium"): 5}, {}, MODELS, 10.0)
    history.take(
        {
            ("attempts", "premium", "ok"): 120,
            ("attempts", "premium", "rate_limited"): 6,
            ("attempts", "premium", "server"): 2,
            ("tier_tokens", "premium", "prompt"): 30,
            ("tier_tokens", "premium", "completion"): 10,
            ("tier_cost", "premium"): 9,
        },
        {},
        MODELS,
        12.0,
    )
    told = history.plain()["tiers"]["premium"]
    assert told["answered_per_s"] == [0, 10]
    assert told["refused_per_s"] == [0, 3]
    assert told["failed_per_s"] == [0, 1]
    assert told["tokens_per_s"] == [0, 20]
    assert told["usd_micros"] == [5, 9]


def test_latencies_are_those_of_the_last_calls() -> None:
    """What was slow before does not show in what is fast now; without calls nothing is said."""
    history = History()
    slow, both = durations("gpt", at10=1000), durations("gpt", at10=1000, at2=100)
    history.take({}, slow, MODELS, 0.0)
    history.take({}, both, MODELS, 2.0)
    history.take({}, both, MODELS, 4.0)
    p95 = history.plain()["tiers"]["premium"]["p95_s"]
    assert p95[0] == pytest.approx(BOUNDS_S[10], rel=0.1)
    assert BOUNDS_S[1] < p95[1] <= BOUNDS_S[2]
    assert p95[2] is None


def test_it_is_bounded_and_a_tier_that_came_later_has_nothing_before() -> None:
    history = History()
    for number in range(KEPT + 5):
        assert history.due(EVERY_S * number)
        history.take({}, {}, MODELS if number > KEPT else {"premium": "gpt"}, EVERY_S * number)
    assert not history.due(EVERY_S * (KEPT + 4) + 0.1)
    told = history.plain()
    assert len(told["at"]) == KEPT
    assert {len(column) for tier in told["tiers"].values() for column in tier.values()} == {KEPT}
    assert told["tiers"]["basic"]["answered_per_s"][:-4] == [None] * (KEPT - 4)


def test_prompt_versions_stand_side_by_side() -> None:
    told = prompts(
        {
            ("prompt_requests", "sum", "2", "ok"): 7,
            ("prompt_requests", "sum", "2", "invalid_output"): 3,
            ("prompt_requests", "sum", "1", "coalesced"): 4,
            ("prompt_cost", "sum", "2"): 50,
            ("structured_failures", "sum", "2", "premium"): 5,
            ("structured_failures", "sum", "2", "basic"): 1,
            ("attempts", "premium", "ok"): 9,
        }
    )
    assert [(row["version"], row["requests"], row["failed"], row["refused_answers"]) for row in told] == [
        ("1", 4, 0, 0),
        ("2", 10, 3, 6),
    ]


def test_the_page_asks_nobody_else() -> None:
    """No address but its own, no markup made of what comes from outside, and a policy that says so."""
    page = PAGE.decode()
    assert "http://www.w3.org/2000/svg" in page
    assert page.count("http://") + page.count("https://") == 1
    assert "innerHTML" not in page
    assert "default-src 'none'" in HEADERS["Content-Security-Policy"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
