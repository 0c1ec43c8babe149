"""Coalescing: the table's events, and the actor around it."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from actors import lane as lane_module
from actors.coalescer import actor as actor_module
from actors.coalescer.actor import Claim, CoalescerActor, Finish, Leave, Linger, Publish
from actors.coalescer.runaway import Loops, Runaway
from actors.coalescer.table import Lead, Shared, Table, Unwanted
from actors.errors import LaneClosed
from actors.lane import LEASE_S, Lane
from actors.settings import CoalesceSettings
from tests.simulated import LocalPeer, simulated

# -- the table -----------------------------------------------------------------------------------------------------

K, L = b"k", b"l"


@pytest.fixture
def table() -> Iterator["Table[str]"]:
    """A table that keeps nothing; checked at the end of every test."""
    table: Table[str] = Table()
    yield table
    table.check()


def lead(answer: object) -> int:
    assert isinstance(answer, Lead)
    return answer.generation


def test_the_first_leads_and_the_others_follow(table: "Table[str]") -> None:
    """One call is made for one key; other keys have their own."""
    lead(table.claim(K, "a", 60, 0))
    assert table.claim(K, "b", 60, 0) is None
    assert table.claim(K, "c", 60, 0) is None
    lead(table.claim(L, "d", 60, 0))
    assert len(table) == 2


def test_followers_get_what_the_lead_publishes(table: "Table[str]") -> None:
    """Each once; afterwards the key is free, so a later claim makes its own call."""
    generation = lead(table.claim(K, "a", 60, 0))
    table.claim(K, "b", 60, 0)
    table.claim(K, "c", 60, 0)
    assert table.finish(K, generation)
    assert table.publish(K, generation, "r", 10, 0) == [("b", Shared("r")), ("c", Shared("r"))]
    assert table.publish(K, generation, "r", 10, 0) == []
    assert (len(table), table.coalesced) == (0, 2)
    lead(table.claim(K, "d", 60, 0))


def test_a_lead_that_nobody_follows_need_not_publish(table: "Table[str]") -> None:
    """Its answer does not cross the network for nothing."""
    assert not table.finish(K, lead(table.claim(K, "a", 60, 0)))
    assert len(table) == 0


def test_who_comes_between_finish_and_publish_gets_the_answer_too(table: "Table[str]") -> None:
    """The entry stands until the answer is here."""
    generation = lead(table.claim(K, "a", 60, 0))
    table.claim(K, "b", 60, 0)
    assert table.finish(K, generation)
    assert table.claim(K, "c", 60, 0) is None
    assert [ticket for ticket, _ in table.publish(K, generation, "r", 10, 0)] == ["b", "c"]


@pytest.mark.parametrize("end", ["leave", "expire"])
def test_a_lead_that_is_lost_promotes_the_first_follower(table: "Table[str]", end: str) -> None:
    """However it is lost: the next in line makes the call, and the old lead's words count no more."""
    old = lead(table.claim(K, "a", 60, 0))
    table.claim(K, "b", 30, 0)
    table.claim(K, "c", 60, 0)
    if end == "leave":
        told = table.leave("a", 60)
    else:
        assert table.expire(59.9) == []
        told = table.expire(60)
    ((ticket, answer),) = told
    new = lead(answer)
    assert ticket == "b"
    assert new > old
    assert not table.finish(K, old)
    assert table.publish(K, old, "stale", 10, 60) == table.leave("a", 60) == []
    assert table.linger("a")
    assert table.expire(89.9) == []
    assert table.publish(K, new, "r", 10, 60) == [("c", Shared("r"))]


@pytest.mark.parametrize("end", ["leave", "expire"])
def test_a_lead_that_is_lost_with_nobody_behind_it_leaves_nothing(table: "Table[str]", end: str) -> None:
    """The table holds nothing of it."""
    lead(table.claim(K, "a", 60, 0))
    told = table.leave("a", 0) if end == "leave" else table.expire(60)
    assert told == []
    assert len(table) == len(list(table.tickets())) == 0


def test_a_follower_that_leaves_is_told_nothing(table: "Table[str]") -> None:
    """It is neither promoted nor served, and leaving twice changes nothing."""
    generation = lead(table.claim(K, "a", 60, 0))
    table.claim(K, "b", 60, 0)
    table.claim(K, "c", 60, 0)
    assert table.leave("b", 0) == table.leave("b", 0) == []
    assert table.publish(K, generation, "r", 10, 0) == [("c", Shared("r"))]


