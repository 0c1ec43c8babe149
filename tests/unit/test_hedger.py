"""Hedging with every actor real, in simulated time: who answers, what it costs, and what is left alone."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors import lane as lane_module
from actors.budget import actor as budget_module
from actors.coalescer import actor as coalescer_module
from actors.messages import Failure, Result
from actors.router import attempts as attempts_module
from actors.router import flow as flow_module
from actors.router import hedger as hedger_module
from actors.router import purse as purse_module
from actors.tier import actor as tier_module
from actors.tier.transport import Reply, TransportError
from tests.simulated import simulated
from tests.unit.test_flow import Endpoint, House, answer, error, house

timed = simulated(
    lane_module,
    flow_module,
    attempts_module,
    hedger_module,
    purse_module,
    tier_module,
    coalescer_module,
    budget_module,
)

BOUND = 100 + 16
"""What the house's request reserves: its prompt's bound and its max_tokens."""
SLOW_S, QUICK_S = 20.0, 0.2
HEDGED = {
    "router": {"hedge": {"after": 1.0, "max_fraction": 1.0}},
    "budget": {"jobs": {"j": {"tokens": {"per_day": 100_000}}}},
}


class Timed(Endpoint):
    """An endpoint whose calls take the time that `latency_s(number)` says."""

    def __init__(
        self,
        takes_s: Callable[[int], float] | float,
        reply: Callable[[int, dict[str, Any]], Reply | Exception] = lambda number, body: answer(),
    ) -> None:
        super().__init__(reply)
        self.takes_s = takes_s
        self.hung_up = 0
        """Calls whose caller closed the connection."""

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        number = len(self.bodies) + 1
        self.bodies.append({})
        try:
            await asyncio.sleep(self.takes_s(number) if callable(self.takes_s) else self.takes_s)
        except asyncio.CancelledError:
            self.hung_up += 1
            raise
        reply = self.reply(number, {})
        if isinstance(reply, Exception):
            raise reply
        return reply


def told(done: Result | Failure) -> list[tuple[str, str, bool]]:
    return [(attempt.tier, attempt.kind, attempt.hedged) for attempt in done.attempts]


async def took_s(task: "asyncio.Task[Result | Failure]") -> tuple[Result | Failure, float]:
    began = asyncio.get_running_loop().time()
    return await task, asyncio.get_running_loop().time() - began


def kinds(made: House, tier: int) -> dict[str, int]:
    return made.router.note().tiers[tier].kinds


@timed
async def test_the_second_copy_answers_when_the_first_is_late(tmp_path: Path) -> None:
    """In 1 s and a little instead of 20; the first one's connection closes, and its worst case is charged."""
    endpoints = {"a": Timed(SLOW_S), "b": Timed(QUICK_S)}
    async with house(tmp_path, endpoints, **HEDGED) as made:
        done, seconds = await took_s(made.ask())
        assert isinstance(done, Result)
        assert seconds < 2.0
        assert (done.tier, told(done)) == ("b", [("a", "cancelled", False), ("b", "ok", True)])
        assert done.cost.tokens == BOUND + 15
        await asyncio.sleep(0.1)
        assert endpoints["a"].hung_up == 1
    assert await made.spent() == (BOUND + 15, 0)


@timed
async def test_the_first_copy_answers_though_there_is_a_second(tmp_path: Path) -> None:
    """The second one is the loser then: cancelled, and charged at its worst case."""
    endpoints = {"a": Timed(2.0), "b": Timed(SLOW_S)}
    async with house(tmp_path, endpoints, **HEDGED) as made:
        done, seconds = await took_s(made.ask())
        assert isinstance(done, Result)
        assert seconds < 2.5
        assert (done.tier, told(done)) == ("a", [("b", "cancelled", True), ("a", "ok", False)])
        assert done.cost.tokens == BOUND + 15
        await asyncio.sleep(0.1)
        assert endpoints["b"].hung_up == 1
    assert await made.spent() == (BOUND + 15, 0)


