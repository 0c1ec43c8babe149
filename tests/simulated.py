"""Simulated time, and a lane's peer in the same process, for tests of everything that waits.

    @simulated(lane, purse)              # the modules that read the clock
    async def test_...() -> None: ...

The loop's clock jumps to the next timer, so minutes pass in milliseconds and no test depends on the machine's speed. A
test in which nothing is left to happen fails at once as `Stuck`, instead of hanging.
"""

import asyncio
import functools
import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import ExitStack
from types import ModuleType
from typing import Any, Protocol
from unittest import mock

from actors.lane import FAR, Batch, Gap

__all__ = ["Clock", "LocalPeer", "SimulatedLoop", "Stuck", "simulate", "simulated"]


class Stuck(AssertionError):
    """Everybody waits, and no timer is set: in real time this test would hang for ever."""


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Never sleeps: where others wait for the next timer, its clock jumps there."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1_000.0
        self._select_now = self._selector.select  # type: ignore[attr-defined]
        self._selector.select = self._jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now

    def _jump(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise Stuck("nothing is left to happen")
        self._now += max(timeout, 1e-9)  # a turn takes time: a clock that stood still could never pass a rounding error
        return self._select_now(0)


class Clock:
    """Stands for the module `time` in what is tested."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ticks = itertools.count()

    def monotonic(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return 1_700_000_000.0 + self._loop.time()

    def time_ns(self) -> int:
        return int(self.time()) * 1_000_000_000 + next(self._ticks)


def simulate(test: Coroutine[Any, Any, None], *modules: ModuleType) -> None:
    """Run a coroutine in simulated time; `modules` read the simulated clock."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner, ExitStack() as patches:
        clock = Clock(runner.get_loop())
        for module in modules:
            patches.enter_context(mock.patch.object(module, "time", clock))
        runner.run(test)


def simulated(
    *modules: ModuleType,
) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Make a test of a coroutine function, run by `simulate`."""

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            simulate(test(*args, **kwargs), *modules)

        return run

    return decorate


class Serving(Protocol):
    """A LaneServer, or an actor that has one."""

    async def submit(self, lane: str, generation: int, items: list[tuple[int, Any]], cancel: list[int]) -> bool: ...

    def completions(self, lane: str, generation: int, gap: Gap = FAR) -> AsyncGenerator[Batch, None]: ...


class LocalPeer:
    """A serving half in this process, behind a connection that can be slow, silent or dead. A Peer of the lane."""

    is_near = False

    def __init__(self, serving: Serving | None, delay_s: float = 0.0) -> None:
        self.serving = serving
        """None: nobody is there, as after kill()."""
        self.delay_s = delay_s
        """Of a submit, before it arrives."""
        self.stopped = False
        """As after SIGSTOP: nothing is refused, nothing is answered."""
        self.deaf = False
        """The end of the calling half does not reach the serving half, as when its process dies."""
        self.opened: list[int] = []
        """The generations under which the lane was opened."""
        self.blocks: list[tuple[list[Any], list[int]]] = []
        """Every submit: items and cancelled numbers."""
        self._streams: set[asyncio.Queue[Batch | Exception | None]] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def items(self) -> list[Any]:
        """All items that were handed over, in order."""
        return [item for block, _ in self.blocks for item in block]

    def kill(self) -> None:
        """The process is gone: what it did ends without a word, and its streams break."""
        self.serving = None
        for pump in self._pumps:
            pump.cancel()
        for stream in self._streams:
            stream.put_nowait(ConnectionError("the peer died"))

    async def submit(self, lane: str, generation: int, items: list[tuple[int, Any]], cancel: list[int]) -> bool:
        self.blocks.append(([item for _, item in items], cancel))
        if self.stopped:
            await asyncio.sleep(1e9)
        serving = self._there()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if serving is not self.serving:
            raise ConnectionError("the peer died")
        return await serving.submit(lane, generation, items, cancel)

    async def completions(self, lane: str, generation: int, gap: Gap = FAR) -> AsyncGenerator[Batch, None]:
        self.opened.append(generation)
        if self.stopped:
            await asyncio.sleep(1e9)
        stream: asyncio.Queue[Batch | Exception | None] = asyncio.Queue()
        pump = asyncio.create_task(self._pump(self._there().completions(lane, generation, gap), stream))
        self._pumps.add(pump)
        self._streams.add(stream)
        try:
            while (batch := await stream.get()) is not None:
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            self._streams.discard(stream)
            if not self.deaf:
                pump.cancel()

    def _there(self) -> Serving:
        if self.serving is None:
            raise ConnectionError("nobody is there")
        return self.serving

    async def _pump(
        self, source: AsyncGenerator[Batch, None], stream: "asyncio.Queue[Batch | Exception | None]"
    ) -> None:
        try:
            async for batch in source:
                while self.stopped:  # noqa: ASYNC110 - simulated time costs nothing
                    await asyncio.sleep(1.0)
                stream.put_nowait(batch)
        finally:
            await source.aclose()
            stream.put_nowait(None)
