"""What attempts are charged: overruns, answers without usage, and the budget of one request over all its attempts."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import orjson

from actors import lane as lane_module
from actors.budget import actor as budget_module
from actors.coalescer import actor as coalescer_module
from actors.messages import Amount, Failure, Result
from actors.router import attempts as attempts_module
from actors.router import flow as flow_module
from actors.router import purse as purse_module
from actors.tier import actor as tier_module
from actors.tier.transport import Reply, TransportError
from tests.simulated import simulated
from tests.unit.test_flow import BUDGET, Endpoint, House, answer, error, house

timed = simulated(lane_module, flow_module, attempts_module, purse_module, tier_module, coalescer_module, budget_module)

BOUND = 100 + 16
"""What the house's request reserves: its prompt's bound and its max_tokens."""


def without_usage(reply: Reply) -> Reply:
    body = {name: value for name, value in orjson.loads(reply.body).items() if name != "usage"}
    return reply._replace(body=orjson.dumps(body))


def one_tier(reply: Callable[[int], Reply | Exception]) -> dict[str, Endpoint]:
    return {"a": Endpoint(lambda number, body: reply(number))}


async def unknown_tokens(made: House) -> int:
    snapshot = await made.budget.show()
    return next(s.unknown for s in snapshot.limits if (s.scope, s.window, s.unit) == ("job:j", "day", "tokens"))


@timed
async def test_usage_above_its_reservation_is_charged_and_widens_the_next(tmp_path: Path) -> None:
    """Twice the bound of the answer, over and over: charged in full each time, and soon there is no overrun any more."""
    async with house(tmp_path, one_tier(lambda number: answer(prompt=100, completion=32)), **BUDGET) as made:
        first = await made.ask()
        assert isinstance(first, Result)
        assert (first.cost.tokens, first.attempts[0].overrun_tokens, first.attempts[0].margin_milli) == (132, 16, 2_200)
        (note,) = made.router.note().tiers
        assert (note.overrun, note.margin_milli) == (Amount(16, 164 - 132), 2_200)
        second = await made.ask(1)
        assert isinstance(second, Result)
        assert (second.cost.tokens, second.attempts[0].overrun_tokens, second.attempts[0].margin_milli) == (132, 0, 0)
        assert made.router.note().tiers[0].overrun.tokens == 16
    assert await made.spent() == (264, 0)


@timed
async def test_a_reservation_that_is_out_is_not_resized(tmp_path: Path) -> None:
    """Two at once: both were reserved before either reply, both overrun, and the sum of both is charged."""
    async with house(tmp_path, one_tier(lambda number: answer(prompt=100, completion=32)), **BUDGET) as made:
        done = await asyncio.gather(made.ask(0), made.ask(1))
        assert [one.attempts[0].overrun_tokens for one in done] == [16, 16]
        assert sorted(one.attempts[0].margin_milli for one in done) == [0, 2_200], "the second had nothing to add"
    assert await made.spent() == (264, 0)


@timed
async def test_an_answer_without_usage_costs_its_reservation_and_says_so(tmp_path: Path) -> None:
    """Nobody can tell what it cost: the whole bound is booked as unknown, and the result knows."""
    async with house(tmp_path, one_tier(lambda number: without_usage(answer())), **BUDGET) as made:
        done = await made.ask()
        assert isinstance(done, Result)
        assert not done.metered
        assert (done.cost.tokens, done.attempts[0].unmetered_tokens) == (BOUND, BOUND)
        await made.router.close()
        assert await unknown_tokens(made) == BOUND
    assert await made.spent() == (BOUND, 0)


@timed
async def test_an_answer_with_usage_is_metered(tmp_path: Path) -> None:
    """Also after a timeout, whose cost is unknown: that was no answer."""
    endpoints = {
        "a": Endpoint(lambda number, body: TransportError("timeout", "no reply", True)),
        "b": Endpoint(lambda number, body: answer()),
    }
    async with house(tmp_path, endpoints, **BUDGET) as made:
        done = await made.ask()
        assert isinstance(done, Result)
        assert done.metered
        assert done.cost.tokens == BOUND + 15


@timed
async def test_the_limit_of_one_request_counts_what_earlier_asks_left_unknown(tmp_path: Path) -> None:
    """A reply that does not fit, a timeout, and then no third attempt: all three counts, and the cost is told."""
    replies: list[Reply | Exception] = [without_usage(answer("no json")), TransportError("timeout", "no reply", True)]
    endpoints = one_tier(lambda number: replies[number - 1])
    async with house(tmp_path, endpoints, budget={"tokens": {"per_request": 600}}) as made:
        done = await made.ask(schema=b'{"type":"object"}')
        assert isinstance(done, Failure)
        assert (done.kind, done.resumable) == ("invalid_output", False)
        assert "not asked again" in done.message
        assert len(endpoints["a"].bodies) == 2
        again = BOUND + len(orjson.dumps(endpoints["a"].bodies[1])) - len(orjson.dumps(endpoints["a"].bodies[0]))
        assert done.cost.tokens == BOUND + again
        assert done.attempts[0].unmetered_tokens == BOUND


@timed
async def test_a_re_ask_that_the_limit_has_no_room_for_is_not_sent(tmp_path: Path) -> None:
    """The first answer is paid for and told; asking again would pass the limit."""
    endpoints = one_tier(lambda number: answer("no json", prompt=100, completion=16))
    async with house(tmp_path, endpoints, budget={"tokens": {"per_request": 200}}) as made:
        done = await made.ask(schema=b'{"type":"object"}')
        assert isinstance(done, Failure)
        assert (done.kind, done.cost.tokens, len(endpoints["a"].bodies)) == ("invalid_output", BOUND, 1)
        assert "no JSON object or list; not asked again" in done.message


@timed
async def test_bad_luck_that_used_up_a_requests_limit_is_not_shared(tmp_path: Path) -> None:
    """The first of three equal requests has a timeout and no room for more; the next one tries, and its answer is shared."""

    def reply(number: int) -> Reply | Exception:
        return TransportError("timeout", "no reply", True) if number == 1 else answer()

    async with house(tmp_path, one_tier(reply), budget={"tokens": {"per_request": 200}}) as made:
        done = await asyncio.gather(*(made.ask(number, digest=b"k" * 32) for number in range(3)))
        assert sum(isinstance(one, Failure) and one.kind == "budget_exceeded" for one in done) == 1
        assert sum(isinstance(one, Result) for one in done) == 2
        assert len(made.endpoints["a"].bodies) == 2


@timed
async def test_a_jobs_own_limit_fails_no_other_job(tmp_path: Path) -> None:
    """Two jobs ask the same at once; the first may not spend so much on a request, the second may."""
    budget = {"jobs": {"poor": {"tokens": {"per_request": 50}}}}
    async with house(tmp_path, one_tier(lambda number: answer()), budget=budget) as made:
        poor = made.ask(0, digest=b"k" * 32, job="poor")
        rich = made.ask(1, digest=b"k" * 32, job="rich")
        refused, served = await asyncio.gather(poor, rich)
        assert isinstance(refused, Failure)
        assert refused.kind == "budget_exceeded"
        assert isinstance(served, Result)


@timed
async def test_a_window_that_refuses_a_further_attempt_tells_what_was_spent(tmp_path: Path) -> None:
    """The row is put off, not failed, and what its first attempt may have cost is not forgotten."""
    endpoints = one_tier(lambda number: TransportError("timeout", "no reply", True))
    async with house(tmp_path, endpoints, budget={"tokens": {"per_day": 200}}) as made:
        done = await made.ask()
        assert isinstance(done, Failure)
        assert (done.kind, done.resumable, done.cost.tokens) == ("budget_exceeded", True, BOUND)
        assert [attempt.kind for attempt in done.attempts] == ["timeout"]


@timed
async def test_an_attempt_that_was_surely_not_billed_costs_nothing(tmp_path: Path) -> None:
    """500 before a body and 429: given back whole, then the answer's usage alone is booked."""

    def reply(number: int) -> Reply:
        return (error(500), error(429, "slow down", **{"retry-after": "1"}), answer())[number - 1]

    async with house(tmp_path, one_tier(reply), **BUDGET) as made:
        done = await made.ask()
        assert isinstance(done, Result)
        assert done.cost.tokens == 15
    assert await made.spent() == (15, 0)


