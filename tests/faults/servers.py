"""Servers that misbehave, one coroutine a fault, for the transports' contract tests.

A fault gets a `Conn` and does with it what a broken endpoint, gateway or network would do. The server remembers what it
was sent, so that a test can say not only what the client made of it but what the client did.
"""

import asyncio
import contextlib
import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Conn", "FaultServer", "Seen", "backlog_full", "self_signed", "serving"]

ANSWER = (
    b'{"id":"c1","object":"chat.completion","model":"m-1","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}'
)


class Seen(NamedTuple):
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Conn:
    """One connection, seen from the server."""

    def __init__(self, server: "FaultServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer

    async def request(self) -> Seen:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.strip().split("\r\n")
        method, target, _ = line.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        seen = Seen(method, target, headers, await self.reader.readexactly(int(headers.get("content-length", 0))))
        self.server.seen.append(seen)
        return seen

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, body: bytes = ANSWER, status: str = "200 OK", *fields: str) -> None:
        head = "".join(f"{field}\r\n" for field in (*fields, f"Content-Length: {len(body)}"))
        await self.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)

    async def until_closed(self) -> None:
        while await self.reader.read(65536):
            pass

    def reset(self) -> None:
        """RST instead of FIN: what a crashed peer or a firewall sends."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Fault = Callable[[Conn], Awaitable[None]]


class FaultServer:
    """What a test knows of the server: its address, what it has seen, and how many connections are open."""

    def __init__(self, url: str, port: int) -> None:
        self.url, self.port = url, port
        self.seen: list[Seen] = []
        self.connections = 0
        self.open = 0
        self._changed = asyncio.Event()

    def _move(self, step: int) -> None:
        self.connections += step > 0
        self.open += step
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the server will see; the caller bounds the time."""
        while not condition():
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.02)


