"""One contract, two transports: what every caller of `Transport.send` may rely on, against servers that misbehave.

The wire has two ways out, so it is here twice: directly (actors/tier/http1.py), and as it sends through proxies (aiohttp).

The bounds in seconds are guards against hanging, an order of magnitude above what is seen; none measures speed.
"""

import asyncio
import copy
import logging
import os
import pickle
import resource
import sys
import traceback
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import openai
import orjson
import pytest
import uvloop

from actors.errors import ConfigError
from actors.tier import wire
from actors.tier.classify import Whole, classify_error, classify_reply
from actors.tier.sdk import SdkTransport
from actors.tier.transport import Endpoint, Secret, Transport, TransportError
from actors.tier.wire import ProxiedClient, Wire, WireTransport
from tests.faults import servers as faults
from tests.faults.servers import ANSWER, FaultServer, backlog_full, self_signed, serving

KEY = "sk-canary-7Hq2mZx9Wv4LbT1c"
PATH = "/chat/completions"
BODY = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 300}]})
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)


class ProxiedWire(Wire):
    """What a Wire is where there are proxies; it takes that way with or without one."""

    def _connectable(self) -> ProxiedClient:
        return self._proxied(wire._proxy_for(self._base_url))


class ProxiedTransport(WireTransport):
    def __init__(self, endpoint: Endpoint, **options: int) -> None:
        super().__init__(endpoint, **options)
        self._wire = ProxiedWire(endpoint.base_url, **options)


KINDS: dict[str, Callable[..., Transport]] = {"wire": WireTransport, "proxied": ProxiedTransport, "sdk": SdkTransport}

Make = Callable[..., Transport]

# For what aiohttp 3.14 lets pass: it gives an unasked reply to the next request, and reads some ambiguous headers.
directly = pytest.mark.parametrize("kind", ["sdk", "wire"], indirect=True)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def make(kind: str) -> AsyncIterator[Make]:
    """Makes transports of the kind under test, and closes them."""
    made: list[Transport] = []

    def build(url: str, key: str | None = KEY, headers: dict[str, str] | None = None, **options: object) -> Transport:
        transport = KINDS[kind](Endpoint(url, Secret(key) if key else None, headers), **options)
        made.append(transport)
        return transport

    yield build
    for transport in made:
        await transport.aclose()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no OpenAI variable of the machine that the tests run on."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("OPENAI_"):
            monkeypatch.delenv(name)


async def fails(transport: Transport, timeout_s: float = 5.0, guard_s: float = 15.0) -> TransportError:
    """The error that a send ends with."""
    with pytest.raises(TransportError) as caught:
        async with asyncio.timeout(guard_s):
            await transport.send(PATH, BODY, timeout_s)
    return caught.value


# ---- what goes out


async def test_sends_the_request_as_the_openai_package_would_address_it(make: Make) -> None:
    """Path, authorization, content type and body arrive, and nothing pretends to be the SDK's own call."""
    async with serving(faults.answers) as server:
        reply = await make(server.url).send(PATH, BODY, 5)
    assert (reply.status, reply.body) == (200, ANSWER)
    (seen,) = server.seen
    assert (seen.method, seen.target) == ("POST", "/v1/chat/completions")
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["content-type"] == "application/json"
    assert orjson.loads(seen.body) == orjson.loads(BODY)


async def test_the_wire_sends_the_bytes_it_was_given() -> None:
    """The default transport carries the body; it does not parse or rewrite it."""
    odd = b'{ "a" : 1,\n "a": 2 }'
    async with serving(faults.answers) as server:
        transport = WireTransport(Endpoint(server.url))
        await transport.send(PATH, odd, 5)
        await transport.aclose()
    assert server.seen[0].body == odd
    assert not any(name.startswith("x-stainless") for name in server.seen[0].headers)


