"""The client for programs without an event loop: a loop in a thread of its own, and one method here for each there."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self, TypeVar

from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ParsedChatCompletion
from pydantic import BaseModel

from runtime.client_values import Ask, Outcome

if TYPE_CHECKING:
    from runtime.client import Client

__all__ = ["SyncClient"]

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")


class SyncClient:
    """As Client, with the same arguments, in a `with`. Several threads may use it at once."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._arguments, self._named = arguments, named

    def __enter__(self) -> Self:
        from runtime.client import Client

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raycade-client", daemon=True)
        self._thread.start()
        try:
            self._client: Client = self._run(_made(Client, self._arguments, self._named))
            self._run(self._client.open())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self._client.close())
        finally:
            self._end()

    def complete(self, ask: Ask | None = None, **how_to: Any) -> ChatCompletion:
        """See Client.complete."""
        return self._run(self._client.complete(ask, **how_to))

    def parse(self, kind: type[Model], ask: Ask | None = None, **how_to: Any) -> ParsedChatCompletion[Model]:
        """See Client.parse."""
        return self._run(self._client.parse(kind, ask, **how_to))

    def embed(self, input: str | list[Any], **how_to: Any) -> CreateEmbeddingResponse:
        """See Client.embed."""
        return self._run(self._client.embed(input, **how_to))

    def stream(self, ask: Ask | None = None, **how_to: Any) -> Iterator[ChatCompletionChunk]:
        """See Client.stream. Whoever stops iterating ends the call."""
        stream = self._client.stream(ask, **how_to)
        try:
            yield from self._iterated(stream)
        finally:
            self._loop.call_soon_threadsafe(stream.close)

    def map(self, rows: Iterable[Any], **how_to: Any) -> Iterator[Outcome]:
        """See Client.map."""
        outcomes: Any = self._client.map(rows, **how_to)
        try:
            yield from self._iterated(outcomes)
        finally:
            self._run(outcomes.aclose())

    def begin(self, work: "Callable[[Client], Coroutine[Any, Any, Value]]") -> "Future[Value]":
        """Have something done with the Client itself, on its loop; not waited for."""
        return asyncio.run_coroutine_threadsafe(work(self._client), self._loop)

    def _iterated(self, items: AsyncIterator[Value]) -> Iterator[Value]:
        while True:
            try:
                item = self._run(_next(items))
            except StopAsyncIteration:
                return
            yield item

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, say: what nobody waits for is not paid for
            future.cancel()
            raise

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _made(kind: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return kind(*arguments, **named)


async def _next(items: AsyncIterator[Value]) -> Value:
    return await anext(items)
