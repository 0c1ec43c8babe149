"""What one endpoint takes, found against a simulated one: the properties that benchmarks/capacity.py measures on the mock."""

import math
import random
from collections.abc import Callable, Sequence

import pytest

from actors.tier.advice import Advice
from actors.tier.capacity import COOLING_S, Capacity
from actors.tier.concurrency import START
from tests.unit.simulated_endpoint import Caller, Endpoint, Seen, simulate


def fixed(latency_s: float) -> Callable[[random.Random], float]:
    return lambda chance: latency_s


def lognormal(median_s: float, sigma: float = 0.5) -> Callable[[random.Random], float]:
    return lambda chance: chance.lognormvariate(math.log(median_s), sigma)


def per_s(seen: Sequence[Seen], begin_s: float, end_s: float, caller: int | None = None) -> float:
    ended = (one for one in seen if begin_s <= one.at < end_s and one.status == 200)
    return sum(caller is None or one.caller == caller for one in ended) / (end_s - begin_s)


def refused(seen: Sequence[Seen], begin_s: float, end_s: float) -> float:
    statuses = [one.status for one in seen if begin_s <= one.at < end_s]
    return statuses.count(429) / max(1, len(statuses))


def p99(seen: Sequence[Seen], begin_s: float) -> float:
    durations = sorted(one.duration_s for one in seen if one.at >= begin_s)
    return durations[int(0.99 * len(durations))]


def alone(endpoint: Endpoint, seconds: float) -> tuple[Capacity, list[Seen]]:
    capacity = Capacity("auto")
    return capacity, simulate(endpoint, [Caller(capacity)], seconds)


@pytest.mark.parametrize("burst", [400, 40])
@pytest.mark.parametrize("retry_after_s", [None, 1.0], ids=["bare", "retry-after"])
@pytest.mark.parametrize("latency_s", [0.001, 0.05, 0.5])
def test_a_rate_limit_is_nearly_reached_and_seldom_passed(
    latency_s: float, retry_after_s: float | None, burst: int
) -> None:
    """400 a second are allowed: after ten seconds most of that goes through and hardly anything is refused."""
    endpoint = Endpoint(fixed(latency_s), allowances=[(0.0, 400.0)], burst=burst, retry_after_s=retry_after_s)
    _, seen = alone(endpoint, 40.0)
    assert per_s(seen, 10.0, 40.0) >= 0.8 * 400
    assert refused(seen, 10.0, 40.0) <= 0.05


@pytest.mark.parametrize("burst", [400, 40])
@pytest.mark.parametrize("retry_after_s", [None, 1.0], ids=["bare", "retry-after"])
@pytest.mark.parametrize("tier", ["", "premium"], ids=["jobs", "actors of a tier"])
@pytest.mark.parametrize("callers", [2, 4])
def test_several_at_one_endpoint_reach_its_rate_limit_together(
    callers: int, tier: str, retry_after_s: float | None, burst: int
) -> None:
    """Strangers, and better the actors of one tier, which hear of each other's refusals."""
    endpoint = Endpoint(fixed(0.05), allowances=[(0.0, 400.0)], burst=burst, retry_after_s=retry_after_s)
    jobs = [Caller(Capacity("auto"), 0.01 * number, tier) for number in range(callers)]
    seen = simulate(endpoint, jobs, 60.0)
    assert per_s(seen, 10.0, 60.0) >= (0.9 if tier else 0.8) * 400
    assert refused(seen, 10.0, 60.0) <= (0.01 if tier else 0.05)


@pytest.mark.parametrize("retry_after_s", [None, 1.0], ids=["bare", "retry-after"])
@pytest.mark.parametrize(("before", "after"), [(400.0, 800.0), (800.0, 400.0)])
def test_an_allowance_that_changes_is_found_again(before: float, after: float, retry_after_s: float | None) -> None:
    """Doubled or halved in mid-run: fifteen seconds later the new level is there."""
    changes = [(0.0, before), (25.0, after)]
    _, seen = alone(Endpoint(fixed(0.05), allowances=changes, retry_after_s=retry_after_s), 55.0)
    assert max(per_s(seen, at, at + 3.0) for at in range(26, 41)) >= 0.85 * after
    assert per_s(seen, 40.0, 55.0) >= 0.75 * after
    assert refused(seen, 40.0, 55.0) <= 0.05


@pytest.mark.parametrize(("latency_s", "burst"), [(0.05, 400), (0.5, 400), (0.05, 40)])
def test_headers_are_believed_before_anything_is_refused(latency_s: float, burst: int) -> None:
    """An endpoint that tells its limit is never asked for more, though a small bucket is soon empty."""
    endpoint = Endpoint(fixed(latency_s), allowances=[(0.0, 400.0)], burst=burst, retry_after_s=1.0, headers=True)
    _, seen = alone(endpoint, 40.0)
    assert refused(seen, 0.0, 40.0) == 0.0
    assert per_s(seen, 10.0, 40.0) >= 0.9 * 400


