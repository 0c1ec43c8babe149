"""The adaptive concurrency limit."""

import pytest

from actors.tier.concurrency import CEILING, DEBOUNCE_S, START, Concurrency


def saturate(concurrency: Concurrency, calls: int) -> None:
    for _ in range(calls):
        concurrency.succeeded(concurrency.limit)


@pytest.mark.parametrize("limit", [1, 7, 10_000])
def test_a_configured_number_stays_as_it_is(limit: int) -> None:
    """Neither successes nor refusals move what a person has set."""
    concurrency = Concurrency(limit)
    saturate(concurrency, 100)
    concurrency.refused(0.0)
    assert concurrency.limit == limit


def test_it_grows_only_while_it_is_what_holds_calls_back() -> None:
    """An endpoint that was never asked for more has not shown that it can take more."""
    concurrency = Concurrency("auto")
    for _ in range(1000):
        concurrency.succeeded(START // 2)
    assert concurrency.limit == START
    saturate(concurrency, 1)
    assert concurrency.limit == START + 1


def test_it_doubles_each_round_trip_until_the_first_refusal_and_then_adds_one() -> None:
    """Quick to find a big endpoint's capacity, careful once it has been found."""
    concurrency = Concurrency("auto")
    saturate(concurrency, START)
    assert concurrency.limit == 2 * START
    concurrency.refused(0.0)
    shrunk = concurrency.limit
    assert shrunk == int(2 * START * 0.7)
    saturate(concurrency, shrunk + 1)
    assert concurrency.limit == shrunk + 1


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
    saturate(concurrency, 10)
    assert concurrency.limit > 1


def test_it_has_a_ceiling() -> None:
    """However well it goes, file descriptors are not for one tier alone."""
    concurrency = Concurrency("auto")
    saturate(concurrency, 3 * CEILING)
    assert concurrency.limit == CEILING
