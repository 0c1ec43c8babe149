"""The mock endpoint as users meet it: a real process, the real openai client, and raw bytes where HTTP itself is tested."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import openai
import pytest
from openai import OpenAI

from runtime.mock.content import echo
from runtime.mock.process import MockProcess

TIERS: dict[str, Any] = {
    "default": {},
    "slow": {"latency": 0.05},
    "single": {"latency": 0.01, "capacity": 1},
    "paced": {"tokens": 12, "tokens_per_s": 400},
    "dead": {"errors": [{"fraction": 1, "status": 503, "retry_after_s": 7, "message": "away", "code": "overloaded"}]},
    "hangs": {"hang": 1},
    "resets": {"reset": 1},
    "cuts": {"reset_mid_body": 1, "tokens": 200},
    "malformed": {"malformed": 1},
    "truncated": {"truncated": 1},
    "html": {"html": 1},
    "stalls": {"stall": 1},
    "trickles": {"trickle": 1},
    "huge": {"huge": 1},
    "redirects": {"redirect": 1},
    "mislabels": {"mislabeled": 1},
    "swaps": {"swapped": 1},
    "asks_for_time": {
        "errors": [
            {
                "fraction": 1,
                "status": 503,
                "retry_after_s": 90,
                "retry_after_as": "date",
                "headers": {"x-should-retry": "false"},
            }
        ]
    },
    "newer": {"answers_as": "gpt-2026-11"},
    "limited": {"rate_limit": {"per_minute": 1, "burst": 3, "retry_after_s": 9}},
    "small": {"context_tokens": 20},
    "counted": {"phases": [{"until_requests": 2}, {"until_requests": 3, "status": 500}, {}]},
    "scripted": {"replies": ["one {echo}", {"two": 2}]},
}


@pytest.fixture(scope="module")
def process() -> Iterator[MockProcess]:
    with MockProcess({"tiers": TIERS}) as running:
        yield running


@pytest.fixture
def mock(process: MockProcess) -> MockProcess:
    process.reset()
    return process


def client(mock: MockProcess, tier: str = "default", key: str = "any") -> OpenAI:
    return OpenAI(base_url=mock.tier_url(tier), api_key=key, max_retries=0, timeout=20)


def chat(mock: MockProcess, text: str, tier: str = "default", **options: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client(mock, tier).chat.completions.create(model="gpt-x", messages=messages, **options)  # type: ignore[call-overload]


def seen(mock: MockProcess, tier: str) -> dict[str, Any]:
    value: dict[str, Any] = mock.stats()["tiers"][tier]
    return value


# answers


def test_a_chat_answer_belongs_to_its_request(mock: MockProcess) -> None:
    """Each request gets its own echo and tag, OpenAI's shape, and usage that is right."""
    for number in range(5):
        text = f"Question {number}: what about [[tag:row-{number}]]?"
        answer = chat(mock, text)
        choice = answer.choices[0]
        assert choice.message.content.startswith(echo(text))
        assert f"row-{number}" in choice.message.content
        assert (answer.object, answer.model, choice.finish_reason) == ("chat.completion", "gpt-x", "stop")
        assert answer.usage.prompt_tokens == -(-len(text) // 4) + 7
        assert answer.usage.completion_tokens == 16
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16
        assert answer.usage.prompt_tokens_details.cached_tokens == 0
    again = chat(mock, text)
    assert again.choices[0].message.content == choice.message.content
    assert again.id != answer.id


def test_max_tokens_cuts_and_n_multiplies(mock: MockProcess) -> None:
    """A limit below the tier's tokens ends as `length`; n choices are all paid for."""
    cut = chat(mock, "hello", max_tokens=5)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 5)
    assert chat(mock, "hello", max_completion_tokens=500).choices[0].finish_reason == "stop"
    three = chat(mock, "hello", n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in three.choices}) == 3
    assert three.usage.completion_tokens == 48


