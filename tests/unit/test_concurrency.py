"""The adaptive concurrency limit."""

import pytest

from actors.tier.concurrency import CEILING, CREEP, DEBOUNCE_S, START, Concurrency


def saturate(concurrency: Concurrency, seconds: float, latency_s: float, slots: int = 10**9, now: float = 0.0) -> float:
    """An endpoint with so many slots, kept full for a while: its rate is what its slots and its latency allow."""
    end = now + seconds
    while now < end:
        now += latency_s / min(concurrency.limit, slots)
        concurrency.succeeded(concurrency.limit, now)
    return now


@pytest.mark.parametrize("limit", [1, 7, 10_000])
def test_a_configured_number_stays_as_it_is(limit: int) -> None:
    """Neither successes nor refusals move what a person has set."""
    concurrency = Concurrency(limit)
    concurrency.succeeded(limit, 1.0)
    concurrency.refused(0.0)
    assert concurrency.limit == limit


def test_it_grows_only_while_it_is_what_holds_calls_back() -> None:
    """An endpoint that was never asked for more has not shown that it can take more."""
    concurrency = Concurrency("auto")
    for call in range(1000):
        concurrency.succeeded(START // 2, call * 0.01)
    assert concurrency.limit == START
    saturate(concurrency, 3.0, 0.5)
    assert concurrency.limit > START


@pytest.mark.parametrize(("slots", "latency_s"), [(64, 0.5), (64, 0.01), (300, 1.0)])
def test_it_stops_doubling_when_more_calls_bring_no_more_answers(slots: int, latency_s: float) -> None:
    """With a queue behind a number of slots, it ends near the slots and not at the ceiling."""
    concurrency = Concurrency("auto")
    saturate(concurrency, 12 * latency_s, latency_s, slots)
    assert slots <= concurrency.limit <= 2.2 * slots


def test_a_big_endpoint_is_found_in_a_few_round_trips() -> None:
    """An endpoint without a limit of its own gets as many calls as the ceiling allows."""
    concurrency = Concurrency("auto")
    saturate(concurrency, 12.0, 0.5)
    assert concurrency.limit == CEILING


def test_an_endpoint_that_gets_faster_is_noticed() -> None:
    """After the doubling has ended it still grows, slowly."""
    concurrency = Concurrency("auto")
    now = saturate(concurrency, 5.0, 0.1, slots=64)
    settled = concurrency.limit
    saturate(concurrency, 60.0, 0.1, now=now)
    assert concurrency.limit > settled * (1 + CREEP) ** 50


def test_the_refusals_of_one_moment_are_one_message() -> None:
    """A hundred 429s of one burst shrink it once; those of a later second shrink it again."""
    concurrency = Concurrency("auto")
    for _ in range(100):
        concurrency.refused(10.0)
    assert concurrency.limit == int(START * 0.7)
    concurrency.refused(10.0 + DEBOUNCE_S)
    assert concurrency.limit == int(START * 0.7 * 0.7)


def test_it_never_reaches_zero_and_recovers_from_one() -> None:
    """A tier that is refused for hours is still tried, one call at a time, and grows again."""
    concurrency = Concurrency("auto")
    for moment in range(100):
        concurrency.refused(moment * 10.0)
    assert concurrency.limit == 1
    saturate(concurrency, 10.0, 0.2, now=1000.0)
    assert concurrency.limit >= 9
