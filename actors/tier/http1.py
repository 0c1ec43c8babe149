"""A lean HTTP/1.1 client: POST bytes, get a whole reply. What `Wire` sends through wherever no proxy stands between.

Why not aiohttp for all: sending was the largest part of a request's CPU. In one process on uvloop, against `raycade mock`
with a 500-byte prompt, a request costs 40 us here and 158 us over aiohttp 3.14 at 64 in flight, and 37 and 226 us at 500
(medians of 11 interleaved runs, two busy cores: mind the ratios, 4.0 and 6.1; unloaded, both are lower). What makes the
difference: a head that is ready, one write, one future, no task and mostly no timer, and a parser in C.

It leaves to aiohttp what is reached through a proxy of the environment. It knows no other method, no redirect, cookie
or upgrade, and no HTTP/2.

Objects and lifetimes: a `Request` is an address with its head, made once and sent many times. A `_Connection` carries one
request at a time, and is open, idle or dropped; nothing brings a dropped one back. An `Http1Client` holds the idle ones,
last in first out, so that those not needed age out.

Where a reply might be mixed up with another, the connection is dropped: bytes after a whole reply, bytes while it was
idle, a reply that came before the request was all written. httptools (llhttp, strict) refuses ambiguous framing.
"""

import asyncio
import ipaddress
import os
import re
import select
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import aiohappyeyeballs
import yarl

from actors.tier.http1_reply import ReplyReader
from actors.tier.transport import Reply, TransportError

__all__ = ["INVALID", "Http1Client", "Request", "reason"]

JOIN_BYTES = 64 * 1024
"""A body up to this size is copied behind its head, which is cheaper than a second write."""

INVALID = "the request could not be built: a header or the address is not valid"
_CLOSED = "the transport was closed while the request was under way"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


class Origin(NamedTuple):
    tls: bool
    host: str
    port: int


class Request:
    """An address and its head, ready but for the Content-Length. Holds secrets, so it shows nothing."""

    __slots__ = ("head", "headers", "origin", "url")

    def __init__(self, url: yarl.URL, headers: Mapping[str, str]) -> None:
        """Raises ValueError for what could not be sent as it is, or would be more than one header."""
        self.url, self.headers = url, headers
        host, port = url.raw_host, url.port
        if not host or not port or url.scheme not in ("http", "https"):
            raise ValueError("the address is not valid")
        self.origin = Origin(url.scheme == "https", host, port)
        # Ours first, so that the endpoint's own replace them.
        fields = {"host": ("Host", url.host_port_subcomponent or host), "accept-encoding": ("Accept-Encoding", "gzip")}
        for name, value in headers.items():
            # These frame the body, which is not the caller's to do.
            if not _NAME.fullmatch(name) or name.lower() in ("content-length", "transfer-encoding"):
                raise ValueError("a header's name is not valid")
            fields[name.lower()] = (name, value)
        lines = [f"POST {quote(url.raw_path_qs, safe=_PRINTABLE)} HTTP/1.1"]
        for name, value in fields.values():
            if not _VALUE.fullmatch(value):
                raise ValueError("a header's value is not valid")
            lines.append(f"{name}: {value}")
        self.head = "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")