async def test_without_a_key_there_is_no_authorization_header(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier without a key stays without one, even if the environment has a key for somebody else."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with serving(faults.answers) as server:
        await make(server.url, key=None).send(PATH, BODY, 5)
    assert "authorization" not in server.seen[0].headers


async def test_the_environment_of_openai_goes_to_nobody_else(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPENAI_CUSTOM_HEADERS, which may replace the key, and the organization are not sent to another vendor's tier."""
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-someone-else\nX-Team: blue")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    async with serving(faults.answers) as server:
        await make(server.url).send(PATH, BODY, 5)
    headers = server.seen[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert not {"x-team", "openai-organization", "openai-project"} & headers.keys()


async def test_own_headers_and_the_query_of_base_url_are_sent(make: Make) -> None:
    """Azure's `api-key` header and `?api-version=` arrive as configured."""
    async with serving(faults.answers) as server:
        transport = make(f"{server.url}/?api-version=2024-10-21", None, {"api-key": KEY})
        await transport.send(PATH, BODY, 5)
    (seen,) = server.seen
    assert seen.target == "/v1/chat/completions?api-version=2024-10-21"
    assert seen.headers["api-key"] == KEY


async def test_no_cookie_is_kept(make: Make) -> None:
    """A gateway's session cookie does not tie later requests together."""
    async with serving(faults.sets_cookies) as server:
        transport = make(server.url)
        for _ in range(3):
            await transport.send(PATH, BODY, 5)
    assert all("cookie" not in seen.headers for seen in server.seen)


async def test_connections_are_reused(make: Make) -> None:
    """Requests one after another share one connection."""
    async with serving(faults.answers) as server:
        transport = make(server.url)
        for _ in range(5):
            await transport.send(PATH, BODY, 5)
        assert (server.connections, len(server.seen)) == (1, 5)


async def test_nothing_happens_before_the_first_send(make: Make) -> None:
    """Making a transport touches nothing: it may be made where no loop runs, for a host that does not exist."""
    transport = make("https://no-such-host.invalid/v1")
    await transport.aclose()


# ---- what comes back


@pytest.mark.parametrize("status", [201, 302, 307, 400, 401, 404, 408, 409, 418, 429, 500, 503, 529])
async def test_every_status_is_a_reply_and_is_asked_for_once(make: Make, status: int) -> None:
    """A status is never an exception, and neither redirects nor retries happen below the router."""
    fault = faults.answering(b'{"error":{"message":"no"}}', f"{status} X", "Location: /v1/elsewhere", "Retry-After: 0")
    async with serving(fault) as server:
        reply = await make(server.url).send(PATH, BODY, 5)
        assert len(server.seen) == 1
    assert reply.status == status
    assert reply.body == b'{"error":{"message":"no"}}'
    assert reply.headers["retry-after"] == "0"


@pytest.mark.parametrize("fault", [faults.gzips, faults.chunks], ids=lambda fault: fault.__name__)
async def test_ways_of_framing_a_whole_reply(make: Make, fault: faults.Fault) -> None:
    """A compressed reply and one of unknown length arrive whole."""
    async with serving(fault) as server:
        transport = make(server.url)
        for _ in range(2):
            assert (await transport.send(PATH, BODY, 5)).body == ANSWER


FRAMED = {
    "trailers and chunk extensions": (
        CHUNKED + b"%x;a=b\r\n%s\r\n" % (20, ANSWER[:20]),
        b"%x;c\r\n%s\r\n0;d=e\r\nX-T: 1\r\nX-U: 2\r\n\r\n" % (len(ANSWER) - 20, ANSWER[20:]),
    ),
    "interim replies": (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 X\r\nContent-Length: 9\r\nA: b\r\n\r\n",
        WHOLE,
    ),
    "interim replies at once": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
    ),
    "an offer to upgrade": (WHOLE.replace(b"\r\n", b"\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n", 1),),
    "a few bytes at a time": tuple(WHOLE[at : at + 11] for at in range(0, len(WHOLE), 11)),
}


@pytest.mark.parametrize("pieces", FRAMED.values(), ids=FRAMED.keys())
async def test_unusual_framing_of_a_whole_reply(make: Make, pieces: tuple[bytes, ...]) -> None:
    """What HTTP/1.1 allows around a reply changes nothing about it, and the connection is good for the next one."""
    async with serving(faults.sending(*pieces)) as server:
        transport = make(server.url)
        for _ in range(2):
            reply = await transport.send(PATH, BODY, 10)
            assert (reply.status, reply.body) == (200, ANSWER)
            assert not {"link", "a", "x-t"} & reply.headers.keys()
        assert server.connections == 1


async def test_a_reply_that_ends_with_its_connection(make: Make) -> None:
    """Without a length the end of the connection is the end of the reply."""
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    async with serving(faults.sending(head + ANSWER[:20], ANSWER[20:], close=True)) as server:
        transport = make(server.url)
        for _ in range(2):
            assert (await transport.send(PATH, BODY, 5)).body == ANSWER
        assert server.connections == 2


@directly
async def test_a_reply_of_unknown_length_that_is_reset_is_not_whole(make: Make) -> None:
    """Only an orderly end says that nothing is missing."""

    async def resets(conn: faults.Conn) -> None:
        await conn.request()
        await conn.write(b"HTTP/1.1 200 OK\r\n\r\n" + ANSWER)
        await asyncio.sleep(0.05)
        conn.reset()

    async with serving(resets) as server:
        assert (await fails(make(server.url))).sent is True


@pytest.mark.parametrize("head", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 X\r\nContent-Length: 99\r\n\r\n"])
async def test_a_status_without_a_body_does_not_wait_for_one(make: Make, head: bytes) -> None:
    """These have no body, whatever their headers say."""
    async with serving(faults.sending(head)) as server:
        transport = make(server.url)
        for _ in range(2):
            assert (await transport.send(PATH, BODY, 3)).body == b""


async def test_a_reply_may_come_before_the_request_is_read(make: Make) -> None:
    """A 413 to a body that nobody reads is returned, and the half-written connection is not used again."""
    async with serving(faults.refuses_unread) as server:
        transport = make(server.url)
        for count in (1, 2):
            reply = await transport.send(PATH, b'{"a":"' + b"x" * 30_000_000 + b'"}', 10)
            assert reply.status == 413
            assert server.connections == count


async def test_a_large_request_arrives_whole(make: Make) -> None:
    """Ten megabytes, images for example, are more than any buffer takes at once."""
    body = b'{"a":"' + b"x" * 10_000_000 + b'"}'
    async with serving(faults.answers) as server:
        assert (await make(server.url).send(PATH, body, 20)).status == 200
    assert orjson.loads(server.seen[0].body) == orjson.loads(body)


async def test_a_server_error_keeps_its_connection(make: Make) -> None:
    """An endpoint in trouble is not also troubled with handshakes."""
    async with serving(faults.answering(b"{}", "500 Oops")) as server:
        transport = make(server.url)
        for _ in range(5):
            await transport.send(PATH, BODY, 5)
        assert server.connections == 1


# ---- replies that must not be mixed up


INJECTED = b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"injected"'


@directly
@pytest.mark.parametrize("extra", [b"garbage", b"HTT", INJECTED, b"\r\n\r\n" + INJECTED])
async def test_what_follows_a_reply_is_no_answer_to_the_next_request(make: Make, extra: bytes) -> None:
    """A body longer than its Content-Length, or a second reply: neither is what the next request gets."""
    async with serving(faults.sending(WHOLE + extra)) as server:
        transport = make(server.url)
        for count in (1, 2, 3):
            assert (await transport.send(PATH, BODY, 5)).body == ANSWER
            assert server.connections == count


@directly
async def test_a_reply_that_nobody_asked_for_answers_nothing(make: Make) -> None:
    """What arrives on an idle connection ends it (response splitting, or a server that is out of step)."""
    async with serving(faults.answers_unasked) as server:
        transport = make(server.url)
        for count in (1, 2, 3):
            assert (await transport.send(PATH, BODY, 5)).body == ANSWER
            await asyncio.sleep(0.1)
            assert server.connections == count


async def test_an_empty_reply_is_a_reply(make: Make) -> None:
    """A 200 without a body is for the classifier to judge."""
    async with serving(faults.answering(b"")) as server:
        assert (await make(server.url).send(PATH, BODY, 5)).body == b""


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("status", ["200 OK", "500 Oops"])
async def test_a_reply_that_is_too_large_is_given_up_while_it_is_read(make: Make, announced: bool, status: str) -> None:
    """Of 100 MB hardly more than the bound is taken in, with any status and whether or not the size was announced."""
    sizes: list[int] = []
    async with serving(faults.huge(announced, status, sizes)) as server:
        error = await fails(make(server.url, max_reply_bytes=1_000_000))
        async with asyncio.timeout(10):
            await server.until(lambda: server.open == 0)
    assert (error.kind, error.sent) == ("malformed", True)
    assert "1,000,000 bytes" in str(error)
    assert sizes[0] < 50_000_000


async def test_a_decompression_bomb_is_bounded_by_what_it_becomes(make: Make) -> None:
    """The bound counts decompressed bytes, and of the 64 MiB no more than the bound is ever unpacked."""
    async with serving(faults.sends_bomb) as server:
        transport = make(server.url, max_reply_bytes=1_000_000)
        tracemalloc.start()
        try:
            error = await fails(transport)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert error.kind == "malformed"
    assert peak < 16_000_000


async def test_a_large_reply_within_the_bound_arrives(make: Make) -> None:
    """Embeddings of a few megabytes are ordinary."""
    body = b'{"data":"' + b"x" * 8_000_000 + b'"}'
    async with serving(faults.answering(body)) as server:
        assert (await make(server.url).send("/embeddings", BODY, 20)).body == body


# ---- what goes wrong


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (faults.resets_before_headers, "connection"),
        (faults.closes_before_headers, "connection"),
        (faults.resets_in_body, "connection"),
        (faults.truncates, "connection"),
        (faults.truncates_chunked, "connection"),
        (faults.talks_nonsense, "malformed"),
        (faults.lies_about_gzip, "malformed"),
        (faults.truncates_gzip, "malformed"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_broken_reply_is_an_error_of_unknown_outcome(make: Make, fault: faults.Fault, expected: str) -> None:
    """Whatever breaks after the request has gone out is an error, is not repeated, and may have been billed."""
    async with serving(fault) as server:
        error = await fails(make(server.url))
        assert len(server.seen) == 1
    assert (error.kind, error.sent) == (expected, True)
    assert classify_error(error).billed == "unknown"


AMBIGUOUS = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a list of lengths": b"Content-Length: 5, 6\r\n\r\nhello",
    "a negative length": b"Content-Length: -5\r\n\r\nhello",
    "a space before the colon": b"Content-Length : 5\r\n\r\nhello",
    "a folded header": b"X: a\r\n Content-Length: 5\r\n\r\nhello",
    "a control character": b"X: a\0b\r\nContent-Length: 5\r\n\r\nhello",
    "a bad chunk size": b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "a chunk too long": b"Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
}


@directly
@pytest.mark.parametrize("rest", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_ambiguous_framing_is_malformed(make: Make, rest: bytes) -> None:
    """Where two readers could disagree about where a reply ends, there is no reply."""
    async with serving(faults.sending(b"HTTP/1.1 200 OK\r\n" + rest)) as server:
        error = await fails(make(server.url))
        assert (error.kind, error.sent, len(server.seen)) == ("malformed", True, 1)


FLOODS = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-Flood: 1\r\n" * 1000),
    "one header": (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 10_000),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
async def test_headers_without_end_are_given_up(make: Make, flood: tuple[bytes, bytes]) -> None:
    """A header section is bounded, so that no server fills our memory with it."""
    async with serving(faults.flooding(*flood)) as server:
        error = await fails(make(server.url), timeout_s=10)
        async with asyncio.timeout(10):
            await server.until(lambda: server.open == 0)
    assert (error.kind, error.sent) == ("malformed", True)


@pytest.mark.parametrize("value", ["a\r\nX-Injected: b", "a\nb", "a\0b"])
async def test_a_header_that_would_be_two_is_not_sent(make: Make, value: str) -> None:
    """A key with a line break in it (of a file, say) is an error of the configuration, and does not show."""
    async with serving(faults.answers) as server:
        error = await fails(make(server.url, None, {"api-key": KEY + value}))
        assert (error.kind, error.sent, server.connections) == ("connection", False, 0)
    assert KEY not in str(error)


@pytest.mark.parametrize("fault", [faults.hangs, faults.ignores, faults.trickles], ids=lambda fault: fault.__name__)
async def test_the_timeout_covers_everything_and_closes_the_connection(make: Make, fault: faults.Fault) -> None:
    """A server that is silent, and one that trickles, are left at the timeout, and see the connection close."""
    async with serving(fault) as server:
        error = await fails(make(server.url), timeout_s=0.4)
        async with asyncio.timeout(5):
            await server.until(lambda: server.open == 0)
    assert (error.kind, error.sent) == ("timeout", True)


async def test_a_host_that_never_completes_the_handshake_was_sent_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time to connect has a bound of its own, so that the outcome is known."""
    monkeypatch.setattr(wire, "CONNECT_TIMEOUT_S", 0.5)
    with backlog_full() as url:
        error = await fails(make(url), timeout_s=20)
    assert (error.kind, error.sent) == ("timeout", False)


async def test_a_tls_handshake_that_hangs_was_sent_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on connecting covers TLS: no part of a request leaves before the handshake is done."""
    monkeypatch.setattr(wire, "CONNECT_TIMEOUT_S", 0.5)
    async with serving(faults.ignores) as server:
        error = await fails(make(server.url.replace("http", "https")), timeout_s=20)
    assert (error.kind, error.sent) == ("timeout", False)


async def test_a_short_timeout_ends_a_handshake_too(make: Make) -> None:
    """The attempt's timeout counts from the start of connecting."""
    with backlog_full() as url:
        assert (await fails(make(url), timeout_s=0.3)).kind == "timeout"


async def test_no_time_left_sends_nothing(make: Make) -> None:
    """A call whose time is over is not sent."""
    async with serving(faults.answers) as server:
        error = await fails(make(server.url), timeout_s=0)
    assert (error.kind, error.sent, server.connections) == ("timeout", False, 0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://no-such-host.invalid/v1"])
async def test_what_cannot_be_reached_was_sent_nothing(make: Make, url: str) -> None:
    """A refused connection and an unknown name are surely not billed."""
    error = await fails(make(url))
    assert (error.kind, error.sent) == ("connection", False)
    assert classify_error(error).billed == "no"
    assert "could not connect" in str(error)


async def test_a_certificate_that_nobody_signed_is_refused(make: Make, tmp_path: Path) -> None:
    """TLS is verified, and its failure happens before the key is sent."""
    context, _ = self_signed(tmp_path)
    async with serving(faults.answers, tls=context) as server:
        error = await fails(make(server.url))
        assert not server.seen
    assert (error.kind, error.sent) == ("connection", False)


async def test_a_private_authority_can_be_trusted(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE is how a company's own authority is made known."""
    context, certificate = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with serving(faults.answers, tls=context) as server:
        assert (await make(server.url).send(PATH, BODY, 5)).status == 200


async def test_plain_http_at_a_tls_port_is_an_error(make: Make, tmp_path: Path) -> None:
    """http:// for https:// in the configuration ends in an error, not in a hang."""
    context, _ = self_signed(tmp_path)
    async with serving(faults.answers, tls=context) as server:
        error = await fails(make(server.url.replace("https", "http")))
    assert error.kind in ("connection", "malformed")


async def test_a_connection_closed_while_idle_is_replaced(make: Make) -> None:
    """Each request succeeds and is seen once, though the server closes the connection after every answer."""
    async with serving(faults.answers_once_then_closes) as server:
        transport = make(server.url)
        for _ in range(10):
            assert (await transport.send(PATH, BODY, 5)).status == 200
            await asyncio.sleep(0.02)
        assert len(server.seen) == 10


async def test_a_request_that_was_read_is_never_sent_again(make: Make) -> None:
    """When a reused connection dies after the request was read, the caller hears of it: the outcome is unknown."""
    async with serving(faults.answers_once_then_drops) as server:
        transport = make(server.url)
        await transport.send(PATH, BODY, 5)
        error = await fails(transport)
        assert (error.kind, error.sent) == ("connection", True)
        assert len(server.seen) == 2
        assert (await transport.send(PATH, BODY, 5)).status == 200


# ---- cancelling, closing, many at once


async def test_cancelling_closes_the_connection(make: Make) -> None:
    """The server of a cancelled request sees its connection close, and the transport stays usable."""
    async with serving(faults.hangs) as server:
        transport = make(server.url)
        task = asyncio.create_task(transport.send(PATH, BODY, 30))
        async with asyncio.timeout(10):
            await server.until(lambda: len(server.seen) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.until(lambda: server.open == 0)


async def test_cancelling_while_the_body_arrives_closes_the_connection(make: Make) -> None:
    """A half-read reply is not left to arrive in a pool."""
    async with serving(faults.trickles) as server:
        task = asyncio.create_task(make(server.url).send(PATH, BODY, 30))
        async with asyncio.timeout(10):
            await server.until(lambda: len(server.seen) == 1)
            await asyncio.sleep(0.25)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.until(lambda: server.open == 0)


async def test_a_thousand_cancellations_leak_nothing(make: Make) -> None:
    """After 1,000 requests cancelled at random stages no connection and no file descriptor is left over."""
    async with serving(faults.hangs) as server:
        transport = make(server.url)

        async def cancel_some(count: int) -> None:
            tasks = [asyncio.create_task(transport.send(PATH, BODY, 30)) for _ in range(count)]
            for number, task in enumerate(tasks):
                asyncio.get_running_loop().call_later(number % 5 * 0.02, task.cancel)
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)

        async with asyncio.timeout(60):
            await cancel_some(50)
            await server.until(lambda: server.open == 0)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(20):
                await cancel_some(50)
            await server.until(lambda: server.open == 0)
        assert len(os.listdir("/proc/self/fd")) <= before + 5


async def test_connections_are_as_many_as_requests_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 at once, three times over, need 200 connections and no more; idle ones are closed after a while."""
    monkeypatch.setattr(wire, "IDLE_S", 8.0)
    async with serving(faults.answers) as server:
        transport = make(server.url)
        for _ in range(3):
            replies = await asyncio.gather(*(transport.send(PATH, BODY, 30) for _ in range(200)))
            assert [reply.body for reply in replies] == [ANSWER] * 200
        assert server.connections <= 200
        async with asyncio.timeout(40):
            await server.until(lambda: server.open == 0)


async def test_two_thousand_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport itself sets no limit: 2,000 requests are in flight together and all are answered."""
    # 2,000 through the SDK hold the loop for seconds, and a connection that was made meanwhile would look late.
    monkeypatch.setattr(wire, "CONNECT_TIMEOUT_S", 50.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Both ends of every connection are in this process.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    count = 2000 if resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 4300 else 300
    waiting = asyncio.Event()

    async def together(conn: faults.Conn) -> None:
        await conn.request()
        if len(conn.server.seen) == count:
            waiting.set()
        await waiting.wait()
        await conn.reply()
        await conn.until_closed()

    async with serving(together) as server:
        transport = make(server.url)
        async with asyncio.timeout(60):
            replies = await asyncio.gather(*(transport.send(PATH, BODY, 50) for _ in range(count)))
        await transport.aclose()
    assert [reply.body for reply in replies] == [ANSWER] * count


async def test_closing_ends_what_is_in_flight(make: Make) -> None:
    """A transport that is closed fails its requests at once, and refuses new ones."""
    async with serving(faults.hangs) as server:
        transport = make(server.url)
        tasks = [asyncio.create_task(transport.send(PATH, BODY, 30)) for _ in range(10)]
        async with asyncio.timeout(10):
            await server.until(lambda: len(server.seen) == 10)
            await transport.aclose()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            await server.until(lambda: server.open == 0)
        assert all(isinstance(error, TransportError) and error.kind == "connection" for error in errors)
        assert (await fails(transport)).sent is False


async def test_the_loop_runs_on_while_requests_wait(make: Make) -> None:
    """Connecting, resolving and waiting happen off the loop's time: other tasks get their turns."""
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    with backlog_full() as url:
        transport = make(url)
        await fails(transport, timeout_s=0.05)  # the first send also builds the client
        ticking = asyncio.create_task(tick())
        await asyncio.gather(*(fails(transport, timeout_s=1.0) for _ in range(20)))
        ticking.cancel()
    assert turns > 20


# ---- proxies


async def test_a_proxy_of_the_environment_is_used(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where HTTP_PROXY is the only way out, requests take it."""
    async with serving(faults.answers) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        reply = await make("http://llm.invalid/v1").send(PATH, BODY, 5)
    assert reply.status == 200
    assert proxy.seen[0].target == "http://llm.invalid/v1/chat/completions"


async def test_https_goes_through_a_proxy_as_a_tunnel(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTPS_PROXY sees a CONNECT and no key; a proxy that refuses it was sent nothing of the request."""
    async with serving(faults.answering(b"", "403 Forbidden")) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        error = await fails(make("https://llm.invalid/v1"))
    assert (proxy.seen[0].method, proxy.seen[0].target) == ("CONNECT", "llm.invalid:443")
    assert KEY not in str(proxy.seen)
    assert (error.kind, error.sent) == ("connection", False)


async def test_no_proxy_is_obeyed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY names hosts that are reached directly."""
    async with serving(faults.answers) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "llm.invalid")
        await fails(make("http://llm.invalid/v1"))
    assert proxy.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_loopback_address_never_takes_a_proxy(make: Make, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """A local server is reached locally, whatever the environment says."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serving(faults.answers) as server:
        assert (await make(f"http://{host}:{server.port}/v1").send(PATH, BODY, 5)).status == 200


# ---- loops and processes


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_both_event_loops(kind: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A reply, a timeout and a cancellation are the same on either loop, also one loop after another."""

    async def scenario() -> None:
        async with serving(faults.answers) as good, serving(faults.hangs) as bad:
            answering, hanging = (KINDS[kind](Endpoint(server.url, Secret(KEY))) for server in (good, bad))
            assert (await answering.send(PATH, BODY, 5)).status == 200
            assert (await fails(hanging, timeout_s=0.2)).kind == "timeout"
            seen = len(bad.seen)  # none, where connecting took all of the short timeout
            task = asyncio.create_task(hanging.send(PATH, BODY, 30))
            async with asyncio.timeout(10):
                await bad.until(lambda: len(bad.seen) > seen)
                task.cancel()
                await asyncio.wait([task])
                await bad.until(lambda: bad.open == 0)
            await answering.aclose()
            await hanging.aclose()

    for _ in range(2):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(scenario())


CHILD = """
import asyncio, sys
from tests.e2e.test_transports import BODY, KINDS, PATH
from actors.tier.transport import Endpoint
async def main():
    transport = KINDS[sys.argv[1]](Endpoint(sys.argv[2]))
    tasks = [asyncio.create_task(transport.send(PATH, BODY, 60)) for _ in range(5)]
    await asyncio.sleep(60 if sys.argv[3] == "stay" else 1)
asyncio.run(main())
"""


async def child(kind: str, server: FaultServer, how: str) -> asyncio.subprocess.Process:
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, kind, server.url, how, cwd=root)
    async with asyncio.timeout(60):
        await server.until(lambda: len(server.seen) == 5 or process.returncode is not None)
    return process


async def test_a_killed_process_leaves_no_connection(kind: str) -> None:
    """SIGKILL in mid-request closes every connection at the server."""
    async with serving(faults.hangs) as server:
        process = await child(kind, server, "stay")
        process.kill()
        async with asyncio.timeout(10):
            await server.until(lambda: server.open == 0)
            await process.wait()


async def test_a_process_that_ends_without_closing_does_not_hang(kind: str) -> None:
    """The client's own threads do not hold up the end of a process with requests in flight."""
    async with serving(faults.hangs) as server:
        process = await child(kind, server, "leave")
        async with asyncio.timeout(30):
            assert await process.wait() == 0


# ---- secrets


async def everything_said(transport: Transport) -> list[str]:
    """Every form in which the outcome of one send could be shown or kept."""
    failure: TransportError | None = None
    try:
        reply = await transport.send(PATH, BODY, 0.4)
    except TransportError as error:
        failure = error
    if failure is None:
        outcome = classify_reply(reply.status, reply.headers, reply.body, PATH, 0.0, (KEY,))
        return [repr(outcome), repr(pickle.dumps(outcome))]
    assert failure.__context__ is None
    again = pickle.loads(pickle.dumps(failure))
    assert (again.kind, again.message, again.sent) == (failure.kind, failure.message, failure.sent)
    shown = [*traceback.format_exception(failure), repr(failure), repr(vars(failure)), repr(pickle.dumps(failure))]
    return [*shown, repr(classify_error(failure, (KEY,)))]


async def test_the_key_is_in_nothing_but_the_request(
    make: Make, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Canary: no error, traceback, repr, log record, output or classified outcome carries the key, whatever happens."""
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    echo = orjson.dumps({"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}})
    part = orjson.dumps({"error": {"message": f"bad key {KEY[:12]}... and ...{KEY[-8:]}"}})
    for fault in (
        faults.answers,
        faults.answering(echo, "401 Unauthorized"),
        faults.answering(part, "400 Bad Request"),
        faults.answering(f"<html>{KEY}</html>".encode()),
        faults.answering(b"", "302 Found", f"Location: http://127.0.0.1:1/?key={KEY}"),
        faults.resets_before_headers,
        faults.talks_nonsense,
        faults.hangs,
    ):
        async with serving(fault) as server:
            url = f"{server.url}?key={KEY}"
            for transport in (make(server.url), make(url, None, {"api-key": KEY})):
                said += [repr(transport), str(transport)]
                said += await everything_said(transport)
    said += [record.getMessage() + repr(record.args) for record in caplog.records]
    said += capfd.readouterr()
    assert len(said) > 30
    for text in said:
        assert KEY not in text
        assert KEY[:12] not in text
        assert KEY[-8:] not in text


def test_secrets_and_endpoints_show_nothing_and_are_never_pickled() -> None:
    """Every way of turning a secret into text or bytes is closed but `reveal`."""
    secret = Secret(KEY)
    endpoint = Endpoint(f"https://host/v1?key={KEY}", secret, {"Authorization": f"Bearer {KEY}"})
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", "%s" % secret, repr([secret])]  # noqa: UP031
    assert KEY not in "".join([*shown, repr(endpoint), str(endpoint), repr({"endpoint": endpoint})])
    for value in (secret, endpoint, Endpoint("http://h/v1")):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError):
                pickle.dumps(value, protocol)
        with pytest.raises(TypeError):
            copy.deepcopy(value)
    with pytest.raises(TypeError):
        orjson.dumps(secret)
    assert secret.reveal() == KEY
    assert endpoint.secrets() == (KEY,)
    with pytest.raises(ConfigError) as caught:
        Endpoint(f"https://user:{KEY}@host/v1")
    assert KEY not in f"{caught.value!r}{caught.value}"


async def test_a_token_provider_that_fails_is_an_unsent_request() -> None:
    """What an SDK token provider raises stays inside, text and all, and nothing was sent."""

    async def provider() -> str:
        raise RuntimeError(f"token service said no to {KEY}")

    async with serving(faults.answers) as server:
        given = openai.AsyncOpenAI(base_url=server.url, api_key=provider)
        transport = SdkTransport(Endpoint(server.url), client=given)
        error = await fails(transport)
        await transport.aclose()
        assert not server.seen
    assert (error.kind, error.sent) == ("connection", False)
    assert KEY not in str(error)
    assert error.__context__ is None


async def test_a_token_provider_is_asked_for_each_request() -> None:
    """What the sdk transport is for: a token that changes."""
    tokens = iter(["t-1", "t-2"])

    async def provider() -> str:
        return next(tokens)

    async with serving(faults.answers) as server:
        given = openai.AsyncOpenAI(base_url=server.url, api_key=provider, max_retries=2)
        transport = SdkTransport(Endpoint(server.url), client=given)
        for _ in range(2):
            reply = await transport.send(PATH, BODY, 5)
            assert isinstance(classify_reply(reply.status, reply.headers, reply.body, PATH, 0.0), Whole)
        await transport.aclose()
        assert [seen.headers["authorization"] for seen in server.seen] == ["Bearer t-1", "Bearer t-2"]
