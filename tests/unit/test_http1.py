"""The wire's own HTTP/1.1 client, on both event loops: what only it does, beyond the contract of all transports."""

import asyncio
import contextlib
import gzip
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
import yarl

from actors.tier.http1 import Http1Client, Request, reason
from actors.tier.transport import Reply, TransportError
from tests.faults import servers as faults
from tests.faults.servers import ANSWER, backlog_full, self_signed, serving

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
HEADERS = {"Authorization": "Bearer sk-canary"}
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Client:
    """An Http1Client that posts to one address."""

    def __init__(self, url: str, max_reply_bytes: int = 1_000_000, connect_s: float = 5.0, idle_s: float = 4.0) -> None:
        self.http = Http1Client(max_reply_bytes, connect_s, idle_s)
        self.request = Request(yarl.URL(url), HEADERS)

    async def post(self, timeout_s: float = 5.0, body: bytes = b"{}") -> Reply:
        async with asyncio.timeout(30):
            return await self.http.post(self.request, body, timeout_s)

    async def fails(self, timeout_s: float = 5.0) -> TransportError:
        with pytest.raises(TransportError) as caught:
            await self.post(timeout_s)
        assert caught.value.__context__ is None
        return caught.value


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run(scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(scenario)

    return run


Run = Callable[[Coroutine[Any, Any, None]], None]


class Script:
    """A server in a thread of its own, which goes on while the client's loop is held up."""

    def __init__(self, conduct: Callable[[socket.socket, int, threading.Event], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.go = threading.Event()
        self.connections = 0
        self._conduct = conduct
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, contextlib.suppress(OSError):
                self._conduct(connection, self.connections, self.go)

    def close(self) -> None:
        # Closing alone does not wake the thread.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def answer(connection: socket.socket, body: bytes = ANSWER) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


# ---- the head


def test_the_head_is_what_http_asks_for() -> None:
    """Host, Accept-Encoding and the given headers, with the query, and never a byte that ends a line."""
    request = Request(yarl.URL("http://h.example:8080/v1/a bä?q=%2F\0", encoded=True), {"X-A": "b"})
    assert request.head.split(b"\r\n") == [
        b"POST /v1/a%20b%C3%A4?q=%2F%00 HTTP/1.1",
        b"Host: h.example:8080",
        b"Accept-Encoding: gzip",
        b"X-A: b",
        b"Content-Length: ",
    ]
    assert b"Host: [::1]:8000\r\n" in Request(yarl.URL("http://[::1]:8000/"), {}).head
    assert b"Host: h.example\r\n" in Request(yarl.URL("https://h.example/"), {}).head


def test_headers_of_the_endpoint_replace_ours() -> None:
    """One Host and one Accept-Encoding, however they are spelt."""
    head = Request(yarl.URL("http://h/"), {"HOST": "front", "accept-encoding": "identity"}).head.lower()
    assert head.count(b"host:") == head.count(b"accept-encoding:") == 1
    assert b"host: front\r\naccept-encoding: identity\r\n" in head


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("X", value) for value in ("a\rb", "a\nb", "a\0b", "a\x7fb", "snow \u2603")],
        *[(name, "1") for name in ("", "a b", "a:", "a\r\nb", "\u00e4", "Content-Length", "transfer-encoding")],
    ],
)
def test_a_header_that_is_not_one_is_refused(name: str, value: str) -> None:
    """Nothing in a name or a value can end its line, and the framing is the client's own."""
    with pytest.raises(ValueError):
        Request(yarl.URL("http://h/"), {name: value})


@pytest.mark.parametrize("url", ["/v1", "ftp://h/", "http:///v1"])
def test_an_address_without_a_host_or_of_another_kind_is_refused(url: str) -> None:
    """Only http and https, and only with a host."""
    with pytest.raises(ValueError):
        Request(yarl.URL(url, encoded=True), {})


def test_a_reason_names_no_address() -> None:
    """asyncio writes host and port into its OSErrors."""
    assert reason(ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 443)")) == "Connection refused"
    assert reason(socket.gaierror(-2, "Name or service not known")) == "Name or service not known"
    assert reason(OSError("Multiple exceptions: ('10.0.0.1', 443)")) == "OSError"


