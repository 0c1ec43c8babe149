"""The load of `benchmarks.gateway`: a process of its own that asks one address and measures what it gets.

    python -m benchmarks.gateway_load '{"kind": "streams", "url": ..., ...}'   ->  one JSON object on stdout

Raw asyncio over a C parser, since a client package would be slower than what is measured: some 15 microseconds of CPU a
chunk, where openai's client takes over 100. Every worker has a connection of its own and keeps it. All times are of the
machine's monotonic clock, which the mock writes into each token (`stamped` in runtime/mock/scenario.py), so that a chunk's
lag is from the endpoint's write to this reader, whatever lies between.

    plain     closed loop: each worker asks, waits for the answer, asks again
    streams   the same with streams; each chunk is checked to be the next of this very answer
    hangups   each worker asks once and hangs up after a random time
    openai    what a program without a gateway would do: streams through openai's AsyncOpenAI
"""

import asyncio
import json
import random
import re
import sys
import time
from array import array
from hashlib import sha256
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import httptools
import uvloop

__all__ = ["STAMPED"]

STAMPED = re.compile(rb"([0-9a-f]{16})\.(\d{6})\.(\d{16}) ")
LONGEST_STAMP = 64
ANSWER_S = 60.0
"""So long a worker waits for one answer or for a stream's next chunk."""
PADDING = "so that a prompt is about as long as one that people write: " * 6


class Settings(NamedTuple):
    kind: str
    url: str
    key: str
    model: str
    workers: int
    run: str
    """Makes the prompts of this run unlike those of any other, so that nothing is coalesced."""
    seconds: float = 5.0
    """No request begins after it."""
    each: int = 0
    """So many requests a worker and no more; 0: as many as there is time for."""
    warmup: int = 1
    """The first so many of each worker count for nothing."""
    max_tokens: int = 16
    spread_s: float = 0.0
    """The workers begin over this time, not all at once."""


class Broken(Exception):
    """No whole answer, or another one than this request's."""