@timed
async def test_a_call_that_is_cancelled_after_it_was_sent_is_booked_whole(tmp_path: Path) -> None:
    """The provider may charge for it all the same."""
    async with house(tmp_path, one_tier(lambda number: answer()), **BUDGET) as made:
        task = made.ask()
        await asyncio.sleep(0.05)
        assert len(made.endpoints["a"].bodies) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await made.spent() == (BOUND, 0)


@timed
async def test_a_call_that_is_cancelled_before_it_was_sent_is_not_booked(tmp_path: Path) -> None:
    """While a hand-over is under way the next call waits in the router: nobody can charge for it."""
    async with house(tmp_path, one_tier(lambda number: answer()), **BUDGET) as made:
        peer = made.peers.tiers[0][0]
        submit, gate = peer.submit, asyncio.Event()

        async def slow(*block: object) -> bool:
            await gate.wait()
            return await submit(*block)

        peer.submit = slow
        first = made.ask(0)
        await asyncio.sleep(0.05)
        second = made.ask(1)
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        gate.set()
        assert isinstance(await first, Result)
        assert len(made.endpoints["a"].bodies) == 1
    assert await made.spent() == (15, 0)


@timed
async def test_images_and_hidden_content_are_reserved_for(tmp_path: Path) -> None:
    """What a tier reserves for them counts against the limit of a request."""
    endpoints = one_tier(lambda number: answer())
    async with house(tmp_path, endpoints, budget={"tokens": {"per_request": 20_000}}) as made:
        assert isinstance(await made.ask(0, images=1), Result)
        assert isinstance(await made.ask(1, images=2), Failure)
        assert isinstance(await made.ask(2, opaque=True), Failure)
    assert len(endpoints["a"].bodies) == 1
