"""A lean HTTP/1.1 client: POST bytes, get a whole reply or a stream. What `Wire` sends through wherever no proxy stands between.

Why not aiohttp for all: sending was the largest part of a request's CPU. In one process on uvloop, against `raycade mock`
with a 500-byte prompt, a request costs 40 us here and 158 us over aiohttp 3.14 at 64 in flight, and 37 and 226 us at 500
(medians of 11 interleaved runs, two busy cores: mind the ratios, 4.0 and 6.1; unloaded, both are lower). What makes the
difference: a head that is ready, one write, one future, no task and mostly no timer, and a parser in C.

It leaves to aiohttp what is reached through a proxy of the environment. It knows no other method, no redirect, cookie
or upgrade, and no HTTP/2.

Objects and lifetimes: a `Request` is an address with its head, made once and sent many times. A `Connection`
(actors/tier/http1_connection.py) carries one request at a time, and is open, idle or dropped; nothing brings a dropped one
back. An `Http1Client` holds the idle ones, last in first out, so that those not needed age out.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohappyeyeballs
import yarl

from actors.tier.http1_connection import Connection, Http1Stream, Origin, reason
from actors.tier.transport import MAX_STREAM_BYTES, Reply, TransportError

__all__ = ["INVALID", "Http1Client", "Request", "reason"]

INVALID = "the request could not be built: a header or the address is not valid"
_CLOSED = "the transport was closed while the request was under way"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


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

    def __init__(
        self,
        max_reply_bytes: int,
        connect_timeout_s: float,
        idle_s: float,
        max_stream_bytes: int = MAX_STREAM_BYTES,
    ) -> None:
        self.max_reply_bytes, self.max_stream_bytes = max_reply_bytes, max_stream_bytes
        self._connect_timeout_s, self._idle_s = connect_timeout_s, idle_s
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._idle: dict[Origin, list[Connection]] = {}
        self._connecting: set[asyncio.Timeout] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None
        self._closed = False

    async def post(self, request: Request, body: bytes, timeout_s: float) -> Reply:
        """Raises TransportError; cancelling drops the connection."""
        outcome = await self._exchange(request, body, timeout_s, 0.0)
        assert isinstance(outcome, Reply)
        return outcome

    async def stream(
        self, request: Request, body: bytes, first_byte_timeout_s: float, stall_timeout_s: float
    ) -> Http1Stream:
        """As `post`, but ends when the reply's head is in."""
        outcome = await self._exchange(request, body, first_byte_timeout_s, stall_timeout_s)
        assert isinstance(outcome, Http1Stream)
        return outcome

    async def _exchange(
        self, request: Request, body: bytes, timeout_s: float, stall_timeout_s: float
    ) -> Reply | Http1Stream:
        now = time.monotonic()
        connection = self._take(request.origin, now) or await self._connect(request.origin, timeout_s)
        if time.monotonic() >= now + timeout_s:  # the loop was held up: what would be sent now is paid for nothing
            self.release(connection)
            raise TransportError("timeout", f"no connection within {timeout_s:g} s", sent=False)
        # From here to the write nothing awaits, so the connection cannot be lost to us in between.
        waiter = connection.send(request.head, body, timeout_s, now + timeout_s, stall_timeout_s)
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

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)

    def release(self, connection: Connection) -> None:
        connection.idle_since = time.monotonic()
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._idle_s, self._sweep)

    # ---- idle ones and new ones

    def _take(self, origin: Origin, now: float) -> Connection | None:
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

    async def _connect(self, origin: Origin, timeout_s: float) -> Connection:
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

    async def _dial(self, origin: Origin) -> Connection:
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
            lambda: Connection(self, self._loop, origin),
            sock=sock,
            ssl=self._tls if origin.tls else None,
            server_hostname=origin.host.rstrip(".") if origin.tls else None,
        )
        return connection


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