def test_a_window_is_told_from_a_bucket() -> None:
    """`reset` that falls as the clock goes is the end of a window, and what remains is spread until then."""
    advice = Advice()
    for second in range(10):
        remaining = 6000 - 100 * second
        advice.read(
            {
                "x-ratelimit-limit-requests": "6000",
                "x-ratelimit-remaining-requests": str(remaining),
                "x-ratelimit-reset-requests": f"{60 - second}s",
            },
            float(second),
        )
    assert advice.rate == pytest.approx(5100 / 51)


@pytest.mark.parametrize(
    "headers", [{}, {"x-ratelimit-remaining-requests": "many"}, {"x-ratelimit-limit-requests": "9"}]
)
def test_headers_that_make_no_sense_say_nothing(headers: dict[str, str]) -> None:
    """They come from strangers."""
    advice = Advice()
    advice.read(headers, 1.0)
    assert advice.rate is None


@pytest.mark.parametrize(
    ("latency", "settles_s", "seconds"),
    [(fixed(0.2), 10.0, 40.0), (fixed(1.0), 30.0, 90.0), (lognormal(0.2), 10.0, 40.0)],
    ids=["0.2 s", "1 s", "lognormal"],
)
def test_slots_with_a_queue_are_filled_and_the_queue_stays_short(
    latency: Callable[[random.Random], float], settles_s: float, seconds: float
) -> None:
    """Nearly the throughput of the best fixed number, and nearly its latency."""
    endpoint = Endpoint(latency, slots=64)
    best = simulate(endpoint, [Caller(Capacity(64))], seconds)
    _, seen = alone(endpoint, seconds)
    assert per_s(seen, settles_s, seconds) >= 0.93 * per_s(best, settles_s, seconds)
    assert p99(seen, settles_s) <= 1.5 * p99(best, settles_s)


def test_a_burst_of_callers_is_not_spaced_while_there_are_slots() -> None:
    """Spacing is for calls that the limit holds back: others, who come when slots are free, all go at once."""
    capacity = Capacity("auto")
    simulate(Endpoint(fixed(0.5)), [Caller(capacity)], 12.0)
    later = 12.0 + 60.0
    assert capacity.limit >= 100
    for in_flight in range(100):
        assert capacity.ready_at(in_flight, later) == later
        capacity.sent(later)


def test_an_endpoint_without_limits_gets_as_many_as_it_takes() -> None:
    """Half a second of latency and no queue: the limit goes where the throughput is."""
    capacity, _ = alone(Endpoint(fixed(0.5)), 12.0)
    assert capacity.limit >= 600
    assert capacity.rate is None


@pytest.mark.parametrize("late_s", [0.0, 20.0])
@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(fixed(0.05), allowances=[(0.0, 400.0)]),
        Endpoint(fixed(0.05), allowances=[(0.0, 400.0)], retry_after_s=1.0),
        Endpoint(fixed(0.2), slots=64),
    ],
    ids=["rate", "rate with retry-after", "slots"],
)
def test_two_jobs_share_an_endpoint(endpoint: Endpoint, late_s: float) -> None:
    """Neither starves, and all of the endpoint is used."""
    jobs = [Caller(Capacity("auto")), Caller(Capacity("auto"), late_s + 0.01)]
    begin_s, end_s = late_s + 15.0, late_s + 75.0
    seen = simulate(endpoint, jobs, end_s)
    share = per_s(seen, begin_s, end_s, 0) / per_s(seen, begin_s, end_s)
    assert 0.35 <= share <= 0.65


def saturated(capacity: Capacity, now: float, seconds: float, latency_s: float) -> float:
    """All slots always in use, at an endpoint without a queue."""
    end = now + seconds
    while now < end:
        now += latency_s / capacity.limit
        capacity.sent(now)
        capacity.succeeded(capacity.limit, latency_s, now)
    return now


def test_server_errors_hold_growth_and_never_shrink() -> None:
    """They are the breaker's; an endpoint in trouble is not asked for more either."""
    capacity = Capacity("auto")
    now = 0.0
    for _ in range(400):
        now = saturated(capacity, now, 0.05, 0.1)
        capacity.failed(now)
    assert capacity.limit == START
    saturated(capacity, now, 2.0, 0.1)
    assert capacity.limit > START
    assert capacity.rate is None


