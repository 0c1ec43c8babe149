"""A deterministic event loop on which many processes live: one queue, one clock that jumps, nothing of the outside.

Real asyncio code runs on it unchanged. Every task, timer and callback belongs to the `Process` that was running when it was
made (`current`; processes reach each other through `run_in` and its like only), so that a process can be killed (nothing of it ever runs again, not even a `finally`, as with SIGKILL), stopped for a while (as
with SIGSTOP), and have a clock of its own that is wrong.

Where it stands: `house.py` puts routers, tiers, coalescer and budget into processes, `network.py` is all that crosses.
"""

import asyncio
import contextlib
import sys
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from heapq import heappop, heappush
from typing import Any

__all__ = ["Clock", "Loop", "Overlong", "Process"]

EPOCH_S = 1_700_000_000.0
"""Unix time at the loop's second 0."""
TURN_S = 1e-7
"""What a jump lasts at least: a clock that stood still could never pass a rounding error."""


class Overlong(AssertionError):
    """The simulated time, or the number of steps that a history may take, is up and it has not ended."""


class Process:
    """One operating-system process: what runs in it, whether it runs, and its clocks."""

    __slots__ = ("alive", "deferred", "halted", "monotonic_s", "name", "wall_s")

    def __init__(self, name: str, monotonic_s: float = 0.0, wall_s: float = 0.0) -> None:
        self.name = name
        self.alive = True
        self.halted = False
        """Dead or stopped: one look for the loop."""
        self.deferred: list[_Handle] = []
        """What is due while it is stopped."""
        self.monotonic_s = monotonic_s
        self.wall_s = wall_s
        """What its clocks show beyond the loop's."""

    def kill(self) -> None:
        self.alive = False
        self.halted = True
        self.deferred.clear()

    def stop(self) -> None:
        self.halted = True


class _Handle:
    """A callback that is due, now or later. Stands for asyncio.Handle and TimerHandle."""

    __slots__ = ("_when", "args", "callback", "process")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], process: Process, when: float) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.process = process
        self._when = when

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self._when


class Loop:
    """What asyncio's tasks, futures and timeouts need of a loop, and no more: no selector, no threads, no signals."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.world = Process("world")
        """The driver, the network and the endpoints: what never dies."""
        self.current = self.world
        self.steps = 0
        self.troubles: list[str] = []
        """Exceptions that nobody caught."""
        self.errands: dict[Any, Any] = {}
        """Task -> what it is for; the tasks that it makes inherit it."""
        self._ready: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._number = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._over = False
        self._context = Context()

    # ------------------------------------------------------------------ what asyncio calls

    def get_debug(self) -> bool:
        return False

    def time(self) -> float:
        return self.now

    def is_running(self) -> bool:
        return not self._over

    def is_closed(self) -> bool:
        return self._over

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def create_task(
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> "asyncio.Task[Any]":
        # contexts are ignored: nothing here uses context variables, and one for all is cheaper than a copy for each
        loop: Any = self
        task = asyncio.Task(coro, loop=loop, name=name or "", context=self._context)
        parent = asyncio.current_task(loop)
        if parent in self.errands:
            self.errands[task] = self.errands[parent]
        # A task of a dead process must not be collected while the history lasts: its `finally` would run.
        self._tasks.append(task)
        return task

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> _Handle:
        handle = _Handle(callback, args, self.current, self.now)
        if not self._over:
            self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        handle = _Handle(callback, args, self.current, when)
        self._number += 1
        heappush(self._timers, (when, self._number, handle))
        return handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._over:
            self.troubles.append(f"{self.current.name}: {context.get('message')}: {context.get('exception')!r}")

    # ------------------------------------------------------------------ what the simulation calls

    def run_in(self, process: Process, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Have `process` run this after `delay_s`, unless it is dead by then."""
        when = self.now + delay_s
        self._number += 1
        heappush(self._timers, (when, self._number, _Handle(callback, args, process, when)))

    def soon_in(self, process: Process, callback: Callable[..., object], *args: Any) -> None:
        self._ready.append(_Handle(callback, args, process, self.now))

    def task_in(self, process: Process, coro: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        with self.acting(process):
            return self.create_task(coro)

    @contextlib.contextmanager
    def acting(self, process: Process) -> Iterator[None]:
        """What is made within this belongs to `process`."""
        before, self.current = self.current, process
        try:
            yield
        finally:
            self.current = before

    def wake_up(self, process: Process) -> None:
        """End a stop: what came due meanwhile runs now."""
        if process.alive and process.halted:
            process.halted = False
            self._ready.extend(process.deferred)
            process.deferred.clear()

    def run(self, main: Coroutine[Any, Any, None], until_s: float, max_steps: int) -> None:
        """Run `main` in the world to its end. Raises Overlong, or what `main` raised."""
        events._set_running_loop(self)  # type: ignore[arg-type]
        task = self.task_in(self.world, main)
        ready, timers, horizon = self._ready, self._timers, self.now + until_s
        try:
            while not task.done():
                if not ready:
                    if not timers:
                        raise Overlong("everybody waits, and nothing is left to happen")
                    when = timers[0][0]
                    self.now = max(when, self.now + TURN_S)
                    if self.now > horizon or self.steps > max_steps:
                        raise Overlong(f"not done after {self.now - horizon + until_s:.0f} s, {self.steps} steps")
                    while timers and timers[0][0] <= self.now:
                        ready.append(heappop(timers)[2])
                for _ in range(len(ready)):
                    handle = ready.popleft()
                    callback = handle.callback
                    if callback is None:
                        continue
                    process = handle.process
                    if process.halted:
                        if process.alive:
                            process.deferred.append(handle)
                        continue
                    self.steps += 1
                    self.current = process
                    try:
                        callback(*handle.args)
                    except Exception as error:  # as a real loop does: one bad callback does not end the others
                        self.troubles.append(f"{process.name}: {callback}: {error!r}")
            task.result()
        finally:
            self.current = self.world
            self._over = True
            events._set_running_loop(None)
            self._bury()

    def _bury(self) -> None:
        """End what still waits, so that Python has nothing to complain of when it collects it. Nothing is scheduled."""
        with _quiet():
            for task in self._tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    coro = task.get_coro()
                    with contextlib.suppress(BaseException):
                        coro.close()
                elif not task.cancelled() and task._log_traceback:
                    self.troubles.append(f"a task failed and nobody looked: {task.exception()!r}")
            self._tasks.clear()
            self._timers.clear()
            self._ready.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the `finally` blocks of buried tasks raise is nobody's concern."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


class Clock:
    """Stands for the module `time`: shows the time of the process that asks."""

    def __init__(self) -> None:
        self.loop = Loop()

    def monotonic(self) -> float:
        return self.loop.now + self.loop.current.monotonic_s

    def time(self) -> float:
        return EPOCH_S + self.loop.now + self.loop.current.wall_s

    def time_ns(self) -> int:
        # steps: two questions in one turn of a process must not get one answer, as on a real machine
        return int(self.time() * 1e6) * 1_000 + self.loop.steps % 1_000
