"""The reporter of a process: tells the observer all that was counted here, about once a second.

Totals are always told whole, so nothing has to be kept or acknowledged: while the observer is away they go on growing, and
the next report that arrives carries everything (actors/observer/sums.py).
"""

import asyncio
from collections.abc import Awaitable, Callable

from actors.observer.scene import Report, Taken

__all__ = ["Reporter"]

EVERY_S = 1.0
TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 15.0
"""On a busy machine an actor that died takes some seconds to be back, and it should hear the end."""
AGAIN_S = 0.3


class Reporter:
    """`draw_up` makes the report of the moment, `report` brings it to the observer and raises when it does not arrive."""

    def __init__(
        self,
        draw_up: Callable[[], Report],
        report: Callable[[Report], Awaitable[Taken]],
        on_taken: Callable[[Taken], None] = lambda taken: None,
    ) -> None:
        self._draw_up = draw_up
        self._report = report
        self._on_taken = on_taken
        self.trouble = ""
        """Why the observer did not take the last report; empty when it did."""

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await self.say()
            await asyncio.sleep(EVERY_S)

    async def say(self, last: bool = False) -> bool:
        """One report; False when it did not arrive, or nobody knows."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                taken = await self._report(self._draw_up()._replace(last=last))
        except Exception as error:  # whatever it is: the next report carries all of it again
            self.trouble = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return False
        self.trouble = ""
        self._on_taken(taken)
        return True

    async def close(self) -> bool:
        """The last report: tried for some seconds, as the observer may just be restarting."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while True:
                    if await self.say(last=True):
                        return True
                    await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            return False