@pytest.mark.parametrize("tier", ["default", "paced"])
def test_a_stream_says_what_the_plain_answer_says(mock: MockProcess, tier: str) -> None:
    """The pieces join to the plain answer; usage comes last and only if asked for; at any pace."""
    plain = chat(mock, "tell me", tier)
    chunks = list(chat(mock, "tell me", tier, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    assert len(chunks) > plain.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chat(mock, "tell me", tier, stream=True))
    assert seen(mock, tier)["completion_tokens"] == 3 * plain.usage.completion_tokens


def test_completions_embeddings_responses_and_models(mock: MockProcess) -> None:
    """The other endpoints answer in shapes that the openai client understands."""
    api = client(mock)
    text = api.completions.create(model="m", prompt=["a", "b"], n=2)
    assert [choice.text.split(" ")[1] for choice in text.choices] == [echo(t)[5:] for t in ("a", "a", "b", "b")]
    pieces = api.completions.create(model="m", prompt="a", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == text.choices[0].text
    packed = api.embeddings.create(model="m", input=["one", "two"], dimensions=8)
    plain = api.embeddings.create(model="m", input=["one", "two"], dimensions=8, encoding_format="float")
    assert [len(item.embedding) for item in packed.data] == [8, 8]
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding)
    assert packed.data[0].embedding != pytest.approx(packed.data[1].embedding)
    assert packed.usage.prompt_tokens == 2
    response = api.responses.create(model="m", input="what?", instructions="be brief")
    assert response.output_text.startswith(echo("what?"))
    assert response.usage is not None
    assert response.usage.output_tokens == 16
    assert "mock-slow" in [model.id for model in api.models.list()]
    assert api.models.retrieve("org/any-model").id == "org/any-model"


def test_structured_answers_satisfy_the_schema_and_spoiled_ones_take_turns() -> None:
    """With a schema the plain answer validates; the scenario `structured` spoils four of five in known ways."""
    schema = {
        "type": "object",
        "properties": {"label": {"enum": ["bug", "idea"]}, "note": {"type": "string"}, "score": {"type": "integer"}},
        "required": ["label", "note", "score"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "t", "schema": schema, "strict": True}}
    with MockProcess("structured") as mock:
        texts = [chat(mock, f"{n} [[tag:T{n}]]", response_format=wanted).choices[0].message.content for n in range(5)]
    assert texts[0].startswith("```json\n")
    jsonschema_rs.validate(schema, json.loads(texts[0].strip("`").removeprefix("json")))
    assert texts[1].startswith("Sure!")
    with pytest.raises(json.JSONDecodeError):
        json.loads(texts[2])
    assert not jsonschema_rs.is_valid(schema, json.loads(texts[3]))
    jsonschema_rs.validate(schema, json.loads(texts[4]))
    assert "T4" in json.loads(texts[4])["note"]


def test_scripted_replies_and_phases_follow_the_request_number(mock: MockProcess) -> None:
    """Replies take turns, and a phase by request count comes and goes; a reset starts both anew."""
    for _ in range(2):
        replies = [chat(mock, "q", "scripted").choices[0].message.content for _ in range(3)]
        assert replies == [f"one {echo('q')}", '{"two":2}', f"one {echo('q')}"]
        went_well = []
        for _ in range(5):
            try:
                chat(mock, "q", "counted")
                went_well.append(True)
            except openai.InternalServerError:
                went_well.append(False)
        assert went_well == [True, True, False, True, True]
        mock.reset()


# mishaps


def test_errors_carry_the_headers_they_are_given(mock: MockProcess) -> None:
    """A Retry-After that is a date, and what the scenario adds."""
    with pytest.raises(openai.APIStatusError) as caught:
        chat(mock, "hello", "asks_for_time")
    headers = caught.value.response.headers
    left_s = (parsedate_to_datetime(headers["retry-after"]) - datetime.now(UTC)).total_seconds()
    assert 30 < left_s <= 91
    assert headers["x-should-retry"] == "false"


def test_a_tier_may_answer_as_another_model(mock: MockProcess) -> None:
    """As an alias does that names its version."""
    assert chat(mock, "hello", "newer").model == "gpt-2026-11"


def test_errors_carry_status_code_message_and_retry_after(mock: MockProcess) -> None:
    """An error has OpenAI's shape, so that the client raises the right class with everything in it."""
    with pytest.raises(openai.InternalServerError) as caught:
        chat(mock, "q", "dead")
    assert caught.value.status_code == 503
    assert caught.value.code == "overloaded"
    assert "away" in str(caught.value)
    assert caught.value.response.headers["retry-after"] == "7"
    with pytest.raises(openai.InternalServerError):
        chat(mock, "q", "dead", stream=True)
    stats = seen(mock, "dead")
    assert stats["by_status"] == {"503": 2}
    assert stats["total_tokens"] == 0


def test_a_rate_limit_answers_429_with_its_headers(mock: MockProcess) -> None:
    """The burst passes with x-ratelimit headers; what exceeds it is told when to come back and is not billed."""
    for left in (2, 1, 0):
        raw = client(mock, "limited").chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": "q"}]
        )
        assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
    with pytest.raises(openai.RateLimitError) as caught:
        chat(mock, "q", "limited")
    assert caught.value.response.headers["retry-after"] == "9"
    assert caught.value.code == "rate_limit_exceeded"
    stats = seen(mock, "limited")
    assert stats["by_status"] == {"200": 3, "429": 1}
    assert stats["completion_tokens"] == 48


