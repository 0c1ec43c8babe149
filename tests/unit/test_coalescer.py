"""Coalescing: what makes two requests the same, the table's events, and the actor around it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from actors import lane as lane_module
from actors.coalescer import actor as actor_module
from actors.coalescer.actor import Abandon, Claim, CoalescerActor, Finish, Publish
from actors.coalescer.key import digest
from actors.coalescer.table import Lead, Shared, Table
from actors.lane import LEASE_S, Lane
from actors.settings import CoalesceSettings
from tests.simulated import LocalPeer, simulated

# -- the key -------------------------------------------------------------------------------------------------------

BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 0.2,
    "logit_bias": {"1": 2, "3": {"a": 1, "b": 2}},
    "response_format": {"type": "json_schema", "json_schema": {"properties": {"a": {}, "b": {}}}},
}


def key(body: dict[str, Any] | None = None, **changes: Any) -> bytes:
    given: dict[str, Any] = {"path": "/chat/completions", "start_tier": 0, "min_quality": 0, **changes}
    return digest(given.pop("path"), BODY if body is None else body, **given)


def test_the_key_is_a_fixed_value() -> None:
    """32 bytes that are the same in every process, whatever its hash seed."""
    assert len(key()) == 32
    assert key() == key(dict(BODY))


@pytest.mark.parametrize(
    "field", ["model", "stream", "stream_options", "user", "metadata", "store", "safety_identifier", "prompt_cache_key"]
)
def test_delivery_and_booking_fields_are_not_part_of_it(field: str) -> None:
    """They change how an answer comes or is booked, not what it is."""
    assert key({**BODY, field: "x"}) == key({**BODY, field: {"y": 1}}) == key()


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "system", "content": "hi"}]},
        {"temperature": 0.3},
        {"seed": 1},
        {"n": 2},
        {"max_tokens": 5},
        {"tools": [{"type": "function"}]},
        {"text": {"format": "x"}},
        {"response_format": None},
        {"unknown_field": None},
    ],
    ids=str,
)
def test_what_changes_the_answer_is_part_of_it(change: dict[str, Any]) -> None:
    """Anything that an endpoint may read makes another request, known to us or not."""
    assert key({**BODY, **change}) != key()


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/completions"},
        {"start_tier": 1},
        {"min_quality": 1},
        {"tenant": "t"},
        {"prompt": "p@1"},
        {"schema": b"{}"},
    ],
    ids=str,
)
def test_where_it_goes_and_for_whom_is_part_of_it(change: dict[str, Any]) -> None:
    """No tenant gets another's answer, no cheap answer stands for a good one."""
    assert key(**change) != key()


def test_the_order_of_keys_does_not_matter_at_any_depth() -> None:
    """JSON objects have no order, and clients write them as they like."""
    turned = {"logit_bias": {"3": {"b": 2, "a": 1}, "1": 2}, "temperature": 0.2, **BODY}
    turned["messages"] = [{"content": "hi", "role": "user"}]
    assert key(dict(reversed(turned.items()))) == key()


def test_the_order_inside_a_response_format_does_matter() -> None:
    """A model writes the properties in the order of the schema, so another order is another question."""
    turned = {"json_schema": {"properties": {"b": {}, "a": {}}}, "type": "json_schema"}
    assert key({**BODY, "response_format": turned}) != key()


def test_the_order_of_messages_matters() -> None:
    """Lists have an order."""
    one, two = {"role": "user", "content": "1"}, {"role": "user", "content": "2"}
    assert key({"messages": [one, two]}) != key({"messages": [two, one]})


# -- the table -----------------------------------------------------------------------------------------------------

K, L = b"k", b"l"


@pytest.fixture
def table() -> Iterator["Table[str]"]:
    """A table that keeps nothing; checked at the end of every test."""
    table: Table[str] = Table()
    yield table
    table.check()


def lead(answer: Lead | Shared | None) -> int:
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


