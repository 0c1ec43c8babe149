"""Send a stream's tokens at a steady pace, with a timer and no task."""

import asyncio
from collections.abc import Callable

__all__ = ["Stream"]

_TICK_S = 0.005
"""The shortest pause between writes; a faster pace sends several tokens at once, as real endpoints do."""


class Stream:
    def __init__(
        self, tokens: list[bytes], per_s: float, write: Callable[[bytes], None], end: Callable[[], None]
    ) -> None:
        self._tokens, self._per_s, self._write, self._end = tokens, per_s, write, end
        self._sent = 0
        self._begun = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The first token goes out now, the others each after its share of a second."""
        self._begun = asyncio.get_running_loop().time()
        self._step()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _step(self) -> None:
        loop = asyncio.get_running_loop()
        # Counted from the beginning, so that late timers do not add up.
        due = min(len(self._tokens), max(self._sent, int((loop.time() - self._begun) * self._per_s)) + 1)
        self._write(b"".join(self._tokens[self._sent : due]))
        self._sent = due
        if due >= len(self._tokens):
            self._end()
            return
        pause_s = max(_TICK_S, self._begun + due / self._per_s - loop.time())
        self._timer = loop.call_later(pause_s, self._step)