@timed
async def test_a_second_copy_that_fails_leaves_the_first_running(tmp_path: Path) -> None:
    """The answer comes late, but it comes; the failure is told."""
    endpoints = {"a": Timed(3.0), "b": Timed(QUICK_S, lambda number, body: error(500))}
    async with house(tmp_path, endpoints, **HEDGED) as made:
        done = await made.ask()
        assert isinstance(done, Result)
        assert told(done) == [("b", "server", True), ("a", "ok", False)]
        assert done.cost.tokens == 15


@timed
async def test_a_first_copy_that_fails_leaves_the_second_running(tmp_path: Path) -> None:
    """No third call is made while the second is under way."""
    endpoints = {"a": Timed(2.0, lambda number, body: error(500)), "b": Timed(5.0)}
    async with house(tmp_path, endpoints, **HEDGED) as made:
        done = await made.ask()
        assert isinstance(done, Result)
        assert told(done) == [("a", "server", False), ("b", "ok", True)]
        assert (len(endpoints["a"].bodies), len(endpoints["b"].bodies)) == (1, 1)
        assert done.cost.tokens == 15


@pytest.mark.parametrize(("first_s", "second_s"), [(2.0, 5.0), (5.0, QUICK_S)])
def test_two_copies_that_fail_are_one_attempt_of_the_plan(tmp_path: Path, first_s: float, second_s: float) -> None:
    """Whichever fails first: both are told, one is counted, and the request ends with what the first one said."""

    @timed
    async def lives() -> None:
        endpoints = {
            "a": Timed(first_s, lambda number, body: error(500, "a is broken")),
            "b": Timed(second_s, lambda number, body: error(503, "b is broken")),
        }
        hedge = {**HEDGED["router"], "max_attempts": 1}
        async with house(tmp_path, endpoints, **{**HEDGED, "router": hedge}) as made:
            done = await made.ask()
            assert isinstance(done, Failure)
            assert sorted(told(done)) == [("a", "server", False), ("b", "overloaded", True)]
            assert (done.kind, done.status) == ("all_tiers_exhausted", 500)
            assert "failed 1 times" in done.message
            assert len(endpoints["a"].bodies) == len(endpoints["b"].bodies) == 1

    lives()


@timed
async def test_a_failure_of_the_requests_own_ends_both(tmp_path: Path) -> None:
    """A 400 from the first copy is the end, as without hedging."""
    endpoints = {"a": Timed(2.0, lambda number, body: error(400)), "b": Timed(SLOW_S)}
    async with house(tmp_path, endpoints, **HEDGED) as made:
        done, seconds = await took_s(made.ask())
        assert isinstance(done, Failure)
        assert (done.kind, seconds < 2.5) == ("bad_request", True)
        assert endpoints["b"].hung_up == 1


@timed
async def test_losers_are_no_failures_at_the_breaker(tmp_path: Path) -> None:
    """Thirty late calls in a row, all overtaken: the tier's breaker is closed, and it is still asked first."""
    endpoints = {"a": Timed(SLOW_S), "b": Timed(QUICK_S)}
    async with house(tmp_path, endpoints, **HEDGED) as made:
        for number in range(30):
            assert isinstance(await made.ask(number), Result)
        assert len(endpoints["a"].bodies) == endpoints["a"].hung_up == 30
        assert (made.tiers[0].health().state, made.tiers[0].health().opened) == ("closed", 0)
        assert kinds(made, 0) == {"cancelled": 30}
        assert made.router.note().tiers[0].last_failure == ""


@timed
async def test_only_so_many_are_hedged(tmp_path: Path) -> None:
    """Every tenth call is slow, and a twentieth of the calls may be hedged: so half of the slow ones are."""
    endpoints = {"a": Timed(lambda number: SLOW_S if number % 10 == 0 else QUICK_S), "b": Timed(QUICK_S)}
    router = {"hedge": {"after": 1.0, "max_fraction": 0.05}}
    async with house(tmp_path, endpoints, router=router) as made:
        for number in range(200):
            assert isinstance(await made.ask(number), Result)
        assert endpoints["a"].hung_up == len(endpoints["b"].bodies) == 10


@timed
async def test_the_quantile_is_learnt(tmp_path: Path) -> None:
    """p95 of calls that take 0.2 s: the first slow one after forty is hedged at about that."""
    endpoints = {"a": Timed(lambda number: SLOW_S if number in (1, 60) else QUICK_S), "b": Timed(QUICK_S)}
    async with house(tmp_path, endpoints, router={"hedge": {"after": "p95"}}) as made:
        seconds = [(await took_s(made.ask(number)))[1] for number in range(60)]
        assert seconds[0] > SLOW_S, "nothing was known yet"
        assert seconds[59] < 2.0