@contextlib.asynccontextmanager
async def serving(fault: Fault, tls: ssl.SSLContext | None = None) -> AsyncIterator[FaultServer]:
    """A server on a free port whose every connection suffers `fault`."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        known._move(+1)
        try:
            await fault(Conn(known, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            known._move(-1)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=4096, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    known = FaultServer(f"http{'s' if tls else ''}://127.0.0.1:{port}/v1", port)
    try:
        yield known
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# ---- faults


async def answers(conn: Conn) -> None:
    """No fault: every request of the connection is answered."""
    while True:
        await conn.request()
        await conn.reply()


def answering(body: bytes, status: str = "200 OK", *fields: str) -> Fault:
    """Answers every request so."""

    async def fault(conn: Conn) -> None:
        while True:
            await conn.request()
            await conn.reply(body, status, *fields)

    return fault


async def hangs(conn: Conn) -> None:
    """Reads the request and never answers."""
    await conn.request()
    await conn.until_closed()


async def ignores(conn: Conn) -> None:
    """Accepts the connection and does nothing at all."""
    await conn.until_closed()


async def trickles(conn: Conn) -> None:
    """Sends its body a byte at a time, for ever within the patience of any per-read timeout."""
    await conn.request()
    await conn.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        await conn.write(b" ")
        await asyncio.sleep(0.1)


async def resets_before_headers(conn: Conn) -> None:
    await conn.request()
    conn.reset()


async def closes_before_headers(conn: Conn) -> None:
    await conn.request()


async def resets_in_body(conn: Conn) -> None:
    await conn.request()
    await conn.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + ANSWER)
    await asyncio.sleep(0.05)
    conn.reset()


async def truncates(conn: Conn) -> None:
    """A valid JSON body, but shorter than its Content-Length."""
    await conn.request()
    await conn.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + ANSWER)


async def truncates_chunked(conn: Conn) -> None:
    """A valid JSON body in chunks, but without the last chunk that says that it is whole."""
    await conn.request()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    await conn.write(head + b"%x\r\n%s\r\n" % (len(ANSWER), ANSWER))


async def chunks(conn: Conn) -> None:
    """No fault: a reply of unknown length."""
    while True:
        await conn.request()
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        await conn.write(head + b"%x\r\n%s\r\n" % (20, ANSWER[:20]))
        await asyncio.sleep(0.01)
        await conn.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(ANSWER) - 20, ANSWER[20:]))


async def talks_nonsense(conn: Conn) -> None:
    await conn.request()
    await conn.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await conn.until_closed()


async def lies_about_gzip(conn: Conn) -> None:
    await conn.request()
    await conn.reply(ANSWER, "200 OK", "Content-Encoding: gzip")
    await conn.until_closed()


async def truncates_gzip(conn: Conn) -> None:
    """A compressed reply whose length is right and whose compressed stream has no end."""
    await conn.request()
    await conn.reply(gzip.compress(ANSWER)[:-8], "200 OK", "Content-Encoding: gzip")
    await conn.until_closed()


async def gzips(conn: Conn) -> None:
    """No fault: a compressed reply."""
    while True:
        await conn.request()
        await conn.reply(gzip.compress(ANSWER), "200 OK", "Content-Encoding: gzip")


BOMB = gzip.compress(bytes(64 * 1024 * 1024), compresslevel=1)


async def sends_bomb(conn: Conn) -> None:
    """64 MiB of zeros in a few hundred kB."""
    await conn.request()
    await conn.reply(BOMB, "200 OK", "Content-Encoding: gzip")
    await conn.until_closed()


def huge(announced: bool, status: str = "200 OK", sizes: list[int] | None = None) -> Fault:
    """A reply of 100 MB, with or without saying so first; `sizes` gets how much could be written."""

    async def fault(conn: Conn) -> None:
        await conn.request()
        length = b"Content-Length: 100000000\r\n" if announced else b"Connection: close\r\n"
        await conn.write(f"HTTP/1.1 {status}\r\n".encode() + length + b"\r\n")
        written = 0
        try:
            while written < 100_000_000:
                await conn.write(b"x" * 100_000)
                written += 100_000
        finally:
            if sizes is not None:
                sizes.append(written)

    return fault


def sending(*pieces: bytes, close: bool = False) -> Fault:
    """Answers every request with these bytes, a moment apart."""

    async def fault(conn: Conn) -> None:
        while True:
            await conn.request()
            for piece in pieces:
                await conn.write(piece)
                await asyncio.sleep(0.01)
            if close:
                return

    return fault


def flooding(start: bytes, more: bytes) -> Fault:
    """Answers with something that has no end."""

    async def fault(conn: Conn) -> None:
        await conn.request()
        await conn.write(start)
        while True:
            await conn.write(more)

    return fault


async def refuses_unread(conn: Conn) -> None:
    """Answers when it has seen the head, and reads no body."""
    head = await conn.reader.readuntil(b"\r\n\r\n")
    conn.server.seen.append(Seen("POST", "", {}, head))
    await conn.reply(b'{"error":{"message":"too large"}}', "413 Content Too Large")
    await asyncio.sleep(60)


async def answers_unasked(conn: Conn) -> None:
    """A moment after its answer it sends another, to a request that nobody made."""
    await conn.request()
    await conn.reply()
    await asyncio.sleep(0.02)
    await conn.reply(b'"injected"')
    await conn.until_closed()


async def answers_once_then_closes(conn: Conn) -> None:
    """Closes a kept-alive connection while it is idle, as every server does in the end."""
    await conn.request()
    await conn.reply()


async def answers_once_then_drops(conn: Conn) -> None:
    """Reads the second request of a connection and closes without a word: it may have been worked on."""
    await conn.request()
    await conn.reply()
    await conn.request()


async def sets_cookies(conn: Conn) -> None:
    while True:
        await conn.request()
        await conn.reply(ANSWER, "200 OK", "Set-Cookie: session=1; Path=/")


# ---- what is not a handler


@contextlib.contextmanager
def backlog_full() -> Iterator[str]:
    """The URL of a port that listens but completes no handshake: connecting to it takes for ever."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context with a certificate for 127.0.0.1 that nobody has signed but itself, and that certificate."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import IPv4Address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "raycade test")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_file, key_file)
    return context, cert_file
