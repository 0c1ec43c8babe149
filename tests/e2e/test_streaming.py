"""The whole chain on real connections: the mock endpoint, a transport, events and the rules of a stream."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from actors.messages import Usage
from actors.tier.stream_rules import Broken, Complete, Delta, StreamReader, ask_usage
from actors.tier.streaming import follow
from actors.tier.transport import Endpoint, Transport
from actors.tier.wire import WireTransport
from runtime.mock.process import MockProcess
from tests.e2e.test_transport_streams import STREAM, chunk
from tests.e2e.test_transports import PATH
from tests.faults.servers import Conn, Fault, serving

FAULTS = ["truncated", "malformed", "reset_mid_body", "bad_event", "no_done", "error_event"]
SAYS = chunk(b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n')
STOPS = chunk(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    conduct = {"tokens": 40, "tokens_per_s": 400}
    tiers: dict[str, Any] = {name: {**conduct, name: 1.0} for name in FAULTS}
    with MockProcess({"tiers": {"good": conduct, **tiers}}) as running:
        yield running


def request(**fields: Any) -> bytes:
    asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}], **fields}
    return orjson.dumps(asked)


async def story(
    transport: Transport, body: bytes, path: str = PATH, first_token_timeout_s: float | None = None, choices: int = 1
) -> tuple[list[Delta], Complete | Broken]:
    """Everything that was passed on, and how it ended."""
    sent, asked = ask_usage(body)
    reader = StreamReader(path, choices, usage_for_caller=asked)
    deltas: list[Delta] = []
    try:
        async with asyncio.timeout(20):
            streamed = await transport.stream(path, sent, 10, 10)
            async for told in follow(streamed, reader, first_token_timeout_s):
                if isinstance(told, list):
                    deltas += told
                else:
                    end = told
    finally:
        await transport.aclose()
    return deltas, end


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def whole_text(mock: MockProcess) -> str:
    deltas, end = await story(WireTransport(Endpoint(mock.tier_url("good"))), request())
    assert isinstance(end, Complete)
    return text_of(deltas)


async def test_a_whole_answer(mock: MockProcess) -> None:
    """Its text, model and usage; and the caller that did not ask for usage sees none."""
    deltas, end = await story(WireTransport(Endpoint(mock.tier_url("good"))), request())
    assert text_of(deltas).startswith("echo ")
    assert end == Complete(Usage(9, 40), "m", 0, True)
    assert not any(b'"usage"' in delta.data for delta in deltas)
    asking = request(stream_options={"include_usage": True})
    again, _ = await story(WireTransport(Endpoint(mock.tier_url("good"))), asking)
    assert b'"prompt_tokens":9' in again[-1].data
    assert text_of(again) == text_of(deltas)


async def test_several_choices_and_completions(mock: MockProcess) -> None:
    """n of 3 is whole when all three are; completions stream too."""
    _, end = await story(WireTransport(Endpoint(mock.tier_url("good"))), request(n=3), choices=3)
    assert end == Complete(Usage(9, 120), "m", 0, True)
    body = orjson.dumps({"model": "m", "stream": True, "prompt": "hello"})
    deltas, end = await story(WireTransport(Endpoint(mock.tier_url("good"))), body, "/completions")
    assert isinstance(end, Complete)
    assert text_of(deltas).startswith("echo ")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("truncated", "malformed"),
        ("malformed", "malformed"),
        ("reset_mid_body", "connection"),
        ("error_event", "server"),
    ],
)
async def test_a_broken_answer_is_never_complete(mock: MockProcess, fault: str, kind: str) -> None:
    """What was said is a beginning of the answer, and the end says what happened."""
    deltas, end = await story(WireTransport(Endpoint(mock.tier_url(fault))), request())
    assert isinstance(end, Broken)
    assert (end.failure.kind, end.failure.billed) == (kind, "unknown")
    assert (await whole_text(mock)).startswith(text_of(deltas))


async def test_one_bad_event_is_passed_over(mock: MockProcess) -> None:
    """The rest of the answer is whole."""
    deltas, end = await story(WireTransport(Endpoint(mock.tier_url("bad_event"))), request())
    assert end == Complete(Usage(9, 40), "m", 1, True)
    assert text_of(deltas) == await whole_text(mock)


async def test_an_answer_without_done_does_not_wait_for_it(mock: MockProcess) -> None:
    """The endpoint keeps the connection open for ever; the answer ends, and the connection is closed."""
    deltas, end = await story(WireTransport(Endpoint(mock.tier_url("no_done"))), request())
    assert end == Complete(Usage(9, 40), "m", 0, False)
    assert text_of(deltas) == await whole_text(mock)
    async with asyncio.timeout(5):
        while mock.stats()["tiers"]["no_done"]["in_flight"]:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.02)


def sends_then_waits(*pieces: bytes) -> Fault:
    async def fault(conn: Conn) -> None:
        await conn.request()
        await conn.write(STREAM)
        for piece in pieces:
            await conn.write(piece)
        await conn.until_closed()

    return fault


async def pings_on(conn: Conn) -> None:
    await conn.request()
    await conn.write(STREAM + SAYS + STOPS)
    while True:
        await asyncio.sleep(0.1)
        await conn.write(chunk(b": ping\n\n"))


@pytest.mark.parametrize("fault", [sends_then_waits(SAYS, STOPS), pings_on], ids=["silent", "pings"])
async def test_usage_that_does_not_come_is_waited_for_a_moment(fault: Fault) -> None:
    """The answer is whole without it; what it cost is counted from what was sent."""
    async with serving(fault) as server:
        started = time.monotonic()
        _, end = await story(WireTransport(Endpoint(server.url)), request())
        assert end == Complete(None, "m", 0, False)
        assert time.monotonic() - started < 8


async def test_no_first_token_in_time() -> None:
    """A role, comments and pings are no token: they do not hold a caller up for ever."""
    role = chunk(b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n')
    async with serving(sends_then_waits(role, chunk(b": ping\n\n"))) as server:
        deltas, end = await story(WireTransport(Endpoint(server.url)), request(), first_token_timeout_s=0.3)
        assert [delta.said for delta in deltas] == [False]
        assert isinstance(end, Broken)
        assert end.failure.kind == "timeout"
    async with serving(sends_then_waits(SAYS, STOPS)) as server:
        assert isinstance(
            (await story(WireTransport(Endpoint(server.url)), request(), first_token_timeout_s=5))[1], Complete
        )


async def test_whoever_leaves_closes_the_request(mock: MockProcess) -> None:
    """A consumer that stops iterating, or is cancelled, ends the upstream request."""
    transport = WireTransport(Endpoint(mock.tier_url("good")))
    before = mock.stats()["tiers"]["good"]["abandoned"]
    following = follow(await transport.stream(PATH, request(), 10, 10), StreamReader(PATH))
    await anext(following)
    await following.aclose()

    async def read() -> None:
        async for _ in follow(await transport.stream(PATH, request(), 10, 10), StreamReader(PATH)):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    async with asyncio.timeout(5):
        while mock.stats()["tiers"]["good"]["abandoned"] < before + 2:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.02)
    await transport.aclose()


async def test_complete_streams_share_a_connection() -> None:
    """The last chunk comes a moment behind `[DONE]`, and the connection is used again all the same."""

    async def fault(conn: Conn) -> None:
        while True:
            await conn.request()
            await conn.write(STREAM + SAYS + STOPS + chunk(b"data: [DONE]\n\n"))
            await asyncio.sleep(0.02)
            await conn.write(b"0\r\n\r\n")

    async with serving(fault) as server:
        transport = WireTransport(Endpoint(server.url))
        for _ in range(3):
            streamed = await transport.stream(PATH, request(), 10, 10)
            ends = [told async for told in follow(streamed, StreamReader(PATH)) if isinstance(told, Complete)]
            assert ends == [Complete(None, "m", 0, True)]
        assert server.connections == 1
        await transport.aclose()
