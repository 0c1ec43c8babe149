"""One streamed call of a tier over a scripted transport: what is asked, what is told of the reply's headers, how it ends."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from actors.messages import Answer, Chunk, Failure, StreamTerms, TierCall
from actors.tier.streaming import stream_call
from actors.tier.transport import Reply

TERMS = StreamTerms(5.0, 5.0)
RESPONSE = {
    "id": "r",
    "object": "response",
    "model": "m",
    "status": "completed",
    "output": [{"id": "i", "type": "message", "content": [{"type": "output_text", "text": "Hi"}]}],
    "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
}
CHAT = {
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


class ScriptedStream:
    """A Transport and its one reply."""

    def __init__(self, body: bytes, headers: Mapping[str, str]) -> None:
        self.status, self.headers = 200, headers
        self._body = body
        self.sent: dict[str, Any] = {}

    async def stream(self, path: str, body: bytes, first_byte_timeout_s: float, stall_timeout_s: float) -> Any:
        self.sent = orjson.loads(body)
        return self

    async def send(self, path: str, body: bytes, timeout_s: float) -> Reply:
        raise NotImplementedError

    def __aiter__(self) -> "ScriptedStream":
        return self

    async def __anext__(self) -> bytes:
        body, self._body = self._body, b""
        if not body:
            raise StopAsyncIteration
        return body

    async def aclose(self) -> None:
        pass


async def call(path: str, transport: ScriptedStream) -> tuple[Answer | Failure, list[Any], list[Mapping[str, str]]]:
    said: list[Chunk] = []
    advised: list[Mapping[str, str]] = []
    made = TierCall("r", path, b'{"model":"m","stream":true}', 5.0, 1.0, 1.0, 1)
    done = await stream_call(transport, made, TERMS, 0, (), said.extend, advised.append)  # type: ignore[arg-type]
    return done, [orjson.loads(chunk.data) for chunk in said], advised


def sse(*events: Mapping[str, Any]) -> bytes:
    return b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)


@pytest.mark.parametrize("whole", [False, True])
async def test_a_response_is_streamed_as_events_however_it_came(whole: bool) -> None:
    """Nothing is added to what is asked; an endpoint that answers in one piece has that said as a stream."""
    events = [
        {"type": "response.output_text.delta", "delta": "Hi"},
        {"type": "response.completed", "response": RESPONSE},
    ]
    kind = "application/json" if whole else "text/event-stream"
    transport = ScriptedStream(orjson.dumps(RESPONSE) if whole else sse(*events), {"content-type": kind})
    done, said, _ = await call("/responses", transport)
    assert isinstance(done, Answer)
    assert done.usage is not None
    assert (done.usage.total_tokens, done.model, transport.sent) == (7, "m", {"model": "m", "stream": True})
    assert [event["delta"] for event in said if "delta" in event] == ["Hi"]
    assert said[-1]["type"] == "response.completed"


@pytest.mark.parametrize("path", ["/responses", "/chat/completions"])
@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_the_headers_of_every_reply_are_told(path: str, kind: str) -> None:
    """So that a tier with streams alone learns its endpoint's rate limit as well."""
    headers = {"content-type": kind, "x-ratelimit-remaining-requests": "7"}
    _, _, advised = await call(path, ScriptedStream(b"{}", headers))
    assert advised == [headers]


async def test_a_chat_that_comes_in_one_piece_is_said_as_one_delta() -> None:
    done, said, _ = await call(
        "/chat/completions", ScriptedStream(orjson.dumps(CHAT), {"content-type": "application/json"})
    )
    assert isinstance(done, Answer)
    (chunk,) = said
    assert (chunk["object"], chunk["choices"][0]["delta"]["content"]) == ("chat.completion.chunk", "Hi")
    assert "usage" not in chunk