def test_kept_results_answer_at_once_until_they_are_too_old() -> None:
    """With `keep_s`, a repeated question costs nothing for that long, and no longer."""
    table: Table[str] = Table(keep_s=10)
    generation = lead(table.claim(K, "a", 60, 0))
    assert table.finish(K, generation), "somebody may want it later"
    table.publish(K, generation, "r", 10, 5)
    assert table.claim(K, "b", 60, 14.9) == Shared("r")
    assert table.coalesced == 1
    lead(table.claim(K, "c", 60, 15))
    table.expire(15)
    table.check()


def test_a_failure_is_shared_but_not_kept() -> None:
    """Whoever asks later tries again."""
    table: Table[str] = Table(keep_s=10)
    generation = lead(table.claim(K, "a", 60, 0))
    table.claim(K, "b", 60, 0)
    assert table.publish(K, generation, "failure", 10, 0, keep=False) == [("b", Shared("failure"))]
    lead(table.claim(K, "c", 60, 1))
    table.check()


def test_kept_results_are_bounded_by_bytes() -> None:
    """The oldest go first; one that is larger than all there is is not kept."""
    table: Table[str] = Table(keep_s=1000, keep_bytes=100)
    for number in range(10):
        name = b"%d" % number
        table.publish(name, lead(table.claim(name, "a", 60, 0)), number, 30, 0)
        table.check()
    assert [number for number in range(10) if table.claim(b"%d" % number, f"b{number}", 60, 1) == Shared(number)] == [
        *(7, 8, 9)
    ]
    table.publish(K, lead(table.claim(K, "c", 60, 0)), "huge", 101, 0)
    lead(table.claim(K, "d", 60, 1))
    table.check()


def test_a_lead_without_a_caller_goes_on_while_others_wait(table: "Table[str]") -> None:
    """Its answer is theirs, also for one who comes after its caller has gone; it is told when it is done with."""
    generation = lead(table.claim(K, "a", 60, 0))
    table.claim(K, "b", 60, 0)
    assert not table.linger("a")
    assert table.claim(K, "c", 60, 0) is None
    assert table.leave("b", 0) == []
    assert table.finish(K, generation)
    assert table.publish(K, generation, "r", 10, 0) == [("c", Shared("r")), ("a", Unwanted())]
    assert len(table) == 0


def test_a_lead_without_a_caller_ends_with_its_last_follower(table: "Table[str]") -> None:
    """Nobody would read the answer, so nobody pays for it; who asks next makes a new call."""
    lead(table.claim(K, "a", 60, 0))
    for follower in "bc":
        table.claim(K, follower, 60, 0)
    assert not table.linger("a")
    assert table.leave("b", 0) == []
    assert table.leave("c", 0) == [("a", Unwanted())]
    assert len(table) == len(list(table.tickets())) == 0
    lead(table.claim(K, "d", 60, 0))


def test_a_lead_that_nobody_follows_does_not_linger(table: "Table[str]") -> None:
    """It is told at once, and so is one that is not a lead any more."""
    lead(table.claim(K, "a", 60, 0))
    assert table.linger("a")
    assert len(table) == 0
    assert table.linger("a")


@pytest.mark.parametrize("end", ["leave", "expire"])
def test_a_lead_that_lingers_and_is_lost_promotes_too(table: "Table[str]", end: str) -> None:
    """It failed, or died: the next makes the call, and is not itself without a caller."""
    lead(table.claim(K, "a", 60, 0))
    table.claim(K, "b", 60, 0)
    table.claim(K, "c", 60, 0)
    table.linger("a")
    told = table.leave("a", 60) if end == "leave" else table.expire(60)
    assert [(ticket, type(answer)) for ticket, answer in told] == [("a", Unwanted), ("b", Lead)]
    assert table.leave("c", 60) == [], "the new lead's own caller waits"
    assert len(table) == 1


def test_a_key_that_is_led_too_often_is_refused_and_leaves_nothing() -> None:
    """No call is made, nobody is left waiting, and another key is not concerned."""
    table: Table[int] = Table(loops=Loops(5, slots=2))
    answers = []
    for number in range(20):
        answers.append(table.claim(K, number, 60, number))
        if isinstance(answers[-1], Lead):
            assert not table.finish(K, answers[-1].generation)
    refused = [answer for answer in answers if isinstance(answer, Runaway)]
    assert 5 <= 20 - len(refused) <= 7
    assert (refused[0].what, refused[0].times, refused[0].limit) == ("calls", 6, 5)
    assert len(table) == len(list(table.tickets())) == 0
    lead(table.claim(L, 99, 60, 20))
    table.check()


