"""The lane: both halves joined by a peer in the same process, in simulated time."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from actors import lane as lane_module
from actors.errors import ActorLost, LaneClosed, LaneTimeout
from actors.lane import BLOCK_BYTES, BLOCK_ITEMS, KEEPALIVE_S, LEASE_S, Batch, Lane, LaneServer, Part, as_tasks
from tests.simulated import LocalPeer, simulated


class Desk:
    """A serving half whose work is done by the test: items lie here until it completes them."""

    def __init__(self) -> None:
        self.open: dict[Any, Callable[[Any], None]] = {}
        self.taken: list[Any] = []
        self.cancelled: list[Any] = []
        self.closed: list[str] = []
        self.health = "fine"
        self.server: LaneServer[Any, Any] = LaneServer(
            self._start, note=lambda: self.health, on_closed=self.closed.append, weigh=_size
        )

    def _start(self, lane: str, item: Any, complete: Callable[[Any], None]) -> Callable[[], None]:
        self.taken.append(item)
        self.open[item] = complete
        return lambda: self.cancelled.append(item)


def _size(item: Any) -> int:
    return len(item) if isinstance(item, bytes) else 200


class Ends:
    """How the items of a lane ended: every call of every `on_done`."""

    def __init__(self, lane: "Lane[Any, Any]") -> None:
        self.lane = lane
        self.of: dict[Any, list[Any]] = {}

    def post(self, item: Any, timeout_s: float = 60.0) -> int:
        ends = self.of.setdefault(item, [])
        return self.lane.post(item, ends.append, timeout_s)


@asynccontextmanager
async def opened(peer: LocalPeer, **options: Any) -> AsyncIterator["Lane[Any, Any]"]:
    lane: Lane[Any, Any] = Lane("owner", peer, weigh=_size, **options)
    await lane.open(60.0)
    try:
        yield lane
    finally:
        await lane.close()


async def drain(stream: AsyncGenerator[Batch, None]) -> list[tuple[int, Any]]:
    """All that a stream of completions still brings."""
    return [pair async for _, block in stream for pair in block]


# -- batching ------------------------------------------------------------------------------------------------------


@simulated(lane_module)
async def test_items_posted_in_one_turn_leave_together() -> None:
    """Hundreds of items of one turn of the loop cost one call, not hundreds."""
    desk = Desk()
    peer = LocalPeer(desk.server)
    async with opened(peer) as lane:
        ends = Ends(lane)
        for item in range(400):
            ends.post(item)
        await asyncio.sleep(1.0)
        assert [block for block, _ in peer.blocks if block] == [list(range(400))]


@simulated(lane_module)
async def test_items_gather_while_a_submit_is_under_way() -> None:
    """There is never more than one submit under way; what is posted meanwhile is the next one."""
    desk = Desk()
    peer = LocalPeer(desk.server, delay_s=1.0)
    async with opened(peer) as lane:
        ends = Ends(lane)
        ends.post("first")
        for item in range(30):
            await asyncio.sleep(0.02)
            ends.post(item)
        await asyncio.sleep(5.0)
        assert [block for block, _ in peer.blocks if block] == [["first"], list(range(30))]


@simulated(lane_module)
async def test_a_lone_item_does_not_wait_for_company() -> None:
    """On an idle lane an item leaves at once: batching adds no latency where there is no load."""
    desk = Desk()
    async with opened(LocalPeer(desk.server)) as lane:
        await asyncio.sleep(10.0)
        before = asyncio.get_running_loop().time()
        call = asyncio.create_task(lane.call("x", 60.0))
        await asyncio.sleep(1e-5)
        desk.open["x"]("done")
        assert await call == "done"
        assert asyncio.get_running_loop().time() - before < 0.0001


@simulated(lane_module)
async def test_blocks_are_bounded_by_bytes_in_both_directions() -> None:
    """No block passes Ray's inline limit, but one that is a single item too large for any."""
    desk = Desk()
    peer = LocalPeer(desk.server)
    items = [bytes([number]) * size for number, size in enumerate([40_000] * 5 + [500_000] + [30_000] * 7)]
    async with opened(peer) as lane:
        ends = Ends(lane)
        for item in items:
            ends.post(item)
        await asyncio.sleep(1.0)
        assert peer.items == items
        assert all(len(block) == 1 or sum(map(len, block)) <= BLOCK_BYTES for block, _ in peer.blocks)
        assert len([block for block, _ in peer.blocks if block]) < len(items)
    stream = desk.server.completions("direct", 1)
    await anext(stream)
    await desk.server.submit("direct", 1, list(enumerate(items)), [])
    for item in items:
        desk.open[item](item)
    answered: list[bytes] = []
    while len(answered) < len(items):
        _, block = await anext(stream)
        assert len(block) == 1 or sum(len(done) for _, done in block) <= BLOCK_BYTES
        answered += [done for _, done in block]
    assert answered == items
    await stream.aclose()


