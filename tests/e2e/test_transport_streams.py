"""The transports' contract for streams: what every caller of `Transport.stream` may rely on, fault by fault.

As in test_transports.py, the bounds in seconds are guards against hanging; none measures speed.
"""

import asyncio
import gzip
import os
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
import pytest
import uvloop

from actors.tier.transport import Endpoint, Secret, Streamed, Transport, TransportError, leave, read_whole
from runtime.mock.process import MockProcess
from tests.e2e.test_transports import BODY, KEY, KINDS, PATH, Make
from tests.faults import servers as faults
from tests.faults.servers import Conn, self_signed, serving

EVENTS = [b'data: {"n":%d}\n\n' % number for number in range(5)]
WHOLE = b"".join(EVENTS)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
STREAM = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

# aiohttp 3.14 takes a reset for the end of a body without length, and some ambiguous framing for a body.
directly = pytest.mark.parametrize("kind", ["sdk", "wire"], indirect=True)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def make(kind: str) -> AsyncIterator[Make]:
    made: list[Transport] = []

    def build(url: str, **options: int) -> Transport:
        made.append(KINDS[kind](Endpoint(url, Secret(KEY)), **options))
        return made[-1]

    yield build
    for transport in made:
        await transport.aclose()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("OPENAI_"):
            monkeypatch.delenv(name)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def streaming(*pieces: bytes, pause_s: float = 0.01, close: bool = False) -> faults.Fault:
    """Answers every request with these bytes as they are, each a moment after the other."""

    async def fault(conn: Conn) -> None:
        while True:
            await conn.request()
            for piece in pieces:
                await conn.write(piece)
                await asyncio.sleep(pause_s)
            if close:
                return

    return fault


async def opened(transport: Transport, head_s: float = 10.0, stall_s: float = 10.0) -> Streamed:
    async with asyncio.timeout(30):
        return await transport.stream(PATH, BODY, head_s, stall_s)


async def all_of(streamed: Streamed) -> bytes:
    async with asyncio.timeout(30):
        return b"".join([piece async for piece in streamed])


async def until_broken(streamed: Streamed) -> tuple[bytes, TransportError]:
    """What had come, and the error that ended it; reading on gives the error again."""
    got = bytearray()

    async def read() -> None:
        async with asyncio.timeout(30):
            async for piece in streamed:
                got.extend(piece)

    with pytest.raises(TransportError) as caught:
        await read()
    with pytest.raises(TransportError):
        await anext(streamed)
    assert caught.value.__context__ is None
    return bytes(got), caught.value


async def closed(server: faults.FaultServer) -> None:
    async with asyncio.timeout(5):
        await server.until(lambda: server.open == 0)


# ---- whole streams


async def test_each_piece_is_there_as_soon_as_it_comes(make: Make) -> None:
    """The endpoint goes on only when the piece before has been read: nothing waits for more in between."""
    read = asyncio.Semaphore(0)

    async def hand_in_hand(conn: Conn) -> None:
        await conn.request()
        await conn.write(STREAM)
        for event in EVENTS:
            await conn.write(chunk(event))
            await read.acquire()
        await conn.write(b"0\r\n\r\n")
        await conn.until_closed()

    async with serving(hand_in_hand) as server:
        streamed = await opened(make(server.url))
        assert (streamed.status, streamed.headers["content-type"]) == (200, "text/event-stream")
        for event in EVENTS:
            async with asyncio.timeout(10):
                assert await anext(streamed) == event
            read.release()
        assert await all_of(streamed) == b""


def packed(events: list[bytes]) -> list[bytes]:
    """As a compressing proxy sends them: flushed after each."""
    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH) for event in events]
    return [*pieces, packer.flush()]