def test_followers_of_leads_that_fail_one_by_one_are_refused_in_the_end() -> None:
    """Each of them would make a call: when that is too many, all who still wait are told."""
    table: Table[int] = Table(loops=Loops(5))
    for number in range(20):
        table.claim(K, number, 60, 0)
    ended: list[int] = []
    at, told = 0, [(0, Lead(1))]
    while told and isinstance(told[-1][1], Lead):
        at = told[-1][0]
        told = table.leave(at, 1)  # type: ignore[assignment]
        table.check()
    ended = [ticket for ticket, answer in told if isinstance(answer, Runaway)]
    assert ended == list(range(at + 1, 20))
    assert at + 1 <= 7
    assert len(table) == 0


def test_a_thousand_at_once_that_share_one_call_are_no_loop() -> None:
    """However small the limit on calls: they cost one."""
    table: Table[int] = Table(loops=Loops(1))
    answers = [table.claim(K, number, 60, 0) for number in range(1000)]
    assert isinstance(answers[0], Lead)
    assert answers[1:] == [None] * 999


# -- the actor -----------------------------------------------------------------------------------------------------


class Routers:
    """A coalescer actor and the lanes of two routers."""

    def __init__(self, **settings: Any) -> None:
        self.actor = CoalescerActor(CoalesceSettings.model_validate(settings))
        self.peers = [LocalPeer(self.actor), LocalPeer(self.actor)]
        self.lanes: list[Lane[Any, Any]] = [Lane(f"router-{i}", peer) for i, peer in enumerate(self.peers)]
        self.claimants = itertools.count(1)

    async def __aenter__(self) -> "Routers":
        for lane in self.lanes:
            await lane.open(5.0)
        return self

    async def __aexit__(self, *args: object) -> None:
        for lane in self.lanes:
            await lane.close()

    def claim(self, router: int, lease_s: float = 60.0, claimant: int = 0) -> "asyncio.Task[Any]":
        item = Claim(K, lease_s, claimant or next(self.claimants))
        return asyncio.create_task(self.lanes[router].call(item, 1000.0))

    def tell(self, router: int, item: Any) -> "asyncio.Task[Any]":
        return asyncio.create_task(self.lanes[router].call(item, 1000.0))


@simulated(lane_module, actor_module)
async def test_a_call_is_shared_between_routers() -> None:
    """Who asks the same elsewhere in the cluster has the leader's answer."""
    async with Routers() as routers:
        led = await routers.claim(0)
        followers = [routers.claim(1), routers.claim(0)]
        await asyncio.sleep(1.0)
        assert await routers.tell(0, Finish(((K, led.generation),))) == [0]
        assert await routers.tell(0, Publish(K, led.generation, "answer", 10, True)) is None
        assert await asyncio.gather(*followers) == [Shared("answer")] * 2
        assert isinstance(await routers.claim(1), Lead)


@simulated(lane_module, actor_module)
async def test_a_router_that_dies_gives_up_what_it_led() -> None:
    """Its followers in other routers are promoted; its own go with it."""
    async with Routers() as routers:
        await routers.claim(0)
        own, other = routers.claim(0), routers.claim(1)
        await asyncio.sleep(1.0)
        await routers.lanes[0].close()
        await asyncio.sleep(1.0)
        assert isinstance(other.result(), Lead)
        assert own.exception() is not None


@simulated(lane_module, actor_module)
async def test_a_router_that_dies_without_a_word_gives_up_what_it_led_when_its_lane_expires() -> None:
    """Nothing but silence tells of it."""
    async with Routers() as routers:
        await routers.claim(0)
        other = routers.claim(1)
        await asyncio.sleep(1.0)
        routers.peers[0].deaf = True
        await routers.lanes[0].close()
        await asyncio.sleep(LEASE_S / 2)
        assert not other.done()
        await asyncio.sleep(LEASE_S)
        assert isinstance(other.result(), Lead)


@simulated(lane_module, actor_module)
async def test_the_followers_of_a_dead_router_are_not_counted_as_calls() -> None:
    """None of them leads before it leaves with the others, so the one that does lead is not refused as a loop."""
    async with Routers(runaway={"max_per_minute": 3}) as routers:
        await routers.claim(0)
        own = [routers.claim(0) for _ in range(20)]
        other = routers.claim(1)
        await asyncio.sleep(1.0)
        await routers.lanes[0].close()
        assert isinstance(await other, Lead)
        assert all(isinstance(error, LaneClosed) for error in await asyncio.gather(*own, return_exceptions=True))