@simulated(lane_module)
async def test_blocks_are_bounded_by_items_in_both_directions() -> None:
    """However small the items are."""
    desk = Desk()
    peer = LocalPeer(desk.server)
    async with opened(peer) as lane:
        ends = Ends(lane)
        for item in range(3 * BLOCK_ITEMS):
            ends.post(item)
        await asyncio.sleep(1.0)
        for item, complete in list(desk.open.items()):
            complete(item)
        await asyncio.sleep(1.0)
        assert max(len(block) for block, _ in peer.blocks) <= BLOCK_ITEMS
        assert ends.of == {item: [item] for item in range(3 * BLOCK_ITEMS)}


# -- exactly one end -----------------------------------------------------------------------------------------------


@simulated(lane_module)
async def test_every_item_ends_once_with_its_own_completion_in_any_order() -> None:
    """Completions come back to those who asked, whatever order the work is done in."""
    desk = Desk()
    async with opened(LocalPeer(desk.server, delay_s=0.01)) as lane:
        ends = Ends(lane)
        chance = random.Random(1)
        for item in range(500):
            ends.post(item)
            if chance.random() < 0.1:
                await asyncio.sleep(0.05)
            for late in chance.sample(sorted(desk.open), len(desk.open) // 3):
                desk.open.pop(late)(late * 7)
        await asyncio.sleep(1.0)
        for item, complete in desk.open.items():
            complete(item * 7)
        await asyncio.sleep(1.0)
        assert ends.of == {item: [item * 7] for item in range(500)}
        assert lane.outstanding == 0
        assert desk.server.outstanding == 0


@simulated(lane_module)
async def test_completing_an_item_twice_changes_nothing() -> None:
    """The first completion counts; a defect of the serving actor does not reach another item."""
    desk = Desk()
    async with opened(LocalPeer(desk.server)) as lane:
        ends = Ends(lane)
        ends.post("x")
        ends.post("y")
        await asyncio.sleep(0.1)
        for value in (1, 2):
            desk.open["x"](value)
        await asyncio.sleep(0.1)
        desk.open["x"](3)
        await asyncio.sleep(0.1)
        assert ends.of == {"x": [1], "y": []}


@simulated(lane_module)
async def test_a_callback_that_raises_takes_no_other_item_with_it() -> None:
    """One caller's defect is not a lost actor: the items beside it still get their own completions."""
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))
    desk = Desk()
    peer = LocalPeer(desk.server)

    def broken(done: object) -> None:
        raise ZeroDivisionError

    async with opened(peer) as lane:
        ends = Ends(lane)
        lane.post("bad", broken, 60.0)
        ends.post("good")
        lane.post("late", broken, 1.0)
        await asyncio.sleep(0.1)
        desk.open["bad"](1)
        desk.open["good"](2)
        await asyncio.sleep(5.0)
        lane.post("lost", broken, 60.0)
        await asyncio.sleep(0.1)
        peer.kill()
        peer.serving = Desk().server
        await asyncio.sleep(5.0)
        assert lane.up
        assert ends.of == {"good": [2]}
    assert [type(error) for error in errors] == [ZeroDivisionError] * 3


@simulated(lane_module)
async def test_work_that_raises_completes_its_item_as_failed() -> None:
    """`as_tasks` turns whatever the code raises into a completion, a stray CancelledError included."""

    async def handle(item: str, say: Callable[[Part], None]) -> str:
        if item == "wrong":
            raise ValueError("broken")
        if item == "stray":
            raise asyncio.CancelledError
        return "fine"

    server: LaneServer[str, str] = LaneServer(as_tasks(handle, lambda error: type(error).__name__))
    async with opened(LocalPeer(server)) as lane:
        assert await lane.call("right", 10.0) == "fine"
        assert await lane.call("wrong", 10.0) == "ValueError"
        assert await lane.call("stray", 10.0) == "RaycadeError"


