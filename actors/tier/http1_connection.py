"""One HTTP/1.1 connection, and the one request that is under way on it. Made, kept and chosen by actors/tier/http1.py.

A reply is either kept until it is whole (`send`) or handed over when its head is in, as an `Http1Stream` (`stream`).
A chunk of a stream costs no task, and a future only while its reader waits. When the reader falls behind, the connection
stops reading, so that the endpoint waits too and memory stays bounded.

Where a reply might be mixed up with another, the connection is dropped: bytes after a whole reply, bytes while it was
idle, a reply that came before the request was all written. httptools (llhttp, strict) refuses ambiguous framing.
"""

import asyncio
import os
import select
import socket
import ssl
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol, Self, cast

from actors.tier.http1_reply import ReplyReader
from actors.tier.stream_body import StreamBody
from actors.tier.transport import Reply, TransportError

__all__ = ["Connection", "Http1Stream", "Origin", "reason"]

JOIN_BYTES = 64 * 1024
"""A body up to this size is copied behind its head, which is cheaper than a second write."""
BEHIND_BYTES = 256 * 1024
"""A stream's reader that is so far behind stops the connection's reading."""


class Origin(NamedTuple):
    tls: bool
    host: str
    port: int


class Pool(Protocol):
    """What a connection tells whoever made it."""

    max_reply_bytes: int
    max_stream_bytes: int

    def opened(self, connection: "Connection") -> None: ...

    def lost(self, connection: "Connection") -> None: ...

    def release(self, connection: "Connection") -> None: ...


class Http1Stream:
    """A reply whose body is read as it comes."""

    __slots__ = ("_body", "_connection", "_end", "_stall_timeout_s", "_waiter", "headers", "status")

    def __init__(
        self,
        connection: "Connection",
        status: int,
        headers: Mapping[str, str],
        body: StreamBody,
        stall_timeout_s: float,
    ) -> None:
        self.status, self.headers = status, headers
        self._connection: Connection | None = connection
        self._body = body
        self._stall_timeout_s = stall_timeout_s
        self._end: TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        body = self._body
        while True:
            if body.ready:
                piece = self._take()
                if piece:
                    return piece
            elif self._connection is not None:
                self._waiter = self._connection.watch(self._stall_timeout_s)
                try:
                    await self._waiter
                except BaseException:
                    await self.aclose()
                    raise
                finally:
                    self._waiter = None
            else:
                raise self._end or body.unfinished() or StopAsyncIteration

    async def aclose(self) -> None:
        self._close(TransportError("connection", "the stream was closed", sent=True))

    # ---- what the connection tells

    @property
    def waiting(self) -> bool:
        return self._waiter is not None

    @property
    def behind(self) -> bool:
        return self._body.held > BEHIND_BYTES

    def wake(self) -> None:
        """Something may have come."""
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (self._body.ready or self._connection is None):
            waiter.set_result(None)

    def ended(self, error: TransportError | None) -> None:
        """Nothing more will come; None: the reply is whole. What had come before can still be read."""
        self._connection, self._end = None, error
        self.wake()

    # ----

    def _take(self) -> bytes:
        try:
            piece = self._body.take()
            if self._connection is not None:
                self._connection.go_on()
        except TransportError as error:
            self._close(error)
            raise
        return piece

    def _close(self, error: TransportError) -> None:
        connection, self._connection = self._connection, None
        self._body.drop()
        self._end = self._end or error
        if connection is not None:
            connection.drop()
        self.wake()


