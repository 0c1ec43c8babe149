"""Shared calls through a router: who pays, who waits, and what happens when some of them go away."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.coalescer.actor import Claim
from actors.messages import Failure, Result
from tests.simulated import LocalPeer
from tests.unit.test_flow import BUDGET, Endpoint, House, answer, error, house, timed

KEY = b"k" * 32


@pytest.fixture(autouse=True, params=["an actor", "near"])
def _near(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it holds wherever the table is."""
    monkeypatch.setattr(House, "near", request.param == "near")


def slow(latency_s: float = 10.0) -> Endpoint:
    return Endpoint(lambda n, b: answer(), latency_s)


def equal(made: House, count: int, **changes: Any) -> "list[asyncio.Task[Result | Failure]]":
    return [made.ask(number, **{"digest": KEY, **changes}) for number in range(count)]


def under_way(made: House) -> int:
    return made.tiers[0].health().in_flight


def coalescer_peer(made: House) -> LocalPeer:
    peer = made.peers.coalescer
    if House.near:
        pytest.skip("a table in the router's process dies with it")
    assert isinstance(peer, LocalPeer)
    return peer


@timed
async def test_a_call_that_others_wait_for_outlives_its_caller(tmp_path: Path) -> None:
    """The leader gives up half way: one call in all, and the others have its answer when it comes."""
    async with house(tmp_path, {"a": slow()}, **BUDGET) as made:
        leader, *others = equal(made, 5)
        await asyncio.sleep(5.0)
        leader.cancel()
        async with asyncio.timeout(6.0):
            done = await asyncio.gather(*others)
        assert all(isinstance(one, Result) and one.coalesced for one in done)
        assert leader.cancelled()
        assert len(made.endpoints["a"].bodies) == 1
    assert await made.spent() == (15, 0)


@timed
async def test_a_call_that_nobody_waits_for_ends_with_its_last_follower(tmp_path: Path) -> None:
    """Leader and followers go one after another; who asks while it still runs may have it; then it is cancelled."""
    async with house(tmp_path, {"a": slow(100.0)}, **BUDGET) as made:
        leader, first = equal(made, 2)
        await asyncio.sleep(1.0)
        leader.cancel()
        await asyncio.sleep(1.0)
        (late,) = equal(made, 1)
        await asyncio.sleep(1.0)
        first.cancel()
        await asyncio.sleep(1.0)
        assert under_way(made) == 1, "somebody still waits"
        late.cancel()
        await asyncio.sleep(1.0)
        assert under_way(made) == 0
        assert len(made.endpoints["a"].bodies) == 1
    assert await made.spent() == (116, 0), "cancelled after it was sent: nobody knows what it cost"


@timed
async def test_a_cancelled_call_that_nobody_follows_is_cancelled_at_once(tmp_path: Path) -> None:
    """As long as a word to the coalescer and back takes."""
    async with house(tmp_path, {"a": slow(100.0)}) as made:
        (alone,) = equal(made, 1)
        await asyncio.sleep(1.0)
        assert under_way(made) == 1
        alone.cancel()
        await asyncio.sleep(0.1)
        assert under_way(made) == 0


@pytest.mark.parametrize(("trouble", "within_s"), [("killed", 0.1), ("killed after", 0.1), ("stopped", 25.0)])
def test_a_cancelled_call_ends_also_without_the_coalescer(tmp_path: Path, trouble: str, within_s: float) -> None:
    """Nobody can say whether others wait for it, and it is not paid for in the dark."""

    @timed
    async def scene() -> None:
        async with house(tmp_path, {"a": slow(1000.0)}) as made:
            leader, *_ = equal(made, 2)
            await asyncio.sleep(1.0)
            peer = coalescer_peer(made)
            if trouble == "killed":
                peer.kill()
                await asyncio.sleep(0.1)
            peer.stopped = trouble == "stopped"
            made.ask(9, digest=b"o" * 32)  # what is posted behind this claim is never handed over to one that stopped
            await asyncio.sleep(0.1)
            leader.cancel()
            await asyncio.sleep(0.1)
            if trouble == "killed after":
                assert under_way(made) == len(made.endpoints["a"].bodies), "it is followed"
                peer.kill()
            await asyncio.sleep(within_s)
            # Whoever followed makes a call of its own, since coalescing never stops work.
            assert under_way(made) == len(made.endpoints["a"].bodies) - 1

    scene()


@timed
async def test_whenever_callers_go_the_key_is_free_and_nothing_runs_on(tmp_path: Path) -> None:
    """A leader and a follower cancelled at every turn of the loop: the next who asks is answered, and soon."""
    async with house(tmp_path, {"a": slow(0.02)}) as made:
        for moment in range(30):
            for second in range(0, 30, 3):
                key = bytes([moment, second]) * 16
                leader, follower = equal(made, 2, digest=key)
                for turn in range(60):
                    if turn == moment:
                        leader.cancel()
                    if turn == second:
                        follower.cancel()
                    await asyncio.sleep(0 if turn % 4 else 0.002)
                await asyncio.gather(leader, follower, return_exceptions=True)
                async with asyncio.timeout(5.0):
                    assert isinstance(await made.ask(2, digest=key), Result)
                await asyncio.sleep(0.1)
                assert under_way(made) == len(made.coalescer._table) == 0
                assert made.coalescer._waiting == {}


