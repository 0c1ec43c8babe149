"""A streamed answer on its way to an HTTP client: what the router says goes out as server-sent events.

The router's words are put into a buffer, and the client reads at its own pace: whoever reads slower than the endpoint
speaks gets several events in one write, and delays nobody else. The buffer is bounded; a client that has fallen behind by
more than that is told so and let go. When the client leaves, the call is cancelled within the same moment.

A stream ends with `[DONE]`, or with one event that is an error in OpenAI's shape: never in between, as if it were whole.
"""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from actors.messages import Chunk, Failure, Result
from actors.tier.sse import frame
from runtime.gateway.errors import error_body, of_failure

__all__ = ["MAX_BEHIND_BYTES", "Outgoing", "StreamResponse"]

MAX_BEHIND_BYTES = 8 * 1024 * 1024
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather what ought to flow
]
Headers = list[tuple[bytes, bytes]]


class Outgoing:
    """What has been said and not been written yet. The router's listener: `begin`, `hear`."""

    done = b"data: [DONE]\n\n"
    """What a whole answer ends with."""

    def __init__(self) -> None:
        self.tier = ""
        self.behind = False
        self._parts: list[bytes] = []
        self._bytes = 0
        self._wake = asyncio.Event()

    def begin(self, tier: str) -> None:
        """The first words are this tier's."""
        self.tier = tier

    def hear(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            part = self.framed(chunk.data)
            self._parts.append(part)
            self._bytes += len(part)
        if self._bytes > MAX_BEHIND_BYTES:
            self.behind = True
            self._parts.clear()
        self._wake.set()

    def framed(self, data: bytes) -> bytes:
        """An event of the answer, as it is written."""
        return frame(data)

    def error(self, body: bytes) -> bytes:
        """The event that an answer without an end stops with, from OpenAI's error object."""
        return frame(body)

    def stop_waiting(self, _: object = None) -> None:
        """Nothing more will be said."""
        self._wake.set()

    async def wait(self) -> None:
        """Until there is something to write, or nothing more will come."""
        await self._wake.wait()

    def take(self) -> bytes:
        parts, self._parts, self._bytes = self._parts, [], 0
        self._wake.clear()
        return parts[0] if len(parts) == 1 else b"".join(parts)


class StreamResponse:
    """An ASGI response. `call` is the router's work, which has begun to speak; `ended` is told when all is over."""

    def __init__(
        self,
        call: "asyncio.Task[Result | Failure]",
        outgoing: Outgoing,
        headers: Headers,
        ended: Callable[[], object],
    ) -> None:
        self._call, self._outgoing, self._ended = call, outgoing, ended
        self.raw_headers = [*HEADERS, *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call, outgoing = self._call, self._outgoing
        leaving = asyncio.ensure_future(_gone(receive))
        leaving.add_done_callback(lambda _: call.cancel())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while not leaving.done():
                await outgoing.wait()
                data = outgoing.take()
                if outgoing.behind:
                    call.cancel()
                    said = "the client reads too slowly: it fell behind by more than the gateway holds"
                    data = outgoing.error(error_body(said, "server_error", "slow_reader"))
                    await send({"type": "http.response.body", "body": data, "more_body": False})
                    return
                over = call.done()
                if over:
                    data += _end(call, outgoing)
                await send({"type": "http.response.body", "body": data, "more_body": not over})
                if over:
                    return
        finally:
            leaving.cancel()
            call.cancel()  # no effect on one that has ended
            self._ended()


def _end(call: "asyncio.Task[Result | Failure]", outgoing: Outgoing) -> bytes:
    if call.cancelled() or call.exception() is not None:
        return outgoing.error(error_body("something went wrong inside the gateway", "server_error", "internal"))
    done = call.result()
    return outgoing.done if isinstance(done, Result) else outgoing.error(of_failure(done).body)


async def _gone(receive: Callable[[], Awaitable[object]]) -> None:
    """Returns when the client has left."""
    while True:
        message = await receive()
        if isinstance(message, dict) and message["type"] == "http.disconnect":
            return
