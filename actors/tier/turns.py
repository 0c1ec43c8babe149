"""What waits in a tier actor, served in turns: whoever has sent much delays nobody else. Pure.

Each job, and each key of a gateway, has a line of its own. The lines take turns; within a line the order is that of
arrival. So a job with one row waits for one of another's, not for all of them, and who is alone has everything.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Turns"]

One = TypeVar("One")


class Turns(Generic[One]):
    """A queue of queues. The first of `_lines` has its turn."""

    __slots__ = ("_lines", "_size")

    def __init__(self) -> None:
        self._lines: dict[str, deque[One]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[One]:
        """All, line by line."""
        for line in self._lines.values():
            yield from line

    def add(self, whose: str, one: One) -> None:
        """At the end of a line."""
        line = self._lines.get(whose)
        if line is None:
            line = self._lines[whose] = deque()
        line.append(one)
        self._size += 1

    def first(self) -> One:
        """Whose turn it is. Raises StopIteration when nothing waits."""
        return next(iter(self._lines.values()))[0]

    def take(self) -> One:
        """Remove the first; the next line has its turn."""
        whose, line = next(iter(self._lines.items()))
        one = line.popleft()
        self._size -= 1
        del self._lines[whose]
        if line:
            self._lines[whose] = line
        return one

    def put_back(self, whose: str, one: One) -> None:
        """Before all others: it has had its turn, and could not use it."""
        line = self._lines.pop(whose, None) or deque()
        line.appendleft(one)
        self._lines = {whose: line, **self._lines}
        self._size += 1

    def leave(self, goes: Callable[[One], bool]) -> list[One]:
        """Remove those that go; the others keep their turns."""
        gone: list[One] = []
        kept: dict[str, deque[One]] = {}
        for whose, line in self._lines.items():
            stay: deque[One] = deque()
            for one in line:
                (gone if goes(one) else stay).append(one)
            if stay:
                kept[whose] = stay
        self._lines = kept
        self._size -= len(gone)
        return gone
