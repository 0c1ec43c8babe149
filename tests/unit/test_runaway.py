"""Runaway loops: what is counted, what is refused, and what the caller is told."""

import pickle

import pytest

from actors.coalescer.runaway import REQUESTS_AT_LEAST, REQUESTS_PER_CALL, SUSPECT, WINDOW_S, Loops, Runaway
from actors.errors import RunawayLoop

K, L = b"k" * 32, b"l" * 32


def led(loops: Loops, times: int, every_s: float = 0.1, start: float = 0.0) -> "list[Runaway | None]":
    return [loops.claim(K, start + number * every_s, True) for number in range(times)]


@pytest.mark.parametrize("limit", [1, 2, 10, 60])
def test_a_loop_is_let_in_as_often_as_it_may_and_hardly_more(limit: int) -> None:
    """At least `limit` calls, at most the two more that the filter takes to notice."""
    answers = led(Loops(limit), 200)
    let_in = answers.index(next(answer for answer in answers if answer is not None))
    assert limit <= let_in <= limit + SUSPECT - 1
    assert None not in answers[let_in:]


def test_the_filter_remembers_across_its_windows() -> None:
    """Two claims just before it turns and two just after are four: the loop is not missed for standing in between."""
    loops = Loops(5)
    loops.claim(L, 0.0, True)
    answers = [loops.claim(K, WINDOW_S + at, True) for at in (-0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    assert 5 <= answers.count(None) <= 7


def test_a_loop_that_goes_on_gets_its_calls_every_minute() -> None:
    """What is refused is not counted, so a caller is not shut out for ever."""
    answers = led(Loops(10), 3000)
    for minute in range(5):
        let_in = answers[minute * 600 : minute * 600 + 600].count(None)
        assert 10 <= let_in <= 12


def test_who_asks_again_when_told_to_is_let_in() -> None:
    """`retry_after_s` is when the oldest of the calls is a minute old."""
    loops = Loops(5)
    refused = led(loops, 20, every_s=1.0)[-1]
    assert refused is not None
    assert loops.claim(K, 19.0 + refused.retry_after_s - 0.01, True) is not None
    assert loops.claim(K, 19.0 + refused.retry_after_s, True) is None


def test_a_slow_repetition_is_no_loop() -> None:
    """Just as often as allowed, for an hour."""
    assert set(led(Loops(10), 600, every_s=WINDOW_S / 10)) == {None}


def test_another_key_is_not_concerned() -> None:
    """Not even one that shares all of the filter with the loop."""
    loops = Loops(5, slots=1)
    led(loops, 50)
    assert [loops.claim(L, 6.0, True) for _ in range(5)] == [None] * 5


def test_requests_that_cost_nothing_have_a_bound_of_their_own() -> None:
    """A loop that spins on kept answers ends too, but much later; and its calls are still counted apart."""
    loops = Loops(200)
    bound = 200 * REQUESTS_PER_CALL
    answers = [loops.claim(K, number * 0.001, False) for number in range(bound + 10)]
    refused = [answer for answer in answers if answer is not None]
    assert len(answers) - len(refused) == bound + SUSPECT - 1
    assert (refused[0].what, refused[0].times, refused[0].limit) == ("requests", bound + 1, bound)


def test_a_small_limit_does_not_refuse_a_burst() -> None:
    """Many equal requests at once that share one call are what coalescing is for."""
    loops = Loops(1)
    assert loops.claim(K, 0.0, True) is None
    assert {loops.claim(K, 0.0, False) for _ in range(REQUESTS_AT_LEAST - 1)} == {None}


def test_keys_that_are_not_seen_any_more_are_forgotten() -> None:
    """And those beyond the bound at once, the longest unseen first."""
    loops = Loops(5, keys=10)
    for number in range(30):
        for _ in range(3):
            loops.claim(bytes([number]) * 32, 0.0, True)
    assert len(loops) == 10
    loops.claim(K, 200.0, True)
    assert len(loops) == 0


def test_the_error_names_what_is_needed_to_find_the_loop() -> None:
    """Digest, count and window, in one line; and it survives pickling."""
    error = RunawayLoop("3fa9c1d2e4b5", "calls", 61, 60, 60.0)
    assert str(error) == (
        "runaway loop: the same request (digest 3fa9c1d2e4b5) would make call 61 within 60 s; "
        "the limit is coalesce.runaway.max_per_minute: 60"
    )
    again = pickle.loads(pickle.dumps(error))
    assert (again.digest, again.count, again.window_s, str(again)) == ("3fa9c1d2e4b5", 61, 60.0, str(error))
    assert str(RunawayLoop("3fa9c1d2e4b5", "requests", 2001, 2000, 60.0)) == (
        "runaway loop: the same request (digest 3fa9c1d2e4b5) came 2,001 times within 60 s; "
        "the limit, which follows coalesce.runaway.max_per_minute, is 2,000"
    )