GZIP = HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
FRAMED = {
    "chunked": (STREAM, *map(chunk, EVENTS), b"0\r\n\r\n"),
    "head and all at once": (STREAM + b"".join(map(chunk, EVENTS)) + b"0\r\n\r\n",),
    "with a length": (HEAD + b"Content-Length: %d\r\n\r\n" % len(WHOLE), *EVENTS),
    "compressed": (GZIP, *map(chunk, packed(EVENTS)), b"0\r\n\r\n"),
    "compressed at once": (GZIP + chunk(gzip.compress(WHOLE)) + b"0\r\n\r\n",),
    "after interim replies": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", STREAM, chunk(WHOLE), b"0\r\n\r\n"),
    "extensions and trailers": (STREAM, b"%x;a=b\r\n%b\r\n" % (len(WHOLE), WHOLE), b"0\r\nX: y\r\n\r\n"),
    "a few bytes at a time": tuple(
        piece[at : at + 13] for piece in [STREAM + chunk(WHOLE) + b"0\r\n\r\n"] for at in range(0, len(piece), 13)
    ),
}


@pytest.mark.parametrize("pieces", FRAMED.values(), ids=FRAMED.keys())
async def test_a_whole_stream_and_its_connection_again(make: Make, pieces: tuple[bytes, ...]) -> None:
    """However it is framed, the bytes are the same, and a complete stream gives its connection back."""
    async with serving(streaming(*pieces)) as server:
        transport = make(server.url)
        for _ in range(3):
            streamed = await opened(transport)
            assert await all_of(streamed) == WHOLE
            await streamed.aclose()
        reply = await transport.send(PATH, BODY, 10)
        assert reply.body == WHOLE
        assert server.connections == 1


async def test_a_stream_that_ends_with_its_connection(make: Make) -> None:
    """Without a length the orderly end of the connection is the end of the stream."""
    async with serving(streaming(HEAD + b"\r\n", *EVENTS, close=True)) as server:
        transport = make(server.url)
        for _ in range(2):
            assert await all_of(await opened(transport)) == WHOLE
        assert server.connections == 2


async def test_a_compressed_piece_is_there_as_soon_as_it_comes(make: Make) -> None:
    """What was flushed is read, though the compressed stream goes on."""
    pieces = packed(EVENTS)

    async def first_only(conn: Conn) -> None:
        await conn.request()
        await conn.write(GZIP + chunk(pieces[0]))
        await conn.until_closed()

    async with serving(first_only) as server:
        streamed = await opened(make(server.url))
        async with asyncio.timeout(10):
            assert await anext(streamed) == EVENTS[0]
        await streamed.aclose()
        await closed(server)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"], ids=["lf", "crlf"])
async def test_bytes_are_passed_as_they_are(make: Make, end: bytes) -> None:
    """A transport knows nothing of lines."""
    body = b"data: \xff\x00\r" + end
    async with serving(streaming(STREAM + chunk(body) + b"0\r\n\r\n")) as server:
        assert await all_of(await opened(make(server.url))) == body


async def test_streams_at_once_are_not_mixed_up(make: Make) -> None:
    """Each of 100 gets its own, in order, and a stream that was left early disturbs no other."""

    async def numbered(conn: Conn) -> None:
        while True:
            seen = await conn.request()
            await conn.write(STREAM)
            for number in range(20):
                await conn.write(chunk(b"%b:%d;" % (seen.body, number)))
                await asyncio.sleep(0.002)
            await conn.write(b"0\r\n\r\n")

    async with serving(numbered) as server:
        transport = make(server.url)

        async def one(number: int) -> None:
            body = orjson.dumps({"n": number})
            streamed = await transport.stream(PATH, body, 20, 20)
            try:
                if number % 5 == 0:
                    await anext(streamed)
                    return
                got = await all_of(streamed)
                seen = orjson.loads(got.partition(b":0;")[0])
                assert seen == {"n": number}
                own = got.partition(b":0;")[0]
                assert got == b"".join(b"%b:%d;" % (own, at) for at in range(20))
            finally:
                await streamed.aclose()

        async with asyncio.timeout(60):
            for _ in range(2):
                await asyncio.gather(*(one(number) for number in range(100)))
        assert server.connections <= 200


# ---- what is no stream