@pytest.mark.parametrize("end", ["abandon", "leave", "expire"])
def test_a_lead_that_is_lost_promotes_the_first_follower(table: "Table[str]", end: str) -> None:
    """However it is lost: the next in line makes the call, and the old lead's words count no more."""
    old = lead(table.claim(K, "a", 60, 0))
    table.claim(K, "b", 30, 0)
    table.claim(K, "c", 60, 0)
    if end == "abandon":
        told = table.abandon(K, old, 60)
    elif end == "leave":
        told = table.leave("a", 60)
    else:
        assert table.expire(59.9) == []
        told = table.expire(60)
    ((ticket, answer),) = told
    new = lead(answer)  # type: ignore[arg-type]
    assert ticket == "b"
    assert new > old
    assert not table.finish(K, old)
    assert table.publish(K, old, "stale", 10, 60) == table.abandon(K, old, 60) == []
    assert table.expire(89.9) == []
    assert table.publish(K, new, "r", 10, 60) == [("c", Shared("r"))]


@pytest.mark.parametrize("end", ["abandon", "leave", "expire"])
def test_a_lead_that_is_lost_with_nobody_behind_it_leaves_nothing(table: "Table[str]", end: str) -> None:
    """The table holds nothing of it."""
    generation = lead(table.claim(K, "a", 60, 0))
    told = {"abandon": lambda: table.abandon(K, generation, 0), "leave": lambda: table.leave("a", 0)}.get(
        end, lambda: table.expire(60)
    )()
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


# -- the actor -----------------------------------------------------------------------------------------------------


class Routers:
    """A coalescer actor and the lanes of two routers."""

    def __init__(self, **settings: Any) -> None:
        self.actor = CoalescerActor(CoalesceSettings(**settings))
        self.peers = [LocalPeer(self.actor), LocalPeer(self.actor)]
        self.lanes: list[Lane[Any, Any]] = [Lane(f"router-{i}", peer) for i, peer in enumerate(self.peers)]

    async def __aenter__(self) -> "Routers":
        for lane in self.lanes:
            await lane.open(5.0)
        return self

    async def __aexit__(self, *args: object) -> None:
        for lane in self.lanes:
            await lane.close()

    def claim(self, router: int, lease_s: float = 60.0) -> "asyncio.Task[Any]":
        return asyncio.create_task(self.lanes[router].call(Claim(K, lease_s), 1000.0))


@simulated(lane_module, actor_module)
async def test_a_call_is_shared_between_routers() -> None:
    """Who asks the same elsewhere in the cluster has the leader's answer."""
    async with Routers() as routers:
        led = await routers.claim(0)
        followers = [routers.claim(1), routers.claim(0)]
        await asyncio.sleep(1.0)
        assert await routers.lanes[0].call(Finish(((K, led.generation),)), 5.0) == [0]
        assert await routers.lanes[0].call(Publish(K, led.generation, "answer", 10, True), 5.0) is None
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
async def test_a_lead_that_abandons_or_forgets_is_followed_by_the_next() -> None:
    """Abandoned at once, or forgotten until its lease runs out."""
    async with Routers() as routers:
        first = await routers.claim(0, lease_s=60.0)
        second, third = routers.claim(1, lease_s=60.0), routers.claim(0, lease_s=60.0)
        await asyncio.sleep(1.0)
        await routers.lanes[0].call(Abandon(K, first.generation), 5.0)
        assert isinstance(await second, Lead)
        await asyncio.sleep(70.0)
        assert isinstance(third.result(), Lead)


@simulated(lane_module, actor_module)
async def test_a_follower_that_gives_up_is_not_promoted() -> None:
    """A lead given to nobody would hold up all the others."""
    async with Routers() as routers:
        led = await routers.claim(0)
        gone, patient = routers.claim(1), routers.claim(1)
        await asyncio.sleep(1.0)
        gone.cancel()
        await asyncio.sleep(1.0)
        await routers.lanes[0].call(Abandon(K, led.generation), 5.0)
        assert isinstance(await patient, Lead)


@simulated(lane_module, actor_module)
async def test_kept_results_answer_across_routers() -> None:
    """`coalesce.keep_s` reaches the table."""
    async with Routers(keep_s=30.0) as routers:
        led = await routers.claim(0)
        assert await routers.lanes[0].call(Finish(((K, led.generation),)), 5.0) == [0]
        await routers.lanes[0].call(Publish(K, led.generation, "answer", 10, True), 5.0)
        assert await routers.claim(1) == Shared("answer")
        await asyncio.sleep(31.0)
        assert isinstance(await routers.claim(1), Lead)
