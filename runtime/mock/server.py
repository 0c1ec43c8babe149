"""HTTP/1.1 on one connection: an asyncio protocol over httptools, with keep-alive and pipelining.

    bytes -> Connection (parser) -> handler(exchange, method, url, body, authorized) -> exchange.reply(...) -> bytes

Each request is an Exchange. Exchanges of a connection are answered in the order they came, however late a handler calls
`reply`: only the first of the queue writes to the transport, the others keep their bytes until it is their turn. What
becomes ready while one piece of input is parsed leaves in a single write. No task is made for a request.

Of the Authorization header only its presence is kept.
"""

import asyncio
import socket
import struct
import sys
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools

from runtime.mock.exchange import Exchange
from runtime.mock.shapes import error_body

__all__ = ["MAX_BODY_BYTES", "Connection", "Handler"]

MAX_BODY_BYTES = 64 * 1024 * 1024
_MAX_PIPELINED = 1000
"""With so many requests unanswered on one connection it is not read further."""
_LINGER_S = 1.0
"""How long a body that is too large is read and thrown away, so that the client gets to see the 413."""
_HALF_SENT_S = 0.02
"""Time for half a body to reach the client before the reset, which would overtake it."""

_RST_ON_CLOSE = struct.pack("ii", 1, 0)


Handler = Callable[[Exchange, bytes, bytes, bytes, bool], None]
"""(exchange, method, url, body, authorized)"""


class Connection(asyncio.Protocol):
    def __init__(self, handler: Handler, connections: set["Connection"]) -> None:
        self._handler, self._connections = handler, connections
        self._transport: asyncio.Transport
        self._parser: Any = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()
        self.turn: Exchange | None = None
        self._out: list[bytes] = []
        self._corked = False
        self._closing = False  # nothing further is read
        self._draining = False  # what is read is thrown away
        self.full = False  # the client does not read
        self._paused = False
        self._next_request()

    def _next_request(self) -> None:
        self._url = b""
        self._body: list[bytes] = []
        self._size = 0
        self._authorized = self._expects = False

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._closing = True
        self.turn = None
        for exchange in self._queue:
            if not exchange.finished and exchange.on_gone is not None:
                exchange.on_gone()
        self._queue.clear()
        # The parser refers back to this object.
        self._parser = None

    def data_received(self, data: bytes) -> None:
        if self._closing or self._draining:
            return
        self._corked = True
        try:
            self._feed(data)
        finally:
            self._corked = False
            self._flush()
        if len(self._queue) > _MAX_PIPELINED:
            self._flow()

    def pause_writing(self) -> None:
        self.full = True
        self._flow()

    def resume_writing(self) -> None:
        self.full = False
        self._flow()
        if self.turn is not None and self.turn.on_room is not None:
            self.turn.on_room()

    def abort(self) -> None:
        self._closing = True
        self._transport.abort()

    # httptools

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name)
        if size == 13 and name.lower() == b"authorization":
            self._authorized = len(value) > 7 and value[:7].lower() == b"bearer "
        elif size == 14 and name.lower() == b"content-length":
            # Only looked at beforehand: the parser itself holds the client to it.
            self._size = int(value) if value.isdigit() and len(value) < 19 else 0
        elif size == 6 and name.lower() == b"expect":
            self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        if self._size > MAX_BODY_BYTES:
            self._too_large()
        elif self._expects and not self._queue:
            self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._flush()
        self._size = 0

    def on_body(self, body: bytes) -> None:
        if self._draining:
            return
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            self._too_large()
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._draining or self._closing:
            return
        parser, chunks = self._parser, self._body
        method: bytes = parser.get_method()
        keep = parser.should_keep_alive()
        # In HTTP/1.0 keeping alive would have to be announced: such clients get one answer a connection.
        modern = parser.get_http_version() != "1.0"
        exchange = self._enqueue(method == b"HEAD", keep and modern, modern)
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        url, authorized = self._url, self._authorized
        self._next_request()
        try:
            self._handler(exchange, method, url, body, authorized)
        except Exception:
            # A fault of the mock itself must be seen, but must not take the other requests along.
            traceback.print_exc(file=sys.stderr)
            if not exchange.finished:
                exchange.reply(500, error_body(500, "The mock itself failed; its stderr says how."))

    # the queue

    def send(self, data: bytes) -> None:
        if self._corked:
            self._out.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def advance(self) -> None:
        """The first exchange has finished: see to what follows."""
        queue = self._queue
        while queue and queue[0].finished:
            ending = queue.popleft().ending
            if ending:
                self._end(ending)
                return
            self.turn = queue[0] if queue else None
            if self.turn is not None:
                self.turn.take_turn()
        if self._paused:
            self._flow()

    def _enqueue(self, head_only: bool, keep: bool, chunked: bool) -> Exchange:
        exchange = Exchange(self, head_only, keep, chunked)
        self._queue.append(exchange)
        if self.turn is None:
            self.turn = exchange
        return exchange

    def _end(self, ending: str) -> None:
        """After this exchange nothing more is answered on this connection."""
        self._flush()
        self.turn = None
        self._closing = True
        loop = asyncio.get_running_loop()
        if ending == "reset":
            self._reset()
        elif ending == "cut":
            loop.call_later(_HALF_SENT_S, self._reset)
        elif self._draining:
            self._closing = False
            loop.call_later(_LINGER_S, self._transport.close)
        else:
            self._transport.close()

    def _reset(self) -> None:
        """With SO_LINGER at 0 the kernel sends RST instead of FIN."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and not self._transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        self._transport.abort()

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # An offer such as h2c: the request was answered as HTTP/1.1, what follows it is the next one.
            rest = data[upgrade.args[0] :]
            if rest and not self._closing:
                self._feed(rest)
        except httptools.HttpParserError:
            if not self._closing and not self._draining and not (self._queue and self._queue[-1].ending):
                self._enqueue(False, False, True).reply(400, error_body(400, "This is not a valid HTTP/1.1 request."))

    def _too_large(self) -> None:
        self._draining = True
        limit = MAX_BODY_BYTES // 1024 // 1024
        self._enqueue(False, False, True).reply(413, error_body(413, f"The body may have at most {limit} MB."))

    def _flush(self) -> None:
        out = self._out
        if out:
            if not self._transport.is_closing():
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def _flow(self) -> None:
        """Read on only while the client reads too and is owed a bounded number of answers."""
        paused = self.full or len(self._queue) > _MAX_PIPELINED
        if paused != self._paused and not self._transport.is_closing():
            self._paused = paused
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
