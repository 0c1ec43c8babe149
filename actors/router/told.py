"""What a stream has said so far, and to whom it is passed on. Pure: it only calls who listens.

One a stream and router, whether the router makes the call itself or follows another's. It keeps the words, since somebody
may join late or the answer may break in the middle and has to be continued; up to a bound, after which it only passes on.
"""

from typing import Any, Protocol

from actors.messages import Chunk

__all__ = ["MAX_TOLD_BYTES", "Listener", "Told"]

MAX_TOLD_BYTES = 4 * 1024 * 1024


class Listener(Protocol):
    """Whom a stream is for."""

    def begin(self, tier: str) -> None:
        """The first words come from this tier. Called once, before `hear`."""
        ...

    def hear(self, chunks: list[Chunk]) -> None:
        """What came, in order."""
        ...


class Told:
    """`hear` what is said; `listener` and `also` get it."""

    def __init__(self, listener: Listener | None) -> None:
        self.listener = listener
        self.also: Any = None
        """Called with (number of words before, chunks) for what is said from now on."""
        self.tier = ""
        """Who said the first words; empty: nothing was said."""
        self.count = 0
        self.kept: list[Chunk] | None = []
        """Everything; None when it was too much to keep."""
        self.size = 0

    def begin(self, tier: str) -> None:
        if not self.tier:
            self.tier = tier
            if self.listener is not None:
                self.listener.begin(tier)

    def hear(self, chunks: list[Chunk]) -> None:
        before = self.count
        self.count += len(chunks)
        self.size += sum(len(chunk.data) + len(chunk.text) + 60 for chunk in chunks)
        if self.kept is not None:
            self.kept += chunks
            if self.size > MAX_TOLD_BYTES:
                self.kept = None
        if self.listener is not None:
            self.listener.hear(chunks)
        if self.also is not None:
            self.also(before, chunks)

    def catch_up(self, at: int, chunks: list[Chunk]) -> None:
        """Words from the `at`th on, some of which may be known. What begins beyond what is known is no news yet: the words
        between are on their way."""
        if at <= self.count < at + len(chunks):
            self.hear(chunks[self.count - at :])

    @property
    def text(self) -> str | None:
        """All that was said; None when it is not known any more."""
        return None if self.kept is None else "".join(chunk.text for chunk in self.kept)