# -- items that speak before they end ------------------------------------------------------------------------------


@simulated(lane_module)
async def test_parts_arrive_in_order_and_before_the_end() -> None:
    """Many items speak at once: each reader gets its own words, all of them, in order, and then the end."""
    desk = Desk()
    async with opened(LocalPeer(desk.server)) as lane:
        streams = {name: lane.stream(name, 60.0) for name in ("a", "b", "c")}
        await asyncio.sleep(0.1)

        async def speak(name: str) -> None:
            for number in range(50):
                desk.open[name](Part(f"{name}{number}"))
                await asyncio.sleep(random.random() * 0.02)
            desk.open[name]("end of " + name)
            desk.open[name](Part("after the end"))

        async def listen(name: str) -> tuple[list[Any], str]:
            heard: list[Any] = []
            while isinstance(parts := await streams[name].read(), list):
                heard += parts
            return heard, parts

        speaking = [asyncio.create_task(speak(name)) for name in streams]
        for name, (heard, end) in zip(streams, await asyncio.gather(*map(listen, streams)), strict=True):
            assert heard == [f"{name}{number}" for number in range(50)]
            assert end == f"end of {name}"
        await asyncio.gather(*speaking)
        assert lane.outstanding == 0


@simulated(lane_module)
async def test_a_slow_reader_gets_several_parts_at_once() -> None:
    """Words are grouped only where the reader is slower than the speaker."""
    desk = Desk()
    async with opened(LocalPeer(desk.server)) as lane:
        stream = lane.stream("a", 60.0)
        await asyncio.sleep(0.1)
        for number in range(3):
            desk.open["a"](Part(number))
            assert await stream.read() == [number]
        for number in range(3):
            desk.open["a"](Part(number))
            await asyncio.sleep(0.1)
        assert await stream.read() == [0, 1, 2]
        stream.close()
        await asyncio.sleep(0.1)
        assert desk.cancelled == ["a"]


@simulated(lane_module)
async def test_a_kill_in_the_middle_ends_a_stream_as_lost() -> None:
    """What was said before the death is delivered; then the reader learns that there is no more, and of no other life."""
    first, second = Desk(), Desk()
    peer = LocalPeer(first.server)
    async with opened(peer) as lane:
        stream = lane.stream("a", 60.0)
        await asyncio.sleep(0.1)
        first.open["a"](Part("begun"))
        await asyncio.sleep(0.1)
        peer.kill()
        peer.serving = second.server
        await asyncio.sleep(5.0)
        assert lane.up
        assert await stream.read() == ["begun"]
        with pytest.raises(ActorLost) as lost:
            await stream.read()
        assert lost.value.sent
        assert second.taken == []


@simulated(lane_module)
async def test_words_for_waiting_callers_have_a_smaller_gap() -> None:
    """At 1,500 words a second an ordinary lane would gather them for almost 20 ms; a quick one sends them on."""

    async def longest_wait_s(max_gap_s: float) -> float:
        desk = Desk()
        loop = asyncio.get_running_loop()
        async with opened(LocalPeer(desk.server), max_gap_s=max_gap_s) as lane:
            streams = [lane.stream(number, 60.0) for number in range(30)]
            await asyncio.sleep(0.5)
            waits: list[float] = []

            async def listen(stream: Any) -> None:
                while isinstance(parts := await stream.read(), list):
                    waits.extend(loop.time() - said for said in parts)

            listening = [asyncio.create_task(listen(stream)) for stream in streams]
            for turn in range(1500):
                desk.open[turn % 30](Part(loop.time()))
                await asyncio.sleep(1 / 1500)
            for number in range(30):
                desk.open[number](None)
            await asyncio.gather(*listening)
            return max(waits[200:])

    assert await longest_wait_s(0.004) <= 0.005
    assert await longest_wait_s(0.025) > 0.01


# -- the actor dies ------------------------------------------------------------------------------------------------


