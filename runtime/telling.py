"""A process that tells the observer what it counts, and shows there what the ledger says: both again and again."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from actors.budget.rows import Snapshot
from actors.observer.reporter import Reporter
from actors.observer.scene import Report, Taken

__all__ = ["Telling"]

LEDGER_EVERY_S = 2.0


class Telling:
    """Runs from when it is made until `close`. `draw_up`, `report`, `on_taken`: see Reporter; `budget` asks the ledger."""

    def __init__(
        self,
        draw_up: Callable[[], Report],
        report: Callable[[Report], Awaitable[Taken]],
        budget: Callable[[], Awaitable[Snapshot]],
        on_taken: Callable[[Taken], None] = lambda taken: None,
    ) -> None:
        self.snapshot: Snapshot | None = None
        """What the ledger said last."""
        self._budget = budget
        self._reporter = Reporter(draw_up, report, on_taken)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._reporter.run()), loop.create_task(self._look_at_ledger())]

    async def say(self) -> None:
        """Report now; see Reporter.say."""
        await self._reporter.say()

    async def close(self, most_s: float | None = None) -> None:
        """The last report, when nothing is counted any more. It may take `most_s`, or as long as Reporter.close does. Never raises."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._reporter.close()

    async def _look_at_ledger(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # whatever troubles it, its routers tell in every answer
                async with asyncio.timeout(LEDGER_EVERY_S):
                    self.snapshot = await self._budget()
            await asyncio.sleep(LEDGER_EVERY_S)