@timed
async def test_an_endpoint_that_has_become_slow_as_a_whole_is_not_hedged_for_ever(tmp_path: Path) -> None:
    """Calls that were overtaken count with what they had waited, so the quantile follows though no slow call is seen to end."""
    endpoints = {"a": Timed(lambda number: 4.0 if number > 100 else QUICK_S), "b": Timed(QUICK_S)}
    async with house(tmp_path, endpoints, router={"hedge": {"after": "p95", "max_fraction": 1.0}}) as made:
        hedged = [told(await made.ask(number))[-1][2] for number in range(300)]
        assert sum(hedged[100:150]) > 40
        assert sum(hedged[250:]) < 5


@timed
async def test_the_last_rows_of_a_job_need_no_allowance(tmp_path: Path) -> None:
    """Word of it frees that job's rows and no other's, once each, for as long as it is said."""
    endpoints = {"a": Timed(SLOW_S), "b": Timed(QUICK_S)}
    async with house(tmp_path, endpoints, router={"hedge": {"after": 1.0, "max_fraction": 0.0}}) as made:
        last, other = made.ask(0), made.ask(1, job="other")
        made.router.last_rows("j")
        assert (await took_s(last))[1] < 2.0
        assert (await took_s(other))[1] > SLOW_S - 3
        await asyncio.sleep(10.0)
        assert (await took_s(made.ask(2)))[1] >= SLOW_S, "it was said long ago"


@timed
async def test_second_copies_are_never_more_than_the_free_slots(tmp_path: Path) -> None:
    """Ten are late at the same moment, and the neighbour has two slots: none of the copies waits in its queue."""
    endpoints = {"a": Timed(5.0), "b": Timed(SLOW_S)}
    tiers = {"a": {"concurrency": 10}, "b": {"concurrency": 2}}
    async with house(tmp_path, endpoints, tier=tiers, **HEDGED) as made:
        done = await asyncio.gather(*(made.ask(number) for number in range(10)))
        assert {one.tier for one in done if isinstance(one, Result)} == {"a"}
        assert sum(attempt.hedged for one in done for attempt in one.attempts) == len(endpoints["b"].bodies) == 2


@timed
async def test_a_call_that_waits_in_the_tiers_queue_is_not_hedged(tmp_path: Path) -> None:
    """One slot, five calls of 3 s each: those that wait have not been sent, and nobody sends them elsewhere."""
    endpoints = {"a": Timed(3.0), "b": Timed(QUICK_S)}
    async with house(tmp_path, endpoints, tier={"a": {"concurrency": 1}}, **HEDGED) as made:
        done = await asyncio.gather(*(made.ask(number) for number in range(5)))
        by_b = [one for one in done if isinstance(one, Result) and one.tier == "b"]
        assert len(by_b) == len(endpoints["b"].bodies) == 1, "the last one alone, when nothing was queued any more"


@timed
async def test_a_call_that_waits_for_the_tiers_own_rate_is_not_hedged(tmp_path: Path) -> None:
    """It has a slot, but it has not been sent."""
    endpoints = {"a": Timed(QUICK_S), "b": Timed(QUICK_S)}
    rate = {"a": {"requests_per_minute": 12}}
    router = {**HEDGED["router"], "on_rate_limit": "wait"}
    async with house(tmp_path, endpoints, tier=rate, router=router) as made:
        done = await asyncio.gather(*(made.ask(number) for number in range(6)))
        assert {one.tier for one in done if isinstance(one, Result)} == {"a"}
        assert endpoints["b"].bodies == []