@simulated(lane_module, actor_module)
async def test_a_lead_that_gives_up_or_forgets_is_followed_by_the_next() -> None:
    """Given up at once, or forgotten until its lease runs out."""
    async with Routers() as routers:
        await routers.claim(0, claimant=7)
        second, third = routers.claim(1, lease_s=60.0), routers.claim(0, lease_s=60.0)
        await asyncio.sleep(1.0)
        await routers.tell(1, Leave(7))
        await asyncio.sleep(1.0)
        assert not second.done(), "the numbers are each router's own"
        await routers.tell(0, Leave(7))
        assert isinstance(await second, Lead)
        await asyncio.sleep(70.0)
        assert isinstance(third.result(), Lead)


@simulated(lane_module, actor_module)
async def test_a_follower_that_gives_up_is_not_promoted() -> None:
    """A lead given to nobody would hold up all the others."""
    async with Routers() as routers:
        await routers.claim(0, claimant=7)
        gone, patient = routers.claim(1), routers.claim(1)
        await asyncio.sleep(1.0)
        gone.cancel()
        await asyncio.sleep(1.0)
        await routers.tell(0, Leave(7))
        assert isinstance(await patient, Lead)


@simulated(lane_module, actor_module)
async def test_a_lead_lingers_until_its_last_follower_leaves() -> None:
    """Also a follower in another router keeps it at work."""
    async with Routers() as routers:
        await routers.claim(0, claimant=7)
        followers = [routers.claim(0), routers.claim(1)]
        await asyncio.sleep(1.0)
        lingers = routers.tell(0, Linger(7))
        for follower in followers:
            await asyncio.sleep(1.0)
            assert not lingers.done()
            follower.cancel()
        assert await lingers is None
        assert isinstance(await routers.claim(1), Lead)


@simulated(lane_module, actor_module)
async def test_a_lead_that_lingers_is_told_that_it_has_published() -> None:
    """Every item ends, and the actor remembers nothing of it."""
    async with Routers() as routers:
        led = await routers.claim(0, claimant=7)
        follower = routers.claim(1)
        await asyncio.sleep(1.0)
        lingers = routers.tell(0, Linger(7))
        await asyncio.sleep(1.0)
        await routers.tell(0, Publish(K, led.generation, "answer", 10, True))
        assert await asyncio.gather(lingers, follower) == [None, Shared("answer")]
        assert await routers.tell(0, Linger(7)) is None
        assert routers.actor._waiting == {}


@simulated(lane_module, actor_module)
async def test_kept_results_answer_across_routers() -> None:
    """`coalesce.keep_s` and `keep_mb` reach the table."""
    async with Routers(keep_s=30.0, keep_mb=1) as routers:
        for size, answer in ((2 << 20, Lead), (10, Shared)):
            led = await routers.claim(0)
            assert await routers.tell(0, Finish(((K, led.generation),))) == [0]
            await routers.tell(0, Publish(K, led.generation, "answer", size, True))
            asked = await routers.claim(1, claimant=size)
            assert isinstance(asked, answer)
            await routers.tell(1, Leave(size))
        await asyncio.sleep(31.0)
        assert isinstance(await routers.claim(1), Lead)


@simulated(lane_module, actor_module)
async def test_a_loop_is_refused_over_the_lane_and_let_in_again_later() -> None:
    """`coalesce.runaway.max_per_minute` reaches the actor; a minute later the same may be asked again."""
    async with Routers(runaway={"max_per_minute": 4}) as routers:
        answers = []
        for claimant in range(1, 12):
            answers.append(await routers.claim(claimant % 2, claimant=claimant))
            await routers.tell(claimant % 2, Leave(claimant))
        assert isinstance(answers[3], Lead)
        assert isinstance(answers[-1], Runaway)
        assert 0 < answers[-1].retry_after_s <= 60
        await asyncio.sleep(61.0)
        assert isinstance(await routers.claim(0), Lead)


def test_loops_cannot_be_seen_without_coalescing() -> None:
    """A limit that would never hold is refused, not ignored."""
    with pytest.raises(ValidationError, match=r"enabled\n.*expected true, since runaway.max_per_minute is set"):
        CoalesceSettings.model_validate({"enabled": False, "runaway": {"max_per_minute": 5}})
    CoalesceSettings.model_validate({"enabled": False})
