"""The lane under any schedule: posts, answers in any order, cancels, dying and stopped actors, slow submits, closing."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Literal, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from actors import lane as lane_module
from actors.errors import ActorLost, LaneClosed, LaneTimeout
from actors.lane import Lane, LaneServer
from tests.simulated import LocalPeer, simulate


class Step(NamedTuple):
    what: Literal["post", "complete", "cancel", "wait", "kill", "start", "stop", "go-on", "close", "slow"]
    count: int
    """Items, or a length of time."""


# What is likely to happen stands here more than once.
WHATS = ["post", "post", "post", "complete", "complete", "cancel", "wait", "wait", "wait"]
WHATS += ["kill", "start", "start", "stop", "go-on", "go-on", "close", "slow"]
STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(WHATS),
        st.integers(0, 9),
    ),
    max_size=60,
)
WAITS_S = (0.0, 0.0, 0.0, 0.001, 0.006, 0.05, 0.3, 1.2, 8.0, 40.0)
"""From one turn of the loop to past every deadline."""


class World:
    """One lane, the actors that serve it one after the other, and how each item ended."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.open: dict[int, Callable[[Any], None]] = {}
        self.last = 0
        self.ends: dict[int, list[Any]] = {}
        self.numbers: dict[int, int] = {}
        self.cancelled: set[int] = set()
        self.started: dict[int, int] = {}
        self.peer = LocalPeer(self.new_actor())
        self.lane: Lane[int, Any] = Lane("owner", self.peer, ack_timeout_s=2.0)

    def new_actor(self) -> LaneServer[int, Any]:
        self.open.clear()
        return LaneServer(self.start)

    def start(self, lane: str, item: int, complete: Callable[[Any], None]) -> Callable[[], None] | None:
        self.started[item] = self.started.get(item, 0) + 1
        if item % 5 == 0:
            complete(item * 2)  # some work is done before `start` returns
            return None
        self.open[item] = complete
        return lambda: self.open.pop(item, None)

    def post(self) -> None:
        self.last += 1
        item, ends = self.last, self.ends.setdefault(self.last, [])
        self.numbers[item] = self.lane.post(item, lambda done: self.end(item, ends, done), self.random.choice([5, 500]))

    def end(self, item: int, ends: list[Any], done: Any) -> None:
        assert item not in self.cancelled, "a completion of an item that was given up"
        ends.append(done)

    async def step(self, step: Step) -> None:
        match step.what:
            case "post":
                for _ in range(step.count):
                    self.post()
            case "complete":
                for item in self.random.sample(sorted(self.open), min(step.count, len(self.open))):
                    self.open.pop(item)(item * 2)
            case "cancel":
                for item in self.random.sample(sorted(self.numbers), min(step.count // 2, len(self.numbers))):
                    self.lane.cancel(self.numbers[item])
                    if not self.ends[item]:
                        self.cancelled.add(item)
            case "wait":
                await asyncio.sleep(WAITS_S[step.count])
            case "kill":
                self.peer.kill()
                self.open.clear()
            case "start":
                if self.peer.serving is None:
                    self.peer.serving = self.new_actor()
            case "stop":
                self.peer.stopped = True
            case "go-on":
                self.peer.stopped = False
            case "close":
                if isinstance(self.peer.serving, LaneServer):
                    self.peer.serving.close()
            case "slow":
                self.peer.delay_s = WAITS_S[step.count]

    def check(self) -> None:
        """Every item has ended at most once, with a value of its own; what has not ended is outstanding."""
        running = 0
        for item, ends in self.ends.items():
            assert len(ends) <= 1
            running += not ends and item not in self.cancelled
            for end in ends:
                assert end == item * 2 or isinstance(end, ActorLost | LaneTimeout | LaneClosed)
                if isinstance(end, ActorLost | LaneTimeout) and not end.sent:
                    assert item not in self.started, "it had been handed over"
        assert all(times == 1 for times in self.started.values()), "the lane itself never sends an item twice"
        assert self.lane.outstanding == running

    async def settle(self) -> None:
        """Bring up a healthy actor and answer everything: then nothing may be left."""
        self.peer.stopped, self.peer.delay_s = False, 0.0
        if self.peer.serving is None:
            self.peer.serving = self.new_actor()
        for _ in range(60):
            await asyncio.sleep(1.0)
            for item, complete in list(self.open.items()):
                del self.open[item]
                complete(item * 2)
        self.check()
        assert self.lane.outstanding == 0
        assert self.lane.up


async def live(steps: list[Step], random: Random, close: bool) -> None:
    world = World(random)
    await world.lane.open(60.0)
    for step in steps:
        await world.step(step)
        world.check()
    if not close:
        await world.settle()
    await world.lane.close()
    world.check()
    assert world.lane.outstanding == 0
    assert all(len(ends) == 1 or item in world.cancelled for item, ends in world.ends.items())
    await asyncio.sleep(100.0)
    world.check()
    if isinstance(world.peer.serving, LaneServer):
        assert world.peer.serving.outstanding == 0, "work goes on for a lane that is closed"
        world.peer.serving.close()


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, random=st.randoms(use_true_random=False), close=st.booleans())
def test_every_item_ends_exactly_once_under_any_schedule(steps: list[Step], random: Random, close: bool) -> None:
    """Whatever dies, stops or is slow: one end an item, its own value, and none for what was given up."""
    simulate(live(steps, random, close), lane_module)
