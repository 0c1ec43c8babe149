"""Ways to send an answer in pieces, with timers and no task: at a steady pace, or as much as the client takes."""

import asyncio
from collections.abc import Callable

__all__ = ["Flood", "Stream"]

_TICK_S = 0.005
"""The shortest pause between writes; a faster pace sends several tokens at once, as real endpoints do."""


_AT_ONCE = 16
"""Blocks of a flood in one turn of the loop, which belongs to the other connections too."""


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


class Flood:
    """One block of bytes, `times` times, and never more of it in memory than the connection's own buffer."""

    def __init__(
        self,
        block: bytes,
        times: int,
        room: Callable[[], bool],
        write: Callable[[bytes], None],
        end: Callable[[], None],
    ) -> None:
        self._block, self._left = block, times
        self._room, self._write, self._end = room, write, end
        self._due: asyncio.Handle | None = None

    def go_on(self) -> None:
        """Send on; called again whenever there is room."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._step)

    def stop(self) -> None:
        self._left = -1

    def _step(self) -> None:
        self._due = None
        for _ in range(_AT_ONCE):
            if self._left <= 0 or not self._room():
                break
            self._left -= 1
            self._write(self._block)
        if self._left == 0:
            self._left = -1
            self._end()
        elif self._left > 0 and self._room():
            self.go_on()