@pytest.mark.parametrize("status", [200, 400, 401, 429, 503])
async def test_a_reply_that_is_no_stream_is_read_whole(make: Make, status: int) -> None:
    """An error, or JSON though a stream was asked for: status, headers and body, as `send` gives them."""
    body = b'{"error":{"message":"no"}}'
    async with serving(faults.answering(body, f"{status} X", "Retry-After: 7")) as server:
        transport = make(server.url)
        for _ in range(2):
            reply = await read_whole(await opened(transport), 10)
            assert (reply.status, reply.body, reply.headers["retry-after"]) == (status, body, "7")
        assert (server.connections, len(server.seen)) == (1, 2)


async def test_reading_whole_is_bounded_in_size_and_time(make: Make) -> None:
    """An error of 100 MB and one that trickles are given up, and their connections closed."""
    sizes: list[int] = []
    async with serving(faults.huge(False, "500 Oops", sizes)) as server:
        with pytest.raises(TransportError, match="1,000,000 bytes"):
            await read_whole(await opened(make(server.url)), 20, 1_000_000)
        await closed(server)
    assert sizes[0] < 50_000_000
    async with serving(faults.trickles) as server:
        with pytest.raises(TransportError) as caught:
            await read_whole(await opened(make(server.url)), 0.5)
        assert (caught.value.kind, caught.value.sent, caught.value.__context__) == ("timeout", True, None)
        await closed(server)