@simulated(lane_module)
async def test_what_was_handed_over_is_lost_and_what_waits_goes_to_the_next_actor() -> None:
    """A dead actor's items end as ActorLost, outcome unknown; an item that never left is not lost but sent on."""
    first, second = Desk(), Desk()
    peer = LocalPeer(first.server)
    async with opened(peer) as lane:
        ends = Ends(lane)
        ends.post("handed over")
        await asyncio.sleep(0.1)
        peer.delay_s = 1.0
        ends.post("on its way")
        await asyncio.sleep(0.1)
        ends.post("waits")
        peer.kill()
        await asyncio.sleep(0.1)
        assert not lane.up
        ends.post("posted while nobody is there")
        await asyncio.sleep(5.0)
        for item in ("handed over", "on its way"):
            (end,) = ends.of[item]
            assert isinstance(end, ActorLost)
            assert end.sent
        assert ends.of["waits"] == ends.of["posted while nobody is there"] == []
        peer.serving, peer.delay_s = second.server, 0.0
        await asyncio.sleep(5.0)
        assert second.taken == ["waits", "posted while nobody is there"]
        for complete in second.open.values():
            complete("done")
        await asyncio.sleep(1.0)
        assert ends.of["waits"] == ends.of["posted while nobody is there"] == ["done"]
        assert lane.outstanding == 0


@simulated(lane_module)
async def test_a_lost_lane_reopens_under_a_newer_generation() -> None:
    """The restarted actor can tell the new lane from the old one, and the owner is told of down and up."""
    peer = LocalPeer(Desk().server)
    seen: list[bool] = []
    async with opened(peer, on_up=seen.append) as lane:
        for _ in range(3):
            peer.kill()
            await asyncio.sleep(3.0)
            peer.serving = Desk().server
            await asyncio.sleep(3.0)
        assert lane.up
        assert peer.opened == sorted(set(peer.opened))
        assert seen == [True, False, True, False, True, False, True]
    assert seen[-1] is False


@simulated(lane_module)
async def test_a_stopped_actor_is_lost_when_it_does_not_acknowledge() -> None:
    """A stopped process raises nothing, so an unanswered submit is what tells; an idle lane asks by itself."""
    desk = Desk()
    peer = LocalPeer(desk.server)
    async with opened(peer, ack_timeout_s=2.0) as lane:
        ends = Ends(lane)
        ends.post("taken")
        await asyncio.sleep(0.1)
        peer.stopped = True
        await asyncio.sleep(KEEPALIVE_S + 2.5)
        assert isinstance(ends.of["taken"][0], ActorLost)
        assert not lane.up
        peer.stopped = False
        await asyncio.sleep(10.0)
        assert lane.up


@simulated(lane_module)
async def test_an_actor_that_knows_the_lane_no_more_is_lost() -> None:
    """A restarted actor refuses the block of a lane it never opened; the lane opens anew instead of hanging."""
    desk = Desk()
    peer = LocalPeer(desk.server)
    async with opened(peer) as lane:
        peer.serving = Desk().server  # restarted, and the stream did not break
        call = asyncio.create_task(lane.call("x", 60.0))
        await asyncio.sleep(1.0)
        with pytest.raises(ActorLost):
            await call
        again = asyncio.create_task(lane.call("x", 60.0))
        await asyncio.sleep(1.0)
        assert len(peer.opened) == 2
        assert not again.done()
        again.cancel()


@simulated(lane_module)
async def test_opening_gives_up_in_time_when_nobody_is_there() -> None:
    """The caller's patience bounds the first opening, and the lane opens by itself later."""
    peer = LocalPeer(None)
    lane: Lane[Any, Any] = Lane("owner", peer)
    with pytest.raises(TimeoutError):
        await lane.open(2.0)
    peer.serving = Desk().server
    await lane.open(5.0)
    assert lane.up
    await lane.close()


# -- generations, at the serving half ------------------------------------------------------------------------------


@simulated(lane_module)
async def test_a_newer_generation_ends_the_older_one() -> None:
    """Its work is cancelled, its blocks are refused, and what it still completes goes nowhere."""
    desk = Desk()
    server = desk.server
    old = server.completions("owner", 1)
    await anext(old)
    assert await server.submit("owner", 1, [(1, "old")], [])
    new = server.completions("owner", 2)
    assert await anext(new) == ("fine", [])
    assert desk.cancelled == ["old"]
    assert desk.closed == ["owner"]
    assert not await server.submit("owner", 1, [(2, "late")], [])
    assert await server.submit("owner", 2, [(1, "new")], [])
    assert desk.taken == ["old", "new"]
    desk.open["old"]("of the old lane")
    desk.open["new"]("of the new lane")
    assert await drain(old) == []
    assert (await anext(new))[1] == [(1, "of the new lane")]
    await new.aclose()
    server.close()


