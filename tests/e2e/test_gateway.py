"""The gateway, used by the clients that people have: the real command, real HTTP, the real `openai` package."""

import asyncio
import concurrent.futures
import hashlib
import http.client
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import orjson
import pytest

from runtime.mock.process import MockProcess
from tests.e2e.gateways import GatewayProcess

SCENARIO: dict[str, Any] = {
    "seed": 7,
    "tiers": {
        "steady": {"latency": 0.02, "tokens": 12, "tokens_per_s": 200},
        "slow": {"latency": 0.3, "tokens": 20, "tokens_per_s": 20},
        "sleepy": {"latency": 20},
        "long": {"tokens": 400, "tokens_per_s": 10},
        "dead": {"status": 500},
        "cut": {"reset_mid_body": 1.0, "tokens": 12, "tokens_per_s": 200},
        "limited": {"rate_limit": {"per_minute": 1, "burst": 1, "retry_after_s": 30}},
    },
}
KEY, POOR, NARROW = "rk-test-key-of-somebody", "rk-test-key-of-the-poor", "rk-test-key-of-the-narrow"


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    with MockProcess(SCENARIO) as process:
        yield process


@pytest.fixture(scope="module")
def gateway(mock: MockProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    keys = [
        {"name": "somebody", "sha256": digest(KEY)},
        {"name": "poor", "sha256": digest(POOR), "tokens": {"per_day": 1}},
        {"name": "narrow", "sha256": digest(NARROW), "tiers": ["steady"], "streams": 1},
    ]
    (folder / "keys.yaml").write_bytes(orjson.dumps({"keys": keys}))
    names = ("steady", "slow", "dead", "cut", "limited", "sleepy", "long")
    # A cascade of its own for each: `model` names where it starts, and only `cut` and `dead` have somewhere to go.
    tiers = [{"name": name, "base_url": mock.tier_url(name), "breaker": {"failure_threshold": 50}} for name in names]
    order = [tiers[2], tiers[3], tiers[0], tiers[1], tiers[5], tiers[6], tiers[4]]
    with GatewayProcess(
        folder, order, gateway={"keys_file": "keys.yaml", "max_body_mb": 1}, router={"deadline_s": 20}
    ) as process:
        yield process


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0) as made:
        yield made


def words(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_a_chat_and_what_is_told_beside_it(client: openai.OpenAI) -> None:
    """The answer as it came, and in headers who gave it and what it cost."""
    raw = client.chat.completions.with_raw_response.create(model="steady", messages=words("one plain chat"))
    completion = raw.parse()
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 12
    assert raw.headers["x-raycade-tier"] == "steady"
    assert raw.headers["x-raycade-attempts"] == "1"
    usd = (completion.usage.prompt_tokens * 1 + completion.usage.completion_tokens * 2) / 1e6
    assert float(raw.headers["x-raycade-cost-usd"]) == pytest.approx(usd, abs=1e-6)
    assert len(raw.headers.get_list("x-request-id")) == 1


def test_tools_images_and_schemas_pass_through(client: openai.OpenAI) -> None:
    """What the mock answers to a request with a schema is made for it, so the schema has arrived."""
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"city": {"const": "Bonn"}}}},
    }
    parts: Any = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    completion = client.chat.completions.create(
        model="steady",
        messages=[{"role": "user", "content": parts}],
        tools=tools,
        response_format=form,
        n=2,
        logprobs=True,
    )
    assert [orjson.loads(choice.message.content or "") for choice in completion.choices] == [{"city": "Bonn"}] * 2


def test_the_other_endpoints(client: openai.OpenAI) -> None:
    """Completions, embeddings and responses pass through; models are the tiers."""
    assert client.completions.create(model="steady", prompt="once").choices[0].text
    assert len(client.embeddings.create(model="steady", input=["a", "b"]).data) == 2
    assert client.responses.create(model="steady", input="hello").output_text
    assert [model.id for model in client.models.list()] == [
        "auto",
        "dead",
        "cut",
        "steady",
        "slow",
        "sleepy",
        "long",
        "limited",
    ]
    assert client.models.retrieve("steady").id == "steady"


def test_a_dead_tier_costs_its_caller_nothing(client: openai.OpenAI) -> None:
    """The cascade starts at the dead tier; the next one answers."""
    raw = client.chat.completions.with_raw_response.create(model="dead", messages=words("from the dead"))
    assert raw.headers["x-raycade-tier"] == "steady"
    assert int(raw.headers["x-raycade-attempts"]) > 1


def read(stream: Any) -> tuple[str, str | None, Any]:
    """Text, finish_reason and usage of a stream."""
    text, reason, usage = "", None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason, usage