class Connection(asyncio.Protocol):
    """One connection, and the one request that is under way on it."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self._pool, self._loop = pool, loop
        self._transport: asyncio.Transport | None = None
        self._reader = ReplyReader(pool.max_reply_bytes)
        self._poll = select.poll()
        self._waiter: asyncio.Future[Reply | Http1Stream | TransportError] | None = None
        """Who waits for a reply, or for the head of one that is streamed."""
        self._stream: Http1Stream | None = None
        """The reply that is being streamed, from its head to its end."""
        self._stall_timeout_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0
        self._timeout_s = 0.0
        self._paused = False
        self._hidden = False
        """Whether a part of the request may wait where `get_write_buffer_size` does not see it."""

    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def _busy(self) -> bool:
        return self._waiter is not None or self._stream is not None

    def is_quiet(self) -> bool:
        """Whether an idle connection is as it was left. Bytes or an end that the loop has not read yet count."""
        return self.is_open() and not self._poll.poll(0)

    # ---- one request

    def send(
        self, head: bytes, body: bytes, timeout_s: float, deadline: float, stall_timeout_s: float = 0.0
    ) -> "asyncio.Future[Reply | Http1Stream | TransportError]":
        """With a `stall_timeout_s` the reply is streamed: the timeout is for its head, and the other between its pieces."""
        assert self._transport is not None
        self._reader.begin(self._pool.max_stream_bytes if stall_timeout_s else 0)
        self._timeout_s, self._stall_timeout_s = timeout_s, stall_timeout_s
        self._watch_until(deadline)
        self._waiter = self._loop.create_future()
        self._hidden = self.origin.tls and len(body) > JOIN_BYTES
        if len(body) <= JOIN_BYTES:
            self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        else:
            self._transport.write(b"%b%d\r\n\r\n" % (head, len(body)))
            self._transport.write(body)
        return self._waiter

    def abandon(self, waiter: "asyncio.Future[Reply | Http1Stream | TransportError]") -> None:
        """The caller has gone; unless the reply was whole before, when the connection may be another's by now."""
        if self._waiter is waiter or (self._stream is not None and waiter.done() and waiter.result() is self._stream):
            self.drop()

    def drop(self) -> None:
        self._waiter = self._stream = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def fail(self, error: TransportError) -> None:
        waiter, stream = self._waiter, self._stream
        self.drop()
        if waiter is not None and not waiter.done():
            waiter.set_result(error)
        if stream is not None:
            stream.ended(error)

    # ---- a stream's reader

    def watch(self, stall_timeout_s: float) -> "asyncio.Future[None]":
        """The stream's reader waits: for so long at most."""
        self._watch_until(time.monotonic() + stall_timeout_s)
        return self._loop.create_future()

    def go_on(self) -> None:
        """The stream's reader has taken what there was."""
        if self._paused and self._stream is not None and not self._stream.behind and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # ---- time

    def _watch_until(self, deadline: float) -> None:
        self._deadline = deadline
        # A timer that is set already looks at the deadline when it fires; so most requests and chunks set none.
        if self._timer is None or self._timer_at > deadline:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        # Not call_at: uvloop's own clock stands still while a callback runs.
        self._timer = self._loop.call_later(self._deadline - time.monotonic(), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        stream = self._stream
        if self._waiter is None and (stream is None or not stream.waiting):
            return
        # uvloop's timers count whole milliseconds.
        if time.monotonic() < self._deadline - 0.001:
            self._set_timer()
        else:
            self.fail(TransportError("timeout", self._late(), sent=True))

    def _late(self) -> str:
        if self._stream is not None:
            return f"nothing came for {self._stall_timeout_s:g} s in the middle of the reply"
        return f"no {'reply began' if self._stall_timeout_s else 'whole reply'} within {self._timeout_s:g} s"

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        stream = self._stream
        if self._waiter is None and stream is None:
            # Nobody asked: it must not become the answer to the next request.
            self.drop()
            return
        reader = self._reader
        reader.feed(data)
        if reader.error is not None:
            self.fail(reader.error)
            return
        if stream is None and reader.body is not None:
            stream = self._hand_over(reader.body)
        if reader.whole:
            self._finish()
        elif stream is not None:
            stream.wake()
            if stream.behind and not self._paused and self._transport is not None:
                self._paused = True
                self._transport.pause_reading()

    def _hand_over(self, body: StreamBody) -> Http1Stream | None:
        """The head of a streamed reply is in."""
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():  # the caller has been cancelled in this very turn of the loop
            self.drop()
            return None
        status, headers = self._reader.head
        self._stream = Http1Stream(self, status, headers, body, self._stall_timeout_s)
        waiter.set_result(self._stream)
        return self._stream

    def eof_received(self) -> None:
        if self._busy() and self._reader.ends_with_connection():
            self._finish()
        else:
            self._broken(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._broken(exc)
        self._pool.lost(self)
        self._reader.close()

    def _broken(self, error: Exception | None) -> None:
        if not self._busy():
            self.drop()
            return
        if self._reader.begun():
            message = "the connection broke in the middle of the reply"
        elif error is None:
            message = "the endpoint closed the connection without an answer"
        else:
            message = f"the connection broke: {reason(error)}"
        self.fail(TransportError("connection", message, sent=True))

    def _finish(self) -> None:
        waiter, stream, transport = self._waiter, self._stream, self._transport
        if not self._busy() or transport is None:
            return
        # A reply may come before its request is all written: that connection still has the rest to write. Over TLS the
        # buffer below is out of sight, so there a large request that was refused may be such a one.
        written = not transport.get_write_buffer_size() and not (self._hidden and self._reader.refuses)
        if self._reader.reusable and not (waiter is not None and waiter.done()) and written:
            self._waiter = self._stream = None
            if self._paused:  # TLS may give what it had already read
                self._paused = False
                transport.resume_reading()
            self._pool.release(self)
        else:
            self.drop()
        reply = self._reader.reply()
        if stream is not None:
            stream.ended(None)
        elif waiter is not None and not waiter.done():
            waiter.set_result(reply)


def reason(error: BaseException) -> str:
    """The operating system's words for it; never the event loop's or aiohttp's, which name host and port."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate was refused ({error.verify_message})"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