@pytest.mark.parametrize(
    "budget",
    [
        {"tokens": {"per_request": 2 * BOUND - 1}},
        {"tokens": {"per_day": 2 * BOUND - 1}},
        {"tiers": {"b": {"tokens": {"per_day": BOUND - 1}}}},
    ],
    ids=str,
)
def test_no_second_copy_that_a_budget_has_no_room_for(tmp_path: Path, budget: dict[str, Any]) -> None:
    """The limit of one request, of a day, of the tier: the first copy goes on alone, and nothing of the second is told."""

    @timed
    async def lives() -> None:
        endpoints = {"a": Timed(5.0), "b": Timed(QUICK_S)}
        async with house(tmp_path, endpoints, **{**HEDGED, "budget": budget}) as made:
            done, seconds = await took_s(made.ask())
            assert isinstance(done, Result)
            assert (told(done), seconds > 4.9) == ([("a", "ok", False)], True)
            assert done.cost.tokens == 15

    lives()


@timed
async def test_a_second_copy_stays_within_the_quality_that_is_asked_for(tmp_path: Path) -> None:
    """The next tier is too bad for it, so the same address is asked once more, and it is quick this time."""
    endpoints = {"a": Timed(lambda number: SLOW_S if number == 1 else QUICK_S), "b": Timed(QUICK_S)}
    async with house(tmp_path, endpoints, quality={"a": "high"}, **HEDGED) as made:
        done, seconds = await took_s(made.ask(min_quality=2))
        assert isinstance(done, Result)
        assert (done.tier, len(endpoints["a"].bodies), seconds < 2.0) == ("a", 2, True)
        assert endpoints["b"].bodies == []


@timed
async def test_a_request_that_is_cancelled_ends_both_copies(tmp_path: Path) -> None:
    """Both connections close, both are charged, and nothing is left reserved."""
    endpoints = {"a": Timed(SLOW_S), "b": Timed(SLOW_S)}
    async with house(tmp_path, endpoints, **HEDGED) as made:
        task = made.ask()
        await asyncio.sleep(3.0)
        assert len(endpoints["b"].bodies) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert endpoints["a"].hung_up == endpoints["b"].hung_up == 1
    assert await made.spent() == (2 * BOUND, 0)


@timed
async def test_equal_requests_still_share_one_call_and_its_copy(tmp_path: Path) -> None:
    """A second copy is inside one lead: ten equal requests, two calls."""
    endpoints = {"a": Timed(SLOW_S), "b": Timed(QUICK_S)}
    async with house(tmp_path, endpoints, **HEDGED) as made:
        done = await asyncio.gather(*(made.ask(number, digest=b"k" * 32) for number in range(10)))
        assert {one.tier for one in done if isinstance(one, Result)} == {"b"}
        assert len(endpoints["a"].bodies) == len(endpoints["b"].bodies) == 1


@timed
async def test_an_actor_that_dies_leaves_the_other_copy_running(tmp_path: Path) -> None:
    """Its call is lost; the second copy answers, and no third one is needed."""
    endpoints = {"a": Timed(SLOW_S), "b": Timed(5.0)}
    async with house(tmp_path, endpoints, **HEDGED) as made:
        task = made.ask()
        await asyncio.sleep(3.0)
        made.peers.tiers[0][0].kill()  # type: ignore[attr-defined]
        done = await task
        assert isinstance(done, Result)
        assert told(done) == [("a", "lost", False), ("b", "ok", True)]


@timed
async def test_off_is_off(tmp_path: Path) -> None:
    """Without the key in the configuration nothing is ever sent twice, whatever a job says of its last rows."""
    endpoints = {"a": Timed(SLOW_S), "b": Timed(QUICK_S)}
    async with house(tmp_path, endpoints) as made:
        made.router.last_rows("j")
        assert (await took_s(made.ask()))[1] >= SLOW_S
        assert endpoints["b"].bodies == []


@timed
async def test_a_timeout_of_the_second_copy_counts_for_its_tier_alone(tmp_path: Path) -> None:
    """The plan knows that both were silent, so neither is asked before the other would be."""

    def silent(number: int, body: dict[str, Any]) -> Exception:
        return TransportError("timeout", "no reply", True)

    endpoints = {"a": Timed(8.0, lambda n, b: silent(n, b) if n == 1 else answer()), "b": Timed(5.0, silent)}
    async with house(tmp_path, endpoints, **HEDGED) as made:
        done = await made.ask()
        assert isinstance(done, Result)
        assert told(done)[:2] == [("b", "timeout", True), ("a", "timeout", False)]
        assert done.tier == "a"
        assert done.cost.tokens >= 2 * BOUND + 15