@simulated(lane_module)
async def test_an_older_generation_cannot_open() -> None:
    """A message that was under way for long does not take the lane from its present owner."""
    desk = Desk()
    new = desk.server.completions("owner", 5)
    await anext(new)
    for stale in (4, 5):
        assert await drain(desk.server.completions("owner", stale)) == []
    assert await desk.server.submit("owner", 5, [(1, "x")], [])
    assert desk.closed == []
    await new.aclose()
    assert desk.closed == ["owner"]
    desk.server.close()


@simulated(lane_module)
async def test_lanes_of_different_owners_do_not_mix() -> None:
    """Numbers are each lane's own."""
    desk = Desk()
    one, two = desk.server.completions("one", 1), desk.server.completions("two", 1)
    await anext(one)
    await anext(two)
    await desk.server.submit("one", 1, [(1, "a")], [])
    await desk.server.submit("two", 1, [(1, "b")], [])
    assert desk.server.outstanding == 2
    desk.open["b"]("B")
    desk.open["a"]("A")
    assert (await anext(one))[1] == [(1, "A")]
    assert (await anext(two))[1] == [(1, "B")]
    await one.aclose()
    assert desk.closed == ["one"]
    await two.aclose()
    desk.server.close()


@simulated(lane_module)
async def test_a_silent_owner_loses_its_lane() -> None:
    """The owner's process died without a word, so its work is cancelled when its lease runs out."""
    desk = Desk()
    stream = desk.server.completions("owner", 1)
    await anext(stream)
    await desk.server.submit("owner", 1, [(1, "x")], [])
    rest = asyncio.create_task(drain(stream))
    await asyncio.sleep(LEASE_S - 1)
    assert desk.cancelled == []
    await asyncio.sleep(LEASE_S / 3)
    assert desk.cancelled == ["x"]
    assert desk.closed == ["owner"]
    assert await rest == []
    assert not await desk.server.submit("owner", 1, [], [])
    desk.server.close()


@simulated(lane_module)
async def test_an_idle_lane_gives_signs_of_life() -> None:
    """Nothing to send is no reason to be forgotten."""
    desk = Desk()
    peer = LocalPeer(desk.server)
    async with opened(peer) as lane:
        await asyncio.sleep(10 * LEASE_S)
        assert lane.up
        assert desk.closed == []
        assert len(peer.opened) == 1
        assert peer.items == []


# -- cancelling, deadlines, bounds ---------------------------------------------------------------------------------


@simulated(lane_module)
async def test_a_cancelled_item_is_cancelled_at_the_other_end() -> None:
    """Its work stops, its place is free, and its late completion reaches nobody."""
    desk = Desk()
    async with opened(LocalPeer(desk.server)) as lane:
        ends = Ends(lane)
        number = ends.post("x")
        await asyncio.sleep(0.1)
        lane.cancel(number)
        lane.cancel(number)
        assert lane.outstanding == 0
        await asyncio.sleep(0.1)
        assert desk.cancelled == ["x"]
        assert desk.server.outstanding == 0
        desk.open["x"]("too late")
        await asyncio.sleep(1.0)
        assert ends.of["x"] == []


@simulated(lane_module)
async def test_an_item_cancelled_before_it_leaves_never_leaves() -> None:
    """What nobody wants any more is not paid for."""
    desk = Desk()
    peer = LocalPeer(desk.server)
    async with opened(peer) as lane:
        ends = Ends(lane)
        numbers = [ends.post(item) for item in range(5)]
        lane.cancel(numbers[2])
        await asyncio.sleep(1.0)
        assert peer.items == [0, 1, 3, 4]
        assert desk.cancelled == []


@simulated(lane_module)
async def test_ending_the_wait_for_a_call_cancels_it() -> None:
    """A client that hangs up stops the work that was done for it."""
    desk = Desk()
    async with opened(LocalPeer(desk.server)) as lane:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await lane.call("x", 60.0)
        await asyncio.sleep(0.1)
        assert desk.cancelled == ["x"]
        assert lane.outstanding == 0


