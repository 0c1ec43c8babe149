"""A lane to what is in the same process: items cross without waiting, and nobody can be lost on the way.

    post/call ─► start(owner, item, complete) ... complete(done) ─► on_done

It has the calling half's methods of Lane (actors/lane.py), and keeps the same promises: an item ends exactly once, with its
completion, as LaneTimeout or as LaneClosed. An item that completes at once has ended when `post` returns, and a `call` of it
costs no turn of the loop.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from actors.errors import LaneClosed, LaneTimeout, RaycadeError
from actors.lane import SWEEP_S, Cancel, Complete, LaneStream, Part, resolve, tell

__all__ = ["NearLane"]

Item = TypeVar("Item")
Done = TypeVar("Done")


class _Entry:
    __slots__ = ("deadline", "on_done", "stop")

    def __init__(self, on_done: Callable[[Any], None], deadline: float) -> None:
        self.on_done = on_done
        self.deadline = deadline
        self.stop: Cancel | None = None


class NearLane(Generic[Item, Done]):
    """See Lane. `start`: as LaneServer's; `on_close` is told that the owner has gone."""

    def __init__(
        self,
        owner: str,
        start: Callable[[str, Item, Complete[Any]], Cancel | None],
        on_close: Callable[[str], None] = lambda owner: None,
        name: str = "",
    ) -> None:
        self.owner = owner
        self.name = name or owner
        self.up = False
        self._start = start
        self._on_close = on_close
        self._entries: dict[int, _Entry] = {}
        self._number = 0
        self._closed = False
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def outstanding(self) -> int:
        """Items posted and not ended."""
        return len(self._entries)

    async def open(self, timeout_s: float | None = None) -> None:
        """Never waits."""
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())
        self.up = True

    async def close(self) -> None:
        """Close the lane; whatever is outstanding ends as LaneClosed."""
        self._closed, self.up = True, False
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None
        for number in list(self._entries):
            self._end(number, LaneClosed(self.name))
        self._on_close(self.owner)

    def post(self, item: Item, on_done: Callable[[Any], None], timeout_s: float) -> int:
        """As Lane.post, but `on_done` may have been called already when this returns."""
        if self._closed:
            raise LaneClosed(self.name)
        self._number = number = self._number + 1
        self._entries[number] = entry = _Entry(on_done, time.monotonic() + timeout_s)
        entry.stop = self._start(self.owner, item, partial(self._complete, number))
        return number

    async def call(self, item: Item, timeout_s: float, on_withdrawn: Callable[[], object] = lambda: None) -> Done:
        """As Lane.call. `on_withdrawn` is never called: what is posted has left."""
        ended: list[Any] = []
        number = self.post(item, ended.append, timeout_s)
        if not ended:
            future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
            self._entries[number].on_done = partial(resolve, future)
            try:
                return await future
            except asyncio.CancelledError:
                self.cancel(number)
                raise
        done: Done = ended[0]
        return done

    def stream(self, item: Item, timeout_s: float) -> LaneStream[Done]:
        """As Lane.stream."""
        stream: LaneStream[Done] = LaneStream(self)
        stream.number = self.post(item, stream.take, timeout_s)
        return stream

    def cancel(self, number: int) -> bool:
        """Give an item up. Its `on_done` is not called any more. False: it had left."""
        entry = self._entries.pop(number, None)
        if entry is not None and entry.stop is not None:
            entry.stop()
        return False

    # ------------------------------------------------------------------ inside

    def _complete(self, number: int, done: Any) -> None:
        entry = self._entries.get(number) if type(done) is Part else self._entries.pop(number, None)
        if entry is not None:
            tell(entry.on_done, done)

    def _end(self, number: int, why: RaycadeError) -> None:
        entry = self._entries.get(number)
        if entry is not None:
            self.cancel(number)
            tell(entry.on_done, why)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            for number in [number for number, entry in self._entries.items() if entry.deadline <= now]:
                self._end(number, LaneTimeout(self.name, sent=True))