# ---- the pool


def test_a_reply_that_waits_unread_on_an_idle_connection_answers_nothing(run: Run) -> None:
    """Also when the loop was held up and has not seen it yet: the socket itself is asked before it is used again."""

    def conduct(connection: socket.socket, number: int, go: threading.Event) -> None:
        answer(connection)
        if number == 1:
            go.wait(10)
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"injected"')
            connection.recv(1)

    async def scenario() -> None:
        script = Script(conduct)
        client = Client(script.url)
        assert (await client.post()).body == ANSWER
        script.go.set()
        time.sleep(0.2)  # noqa: ASYNC251
        assert (await client.post()).body == ANSWER
        assert script.connections == 2
        await client.http.aclose()
        script.close()

    run(scenario())


def test_an_end_that_the_loop_has_not_seen_is_no_failure(run: Run) -> None:
    """A connection that was closed before the request was written is replaced, however late the loop hears of it."""

    def conduct(connection: socket.socket, number: int, go: threading.Event) -> None:
        answer(connection)
        go.wait(10)

    async def scenario() -> None:
        script = Script(conduct)
        client = Client(script.url)
        await client.post()
        script.go.set()
        time.sleep(0.2)  # noqa: ASYNC251
        assert (await client.post()).body == ANSWER
        assert script.connections == 2
        await client.http.aclose()
        script.close()

    run(scenario())


def test_the_last_used_is_used_first_and_the_others_age_out(run: Run) -> None:
    """After a burst the connections that nobody needs are closed, while one goes on."""

    async def scenario() -> None:
        async with serving(faults.answers) as server:
            client = Client(server.url, idle_s=0.4)
            await asyncio.gather(*(client.post() for _ in range(20)))
            assert server.open == 20
            for _ in range(10):
                await client.post()
                await asyncio.sleep(0.1)
            assert (server.open, server.connections) == (1, 20)
            async with asyncio.timeout(5):
                await server.until(lambda: server.open == 0)
            assert not client.http._open
            await client.http.aclose()

    run(scenario())


def test_a_server_that_hangs_up_at_once_was_sent_nothing(run: Run) -> None:
    """Or speaks before it is asked: nothing is written to such a connection, new as it is."""

    async def scenario() -> None:
        async with serving(faults.answers) as server:
            client = Client(server.url)
            dial = client.http._dial

            async def dial_and_wait(origin: Any) -> Any:
                connection = await dial(origin)
                connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
                return connection

            client.http._dial = dial_and_wait  # type: ignore[method-assign]
            error = await client.fails()
            assert (error.kind, error.sent, len(server.seen)) == ("connection", False, 0)
            await client.http.aclose()

    run(scenario())


def test_many_origins_are_kept_apart(run: Run) -> None:
    """A provider that rewrites the address never gets a connection to another host."""

    async def scenario() -> None:
        async with serving(faults.answering(b"one")) as one, serving(faults.answering(b"two")) as two:
            client = Client(one.url)
            other = Request(yarl.URL(two.url), {})
            for _ in range(3):
                assert (await client.post()).body == b"one"
                assert (await client.http.post(other, b"", 5)).body == b"two"
            assert (one.connections, two.connections) == (1, 1)
            await client.http.aclose()

    run(scenario())


# ---- time


def test_each_request_has_its_own_timeout(run: Run) -> None:
    """On one connection: a long one, a short one that is kept, and a long one that outlives the short one's time."""

    async def slowly(conn: faults.Conn) -> None:
        for pause_s in (0, 0, 0.7, 30):
            await conn.request()
            await asyncio.sleep(pause_s)
            await conn.reply()

    async def scenario() -> None:
        async with serving(slowly) as server:
            client = Client(server.url)
            for timeout_s in (30, 0.3, 5):
                await client.post(timeout_s)
            start = time.monotonic()
            error = await client.fails(0.3)
            assert 0.25 < time.monotonic() - start < 5
            assert (error.kind, error.sent, server.connections) == ("timeout", True, 1)
            await client.http.aclose()

    run(scenario())