@pytest.mark.parametrize("head", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
async def test_an_empty_body_ends_at_once(make: Make, head: bytes) -> None:
    async with serving(streaming(head)) as server:
        assert await all_of(await opened(make(server.url))) == b""


# ---- what breaks


BREAKS: dict[str, tuple[tuple[bytes, ...], str]] = {
    "cut chunks": ((STREAM, chunk(WHOLE)), "connection"),
    "cut in a chunk": ((STREAM, chunk(WHOLE)[:-20]), "connection"),
    "cut before the last line": ((STREAM, chunk(WHOLE), b"0\r\n"), "connection"),
    "cut short of its length": ((HEAD + b"Content-Length: 1000\r\n\r\n", WHOLE), "connection"),
    "not compressed": ((GZIP, chunk(WHOLE), b"0\r\n\r\n"), "malformed"),
    "compressed without end": ((GZIP, *map(chunk, packed(EVENTS)[:-1]), b"0\r\n\r\n"), "malformed"),
    "compressed twice": ((GZIP, chunk(gzip.compress(WHOLE) + gzip.compress(WHOLE)), b"0\r\n\r\n"), "malformed"),
}


@pytest.mark.parametrize(("pieces", "expected"), BREAKS.values(), ids=BREAKS.keys())
async def test_a_stream_that_breaks_never_looks_complete(make: Make, pieces: tuple[bytes, ...], expected: str) -> None:
    """What had come is a beginning, then there is an error of unknown outcome; the request is not sent again."""
    async with serving(streaming(*pieces, close=True)) as server:
        got, error = await until_broken(await opened(make(server.url)))
        assert WHOLE.startswith(got)
        assert (error.kind, error.sent, len(server.seen)) == (expected, True, 1)
        await closed(server)


@directly
async def test_a_chunk_that_is_none_ends_a_stream(make: Make) -> None:
    """Framing that cannot be read is malformed. (aiohttp says nothing of it, so there the stall ends the stream.)"""
    async with serving(streaming(STREAM, chunk(WHOLE), b"-5\r\nhello\r\n")) as server:
        got, error = await until_broken(await opened(make(server.url)))
        assert (got, error.kind, error.sent) == (WHOLE, "malformed", True)
        await closed(server)


async def test_a_reset_in_mid_stream(make: Make) -> None:
    """What came before it is read first."""

    async def resets(conn: Conn) -> None:
        await conn.request()
        await conn.write(STREAM + chunk(WHOLE))
        await asyncio.sleep(0.1)
        conn.reset()

    async with serving(resets) as server:
        got, error = await until_broken(await opened(make(server.url)))
    assert got == WHOLE
    assert (error.kind, error.sent) == ("connection", True)


@directly
async def test_a_reset_is_no_end_of_a_stream_without_length(make: Make) -> None:
    """Only an orderly end says that nothing is missing."""

    async def resets(conn: Conn) -> None:
        await conn.request()
        await conn.write(HEAD + b"\r\n" + WHOLE)
        await asyncio.sleep(0.1)
        conn.reset()

    async with serving(resets) as server:
        assert (await until_broken(await opened(make(server.url))))[1].sent is True


BEFORE_THE_HEAD = [faults.resets_before_headers, faults.closes_before_headers, faults.talks_nonsense]


@pytest.mark.parametrize("fault", BEFORE_THE_HEAD, ids=lambda fault: fault.__name__)
async def test_what_breaks_before_the_head_is_an_error_of_the_request(make: Make, fault: faults.Fault) -> None:
    """There is no stream then."""
    async with serving(fault) as server:
        with pytest.raises(TransportError) as caught:
            await opened(make(server.url))
        assert (caught.value.sent, caught.value.__context__) == (True, None)


async def test_no_head_in_time(make: Make) -> None:
    """The first timeout is for connecting and the head together, and its end closes the connection."""

    async def begins(conn: Conn) -> None:
        await conn.request()
        await conn.write(b"HTTP/1.1 200 OK\r\n")
        await conn.until_closed()

    for fault in (faults.hangs, begins):
        async with serving(fault) as server:
            with pytest.raises(TransportError) as caught:
                await opened(make(server.url), head_s=0.4, stall_s=20)
            assert (caught.value.kind, caught.value.sent) == ("timeout", True)
            await closed(server)


async def test_nothing_for_too_long_in_mid_stream(make: Make) -> None:
    """A stall ends the stream, with what had come before it read, and closes the connection."""

    async def stalls(conn: Conn) -> None:
        await conn.request()
        await conn.write(STREAM + chunk(EVENTS[0]))
        await conn.until_closed()

    async with serving(stalls) as server:
        got, error = await until_broken(await opened(make(server.url), stall_s=0.4))
        assert (got, error.kind, error.sent) == (EVENTS[0], "timeout", True)
        await closed(server)


async def test_a_stream_that_goes_on_is_no_stall(make: Make) -> None:
    """The bound is of each wait, not of the stream; and a slow head does not count into it."""

    async def slow(conn: Conn) -> None:
        await conn.request()
        await asyncio.sleep(0.8)
        await conn.write(STREAM)
        for event in EVENTS:
            await asyncio.sleep(0.2)
            await conn.write(chunk(event))
        await conn.write(b"0\r\n\r\n")

    async with serving(slow) as server:
        assert await all_of(await opened(make(server.url), stall_s=0.7)) == WHOLE


async def test_a_slow_reader_is_no_stall(make: Make) -> None:
    """Only waiting for the endpoint counts."""

    async def pauses(conn: Conn) -> None:
        await conn.request()
        await conn.write(STREAM + chunk(EVENTS[0]))
        await asyncio.sleep(1.0)
        await conn.write(chunk(EVENTS[1]) + b"0\r\n\r\n")

    async with serving(pauses) as server:
        streamed = await opened(make(server.url), stall_s=0.5)
        assert await anext(streamed) == EVENTS[0]
        await asyncio.sleep(1.2)
        assert await all_of(streamed) == EVENTS[1]


async def test_no_time_left_sends_nothing(make: Make) -> None:
    async with serving(faults.answers) as server:
        for head_s, stall_s in ((0.0, 5.0), (5.0, 0.0)):
            with pytest.raises(TransportError) as caught:
                await opened(make(server.url), head_s, stall_s)
            assert (caught.value.kind, caught.value.sent) == ("timeout", False)
        assert server.connections == 0


async def test_what_cannot_be_reached_was_sent_nothing(make: Make) -> None:
    with pytest.raises(TransportError) as caught:
        await opened(make("http://127.0.0.1:1/v1"))
    assert (caught.value.kind, caught.value.sent) == ("connection", False)


# ---- closing and cancelling


async def endless(conn: Conn) -> None:
    await conn.request()
    await conn.write(STREAM)
    while True:
        await conn.write(chunk(EVENTS[0]))
        await asyncio.sleep(0.01)


async def test_closing_early_drops_the_connection(make: Make) -> None:
    """At once, and again without effect; the transport goes on."""
    async with serving(endless) as server:
        transport = make(server.url)
        for count in (1, 2):
            streamed = await opened(transport)
            await anext(streamed)
            for _ in range(3):
                await streamed.aclose()
            await closed(server)
            assert server.connections == count
            with pytest.raises(TransportError):
                await anext(streamed)


async def test_closing_unread_drops_the_connection(make: Make) -> None:
    """A stream that nobody reads holds nothing."""
    async with serving(endless) as server:
        await (await opened(make(server.url))).aclose()
        await closed(server)


@pytest.mark.parametrize("fault", [faults.hangs, endless], ids=["before the head", "in mid-stream"])
async def test_cancelling_closes_the_connection(make: Make, fault: faults.Fault) -> None:
    """Whoever reads is cancelled: the endpoint sees it within a moment."""
    async with serving(fault) as server:
        transport = make(server.url)

        async def read() -> None:
            async for _ in await opened(transport):
                pass

        task = asyncio.create_task(read())
        async with asyncio.timeout(10):
            await server.until(lambda: len(server.seen) == 1)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed(server)


async def test_hundreds_of_cancellations_leak_nothing(make: Make) -> None:
    """Cancelled at random stages, before the head and after it: no connection or descriptor is left over."""

    async def sometimes(conn: Conn) -> None:
        await conn.request()
        await asyncio.sleep(0.03)
        await conn.write(STREAM)
        while True:
            await conn.write(chunk(EVENTS[0]))
            await asyncio.sleep(0.02)

    async with serving(sometimes) as server:
        transport = make(server.url)

        async def read() -> None:
            streamed = await transport.stream(PATH, BODY, 30, 30)
            try:
                async for _ in streamed:
                    pass
            finally:
                await streamed.aclose()

        async def cancel_some(count: int) -> None:
            tasks = [asyncio.create_task(read()) for _ in range(count)]
            for number, task in enumerate(tasks):
                asyncio.get_running_loop().call_later(number % 10 * 0.01, task.cancel)
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)

        async with asyncio.timeout(60):
            await cancel_some(50)
            await server.until(lambda: server.open == 0)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(10):
                await cancel_some(50)
            await server.until(lambda: server.open == 0)
        assert len(os.listdir("/proc/self/fd")) <= before + 5