class Connection(asyncio.Protocol):
    """One connection with one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self.now_us = 0
        self._clear()

    def _clear(self) -> None:
        self._done: asyncio.Future[None] | None = None
        self._head = b""
        self._expects = -1
        self._rest = b""
        self.first_us = 0
        self.lags_us: array[int] = array("q")
        self.chunks = 0
        self.reads = 0
        self.finished = self.had_done = False
        self.said = b""
        self.status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser: Any = httptools.HttpResponseParser(self)

    async def ask(self, request: bytes, head: bytes = b"") -> None:
        """Ends when the answer is whole. `head`: the hash that a stream's tokens must carry; empty: a plain answer."""
        assert self._transport is not None
        self._clear()
        self._head, self._expects = head, 0 if head else -1
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(ANSWER_S):
            await self._done

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    # asyncio

    def data_received(self, data: bytes) -> None:
        self.now_us = time.monotonic_ns() // 1000
        self.reads += 1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(Broken(f"no HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(Broken(f"the connection was lost after {self.chunks} chunks"))

    # httptools

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self.status != 200:
            self.said += body[:300]
            return
        if self._expects < 0:
            return
        data = self._rest + body
        end = 0
        for found in STAMPED.finditer(data):
            end = found.end()
            if found[1] != self._head:
                self._end(Broken(f"a chunk of another answer, {found[1]!r} for {self._head!r}"))
            elif int(found[2]) != self._expects:
                self._end(Broken(f"chunk {int(found[2])} where {self._expects} was due"))
            self._expects += 1
            self.first_us = self.first_us or self.now_us
            self.lags_us.append(self.now_us - int(found[3]))
        self.chunks = self._expects
        self._rest = data[max(end, len(data) - LONGEST_STAMP) :]
        if b"finish_reason" in data and (b'"finish_reason":"' in data or b'"finish_reason": "' in data):
            self.finished = True
        if b"[DONE]" in data:
            self.had_done = True

    def on_message_complete(self) -> None:
        if self.status != 200:
            self._end(Broken(f"{self.status} {self.said[:200]!r}"))
        elif self._expects >= 0 and not (self.finished and self.had_done):
            self._end(Broken(f"a stream that ends after {self.chunks} chunks without finish_reason and [DONE]"))
        else:
            self._end(None)

    def _end(self, error: Broken | None) -> None:
        if self._done is not None and not self._done.done():
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)


class Load:
    """The workers and what they measured."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        url = urlsplit(settings.url)
        self._host, self._port = url.hostname or "", url.port or 80
        self._path = f"{url.path.rstrip('/')}/chat/completions"
        self.took_us: array[int] = array("q")
        self.first_us: array[int] = array("q")
        self.lags_us: array[int] = array("q")
        self.answers = self.chunks = self.reads = 0
        self.broken: list[str] = []
        self.counting_from = 0.0
        self.last_at = 0.0

    def request(self, worker: int, number: int, stream: bool) -> tuple[bytes, bytes]:
        """The bytes of a request, and the hash that its answer carries."""
        settings = self.settings
        text = f"{settings.run} {worker} {number}: {PADDING}"
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": settings.max_tokens,
        }
        if stream:
            body["stream"] = True
        data = json.dumps(body).encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nAuthorization: Bearer {settings.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        ).encode()
        return head + data, sha256(text.encode()).hexdigest()[:16].encode()

    async def run(self) -> dict[str, Any]:
        settings = self.settings
        began = time.monotonic()
        work = self._hangup if settings.kind == "hangups" else self._worker
        await asyncio.gather(*(work(worker, began + settings.seconds) for worker in range(settings.workers)))
        wall_s = max(1e-9, (self.last_at or time.monotonic()) - (self.counting_from or began))
        return {
            "answers": self.answers,
            "answers_per_s": self.answers / wall_s,
            "took_ms": quantiles(self.took_us),
            "first_ms": quantiles(self.first_us),
            "lag_ms": quantiles(self.lags_us),
            "chunks": self.chunks,
            "chunks_per_s": self.chunks / wall_s,
            "chunks_a_read": self.chunks / self.reads if self.reads else 0.0,
            "broken": len(self.broken),
            "why": self.broken[:5],
            "wall_s": wall_s,
            "cpu_s": time.process_time(),
        }

    async def _worker(self, worker: int, until: float) -> None:
        settings = self.settings
        stream = settings.kind == "streams"
        if settings.spread_s:
            await asyncio.sleep(settings.spread_s * worker / settings.workers)
        connection: Connection | None = None
        number = 0
        while time.monotonic() < until and not (settings.each and number >= settings.each + settings.warmup):
            request, head = self.request(worker, number, stream)
            counts = number >= settings.warmup
            number += 1
            try:
                if connection is None or not connection.usable:
                    connection = await self._connect()
                if counts and not self.counting_from:
                    self.counting_from = time.monotonic()
                sent_us = time.monotonic_ns() // 1000
                await connection.ask(request, head if stream else b"")
            except (Broken, OSError, TimeoutError) as error:
                self.broken.append(f"{type(error).__name__} {error}"[:300])
                if connection is not None:
                    connection.drop()
                    connection = None
                await asyncio.sleep(0.05)
                continue
            if stream and connection.chunks != settings.max_tokens:
                self.broken.append(f"{connection.chunks} chunks of {settings.max_tokens}")
            if counts:
                self.last_at = time.monotonic()
                self.answers += 1
                self.took_us.append(time.monotonic_ns() // 1000 - sent_us)
                if stream:
                    self.first_us.append(connection.first_us - sent_us)
                    self.lags_us.extend(connection.lags_us)
                    self.chunks += connection.chunks
                    self.reads += connection.reads
        if connection is not None:
            connection.drop()

    async def _hangup(self, worker: int, until: float) -> None:
        """Even workers ask for a stream, odd ones for a plain answer, on a connection that has carried an answer before."""
        chance = random.Random(worker)
        await asyncio.sleep(self.settings.spread_s * worker / self.settings.workers)
        stream = worker % 2 == 0
        connection = await self._connect()
        await connection.ask(self.request(worker, 0, False)[0])
        request, head = self.request(worker, 1, stream)
        asking = asyncio.ensure_future(connection.ask(request, head if stream else b""))
        asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.sleep(chance.random() * self.settings.seconds)
        self.answers += asking.done()
        asking.cancel()
        connection.drop()

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        return connection


def quantiles(values: "array[int]") -> dict[str, float]:
    """In milliseconds."""
    if not values:
        return {}
    ordered = sorted(values)
    last = len(ordered) - 1
    return {name: ordered[round(last * q)] / 1e3 for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1))}


async def through_openai(settings: Settings) -> dict[str, Any]:
    """One AsyncOpenAI, as many streams as workers: the chunks a second that one process takes in."""
    import openai

    client = openai.AsyncOpenAI(
        base_url=settings.url, api_key=settings.key, max_retries=0, http_client=openai.DefaultAioHttpClient()
    )
    chunks = broken = 0
    until = time.monotonic() + settings.seconds
    began = time.monotonic()

    async def one(worker: int) -> None:
        nonlocal chunks, broken
        number = 0
        await asyncio.sleep(settings.spread_s * worker / settings.workers)
        while time.monotonic() < until and not (settings.each and number >= settings.each):
            number += 1
            text = f"{settings.run} {worker} {number}: {PADDING}"
            try:
                stream = await client.chat.completions.create(
                    model=settings.model,
                    messages=[{"role": "user", "content": text}],
                    max_tokens=settings.max_tokens,
                    stream=True,
                )
                async for chunk in stream:
                    chunks += bool(chunk.choices and chunk.choices[0].delta.content)
            except openai.OpenAIError:
                broken += 1

    await asyncio.gather(*(one(worker) for worker in range(settings.workers)))
    wall_s = time.monotonic() - began
    await client.close()
    return {
        "chunks": chunks,
        "chunks_per_s": chunks / wall_s,
        "broken": broken,
        "wall_s": wall_s,
        "cpu_s": time.process_time(),
    }


def main() -> int:
    settings = Settings(**json.loads(sys.argv[1]))
    print(json.dumps(uvloop.run(through_openai(settings) if settings.kind == "openai" else Load(settings).run())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