def test_a_stream_says_the_same_as_a_plain_answer(client: openai.OpenAI) -> None:
    """With usage only for who asked for it."""
    ask: Any = {"model": "steady", "messages": words("say it slowly")}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    text, reason, usage = read(client.chat.completions.create(**ask, stream=True))
    assert (text, reason, usage) == (whole, "stop", None)
    text, _, usage = read(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert text == whole
    assert usage.completion_tokens == 12


def test_a_stream_that_breaks_goes_on_with_the_next_tier(client: openai.OpenAI, mock: MockProcess) -> None:
    """The mock's tiers give the same answer to the same words: the rest comes from the next one, under one id."""
    ask: Any = {"model": "cut", "messages": words("break in the middle")}
    chunks = list(client.chat.completions.create(**ask, stream=True))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == client.chat.completions.create(model="steady", messages=ask["messages"]).choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_equal_streams_share_one_call(client: openai.OpenAI, mock: MockProcess) -> None:
    """Some from the beginning, one that joins late: all hear the same, and one call was made."""
    mock.reset()
    ask: Any = {"model": "slow", "messages": words("all together"), "stream": True}

    def one(delay_s: float) -> tuple[str, str | None, Any]:
        time.sleep(delay_s)
        return read(client.chat.completions.create(**ask))

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        heard = list(pool.map(one, [0, 0, 0.1, 0.1, 0.7]))
    assert len(set(heard)) == 1
    assert heard[0][1] == "stop"
    assert mock.stats()["tiers"]["slow"]["requests"] == 1


def test_who_leaves_stops_the_call(client: openai.OpenAI, mock: MockProcess) -> None:
    """A client that hangs up in the middle of its stream, or while it waits, leaves nothing running upstream."""
    mock.reset()
    stream = client.chat.completions.create(model="long", messages=words("never mind"), stream=True)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=3).chat.completions.create(model="sleepy", messages=words("too long"))
    wait_until(lambda: mock.stats()["total"]["abandoned"] == 2)
    assert mock.stats()["total"]["in_flight"] == 0


def test_whoever_hangs_up_while_waiting_is_noticed(gateway: GatewayProcess, mock: MockProcess) -> None:
    """However the request arrived: most clients send head and body in packets of their own."""
    mock.reset()
    for number in range(10):
        body = orjson.dumps({"model": "sleepy", "messages": words(f"hanging up {number}")})
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("authorization", f"Bearer {KEY}")
        connection.putheader("content-length", str(len(body)))
        connection.endheaders()
        time.sleep(0.005)
        connection.send(body)
        wait_until(lambda number=number: mock.stats()["total"]["requests"] > number)  # type: ignore[misc]
        connection.close()
    wait_until(lambda: mock.stats()["total"]["abandoned"] == 10)
    assert mock.stats()["total"]["in_flight"] == 0


def wait_until(true: Callable[[], bool], most_s: float = 10.0) -> None:
    until = time.monotonic() + most_s
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    assert true()


async def test_many_streams_at_once_are_not_mixed_up(gateway: GatewayProcess, mock: MockProcess) -> None:
    """Each hears its own answer, whole and in order."""
    async with openai.AsyncOpenAI(base_url=gateway.url, api_key=KEY, max_retries=0) as client:

        async def one(number: int) -> bool:
            ask: Any = {"model": "steady", "messages": words(f"[[tag:s{number}]] number {number}"), "max_tokens": 12}
            stream = await client.chat.completions.create(**ask, stream=True)
            text = "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])
            whole = await client.chat.completions.create(**ask)
            return text == whole.choices[0].message.content

        assert all(await asyncio.gather(*(one(number) for number in range(60))))


@pytest.mark.parametrize("key", ["", "rk-nobody", "Basic x"])
def test_who_has_no_key_gets_nothing(gateway: GatewayProcess, mock: MockProcess, key: str) -> None:
    """401 in OpenAI's shape on every path but health, however the address is spelled; and no call is made."""
    mock.reset()
    with openai.OpenAI(base_url=gateway.url, api_key=key or "none", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="steady", messages=words("let me in"))
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    for path in (
        "//v1/models",
        "/v1/models/",
        "/v1/../v1/models",
        "/healthz/../v1/models",
        "/V1/models",
        "/v1/models%2f",
    ):
        status, _ = get(gateway, path, {"Host": "127.0.0.1", "X-Forwarded-For": "127.0.0.1"})
        assert status in (400, 401, 404), path
    assert mock.stats()["total"]["requests"] == 0
    assert get(gateway, "/healthz", {})[0] == 200


def get(gateway: GatewayProcess, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_keys_own_limits(gateway: GatewayProcess) -> None:
    """A budget of its own, tiers of its own, streams of its own."""
    with openai.OpenAI(base_url=gateway.url, api_key=POOR, max_retries=0) as client:
        with pytest.raises(openai.RateLimitError, match="key:poor") as refused:
            client.chat.completions.create(model="steady", messages=words("on credit"))
        assert refused.value.type == "insufficient_quota"
        assert int(refused.value.response.headers["retry-after"]) >= 1
    with openai.OpenAI(base_url=gateway.url, api_key=NARROW, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["auto", "steady"]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="slow", messages=words("elsewhere"))
        raw = client.chat.completions.with_raw_response.create(model="auto", messages=words("anywhere"))
        assert (raw.headers["x-raycade-tier"], raw.headers["x-raycade-attempts"]) == ("steady", "1")


def test_what_is_wrong_is_said_in_openais_shape(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    """Status, type, code and field, and never a traceback."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-99", messages=words("hi"))
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as sly:
        client.chat.completions.create(model="auto", messages=words("hi"), extra_body={"api_base": "http://evil"})
    assert sly.value.param == "api_base"
    with pytest.raises(openai.APIStatusError) as large:
        client.chat.completions.create(model="auto", messages=words("x" * 1_100_000))
    assert large.value.status_code == 413
    headers = {"x-raycade-deadline": "0.2"}
    with pytest.raises(openai.APIStatusError) as late:
        client.chat.completions.create(model="slow", messages=words("be quick"), extra_headers=headers)
    assert late.value.status_code == 504
    client.chat.completions.create(model="limited", messages=words("the one a minute"))
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(model="limited", messages=words("and another"))
    assert int(limited.value.response.headers["retry-after"]) > 1
    status, body = get(gateway, "/v2/models", {"Authorization": f"Bearer {KEY}"})
    assert (status, orjson.loads(body)["error"]["code"]) == (404, "unknown_url")
