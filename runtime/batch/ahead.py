"""Reading ahead in a thread, so that neither a slow disk nor an idle pipe holds the event loop up.

The thread is a daemon: one that is stuck in a read of standard input must not keep a stopped job from ending.
"""

import asyncio
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["ReadAhead"]

AHEAD = 2
"""Chunks that may wait for the consumer."""

T = TypeVar("T")


class _End:
    """What comes after the last chunk: nothing, or what went wrong."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """`async for chunk in ReadAhead(chunks)`; raises what the iterator raised. Starts to read when it is made."""

    def __init__(self, chunks: Iterator[T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Queue[T | _End] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)
        self._closed = False
        threading.Thread(target=self._read, args=(chunks,), name="reader", daemon=True).start()

    def __aiter__(self) -> "ReadAhead[T]":
        return self

    async def __anext__(self) -> T:
        item = await self._ready.get()
        if isinstance(item, _End):
            if item.error is not None:
                raise item.error
            raise StopAsyncIteration
        self._room.release()
        return item

    def close(self) -> None:
        """Nothing more is wanted: the thread ends, unless it is stuck in a read."""
        self._closed = True
        self._room.release()

    def _read(self, chunks: Iterator[T]) -> None:
        end = _End(None)
        try:
            for chunk in chunks:
                self._room.acquire()
                if self._closed:
                    return
                self._hand_on(chunk)
        except Exception as error:
            end = _End(error)
        self._hand_on(end)

    def _hand_on(self, item: "T | _End") -> None:
        try:
            self._loop.call_soon_threadsafe(self._ready.put_nowait, item)
        except RuntimeError:
            raise SystemExit from None  # the loop is closed: the job is over, and so is this thread
