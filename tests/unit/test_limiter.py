"""Requests and tokens per minute, over simulated minutes."""

import asyncio
from bisect import bisect_left
from random import Random

import pytest

from actors.tier.limiter import RateLimits
from tests.simulated import simulate, simulated

Passed = list[tuple[float, int]]


async def run(limits: RateLimits, calls: list[int], minutes: float) -> Passed:
    """When each call passed: all of them want to from the start, and whoever waits is cut off at the end."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    passed: Passed = []

    async def one(tokens: int) -> None:
        await limits.wait(tokens)
        passed.append((loop.time() - started, tokens))

    tasks = [asyncio.create_task(one(tokens)) for tokens in calls]
    await asyncio.wait(tasks, timeout=minutes * 60)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return passed


def most_in_a_minute(passed: Passed, *, tokens: bool) -> int:
    """The most that any window of 60 s saw."""
    times = [moment for moment, _ in passed]
    amounts = [amount if tokens else 1 for _, amount in passed]
    # A hair below 60 s: rounding may put two that stand exactly 60 s apart into one.
    return max(sum(amounts[i : bisect_left(times, times[i] + 59.999)]) for i in range(len(times)))


def passed_in(limits: RateLimits, calls: list[int], minutes: float) -> Passed:
    result: Passed = []

    async def test() -> None:
        result.extend(await run(limits, calls, minutes))

    simulate(test())
    return result


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 60, 61, 100, 1000])
def test_no_minute_sees_more_requests_than_the_limit(limit: int) -> None:
    """Not even the first one, and nearly all of the limit is used."""
    passed = passed_in(RateLimits(limit, None, 1.0), [0] * (6 * limit), 5.0)
    assert most_in_a_minute(passed, tokens=False) <= limit
    assert len(passed) >= 5 * limit * 0.95


@pytest.mark.parametrize("limit", [100, 3000, 4000, 20_000, 600_000])
def test_no_minute_sees_more_tokens_than_the_limit(limit: int) -> None:
    """With calls of every size that a bucket holds."""
    chance = Random(limit)
    most = min(4000, limit // 2)
    calls = [chance.randint(1, most) for _ in range(12 * limit // most)]
    passed = passed_in(RateLimits(None, limit, 1.0), calls, 5.0)
    assert most_in_a_minute(passed, tokens=True) <= limit
    assert sum(tokens for _, tokens in passed) >= min(sum(calls), 5 * limit * 0.45)


def test_both_limits_hold_at_once() -> None:
    """A call needs one request and its tokens."""
    passed = passed_in(RateLimits(600, 6000, 1.0), [100] * 500, 5.0)
    assert most_in_a_minute(passed, tokens=True) <= 6000
    passed = passed_in(RateLimits(60, 600_000, 1.0), [100] * 500, 5.0)
    assert most_in_a_minute(passed, tokens=False) <= 60


@pytest.mark.parametrize(("limit", "actors"), [(10, 4), (1000, 3), (4, 4), (5, 4), (1, 4)])
def test_the_limit_is_shared_by_the_actors_of_the_tier(limit: int, actors: int) -> None:
    """However many actors a tier has, together they send no more than the limit.

    Less than one request a minute for each cannot be shared better than in turn; then each sends its first at once.
    """
    passed = [
        moment for _ in range(actors) for moment in passed_in(RateLimits(limit, None, 1 / actors), [0] * 200, 12.0)
    ]
    assert most_in_a_minute(sorted(passed), tokens=False) <= max(limit, actors)
    assert len(passed) <= 12 * limit + actors


def test_a_call_larger_than_the_bucket_passes_and_is_paid_for_whole() -> None:
    """A prompt of 20,000 tokens does not hang, and does not count as the 4,000 that a bucket holds."""
    passed = passed_in(RateLimits(None, 30_000, 1.0), [20_000] * 30, 10.0)
    assert sum(tokens for _, tokens in passed) <= 10 * 30_000 + 20_000
    assert sum(tokens for _, tokens in passed) >= 10 * 30_000 * 0.8


def test_a_call_larger_than_a_whole_minute_does_not_hang() -> None:
    """The endpoint will say what it thinks of it."""
    assert [tokens for _, tokens in passed_in(RateLimits(None, 1000, 1.0), [5000], 1.0)] == [5000]


def test_large_calls_are_not_overtaken_for_ever() -> None:
    """Calls pass in the order in which they came, so a stream of small ones cannot starve a large one."""
    calls = [100] * 50 + [3900] + [100] * 500
    assert [tokens for _, tokens in passed_in(RateLimits(None, 10_000, 1.0), calls, 60.0)] == calls


@simulated()
async def test_one_who_gives_up_waiting_does_not_block_the_others() -> None:
    """Whoever stops waiting takes nothing with it and leaves the line."""
    limits = RateLimits(60, None, 1.0)
    await limits.wait(0)
    waiting = [asyncio.create_task(limits.wait(0)) for _ in range(10)]
    await asyncio.sleep(0.5)
    for task in waiting[:9]:
        task.cancel()
    started = asyncio.get_running_loop().time()
    await waiting[9]
    assert asyncio.get_running_loop().time() - started < 1.0


def test_without_limits_nothing_waits() -> None:
    """The usual case costs nothing."""
    assert RateLimits(None, None, 1.0).unlimited
    assert not RateLimits(1, None, 1.0).unlimited
    assert not RateLimits(None, 1, 1.0).unlimited
