"""The lane between real processes: nothing is lost or doubled, whatever happens to the serving actor.

Each test has it over the socket, as on one machine, and over Ray's calls, as between machines.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.errors import ActorLost
from actors.lane import Lane
from actors.lane_peers import RayPeer

pytestmark = pytest.mark.usefixtures("local_ray")

ITEMS = 100_000


def echo_class() -> type:
    """Defined inside a function, so that it travels to the actor by value: the workers cannot import the tests."""
    import asyncio
    import os
    import random
    from typing import Any

    from actors.lane import LaneServer
    from actors.lane_peers import LaneHost

    class Echo(LaneHost):
        """Completes the item x with (x, -x) after a random delay."""

        def __init__(self, max_delay_s: float) -> None:
            self.max_delay_s = max_delay_s
            self._server: LaneServer[int, Any] = LaneServer(self.start, note=os.getpid)

        def start(self, lane: str, item: int, complete: Any) -> Any:
            delay_s = random.random() * self.max_delay_s
            return asyncio.get_running_loop().call_later(delay_s, complete, (item, -item)).cancel

        async def outstanding(self) -> int:
            return self._server.outstanding

    return Echo


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - what is waited for happens in another process
        await asyncio.sleep(0.005)


def stopped(pid: int) -> bool:
    """Whether no thread of a process runs."""
    states = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


class Echoes:
    """A serving actor, how the items sent to it ended, and the process it runs in."""

    def __init__(self, handle: Any, near: bool, **options: Any) -> None:
        import ray

        self.handle = handle
        self.pid = 0
        self.peer = RayPeer(handle, ray.cancel, near)
        self.lane: Lane[int, Any] = Lane("test", self.peer, on_note=self._noted, **options)
        self.ends: dict[int, list[Any]] = {}
        self.ended = 0

    def _noted(self, pid: int) -> None:
        self.pid = pid

    def _end(self, item: int, done: Any) -> None:
        self.ends[item].append(done)
        self.ended += 1

    def post(self, item: int) -> None:
        self.ends[item] = []
        self.lane.post(item, lambda done: self._end(item, done), 60.0)

    async def finish(self, ended: int | None = None) -> None:
        """Wait until so many items have ended; None: all."""
        async with asyncio.timeout(50.0):
            await until(lambda: not self.lane.outstanding if ended is None else self.ended >= ended)

    def lost(self) -> list[int]:
        """Check that every item ended once, with its own value or as lost; return the lost ones."""
        lost = []
        for item, ends in self.ends.items():
            assert len(ends) == 1, f"item {item} ended {len(ends)} times"
            if isinstance(ends[0], ActorLost):
                lost.append(item)
            else:
                assert ends[0] == (item, -item)
        assert self.lane.outstanding == 0
        return lost


@pytest.fixture
def echo_actor() -> Iterator[Any]:
    """A new actor, with the options that the cluster gives its own."""
    import ray

    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0, "max_concurrency": 1000}
    handle = ray.remote(echo_class()).options(**options).remote(0.02)
    yield handle
    ray.kill(handle)


@pytest.fixture(params=[True, False], ids=["socket", "ray"])
def near(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@asynccontextmanager
async def opened(handle: Any, near: bool, **options: Any) -> AsyncIterator[Echoes]:
    echoes = Echoes(handle, near, **options)
    await echoes.lane.open(30.0)
    assert echoes.peer.is_near == near
    try:
        yield echoes
    finally:
        async with asyncio.timeout(10.0):
            await echoes.lane.close()


async def test_nothing_is_lost_or_doubled_when_the_actor_is_killed_in_the_middle(echo_actor: Any, near: bool) -> None:
    """100,000 items: each ends once, with its own value or as ActorLost; the lost ones, posted again, all complete."""
    import ray

    async with opened(echo_actor, near) as echoes:
        killed = False
        for first in range(0, ITEMS, 500):
            for item in range(first, first + 500):
                echoes.post(item)
            await until(lambda: echoes.lane.outstanding < 4000)
            if not killed and echoes.ended > ITEMS // 2:
                killed = True
                ray.kill(echo_actor, no_restart=False)
        await echoes.finish()
        lost = echoes.lost()
        assert killed
        assert 0 < len(lost) < ITEMS // 2
        for item in lost:
            echoes.post(item)
        await echoes.finish()
        assert echoes.lost() == []


async def test_a_worker_that_is_killed_by_the_system_is_lost_and_replaced(echo_actor: Any, near: bool) -> None:
    """SIGKILL, as from the kernel's out-of-memory killer: what it held is lost, what comes later is served anew."""
    async with opened(echo_actor, near) as echoes:
        for item in range(2000):
            echoes.post(item)
        await echoes.finish(500)
        old = echoes.pid
        os.kill(old, signal.SIGKILL)
        await echoes.finish()
        for item in echoes.lost():
            echoes.post(item)
        for item in range(2000, 4000):
            echoes.post(item)
        await echoes.finish()
        assert echoes.pid != old
        assert echoes.lost() == []


async def test_a_stopped_worker_surfaces_as_lost_and_serves_again_when_it_goes_on(echo_actor: Any, near: bool) -> None:
    """SIGSTOP raises nothing anywhere: only the missing acknowledgement tells."""
    async with opened(echo_actor, near, ack_timeout_s=1.0) as echoes:
        echoes.post(0)
        await echoes.finish()
        pid = echoes.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await until(lambda: stopped(pid))  # until its last thread has seen it, it goes on
            for item in range(1, 100):
                echoes.post(item)
            await echoes.finish()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert echoes.lost() == list(range(1, 100))
        for item in range(1, 100):
            echoes.post(item)
        await echoes.finish()
        assert echoes.lost() == []
        assert echoes.pid == pid


async def test_closing_a_lane_ends_the_work_at_the_other_end(near: bool) -> None:
    """A dropped generator does not tell its producer, so the lane cancels it."""
    import ray

    handle = ray.remote(echo_class()).options(num_cpus=0, max_concurrency=100).remote(1000.0)
    async with opened(handle, near) as echoes:
        for item in range(100):
            echoes.post(item)
        async with asyncio.timeout(20.0):
            await until(lambda: ray.get(handle.outstanding.remote()) == 100)
    async with asyncio.timeout(20.0):
        await until(lambda: ray.get(handle.outstanding.remote()) == 0)
    ray.kill(handle)