def test_the_refusals_of_one_moment_are_one_episode() -> None:
    """A hundred 429s of calls that were under way together count once; one of a later call counts again."""
    one, many = Capacity("auto"), Capacity("auto")
    for capacity, times in ((one, 1), (many, 100)):
        now = saturated(capacity, 0.0, 3.0, 0.5)
        for _ in range(times):
            capacity.refused(None, now - 0.1, now)
    assert one.rate is not None
    assert many.rate == one.rate
    many.succeeded(1, 0.1, now + 1.0)
    many.refused(None, now + 1.0, now + 1.1)
    assert many.rate is not None
    assert many.rate < one.rate


def test_an_overload_takes_a_third_of_the_limit_once_a_moment() -> None:
    """503 and 529 are about how much is under way, not about a rate."""
    capacity = Capacity("auto")
    for _ in range(20):
        capacity.refused(None, 1.0, 2.0, overloaded=True)
    assert capacity.limit == int(START * 0.7)
    assert capacity.rate is None
    assert capacity.cooling_until <= 2.0
    for moment in range(3, 60):
        capacity.refused(None, float(moment), float(moment), overloaded=True)
    assert capacity.limit == 1
    saturated(capacity, 100.0, 40.0, 0.2)
    assert capacity.limit >= 3


@pytest.mark.parametrize("limit", [1, 7, 10_000])
def test_a_configured_number_stays_as_it_is(limit: int) -> None:
    """Neither successes nor refusals nor headers move what a person has set; but a pause is a pause."""
    capacity = Capacity(limit)
    capacity.succeeded(limit, 0.1, 1.0)
    capacity.advised({"x-ratelimit-remaining-requests": "0"}, 1.0)
    capacity.refused(None, 0.0, 1.0, overloaded=True)
    capacity.failed(1.0)
    assert (capacity.limit, capacity.rate, capacity.ready_at(0, 1.0)) == (limit, None, 1.0)
    capacity.refused(None, 1.0, 2.0)
    assert capacity.ready_at(0, 2.0) == 2.0 + COOLING_S
    capacity.refused(30.0, 1.0, 2.0)
    assert capacity.ready_at(0, 31.0) == 32.0
    assert capacity.ready_at(limit, 33.0) is None


def test_retry_after_is_obeyed_to_the_letter() -> None:
    """Nothing is sent before, whoever says it and however often."""
    capacity = Capacity("auto")
    capacity.sent(0.0)
    capacity.refused(20.0, 0.0, 1.0)
    capacity.refused(60.0, 0.0, 1.1)
    capacity.refused(1.0, 0.0, 1.2)
    assert capacity.ready_at(0, 30.0) == pytest.approx(61.1)


def test_an_endpoint_that_refuses_everything_is_asked_seldom_and_found_again_soon() -> None:
    """Without a word when to come back: pauses grow to ten seconds, and what was learned of its pace stays."""
    closed = [(0.0, 400.0), (20.0, 1e-9), (80.0, 400.0)]
    _, seen = alone(Endpoint(fixed(0.05), allowances=closed, burst=40), 110.0)
    assert len([one for one in seen if 30.0 <= one.at < 80.0]) <= 40
    assert per_s(seen, 95.0, 110.0) >= 0.7 * 400


def test_a_pace_that_holds_nothing_back_is_forgotten() -> None:
    """One stray refusal does not pace a tier for ever."""
    capacity = Capacity("auto")
    now = saturated(capacity, 0.0, 3.0, 0.5)
    capacity.refused(None, now, now)
    assert capacity.rate is not None
    for _ in range(60):
        now += 1.0
        capacity.sent(now)
        capacity.succeeded(1, 0.1, now)
    assert capacity.rate is None


@pytest.mark.parametrize("retry_after_s", [None, 0.2], ids=["bare", "retry-after"])
@pytest.mark.parametrize("latency_s", [0.002, 0.05, 0.5])
@pytest.mark.parametrize("refusals", [0.1, 0.3])
def test_refusals_that_do_not_follow_the_pace_do_not_slow_it_down(
    refusals: float, latency_s: float, retry_after_s: float | None
) -> None:
    """A share of the calls is refused whatever the pace: going slower would only lose time, so it ends soon."""
    endpoint = Endpoint(fixed(latency_s), refusals=refusals, retry_after_s=retry_after_s)
    _, seen = alone(endpoint, 40.0)
    # Each episode costs the pause that was asked for; between two of them START calls may be under way.
    between = (1 - refusals) / refusals
    attainable = START / latency_s if retry_after_s is None else between / (retry_after_s + latency_s)
    assert per_s(seen, 15.0, 40.0) >= 0.5 * min(attainable, (1 - refusals) * START / latency_s)