def test_a_prompt_too_long_for_the_context_is_told_so(mock: MockProcess) -> None:
    """A tier with a small window answers 400 context_length_exceeded."""
    assert chat(mock, "short", "small").choices
    with pytest.raises(openai.BadRequestError) as caught:
        chat(mock, "long " * 50, "small")
    assert caught.value.code == "context_length_exceeded"


def test_a_hang_ends_when_the_client_leaves(mock: MockProcess) -> None:
    """No answer ever comes; once the client has gone nothing is left in flight."""
    with pytest.raises(openai.APITimeoutError):
        chat(mock, "q", "hangs", timeout=0.3)
    wait_until(lambda: seen(mock, "hangs")["in_flight"] == 0)
    stats = seen(mock, "hangs")
    assert (stats["requests"], stats["hangs"], stats["by_status"]) == (1, 1, {})


def test_a_client_that_leaves_early_is_not_billed(mock: MockProcess) -> None:
    """An answer that nobody waits for any more is abandoned: not answered, not billed."""
    for tier, options in (("slow", {}), ("paced", {"stream": True})):
        sock = connect(mock)
        sock.sendall(request(f"/{tier}/v1/chat/completions", "q", **options))
        if options:
            assert sock.recv(100)
        sock.close()
        wait_until(lambda tier=tier: seen(mock, tier)["abandoned"] == 1)
        stats = seen(mock, tier)
        assert (stats["in_flight"], stats["by_status"], stats["total_tokens"]) == (0, {}, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_resets_reach_the_client_as_resets(mock: MockProcess, stream: bool) -> None:
    """`reset` breaks before the first byte, `reset_mid_body` after part of the answer; both are true TCP resets."""
    sock = connect(mock)
    sock.sendall(request("/resets/v1/chat/completions", "q", stream=stream))
    with pytest.raises(ConnectionResetError):
        sock.recv(100)
    sock = connect(mock)
    sock.sendall(request("/cuts/v1/chat/completions", "q", stream=stream))
    got: list[bytes] = []
    with pytest.raises(ConnectionResetError):
        read_all(sock, got)
    answer = b"".join(got)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b'"content":"' in answer
    assert b"[DONE]" not in answer
    stats = mock.stats()
    assert (stats["tiers"]["resets"]["resets"], stats["tiers"]["cuts"]["resets"]) == (1, 1)
    assert stats["total"]["in_flight"] == stats["total"]["total_tokens"] == 0


def test_broken_answers_with_status_200(mock: MockProcess) -> None:
    """Malformed JSON, an answer without finish_reason and a web page come as 200, as they do in the field."""
    head, body = exchange(mock, request("/malformed/v1/chat/completions", "q"))
    assert head.startswith("HTTP/1.1 200")
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    assert chat(mock, "q", "truncated").choices[0].finish_reason is None
    chunks = list(chat(mock, "q", "truncated", stream=True))
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * len(chunks)
    with pytest.raises(json.JSONDecodeError):
        list(chat(mock, "q", "malformed", stream=True))
    head, body = exchange(mock, request("/html/v1/chat/completions", "q"))
    assert "Content-Type: text/html" in head
    assert body.startswith(b"<!DOCTYPE html>")


def test_an_answer_that_stops_or_trickles_is_not_billed_to_who_leaves(mock: MockProcess) -> None:
    """`stall` sends half and then nothing, `trickle` a byte now and then; whoever leaves is not billed."""
    for tier, stream in (("stalls", False), ("stalls", True), ("trickles", False)):
        sock = connect(mock)
        sock.sendall(request(f"/{tier}/v1/chat/completions", "q", stream=stream))
        got = b""
        while b'"id":"' not in got:
            got += sock.recv(65536)
        assert got.startswith(b"HTTP/1.1 200")
        assert b'"finish_reason":"' not in got
        sock.close()
    wait_until(lambda: mock.stats()["total"]["abandoned"] == 3)
    assert (mock.stats()["total"]["in_flight"], mock.stats()["total"]["total_tokens"]) == (0, 0)


def test_a_huge_answer_is_whole_and_not_held_in_the_mock(mock: MockProcess) -> None:
    """100 MB of white space and then the answer, eight at a time; the mock's memory does not grow by them."""

    def resident_mb() -> int:
        return int(Path(f"/proc/{mock.pid}/statm").read_text().split()[1]) * 4096 >> 20

    before = resident_mb()
    socks = [connect(mock) for _ in range(8)]
    for sock in socks:
        sock.sendall(request("/huge/v1/chat/completions", "q"))
    for sock, announced in zip(socks[:2], (True, False), strict=True):
        size, begin, end = 0, b"", b""
        while size < 100_000_000 or not end.endswith((b"}}}", b"0\r\n\r\n")):
            piece = sock.recv(1 << 20)
            begin, end = begin or piece, (end + piece)[-2000:]
            size += len(piece)
        assert (b"Content-Length: 100000" in begin, b"chunked" in begin) == (announced, not announced)
        answer, _ = json.JSONDecoder().raw_decode(end.decode(), end.index(b"{"))
        assert answer["choices"][0]["finish_reason"] == "stop"
    assert resident_mb() - before < 40
    for sock in socks:
        sock.close()
    wait_until(lambda: seen(mock, "huge")["abandoned"] == 6)
    assert seen(mock, "huge")["by_status"] == {"200": 2}


def test_redirects_wrong_types_and_answers_to_others(mock: MockProcess) -> None:
    """307 names another path; text/plain holds the answer; `swapped` gives each the answer to the one before."""
    head, _ = exchange(mock, request("/redirects/v1/chat/completions", "q"))
    assert head.startswith("HTTP/1.1 307")
    assert "Location: /redirected/v1/chat/completions" in head
    head, body = exchange(mock, request("/mislabels/v1/chat/completions", "q"))
    assert "Content-Type: text/plain" in head
    assert json.loads(body)["choices"][0]["message"]["content"].startswith(echo("q"))
    answers = [chat(mock, text, "swaps") for text in ("first", "second", "third")]
    told = [answer.choices[0].message.content[: len(echo("q"))] for answer in answers]
    assert told == [echo("first"), echo("first"), echo("second")]
    assert answers[0].id == answers[1].id


def test_who_asks_wrongly_is_told_what_is_served(mock: MockProcess) -> None:
    """An address that is not there is answered with those that are, tiers included."""
    _, body = exchange(mock, raw("GET", "/"))
    message = json.loads(body)["error"]["message"]
    for served in (
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/models",
        "/stats",
        "/healthz",
        "/slow",
    ):
        assert served in message


def test_wrong_requests_get_openais_errors(mock: MockProcess) -> None:
    """Broken JSON is 400, an unknown path or tier 404, a wrong method 405: each in OpenAI's error shape."""
    cases = [
        (raw("POST", "/v1/chat/completions", b"{nope"), 400),
        (raw("POST", "/v1/chat/completions", b'{"model":"m"}'), 400),
        (raw("POST", "/v1/chat", b"{}"), 404),
        (raw("GET", "/"), 404),
        (raw("POST", "/nobody/v1/chat/completions", b"{}"), 404),
        (raw("GET", "/v1/chat/completions"), 405),
        (raw("DELETE", "/stats"), 405),
        (b"NOT HTTP\r\n\r\n", 400),
    ]
    for data, status in cases:
        head, body = exchange(mock, data)
        assert head.startswith(f"HTTP/1.1 {status} "), (data, head)
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    with pytest.raises(openai.NotFoundError):
        client(mock, "nobody").models.list()


# the witness


def test_stats_count_what_happened(mock: MockProcess) -> None:
    """Requests, statuses, billed tokens and repeated bodies are counted per tier; other tiers are not touched."""
    first = chat(mock, "a", "slow")
    for text in ("a", "b"):
        chat(mock, text, "slow")
    stats = seen(mock, "slow")
    assert (stats["requests"], stats["by_status"]) == (3, {"200": 3})
    assert stats["total_tokens"] == 3 * first.usage.total_tokens
    assert (stats["distinct_bodies"], stats["duplicate_bodies"]) == (2, 1)
    assert stats["max_in_flight"] == 1
    assert mock.stats()["total"]["requests"] == 3
    assert seen(mock, "default")["requests"] == 0
    mock.reset()
    assert seen(mock, "slow")["requests"] == 0


def test_a_required_key_is_asked_for_and_never_shown(tmp_path: Path) -> None:
    """Without a Bearer token 401; with one all is well; the token appears nowhere."""
    canary = "sk-canary-5f2d"
    with MockProcess({"require_key": True}) as mock:
        head, body = exchange(mock, request("/v1/chat/completions", "q"))
        assert head.startswith("HTTP/1.1 401 ")
        assert json.loads(body)["error"]["code"] == "invalid_api_key"
        assert not seen(mock, "default")["key_seen"]
        answer = client(mock, key=canary).chat.completions.create(
            model="m", messages=[{"role": "user", "content": "q"}]
        )
        assert seen(mock, "default")["key_seen"]
        assert canary not in answer.model_dump_json() + json.dumps(mock.stats())


# HTTP


def test_pipelined_requests_are_answered_in_order(mock: MockProcess) -> None:
    """Requests sent at once on one connection are answered in their order, though the first takes longest."""
    paths = ["/slow/v1/chat/completions", "/paced/v1/chat/completions", "/v1/chat/completions", "/nowhere"]
    texts = [f"number {at} [[tag:<{at}>]]" for at in range(len(paths))]
    sock = connect(mock)
    sock.sendall(b"".join(request(path, text) for path, text in zip(paths, texts, strict=True)))
    sock.sendall(raw("GET", "/healthz", close=True))
    got = read_all(sock)
    assert re.findall(rb"<\d>", got) == [b"<0>", b"<1>", b"<2>"]
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", got)] == [200, 200, 200, 404, 200]
    assert got.endswith(b'{"status":"ok"}')


def test_a_pipelined_stream_waits_for_its_turn(mock: MockProcess) -> None:
    """A stream behind a slow answer keeps its events until then, and ends before what follows it."""
    sock = connect(mock)
    sock.sendall(request("/slow/v1/chat/completions", "first"))
    sock.sendall(request("/paced/v1/chat/completions", "second", stream=True))
    sock.sendall(raw("GET", "/healthz", close=True))
    got = read_all(sock)
    order = [got.index(part) for part in (echo("first").encode(), b"text/event-stream", b"[DONE]", b'"status":"ok"')]
    assert order == sorted(order)


def test_bodies_arrive_however_they_are_sent(mock: MockProcess) -> None:
    """Chunked, byte by byte, after 100-continue, or ten megabytes long: the body is taken as it is."""
    body = chat_body("in pieces")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"
    assert echo("in pieces").encode() in exchange(mock, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)[1]
    sock = connect(mock)
    for byte in request("/v1/chat/completions", "in pieces", close=True):
        sock.sendall(bytes([byte]))
    assert echo("in pieces").encode() in read_all(sock)
    sock = connect(mock)
    sock.sendall(head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
    assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    sock.sendall(body)
    assert echo("in pieces").encode() in read_all(sock)
    long = "x" * 10_000_000
    assert chat(mock, long).choices[0].message.content.startswith(echo(long))


def test_a_body_over_the_limit_is_refused(mock: MockProcess) -> None:
    """413 for more than 64 MB, whether announced or found out on the way; the mock lives on."""
    limit = 64 * 1024 * 1024
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    assert exchange(mock, head + b"Content-Length: %d\r\n\r\n" % (limit + 1))[0].startswith("HTTP/1.1 413 ")
    sock = connect(mock)
    sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
    part = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    for _ in range(65):
        sock.sendall(part)
    assert sock.recv(100).startswith(b"HTTP/1.1 413 ")
    assert chat(mock, "still there?").choices


def test_head_and_old_clients(mock: MockProcess) -> None:
    """HEAD has no body but GET's headers; an HTTP/1.0 client gets its answer, streams too, and a closed connection."""
    head, body = exchange(mock, raw("HEAD", "/healthz"))
    assert "Content-Length: 15" in head
    assert body == b""
    old = request("/paced/v1/chat/completions", "q", stream=True).replace(b"HTTP/1.1", b"HTTP/1.0")
    head, body = exchange(mock, old)
    assert "chunked" not in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_capacity_serves_a_few_at_a_time(mock: MockProcess) -> None:
    """A tier with one slot answers everyone, one after the other, in the order of arrival."""

    async def one(number: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", mock.port)
        writer.write(request("/single/v1/chat/completions", f"q{number}", close=True))
        assert echo(f"q{number}").encode() in await reader.read()
        writer.close()
        return number

    assert sorted(await asyncio.gather(*(one(number) for number in range(10)))) == list(range(10))
    assert seen(mock, "single")["by_status"] == {"200": 10}
    assert seen(mock, "single")["max_in_flight"] > 1


async def test_a_thousand_connections_at_once(mock: MockProcess) -> None:
    """Many connections held open at the same time are all answered, each with its own answer."""
    links = [await asyncio.open_connection("127.0.0.1", mock.port) for _ in range(1000)]
    for number, (_, writer) in enumerate(links):
        writer.write(request("/slow/v1/chat/completions", f"q{number}", close=True))
    answers = await asyncio.gather(*(reader.read() for reader, _ in links))
    assert all(echo(f"q{number}").encode() in answer for number, answer in enumerate(answers))
    for _, writer in links:
        writer.close()
    assert seen(mock, "slow")["by_status"] == {"200": 1000}


# the process


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "runtime.mock", *options]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_line_when_it_listens_and_a_clean_end(number: signal.Signals) -> None:
    """It prints exactly its address and scenario, and a signal ends it with exit code 0, even with a client hanging on."""
    child = subprocess.Popen(
        command("--port", "0", "--scenario", "hang"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        found = re.fullmatch(r"mock endpoint on http://127\.0\.0\.1:(\d+)/v1 \(scenario hang\)\n", line)
        assert found is not None, line
        with socket.create_connection(("127.0.0.1", int(found[1]))) as sock:
            sock.sendall(request("/v1/chat/completions", "q"))
            child.send_signal(number)
            rest, errors = child.communicate(timeout=20)
        assert (child.returncode, rest, errors) == (0, "", "")
    finally:
        child.kill()
        child.wait()


def test_trouble_at_the_start_is_one_line_and_exit_2(mock: MockProcess, tmp_path: Path) -> None:
    """A port in use, a scenario that does not exist or is faulty, and a wrong latency: one line each, exit code 2."""
    faulty = tmp_path / "faulty.yaml"
    faulty.write_text("tiers: {a: {latncy: 1}}\n")
    for options, part in (
        (["--port", str(mock.port)], f"127.0.0.1:{mock.port}: another program listens there"),
        (["--scenario", "nowhere.yaml"], "no scenario or file 'nowhere.yaml'"),
        (["--scenario", str(faulty)], f"{faulty}:1: tiers.a.latncy: unknown key"),
        (["--latency", "-1"], "--latency"),
        (["--port", "70000"], "--port"),
    ):
        done = subprocess.run(command(*options), capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (2, "")
        assert part in done.stderr
        assert done.stderr.count("\n") == 1
    with pytest.raises(RuntimeError, match="another program listens there"):
        MockProcess(port=mock.port).start()


def test_the_mock_dies_with_its_parent(tmp_path: Path) -> None:
    """When the program that started it is killed, the mock ends by itself."""
    program = (
        "from runtime.mock.process import MockProcess; m = MockProcess().start(); print(m.pid, flush=True); input()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.communicate()
    wait_until(lambda: not alive(child))


def test_overrides_of_latency_and_seed() -> None:
    """Seeds change which calls fail, the same seed fails the same ones; --latency works for a built-in scenario."""

    def pattern(seed: int) -> list[bool]:
        with MockProcess("flaky", seed=seed, latency_s=0.001) as mock:
            links = [exchange(mock, request("/v1/chat/completions", "q"))[0] for _ in range(40)]
        return [" 200 " in head.splitlines()[0] for head in links]

    first = pattern(1)
    assert first == pattern(1)
    assert first != pattern(2)
    assert 20 < sum(first) < 40


# bytes


def chat_body(text: str, **options: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **options}).encode()


def raw(method: str, path: str, body: bytes = b"", close: bool = False) -> bytes:
    extra = "Connection: close\r\n" if close else ""
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def request(path: str, text: str, close: bool = False, **options: Any) -> bytes:
    return raw("POST", path, chat_body(text, **options), close)


def connect(mock: MockProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", mock.port), timeout=20)


def read_all(sock: socket.socket, got: list[bytes] | None = None) -> bytes:
    """Everything until the end; `got` keeps what came before an error."""
    got = [] if got is None else got
    while data := sock.recv(65536):
        got.append(data)
    sock.close()
    return b"".join(got)


def exchange(mock: MockProcess, data: bytes) -> tuple[str, bytes]:
    """Head and body of one answer, on a connection of its own."""
    sock = connect(mock)
    sock.sendall(
        data.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n", 1) if b"Connection" not in data else data
    )
    head, _, body = read_all(sock).partition(b"\r\n\r\n")
    return head.decode(), body


def wait_until(holds: Any, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Running, and not merely unreaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
