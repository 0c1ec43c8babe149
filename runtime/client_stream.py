"""One streamed answer in a Python program: what its router says, as chunks of the openai package's type."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self, assert_never

from openai.types.chat import ChatCompletionChunk

from actors.errors import ActorLost, LaneClosed, LaneTimeout, RequestFailed
from actors.lane import Lane, LaneStream
from actors.messages import Failure, Request, Result
from actors.router.actor import Heard
from runtime.client_values import failed, typed
from runtime.routers import CLOSED, REDO_LIMIT, how

__all__ = ["GRACE_S", "Stream"]

GRACE_S = 5.0
"""How long after a request's deadline the router is waited for, which keeps the deadline itself."""


class Stream:
    """An async iterator over the answer's chunks. Who stops reading, or is cancelled, ends the call; so does `close()`.

    Its call begins when it is first read. Raises RequestFailed where the answer cannot begin, or breaks off: an iteration
    that ends by itself has given the whole answer.
    """

    def __init__(
        self,
        lane: "Callable[[], Lane[Request, Any]]",
        request: Request,
        ended: Callable[[Request, Result | Failure, float], None],
        left: Callable[[Request], None],
    ) -> None:
        """`ended` and `left`: one of them is told what became of it, once, unless it was never read."""
        self.tier = ""
        """Who speaks; empty before the first words."""
        self.raycade: dict[str, Any] = {}
        """How the answer came about, once it has ended: as beside a whole one."""
        self._lane = lane
        self._request = request
        self._on_end, self._on_leave = ended, left
        self._began = 0.0
        self._words: LaneStream[Result | Failure] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._events: deque[bytes] = deque()
        self._until = 0.0
        self._tries = 0
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChatCompletionChunk:
        while not self._events:
            if self._over:
                raise StopAsyncIteration
            try:
                await self._read()
            except BaseException:
                self.close()
                raise
        return typed(ChatCompletionChunk, self._events.popleft())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more of it: its call is ended, unless others follow it."""
        if self._tries and not self._over:
            self._on_leave(self._request)
        self._over = True
        self._events.clear()
        words, self._words = self._words, None
        if words is not None:
            words.close()

    def __del__(self) -> None:
        words, loop = self._words, self._loop
        if words is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the call has ended with it
                loop.call_soon_threadsafe(words.close)
                loop.call_soon_threadsafe(self._on_leave, self._request)

    async def _read(self) -> None:
        """Wait for what is said next."""
        if self._words is None:
            self._ask()
        assert self._words is not None
        try:
            heard = await self._words.read()
        except ActorLost as error:
            if self.tier:
                raise self._failed(Failure("broken_stream", f"the answer broke off: {error}")) from None
            self._words = None  # nothing was said: it may be asked again, as any request
            if self._tries >= REDO_LIMIT:
                lost = Failure("lost", f"sent {self._tries} times and lost every time: {error}")
                raise self._failed(lost) from None
            await asyncio.sleep(0)
            return
        except LaneClosed:
            raise self._failed(CLOSED) from None
        except LaneTimeout as error:
            raise self._failed(Failure("deadline", str(error))) from None
        match heard:
            case list():
                said: list[Heard] = heard
                for each in said:
                    self.tier = each.tier
                    self._events += each.events
            case Result():
                self._end(heard)
                self.raycade = how(heard, self._request.prompt)
            case Failure():
                raise self._failed(heard)
            case _:
                assert_never(heard)

    def _end(self, done: Result | Failure) -> None:
        self._over, self._words = True, None
        self._on_end(self._request, done, time.monotonic() - self._began)

    def _failed(self, failure: Failure) -> RequestFailed:
        self._end(failure)
        return failed(failure)

    def _ask(self) -> None:
        self._loop = asyncio.get_running_loop()
        request, now = self._request, time.monotonic()
        if not self._tries:
            self._began, self._until = now, now + request.deadline_s
        else:
            request = request._replace(deadline_s=max(0.0, self._until - now))
        self._tries += 1
        self._words = self._lane().stream(request, request.deadline_s + GRACE_S)