async def test_closing_the_transport_ends_its_streams(make: Make) -> None:
    """Whoever waits hears of it at once."""
    async with serving(streaming(STREAM, pause_s=60)) as server:
        transport = make(server.url)
        streams = [await opened(transport) for _ in range(5)]
        tasks = [asyncio.create_task(until_broken(streamed)) for streamed in streams]
        await asyncio.sleep(0.05)
        await transport.aclose()
        async with asyncio.timeout(5):
            broken = await asyncio.gather(*tasks)
        assert [error.sent for _, error in broken] == [True] * 5


async def test_leaving_waits_a_moment_for_the_end_and_no_longer(make: Make) -> None:
    """An end that comes right behind the answer saves the connection; one that does not come holds up nobody."""
    async with serving(streaming(STREAM + chunk(WHOLE), b"0\r\n\r\n", pause_s=0.05)) as server:
        transport = make(server.url)
        for _ in range(3):
            streamed = await opened(transport)
            assert await anext(streamed) == WHOLE
            await leave(streamed, 5)
        assert server.connections == 1
    async with serving(endless) as server:
        async with asyncio.timeout(5):
            await leave(await opened(make(server.url)), 0.1)
        await closed(server)


async def test_the_mock_sees_a_stream_that_was_left(kind: str) -> None:
    """As an endpoint would: the request ends in the middle, and nothing is billed for it."""
    with MockProcess({"tiers": {"default": {"tokens": 1000, "tokens_per_s": 50}}}) as mock:
        transport = KINDS[kind](Endpoint(mock.url, Secret(KEY)))
        body = orjson.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
        streamed = await transport.stream(PATH, body, 10, 10)
        await anext(streamed)
        await streamed.aclose()
        async with asyncio.timeout(1):
            while not mock.stats()["tiers"]["default"]["abandoned"]:  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(0.02)
        assert mock.stats()["tiers"]["default"]["in_flight"] == 0
        await transport.aclose()