def test_time_that_the_loop_lost_before_is_not_the_requests(run: Run) -> None:
    """uvloop's clock stands still while a callback runs; a timeout counts from when the request was made."""

    async def scenario() -> None:
        async with serving(faults.sending(b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as server:
            client = Client(server.url)
            await client.post()
            time.sleep(0.6)  # noqa: ASYNC251
            assert (await client.post(0.5)).status == 200
            await client.http.aclose()

    run(scenario())


def test_a_timeout_while_connecting_was_sent_nothing(run: Run) -> None:
    """Whichever of the two bounds ends it."""

    async def scenario() -> None:
        with backlog_full() as url:
            for client, timeout_s in ((Client(url, connect_s=0.2), 20.0), (Client(url), 0.2)):
                error = await client.fails(timeout_s)
                assert (error.kind, error.sent, str(error)) == ("timeout", False, "no connection within 0.2 s")
                await client.http.aclose()

    run(scenario())


# ---- cancelling and closing


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_what_ends_while_connecting_leaves_no_socket(run: Run, how: str) -> None:
    """In the TCP handshake and in the TLS handshake, by cancelling as by closing the client."""

    async def end(client: Client, before: int, reached: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.create_task(client.http.post(client.request, b"{}", 30))
        await reached()
        assert fds() > before
        if how == "cancel":
            task.cancel()
        else:
            await client.http.aclose()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if how == "cancel":
            assert isinstance(outcome, asyncio.CancelledError)
        else:
            assert isinstance(outcome, TransportError)
            assert (outcome.kind, outcome.sent) == ("connection", False)

    async def scenario() -> None:
        # The first of each makes what a loop keeps.
        for _ in range(2):
            with backlog_full() as url:
                before = fds()
                await end(Client(url), before, lambda: asyncio.sleep(0.1))
                await asyncio.sleep(0.05)
                assert fds() == before
            async with serving(faults.ignores) as server:
                before = fds()
                client = Client(server.url.replace("http", "https"))
                await end(client, before, lambda: server.until(lambda: server.open == 1))
                async with asyncio.timeout(5):
                    await server.until(lambda: server.open == 0)
                await asyncio.sleep(0.05)
                assert fds() <= before

    run(scenario())


def test_closing_ends_what_is_under_way_and_what_is_idle(run: Run) -> None:
    """Every connection is closed, and every caller hears that it was us."""

    async def scenario() -> None:
        async with serving(faults.hangs) as hanging, serving(faults.answers) as answering:
            client = Client(hanging.url)
            await client.http.post(Request(yarl.URL(answering.url), {}), b"", 5)
            tasks = [asyncio.create_task(client.post()) for _ in range(5)]
            async with asyncio.timeout(10):
                await hanging.until(lambda: len(hanging.seen) == 5)
                await client.http.aclose()
                for error in await asyncio.gather(*tasks, return_exceptions=True):
                    assert isinstance(error, TransportError)
                    assert (error.kind, error.sent) == ("connection", True)
                    assert "closed while" in str(error)
                await hanging.until(lambda: hanging.open == answering.open == 0)

    run(scenario())


def test_cancelling_what_is_answered_takes_no_connection_from_another(run: Run) -> None:
    """Between the reply and the caller's turn the connection may serve the next request already."""

    async def scenario() -> None:
        async with serving(faults.answers) as server:
            client = Client(server.url)
            await client.post()
            (connection,) = client.http._open
            for _ in range(50):
                task = asyncio.create_task(client.http.post(client.request, b"{}", 5))
                await asyncio.sleep(0)
                waiter = connection._waiter
                assert waiter is not None
                # Runs before the task's own turn, which comes with the same result.
                waiter.add_done_callback(lambda _, task=task: task.cancel())
                following = asyncio.create_task(asyncio.wait_for(asyncio.shield(waiter), 5))
                await following
                assert (await client.post()).body == ANSWER
                await asyncio.gather(task, return_exceptions=True)
            assert server.connections == 1
            await client.http.aclose()

    run(scenario())


# ---- what comes back


FLOODS = {
    "interim replies": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" * 500),
    "trailers": (CHUNKED + b"2\r\nhi\r\n0\r\n", b"X-Flood: 1\r\n" * 1000),
    "one trailer": (CHUNKED + b"2\r\nhi\r\n0\r\nX: ", b"x" * 10_000),
    "one chunk extension": (CHUNKED + b"2;", b"x" * 10_000),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_what_is_no_body_is_bounded(run: Run, flood: tuple[bytes, bytes]) -> None:
    """Whatever comes without end and without a byte of the body is given up."""

    async def scenario() -> None:
        async with serving(faults.flooding(*flood)) as server:
            client = Client(server.url)
            error = await client.fails(10)
            assert (error.kind, error.sent) == ("malformed", True)
            async with asyncio.timeout(5):
                await server.until(lambda: server.open == 0)
            await client.http.aclose()

    run(scenario())


@pytest.mark.parametrize("size", [60_000, 70_000])
def test_the_bound_of_the_headers_is_exact_when_all_comes_at_once(run: Run, size: int) -> None:
    """64 KiB of headers, with a large body in the same read or without it."""
    body = b"y" * 150_000
    head = b"HTTP/1.1 200 OK\r\nX: %s\r\nContent-Length: %d\r\n\r\n" % (b"x" * size, len(body))

    async def scenario() -> None:
        async with serving(faults.sending(head + body)) as server:
            client = Client(server.url)
            if size < 65536:
                for _ in range(2):
                    assert (await client.post()).body == body
                assert server.connections == 1
            else:
                assert (await client.fails()).kind == "malformed"
            await client.http.aclose()

    run(scenario())


MALFORMED = {
    "switching protocols": b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nPRI",
    "a bare 101": b"HTTP/1.1 101 X\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 X\r\nContent-Length: 2\r\n\r\nhi",
    "an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "a coding in two": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "an encoding not asked for": b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nhi",
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    "two gzip streams": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s"
    % (2 * len(gzip.compress(b"hi")), 2 * gzip.compress(b"hi")),
}


@pytest.mark.parametrize("reply", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_reply_to_us_is_malformed(run: Run, reply: bytes) -> None:
    """Upgrades, codings and encodings that were not asked for, and more than one reading of one reply."""

    async def scenario() -> None:
        async with serving(faults.sending(reply)) as server:
            client = Client(server.url)
            error = await client.fails()
            assert (error.kind, error.sent, len(server.seen)) == ("malformed", True, 1)
            await client.http.aclose()

    run(scenario())


def test_the_first_of_a_repeated_header_counts(run: Run) -> None:
    """Names are lower-cased, values stripped."""
    reply = b"HTTP/1.1 200 OK\r\nX-A:  one \t\r\nx-a: two\r\nE:\r\nContent-Length: 0\r\n\r\n"

    async def scenario() -> None:
        async with serving(faults.sending(reply)) as server:
            client = Client(server.url)
            assert (await client.post()).headers == {"x-a": "one", "e": "", "content-length": "0"}
            await client.http.aclose()

    run(scenario())


def test_tls_keeps_its_connection_and_carries_large_bodies(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several megabytes both ways over one TLS connection, http/1.1 agreed on."""
    context, certificate = self_signed(tmp_path)
    context.set_alpn_protocols(["h2", "http/1.1"])
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    agreed: list[str | None] = []
    body = b"z" * 3_000_000

    async def echoes(conn: faults.Conn) -> None:
        agreed.append(conn.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        while True:
            await conn.reply((await conn.request()).body)

    async def scenario() -> None:
        async with serving(echoes, tls=context) as server:
            client = Client(server.url, max_reply_bytes=len(body))
            for _ in range(3):
                assert (await client.post(20, body)).body == body
            assert (server.connections, agreed) == (1, ["http/1.1"])
            await client.http.aclose()
            async with asyncio.timeout(5):
                await server.until(lambda: server.open == 0)

    run(scenario())