class Http1Client:
    """Connections to one or a few origins, as many as there are requests at once. Lives on one event loop."""

    def __init__(self, max_reply_bytes: int, connect_timeout_s: float, idle_s: float) -> None:
        self.max_reply_bytes = max_reply_bytes
        self._connect_timeout_s, self._idle_s = connect_timeout_s, idle_s
        self._loop = asyncio.get_running_loop()
        self._open: set[_Connection] = set()
        self._idle: dict[Origin, list[_Connection]] = {}
        self._connecting: set[asyncio.Timeout] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None
        self._closed = False

    async def post(self, request: Request, body: bytes, timeout_s: float) -> Reply:
        """Raises TransportError; cancelling drops the connection."""
        now = time.monotonic()
        connection = self._take(request.origin, now) or await self._connect(request.origin, timeout_s)
        if time.monotonic() >= now + timeout_s:  # the loop was held up: what would be sent now is paid for nothing
            self.release(connection)
            raise TransportError("timeout", f"no connection within {timeout_s:g} s", sent=False)
        # From here to the write nothing awaits, so the connection cannot be lost to us in between.
        waiter = connection.send(request.head, body, timeout_s, now + timeout_s)
        try:
            outcome = await waiter
        except BaseException:
            connection.abandon(waiter)
            raise
        # A result and not an exception of the future: that one would hold its own traceback, and warn when unread.
        if isinstance(outcome, TransportError):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        """Requests in flight end with TransportError."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._idle.clear()
        for limit in self._connecting:
            if not limit.expired():
                limit.reschedule(0)
        for connection in list(self._open):
            connection.fail(TransportError("connection", _CLOSED, sent=True))
        # The loop closes the sockets in its next round.
        await asyncio.sleep(0)

    # ---- what connections tell

    def opened(self, connection: "_Connection") -> None:
        self._open.add(connection)

    def lost(self, connection: "_Connection") -> None:
        self._open.discard(connection)

    def release(self, connection: "_Connection") -> None:
        connection.idle_since = time.monotonic()
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._idle_s, self._sweep)

    # ---- idle ones and new ones

    def _take(self, origin: Origin, now: float) -> "_Connection | None":
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            # The age is looked at here too, since a loop that was held up sweeps late.
            if connection.idle_since + self._idle_s >= now and connection.is_quiet():
                return connection
            connection.drop()
        return None

    def _sweep(self) -> None:
        """Drop what has been idle for long; one timer for all."""
        self._sweeper = None
        now = time.monotonic()
        # What is nearly due need not have the timer set again.
        due = now - self._idle_s + 0.05
        for origin, idle in list(self._idle.items()):
            kept = [connection for connection in idle if connection.idle_since > due and connection.is_open()]
            for connection in set(idle).difference(kept):
                connection.drop()
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]
        if self._idle:
            oldest = min(idle[0].idle_since for idle in self._idle.values())
            self._sweeper = self._loop.call_later(oldest + self._idle_s - now, self._sweep)

    async def _connect(self, origin: Origin, timeout_s: float) -> "_Connection":
        within = min(self._connect_timeout_s, timeout_s)
        limit = asyncio.timeout(within)
        self._connecting.add(limit)
        try:
            async with limit:
                connection = await self._dial(origin)
            if not self._closed and connection.is_open():
                return connection
            connection.drop()
            failure = TransportError("connection", "could not connect: the endpoint hung up", sent=False)
        except (OSError, RuntimeError) as error:
            # uvloop has a RuntimeError for some addresses. A TimeoutError may be the operating system's.
            if limit.expired():
                failure = TransportError("timeout", f"no connection within {within:g} s", sent=False)
            else:
                failure = TransportError("connection", f"could not connect: {reason(error)}", sent=False)
        except ValueError:
            failure = TransportError("connection", INVALID, sent=False)
        finally:
            self._connecting.discard(limit)
        # Raised outside the handlers, so that nothing of theirs hangs on to ours.
        raise TransportError("connection", _CLOSED, sent=False) if self._closed else failure

    async def _dial(self, origin: Origin) -> "_Connection":
        if origin.tls and self._tls is None:
            # Only now, and not when it was imported, is SSL_CERT_FILE read.
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        # uvloop's create_connection tries one address after another: a host with a dead IPv6 would take all the time.
        sock = await aiohappyeyeballs.start_connection(
            await _addresses(self._loop, origin), happy_eyeballs_delay=0.25, loop=self._loop
        )
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _, connection = await self._loop.create_connection(
            lambda: _Connection(self, self._loop, origin),
            sock=sock,
            ssl=self._tls if origin.tls else None,
            server_hostname=origin.host.rstrip(".") if origin.tls else None,
        )
        return connection


class _Connection(asyncio.Protocol):
    """One connection, and the one request that is under way on it."""

    def __init__(self, client: Http1Client, loop: asyncio.AbstractEventLoop, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self._client, self._loop = client, loop
        self._transport: asyncio.Transport | None = None
        self._reader = ReplyReader(client.max_reply_bytes)
        self._poll = select.poll()
        self._waiter: asyncio.Future[Reply | TransportError] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0
        self._timeout_s = 0.0
        self._hidden = False
        """Whether a part of the request may wait where `get_write_buffer_size` does not see it."""

    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def is_quiet(self) -> bool:
        """Whether an idle connection is as it was left. Bytes or an end that the loop has not read yet count."""
        return self.is_open() and not self._poll.poll(0)

    # ---- one request

    def send(
        self, head: bytes, body: bytes, timeout_s: float, deadline: float
    ) -> "asyncio.Future[Reply | TransportError]":
        assert self._transport is not None
        self._reader.begin()
        self._timeout_s, self._deadline = timeout_s, deadline
        # A timer that is set already looks at the deadline when it fires; so most requests set none.
        if self._timer is None or self._timer_at > deadline:
            self._set_timer()
        self._waiter = self._loop.create_future()
        self._hidden = self.origin.tls and len(body) > JOIN_BYTES
        if len(body) <= JOIN_BYTES:
            self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        else:
            self._transport.write(b"%b%d\r\n\r\n" % (head, len(body)))
            self._transport.write(body)
        return self._waiter

    def abandon(self, waiter: "asyncio.Future[Reply | TransportError]") -> None:
        """The caller has gone; unless the reply was whole before, when the connection may be another's by now."""
        if self._waiter is waiter:
            self.drop()

    def drop(self) -> None:
        self._waiter = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def fail(self, error: TransportError) -> None:
        waiter = self._waiter
        self.drop()
        if waiter is not None and not waiter.done():
            waiter.set_result(error)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        # Not call_at: uvloop's own clock stands still while a callback runs.
        self._timer = self._loop.call_later(self._deadline - time.monotonic(), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        # uvloop's timers count whole milliseconds.
        if time.monotonic() < self._deadline - 0.001:
            self._set_timer()
        else:
            self.fail(TransportError("timeout", f"no whole reply within {self._timeout_s:g} s", sent=True))

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._client.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            # Nobody asked: it must not become the answer to the next request.
            self.drop()
            return
        reader = self._reader
        reader.feed(data)
        if reader.error is not None:
            self.fail(reader.error)
        elif reader.whole:
            self._finish()

    def eof_received(self) -> None:
        if self._waiter is not None and self._reader.ends_with_connection():
            self._finish()
        else:
            self._broken(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._broken(exc)
        self._client.lost(self)
        self._reader.close()

    def _broken(self, error: Exception | None) -> None:
        if self._waiter is None:
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
        waiter, transport = self._waiter, self._transport
        if waiter is None or transport is None:
            return
        # A reply may come before its request is all written: that connection still has the rest to write. Over TLS the
        # buffer below is out of sight, so there a large request that was refused may be such a one.
        written = not transport.get_write_buffer_size() and not (self._hidden and self._reader.refuses)
        if self._reader.reusable and not waiter.done() and written:
            self._waiter = None
            self._client.release(self)
        else:
            self.drop()
        if not waiter.done():
            waiter.set_result(self._reader.reply())


async def _addresses(loop: asyncio.AbstractEventLoop, origin: Origin) -> list[Any]:
    try:
        # An address needs no resolver, and no thread.
        version = ipaddress.ip_address(origin.host).version
    except ValueError:
        return await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    family, place = (
        (socket.AF_INET, (origin.host, origin.port))
        if version == 4
        else (socket.AF_INET6, (origin.host, origin.port, 0, 0))
    )
    return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place)]


def reason(error: BaseException) -> str:
    """The operating system's words for it; never the event loop's or aiohttp's, which name host and port."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate was refused ({error.verify_message})"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