@timed
async def test_a_lead_that_meets_nobody_is_given_up(tmp_path: Path) -> None:
    """A caller goes while the word that it leads is on its way: the next in line makes the call."""
    async with house(tmp_path, {"a": slow()}) as made:
        other = made.another_router("other")
        await other.open()
        peer = coalescer_peer(made)
        made.router, router = other, made.router
        (first,) = equal(made, 1)
        await asyncio.sleep(1.0)
        made.router = router
        (second,), (third,) = equal(made, 1), equal(made, 1)
        await asyncio.sleep(1.0)
        claims = [item for item in peer.items if isinstance(item, Claim)]
        assert len({claim.key for claim in claims}) == 1
        assert len(claims) == 3
        made.coalescer._leave(("other", claims[0].claimant))  # promotes the second, which does not know it yet
        second.cancel()
        async with asyncio.timeout(15.0):
            assert isinstance(await third, Result)
            assert isinstance(await first, Result)
        await other.close()


@pytest.mark.parametrize("early", [0, 2])
def test_closing_a_router_gives_back_what_lingering_calls_hold(tmp_path: Path, early: int) -> None:
    """No call runs on and no reservation is left, whether its caller went long before or just now."""

    @timed
    async def scene() -> None:
        async with house(tmp_path, {"a": slow(100.0)}, **BUDGET) as made:
            leaders, followers = ([made.ask(n, digest=bytes([n]) * 32) for n in range(4)] for _ in "lf")
            await asyncio.sleep(1.0)
            for leader in leaders[:early]:
                leader.cancel()
            await asyncio.sleep(1.0)
            for task in [*leaders, *followers]:
                task.cancel()
            assert made.router._claims is not None
            await made.router._claims.close()
            assert not [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__name__", "") == "_answer"]
        spent, reserved = await made.spent()
        assert (spent, reserved) == (4 * 116, 0)

    scene()


@timed
async def test_followers_of_a_call_that_fails_without_its_caller_try_themselves(tmp_path: Path) -> None:
    """The leader went and its call had bad luck of its own: the next in line makes another."""
    endpoint = Endpoint(lambda n, b: error(500) if n <= 1 else answer(), 2.0)
    async with house(tmp_path, {"a": endpoint}, router={"max_attempts": 1}) as made:
        leader, *others = equal(made, 4)
        await asyncio.sleep(1.0)
        leader.cancel()
        async with asyncio.timeout(10.0):
            done = await asyncio.gather(*others)
        assert all(isinstance(one, Result) for one in done)
        assert len(endpoint.bodies) == 2


@timed
async def test_callers_with_different_keys_share_nothing_unless_told_to(tmp_path: Path) -> None:
    """Not a call under way and not a kept answer; the same caller shares both."""
    keep = {"enabled": True, "keep_s": 100.0}
    for across, calls in ((False, 3), (True, 1)):
        endpoint = slow()
        coalesce = {**keep, "across_keys": across}
        async with house(tmp_path / str(across), {"a": endpoint}, coalesce=coalesce) as made:
            await asyncio.gather(*(task for key in ("", "one", "two") for task in equal(made, 3, key=key)))
            done = await asyncio.gather(*(task for key in ("", "one", "two") for task in equal(made, 1, key=key)))
            assert all(isinstance(one, Result) and one.coalesced for one in done)
            assert len(endpoint.bodies) == calls


@timed
async def test_a_kept_answer_costs_nothing_and_says_that_it_was_shared(tmp_path: Path) -> None:
    """Only a success is kept: after a failure the next call is made."""
    endpoint = Endpoint(lambda n, b: error(400) if n == 1 else answer())
    async with house(tmp_path, {"a": endpoint}, coalesce={"keep_s": 60.0}, **BUDGET) as made:
        done = []
        for number in range(3):
            done.append(await made.ask(number, digest=KEY))
            await asyncio.sleep(1.0)
        failed, made_it, kept = done
        assert isinstance(failed, Failure)
        assert isinstance(made_it, Result)
        assert not made_it.coalesced
        assert isinstance(kept, Result)
        assert (kept.coalesced, kept.cost.tokens, kept.body) == (True, 0, made_it.body)
        assert len(endpoint.bodies) == 2
    assert await made.spent() == (15, 0)


@timed
async def test_a_runaway_loop_is_refused_before_a_call_is_made(tmp_path: Path) -> None:
    """One line with digest, count and limit, and when to come back; other requests go on."""
    endpoint = Endpoint(lambda n, b: answer())
    async with house(tmp_path, {"a": endpoint}, coalesce={"runaway": {"max_per_minute": 10}}) as made:
        looping = bytes.fromhex("3fa9c1d2e4b5" + "00" * 26)
        refused = []
        for number in range(30):
            done = await made.ask(number, digest=looping)
            if isinstance(done, Failure):
                refused.append(done)
            await asyncio.sleep(1.0)
        assert 10 <= len(endpoint.bodies) == 30 - len(refused) <= 12
        assert refused[0].kind == "runaway_loop"
        assert refused[0].message == (
            "runaway loop: the same request (digest 3fa9c1d2e4b5) would make call 11 within 60 s; "
            "the limit is coalesce.runaway.max_per_minute: 10"
        )
        assert 0 < (refused[0].retry_after_s or 0) <= 60
        assert isinstance(await made.ask(99, digest=KEY), Result)
        await asyncio.sleep(61.0)
        assert isinstance(await made.ask(100, digest=looping), Result)


@timed
async def test_a_claim_that_never_left_does_not_wait_for_the_next_coalescer(tmp_path: Path) -> None:
    """The coalescer hangs, and then is gone for good: who claimed meanwhile makes a call of its own, long before its deadline."""
    async with house(tmp_path, {"a": slow(0.1)}, **BUDGET) as made:
        peer = coalescer_peer(made)
        peer.stopped = True
        first = made.ask(0, digest=b"1" * 32)
        await asyncio.sleep(0.5)
        second = made.ask(1, digest=b"2" * 32)
        await asyncio.sleep(0.5)
        peer.kill()
        async with asyncio.timeout(60.0):
            done = await asyncio.gather(first, second)
        assert all(isinstance(one, Result) for one in done)