# ---- memory


async def test_a_slow_reader_makes_the_endpoint_wait(make: Make) -> None:
    """Of 100 MB only what fits in the buffers has been sent while the reader does nothing; then all of it arrives."""
    written = 0

    async def floods(conn: Conn) -> None:
        nonlocal written
        await conn.request()
        await conn.write(STREAM)
        for _ in range(1000):
            await conn.write(chunk(b"x" * 100_000))
            written += 100_000
        await conn.write(b"0\r\n\r\n")
        await conn.until_closed()

    async with serving(floods) as server:
        streamed = await opened(make(server.url))
        for _ in range(100):  # until it stands still
            before = written
            await asyncio.sleep(0.1)
            if written == before > 0:
                break
        assert written < 20_000_000
        got = 0
        tracemalloc.start()
        try:
            async with asyncio.timeout(60):
                async for piece in streamed:
                    got += len(piece)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert got == 100_000_000
        assert peak < 8_000_000


async def test_a_stream_is_bounded_in_all(make: Make) -> None:
    """More than the bound is given up, whether or not its size was announced."""
    for announced in (True, False):
        sizes: list[int] = []
        async with serving(faults.huge(announced, "200 OK", sizes)) as server:
            transport = make(server.url, max_stream_bytes=1_000_000)
            with pytest.raises(TransportError, match="1,000,000 bytes"):
                await all_of(await opened(transport))
            await closed(server)
        assert sizes[0] < 50_000_000


async def test_a_decompression_bomb_is_unpacked_piece_by_piece(make: Make) -> None:
    """Of the 64 MiB no more than a piece is in memory at a time, also for a reader that takes them all."""
    async with serving(faults.sends_bomb) as server:
        transport = make(server.url)
        tracemalloc.start()
        try:
            got = 0
            async for piece in await opened(transport):
                got += len(piece)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert got == 64 * 1024 * 1024
        assert peak < 8_000_000
        with pytest.raises(TransportError, match="1,000,000 bytes"):
            await all_of(await opened(make(server.url, max_stream_bytes=1_000_000)))


# ---- TLS, loops, many


async def test_streams_over_tls(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, again on the same connection, with a slow reader, and left early."""
    context, certificate = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    large = b"y" * 3_000_000
    async with serving(streaming(STREAM, chunk(large), chunk(WHOLE) + b"0\r\n\r\n"), tls=context) as server:
        transport = make(server.url)
        for pause_s in (0.0, 0.3):
            streamed = await opened(transport)
            await asyncio.sleep(pause_s)
            assert await all_of(streamed) == large + WHOLE
        assert server.connections == 1
        streamed = await opened(transport)
        await streamed.aclose()
        await closed(server)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_both_event_loops(kind: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A stream, a stall, an early end and a reply after them are the same on either loop."""

    async def scenario() -> None:
        good = streaming(STREAM, *map(chunk, EVENTS), b"0\r\n\r\n")
        async with serving(good) as whole, serving(streaming(STREAM, chunk(WHOLE), pause_s=60)) as stalls:
            transport = KINDS[kind](Endpoint(whole.url))
            assert await all_of(await opened(transport)) == WHOLE
            whole_reply = await read_whole(await opened(transport), 10)
            assert whole_reply.body == (await transport.send(PATH, BODY, 10)).body == WHOLE
            assert whole.connections == 1
            stalling = KINDS[kind](Endpoint(stalls.url))
            assert (await until_broken(await opened(stalling, stall_s=0.2)))[1].kind == "timeout"
            await (await opened(stalling)).aclose()
            await transport.aclose()
            await stalling.aclose()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())