@simulated(lane_module)
async def test_an_item_without_a_completion_times_out() -> None:
    """`sent` tells whether it can have run; the work of one that was sent is cancelled."""
    desk = Desk()
    peer = LocalPeer(desk.server)
    async with opened(peer) as lane:
        ends = Ends(lane)
        ends.post("sent", timeout_s=2.0)
        ends.post("patient", timeout_s=60.0)
        await asyncio.sleep(3.0)
        peer.kill()
        await asyncio.sleep(0.1)
        ends.post("never sent", timeout_s=2.0)
        await asyncio.sleep(3.0)
        sent, unsent = ends.of["sent"][0], ends.of["never sent"][0]
        assert isinstance(sent, LaneTimeout)
        assert isinstance(unsent, LaneTimeout)
        assert (sent.sent, unsent.sent) == (True, False)
        assert "sent" in desk.cancelled
        assert isinstance(ends.of["patient"][0], ActorLost)
        peer.serving = (second := Desk()).server
        await asyncio.sleep(5.0)
        assert second.taken == []
        assert all(len(end) == 1 for end in ends.of.values())


@simulated(lane_module)
async def test_calls_wait_for_room() -> None:
    """No more than `max_outstanding` items are under way, so a fast reader cannot fill the memory; none is forgotten."""
    desk = Desk()
    async with opened(LocalPeer(desk.server), max_outstanding=10) as lane:
        calls = [asyncio.create_task(lane.call(item, 1e6)) for item in range(100)]
        answered = 0
        while answered < 100:
            await asyncio.sleep(1.0)
            assert lane.outstanding == len(desk.open) == min(10, 100 - answered)
            item, complete = desk.open.popitem()
            complete(item)
            answered += 1
        assert await asyncio.gather(*calls) == list(range(100))
        assert lane.has_room


# -- closing, notes ------------------------------------------------------------------------------------------------


@simulated(lane_module)
async def test_closing_ends_everything() -> None:
    """What is outstanding ends as LaneClosed, who waits for room is told, and the other end stops working."""
    desk = Desk()
    peer = LocalPeer(desk.server)
    async with opened(peer, max_outstanding=3) as lane:
        calls = [asyncio.create_task(lane.call(item, 60.0)) for item in range(6)]
        await asyncio.sleep(1.0)
        await lane.close()
        await lane.close()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [LaneClosed] * 6
        with pytest.raises(LaneClosed):
            lane.post("x", lambda done: None, 1.0)
        await asyncio.sleep(0.1)
        assert sorted(desk.cancelled) == [0, 1, 2]
        assert desk.closed == ["owner"]
        assert lane.outstanding == desk.server.outstanding == 0
        assert not lane.up


@simulated(lane_module)
async def test_closing_a_lane_whose_peer_is_gone_does_not_hang() -> None:
    """Whatever state the other end is in."""
    for stopped in (False, True):
        peer = LocalPeer(Desk().server)
        async with opened(peer) as lane:
            call = asyncio.create_task(lane.call("x", 60.0))
            await asyncio.sleep(0.1)
            peer.stopped = stopped
            if not stopped:
                peer.kill()
            await asyncio.sleep(0.1)
            await lane.close()
            with suppress(ActorLost, LaneClosed):
                await call


@simulated(lane_module)
async def test_an_actor_that_closes_sends_what_it_has_finished() -> None:
    """A closing actor loses none of the work that is done; the rest is lost to its callers."""
    desk = Desk()
    peer = LocalPeer(desk.server)
    async with opened(peer) as lane:
        ends = Ends(lane)
        for item in ("done", "undone"):
            ends.post(item)
        await asyncio.sleep(0.1)
        desk.open["done"]("value")
        desk.server.close()
        peer.serving = Desk().server
        await asyncio.sleep(1.0)
        assert ends.of["done"] == ["value"]
        assert isinstance(ends.of["undone"][0], ActorLost)


@simulated(lane_module)
async def test_notes_ride_on_completions_and_come_by_themselves_when_idle() -> None:
    """An actor's health is known with its answers, and also when it gives none."""
    desk = Desk()
    notes: list[str] = []
    async with opened(LocalPeer(desk.server), on_note=notes.append) as lane:
        assert notes == ["fine"]
        ends = Ends(lane)
        ends.post("x")
        await asyncio.sleep(0.1)
        desk.health = "ill"
        desk.open["x"](1)
        await asyncio.sleep(0.1)
        assert notes == ["fine", "ill"]
        desk.health = "well again"
        await asyncio.sleep(1.5)
        assert notes[-1] == "well again"
