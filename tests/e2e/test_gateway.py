"""The gateway, used by the clients that people have: the real command, real HTTP, the real `openai` package."""

import asyncio
import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import orjson
import pytest

from runtime.mock.content import echo
from runtime.mock.process import MockProcess
from runtime.prompts import load_prompts
from runtime.prompts_release import release
from runtime.running import running_jobs
from runtime.status import asked
from tests.e2e.browser import Page, serving_page
from tests.e2e.chromium import chromium
from tests.e2e.fuzz import fuzz, tracebacks
from tests.e2e.gateways import GatewayProcess
from tests.e2e.jobs import ROOT, actor_pids, chat
from tests.e2e.test_metrics import Samples, parsed, total

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
        "forms": {
            "reply": "json",
            "json_value": {"queue": "{echo}", "urgent": False},
            "dress": ["fenced", "truncated", "prefixed"],
        },
        "prose": {"replies": ["A printer, I should think."]},
        "torn": {"bad_event": 1.0, "tokens": 12, "tokens_per_s": 200},
    },
}
KEY, POOR, NARROW = "rk-test-key-of-somebody", "rk-test-key-of-the-poor", "rk-test-key-of-the-narrow"
OPS = "rk-test-key-of-operations"
QUEUE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["queue", "urgent"],
    "properties": {"queue": {"type": "string"}, "urgent": {"type": "boolean"}},
}


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    with MockProcess(SCENARIO) as process:
        yield process


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with serving_page() as served:
        yield served


@pytest.fixture(scope="module")
def gateway(mock: MockProcess, page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    keys = [
        {"name": "somebody", "sha256": digest(KEY)},
        {"name": "poor", "sha256": digest(POOR), "tokens": {"per_day": 1}},
        {"name": "narrow", "sha256": digest(NARROW), "tiers": ["steady"], "streams": 1},
    ]
    keys.append({"name": "ops", "sha256": digest(OPS), "admin": True})
    (folder / "keys.yaml").write_bytes(orjson.dumps({"keys": keys}))
    write_prompts(folder / "prompts")
    names = ("steady", "slow", "dead", "cut", "limited", "sleepy", "long", "forms", "prose", "torn")
    # A cascade of its own for each: `model` names where it starts, and only `cut` and `dead` have somewhere to go.
    tiers = [{"name": name, "base_url": mock.tier_url(name), "breaker": {"failure_threshold": 50}} for name in names]
    order = [tiers[2], tiers[3], tiers[0], tiers[1], tiers[5], tiers[6], *tiers[7:], tiers[4]]
    with GatewayProcess(
        folder,
        order,
        gateway={"keys_file": "keys.yaml", "max_body_mb": 1, "cors_origins": [page.origin()]},
        router={"deadline_s": 20},
        telemetry={"metrics_port": 0},
    ) as process:
        yield process


def write_prompts(folder: Path) -> None:
    """`say` with two versions, and `sort` with a schema: its second version has a model that answers prose."""
    version = {"temperature": 0, "defaults": {"max_tokens": 64}}
    sort = {**version, "user_template": "Sort {text}.", "schema": QUEUE, "structured": {"retries": 1}}
    for name, versions in {
        "say": [{**version, "user_template": f"{word}: {{text}}"} for word in ("First", "Second")],
        "sort": [{**sort, "model": "forms"}, {**sort, "model": "prose"}],
    }.items():
        (folder / name).mkdir(parents=True)
        for number, text in enumerate(versions, 1):
            (folder / name / f"v{number}.yaml").write_bytes(orjson.dumps({"version": number, **text}))
        release(str(folder), name, 1, {}, "first")
    release(str(folder), "say", 2, {}, "better")


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
        "forms",
        "prose",
        "torn",
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
    assert (chunks[0].model, chunks[-1].model) == ("model-cut", "model-steady"), "each says who answered"


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


def batch_of(client: openai.OpenAI, rows: list[dict[str, Any]], **metadata: str) -> str:
    """Upload rows and have them carried out; the batch's id."""
    lines = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    file = client.files.create(file=("rows.jsonl", lines), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (len(lines), "rows.jsonl", "batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
    )
    assert made.status == "validating"
    return made.id


def ended(client: openai.OpenAI, id: str) -> openai.types.Batch:
    until = time.monotonic() + 60
    while (batch := client.batches.retrieve(id)).status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < until, batch
        time.sleep(0.1)
    return batch


def lines_of(client: openai.OpenAI, file: str | None) -> dict[str, dict[str, Any]]:
    assert file is not None
    lines = [orjson.loads(line) for line in client.files.content(file).content.splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def test_a_batch_by_the_official_client(client: openai.OpenAI, gateway: GatewayProcess, mock: MockProcess) -> None:
    """From upload to both files, though the process that carries it out is killed on the way; another key sees none of it."""
    rows = [chat(number, model="steady") for number in range(400)] + [chat(400, model="gpt-99")]
    prompted = {"model": "steady", "raycade": {"prompt": "say@1", "variables": {"text": "row 401"}}}
    rows.append(chat(401) | {"body": prompted})
    mock.reset()
    id = batch_of(client, rows, purpose="test")
    while mock.stats()["tiers"]["steady"]["requests"] < 100:
        time.sleep(0.02)
    desk = actor_pids(gateway.process.pid if gateway.process else 0, "Desk")
    os.kill(desk[0], signal.SIGKILL)
    batch = ended(client.with_options(max_retries=10), id)
    assert (batch.status, batch.metadata) == ("completed", {"purpose": "test"})
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 402, "completed": 401, "failed": 1}
    good, bad = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    assert [line["error"]["code"] for line in bad.values()] == ["model_not_found"]
    assert all(f"row-{number}" in good for number in range(400))
    body = good["row-7"]["response"]["body"]
    assert openai.types.chat.ChatCompletion.model_validate(body).usage is not None
    assert body["raycade"]["tier"] == "steady"
    body = good["row-401"]["response"]["body"]
    assert body["raycade"]["prompt"] == "say@1"
    assert body["choices"][0]["message"]["content"].startswith(echo("First: row 401"))
    assert mock.stats()["tiers"]["steady"]["requests"] <= 2 * 400  # what was in flight was asked again, once
    assert next(one.id for one in client.batches.list(limit=1)) == id
    assert {one.id for one in client.files.list(limit=2)} >= {batch.output_file_id, batch.input_file_id}
    with openai.OpenAI(base_url=gateway.url, api_key=NARROW, max_retries=0) as other:
        assert list(other.files.list()) == list(other.batches.list()) == []
        for ask in (other.files.content, other.files.delete, other.files.retrieve):
            with pytest.raises(openai.NotFoundError):
                ask(batch.output_file_id or "")
        with pytest.raises(openai.NotFoundError):
            other.batches.cancel(id)
        refused = ended(other, batch_of(other, [chat(1, model="slow"), chat(2)]))
        assert [line["error"]["code"] for line in lines_of(other, refused.error_file_id).values()] == [
            "model_not_found"
        ]
    assert client.files.delete(batch.output_file_id or "").deleted


def test_a_batch_spends_its_keys_budget_and_can_be_cancelled(gateway: GatewayProcess) -> None:
    """Without budget left it waits, and says for what; cancelled, it is over at once."""
    with openai.OpenAI(base_url=gateway.url, api_key=POOR, max_retries=0) as client:
        id = batch_of(client, [chat(number, model="steady") for number in range(3)])
        until = time.monotonic() + 20
        while "key:poor" not in str(client.batches.retrieve(id).to_dict().get("raycade")):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert client.batches.cancel(id).status == "cancelling"
        batch = ended(client, id)
        assert (batch.status, batch.output_file_id) == ("cancelled", None)
        assert {line["error"]["code"] for line in lines_of(client, batch.error_file_id).values()} == {"batch_cancelled"}
        wrong = ended(client, batch_of(client, [chat(1), chat(1)]))
        assert wrong.errors is not None
        assert [(fault.code, fault.line) for fault in wrong.errors.data or []] == [("duplicate_custom_id", 2)]


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


# ---- registered prompts


def raycade(gateway: GatewayProcess, *words: str) -> str:
    """What a command of the operator's says, in the gateway's folder."""
    command, env = [sys.executable, "-m", "runtime", *words], {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=gateway.folder, env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def prompt(name: str, text: str, **more: Any) -> dict[str, Any]:
    """The arguments of a request for a registered prompt."""
    extras = {"prompt": name, "variables": {"text": text}, **more}
    return {"model": "auto", "messages": [], "extra_body": {"raycade": extras}}


def test_a_prompt_by_its_name_and_a_rollback(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    """Its live version makes the messages, plain and streamed; a rollback holds from the next request on."""
    ask = prompt("say", "hello") | {"model": "steady"}

    def version() -> tuple[str, str]:
        raw = client.chat.completions.with_raw_response.create(**ask)
        return raw.headers["x-raycade-prompt"], (raw.parse().choices[0].message.content or "")[:21]

    assert version() == ("say@2", echo("Second: hello"))
    with client.chat.completions.with_streaming_response.create(**ask, stream=True) as stream:
        assert stream.headers["x-raycade-prompt"] == "say@2"
        assert read(stream.parse())[0].startswith(echo("Second: hello"))
    raycade(gateway, "prompts", "rollback", "say", "--reason", "worse after all")
    assert version() == ("say@1", echo("First: hello"))
    ask["extra_body"]["raycade"]["prompt"] = "say@2"
    assert version() == ("say@2", echo("Second: hello"))
    for extras, param in (
        ({"prompt": "sing", "variables": {}}, "raycade.prompt"),
        ({"prompt": "say@9", "variables": {}}, "raycade.prompt"),
        ({"prompt": "say", "variables": {}}, "raycade.variables.text"),
        ({"prompt": "say", "variables": {"text": "a", "tone": "b"}}, "raycade.variables.tone"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="steady", messages=[], extra_body={"raycade": extras})
        assert refused.value.param == param


def test_the_answers_of_a_prompt_with_a_schema_are_what_they_claim_to_be(
    client: openai.OpenAI, gateway: GatewayProcess, mock: MockProcess
) -> None:
    """The endpoint fences its JSON, cuts it short or talks around it: the caller gets the value, streamed or not, or an
    error; never anything else. What was refused is in the failure log under its version."""
    mock.reset()
    texts = []
    for number in range(4):
        ask = prompt("sort", f"ticket {number}")
        if number % 2:
            text, reason, usage = read(client.chat.completions.create(**ask, stream=True))
            assert (reason, usage) == ("stop", None)
        else:
            text = client.chat.completions.create(**ask).choices[0].message.content or ""
        texts.append(text)
    assert all(orjson.loads(text).keys() == {"queue", "urgent"} for text in texts)
    assert mock.stats()["tiers"]["forms"]["requests"] > 4, "some had to be asked again"
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(**prompt("sort@2", "prose"), stream=stream)
        assert (refused.value.status_code, refused.value.code) == (502, "invalid_output")
        assert refused.value.response.headers["x-raycade-prompt"] == "sort@2"
    log = [orjson.loads(line) for line in (gateway.folder / "state" / "failures.jsonl").read_bytes().splitlines()]
    assert {"sort@1", "sort@2"} <= {line["prompt"] for line in log}


def test_a_trial_that_is_worse_stops_by_itself(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    """Its answers are refused: after some of them nobody gets it any more, release.yaml says why, and status too."""
    folder = str(gateway.folder / "prompts")
    release(folder, "sort", 1, {2: 0.5}, "try")
    for number in range(100):
        with contextlib.suppress(openai.APIStatusError):
            client.chat.completions.create(**prompt("sort", f"trial {number}"))
        if not load_prompts(folder).release("sort").trial:
            break
    now = load_prompts(folder).release("sort")
    assert (now.stable, now.trial, now.history[-1].action) == (1, {}, "stopped")
    assert "its answers were refused in" in now.history[-1].reason
    for number in range(5):
        client.chat.completions.create(**prompt("sort", f"after {number}"))
    wait_until(lambda: "stopped the trial of sort@2" in raycade(gateway, "status"))
    wait_until(lambda: "stopped the trial of sort@2" in gateway.said)


# ---- metrics


def scraped(gateway: GatewayProcess) -> Samples:
    status, text = get(gateway, "/metrics", {"Authorization": f"Bearer {OPS}"})
    assert status == 200
    return parsed(text.decode())


def test_metrics_are_for_keys_that_are_marked_so(gateway: GatewayProcess) -> None:
    """Neither for nobody nor for any other key."""
    assert get(gateway, "/metrics", {})[0] == 401
    status, body = get(gateway, "/metrics", {"Authorization": f"Bearer {KEY}"})
    assert (status, orjson.loads(body)["error"]["code"]) == (403, "not_admin")


def test_metrics_equal_what_callers_and_the_endpoint_have_seen(
    client: openai.OpenAI, gateway: GatewayProcess, mock: MockProcess
) -> None:
    """Plain, streamed, shared, refused and abandoned requests: tokens as the endpoint's own meter has them."""
    mock.reset()
    before = scraped(gateway)
    for number in range(3):
        client.chat.completions.create(model="steady", messages=words(f"count me {number}"))
        read(client.chat.completions.create(model="steady", messages=words(f"and me {number}"), stream=True))
    client.chat.completions.create(**prompt("say@1", "one more") | {"model": "steady"})
    shared: Any = {"model": "slow", "messages": words("both of us"), "stream": True}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: read(client.chat.completions.create(**shared)), range(2)))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-99", messages=words("hi"))
    stream = client.chat.completions.create(model="long", messages=words("count nobody"), stream=True)
    next(iter(stream))
    stream.close()
    after: Samples = {}

    def more(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    def all_told() -> bool:
        after.update(scraped(gateway))
        return more("raycade_attempts_total", kind="cancelled") >= 1

    wait_until(all_told)
    assert more("raycade_requests_total", outcome="ok", tier="steady") == 7
    assert more("raycade_requests_total", outcome="ok", tier="slow") == 1
    assert more("raycade_coalesced_total") == more("raycade_requests_total", outcome="coalesced", tier="slow") == 1
    assert more("raycade_requests_total", outcome="model_not_found") == 1
    assert more("raycade_requests_total", outcome="cancelled") == 1
    assert more("raycade_time_to_first_token_seconds_count") == more("raycade_time_per_token_seconds_count") == 4
    meter = mock.stats()["tiers"]
    for tier, kind in ((tier, kind) for tier in ("steady", "slow") for kind in ("prompt", "completion")):
        assert more("raycade_tier_tokens_total", tier=tier, type=kind) == meter[tier][f"{kind}_tokens"]
    assert more("raycade_unknown_tokens_total", tier="long") > 0, "what was left is booked whole"
    assert more("raycade_prompt_version_requests_total", prompt="say", version="1", outcome="ok") == 1
    told = json.loads(raycade(gateway, "status", "--json"))["jobs"]
    (entry,) = told
    assert (entry["kind"], entry["output"]) == ("gateway", gateway.url)
    (replica,) = entry["status"]["gateways"]
    assert (replica["in_flight"], replica["streams"]) == (0, 0)
    assert replica["answered"] >= 8
    assert f"metrics at {entry['address']}/metrics" in gateway.said


def test_a_batchs_rows_are_in_the_metrics_and_its_progress_in_status(
    client: openai.OpenAI, gateway: GatewayProcess, mock: MockProcess
) -> None:
    """Every row and every token once, as in the batch's files and on the endpoint's meter. It takes seconds, to be seen."""
    mock.reset()
    before = scraped(gateway)
    id = batch_of(client, [chat(number, model="slow") for number in range(400)] + [chat(400, model="gpt-99")])
    shown: list[dict[str, Any]] = []

    (entry,) = running_jobs(str(gateway.folder / "state"))

    def in_status() -> bool:
        told = asked(entry)
        # what a desk was carrying when it was killed, as another test does, is shown until it has been silent for a minute
        shown[:] = [job for job in told["jobs"] if job["run"] == id] if told is not None else ()
        return bool(shown and shown[0]["total"])

    wait_until(in_status, 30)
    assert [job["total"] for job in shown] == [401]
    good = lines_of(client, ended(client, id).output_file_id)
    after: Samples = {}

    def more(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    def all_told() -> bool:
        after.update(scraped(gateway))
        return more("raycade_requests_total") >= 401

    wait_until(all_told)
    assert more("raycade_requests_total", outcome="ok", tier="slow") == len(good) == 400
    assert more("raycade_requests_total", outcome="model_not_found") == 1
    meter = mock.stats()["tiers"]["slow"]
    assert more("raycade_attempts_total", tier="slow") == meter["requests"]
    for kind in ("prompt", "completion"):
        assert more("raycade_tier_tokens_total", tier="slow", type=kind) == meter[f"{kind}_tokens"]
        of_lines = sum(line["response"]["body"]["usage"][f"{kind}_tokens"] for line in good.values())
        assert of_lines == meter[f"{kind}_tokens"]


async def test_the_page_asks_for_a_key_and_takes_it_from_the_keyboard(gateway: GatewayProcess) -> None:
    """It shows nothing before, and nothing to a key that is not marked so; without one its console has no error."""
    async with chromium() as tab:
        await tab.open(f"{gateway.root}/ui")
        await tab.until("document.getElementById('state')?.textContent === 'a key is needed'")
        assert await tab.value("document.activeElement.id") == "key"
        assert await tab.value("document.querySelectorAll('#tiers article').length") == 0
        assert tab.errors == []
        await tab.type(KEY)
        await tab.until("document.getElementById('state').textContent === 'this key may not see it'")
        assert await tab.value("document.querySelectorAll('#tiers article').length") == 0
        assert [error for error in tab.errors if "403" not in error] == []
        await tab.type(OPS)
        await tab.until("document.querySelectorAll('#tiers article').length === 10")
        assert await tab.value("document.getElementById('ask').hidden")
        assert OPS not in await tab.value("document.documentElement.outerHTML")
        assert len(tab.errors) == 1, "the refusal of the other key"


def test_an_event_that_cannot_be_read_is_passed_over_and_counted(
    client: openai.OpenAI, gateway: GatewayProcess
) -> None:
    """The stream around it is whole."""
    before = scraped(gateway)
    text, reason, _ = read(client.chat.completions.create(model="torn", messages=words("torn"), stream=True))
    assert (len(text.split()) > 1, reason) == (True, "stop")
    counted = "raycade_stream_malformed_events_total"
    assert total(scraped(gateway), counted, tier="torn") - total(before, counted, tier="torn") == 1


# ---- the Responses API, streamed


def test_a_response_is_streamed(client: openai.OpenAI) -> None:
    """The typed events as they came, and the same text as without a stream; the package's own helper puts it together."""
    ask: Any = {"model": "steady", "input": "in so many words"}
    whole = client.responses.create(**ask)
    events = list(client.responses.create(**ask, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage == whole.usage
    with client.responses.stream(**ask) as stream:
        assert stream.get_final_response().output_text == whole.output_text


def test_a_response_that_breaks_off_is_an_error(client: openai.OpenAI) -> None:
    """There is no way to go on with another tier, and nobody takes it for whole: the package raises."""
    stream = client.responses.create(model="cut", input="break in the middle", stream=True)
    heard: list[str] = []
    with pytest.raises(openai.APIError, match="broke off"):
        heard.extend(event.type for event in stream)
    assert "response.output_text.delta" in heard
    assert "response.completed" not in heard


def test_fuzzing_finds_no_server_error(gateway: GatewayProcess, tmp_path: Path) -> None:
    """From the gateway's own page (tests/e2e/fuzz.py), as a key that may use a tier that works."""
    assert fuzz(gateway.root, NARROW, 10, tmp_path, examples=10) == ""
    assert tracebacks(gateway) == []


# ---- other clients


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_tool_calls_choices_and_log_probabilities(client: openai.OpenAI) -> None:
    """What an answer has besides text comes through, whole and in parts."""
    ask: Any = {"model": "steady", "messages": words("call me"), "tools": [WEATHER], "tool_choice": "required"}
    call = client.chat.completions.create(**ask).choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert isinstance(orjson.loads(call.function.arguments)["city"], str)
    name, arguments, reason = "", "", None
    for chunk in client.chat.completions.create(**ask, stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            name, arguments = name + (part.function.name or ""), arguments + (part.function.arguments or "")
        reason = chunk.choices[0].finish_reason or reason
    assert (name, arguments, reason) == ("weather", call.function.arguments, "tool_calls")

    ask = {"model": "steady", "messages": words("how sure"), "n": 2, "logprobs": True}
    whole = client.chat.completions.create(**ask)
    texts, likely = ["", ""], [0, 0]
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            likely[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    assert texts == [choice.message.content for choice in whole.choices]
    assert likely == [len(choice.logprobs.content) for choice in whole.choices]
    assert min(likely) > 5


async def test_the_async_client(gateway: GatewayProcess) -> None:
    """The same, plain, streamed and with a tool, at once."""
    ask: Any = {"model": "steady", "messages": words("asynchronously")}
    async with openai.AsyncOpenAI(base_url=gateway.url, api_key=KEY, max_retries=0) as client:
        create = client.chat.completions.create
        plain, stream, called = await asyncio.gather(
            create(**ask), create(**ask, stream=True), create(**ask, tools=[WEATHER], tool_choice="required")
        )
        text = "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])
    assert text == plain.choices[0].message.content
    assert called.choices[0].message.tool_calls[0].function.name == "weather"


def curl(gateway: GatewayProcess, body: dict[str, Any], *options: str) -> str:
    headers = ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"]
    command = ["curl", "-sS", "--noproxy", "*", *options, *headers, "-d", orjson.dumps(body).decode()]
    return subprocess.run(
        [*command, f"{gateway.url}/chat/completions"], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_curl(gateway: GatewayProcess) -> None:
    """Plain, and `curl -N` for a stream."""
    ask = {"model": "steady", "messages": words("curled")}
    text = orjson.loads(curl(gateway, ask))["choices"][0]["message"]["content"]
    streamed = curl(gateway, {**ask, "stream": True}, "-N").split("\n\n")
    *events, done = [line.removeprefix("data: ") for line in streamed if line]
    assert done == "[DONE]"
    deltas = [orjson.loads(event)["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == text


def test_a_browser_reads_a_stream(gateway: GatewayProcess, page: Page) -> None:
    """With fetch, piece by piece, from a page whose origin is named; a page from elsewhere gets nothing."""
    body = {"model": "slow", "messages": words("in a browser"), "stream": True}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    ask = {"url": f"{gateway.url}/chat/completions", "headers": headers, "body": body}
    told = page.opened(ask)
    assert told.get("error") is None
    assert (told["status"], told["tier"], told["ended"]) == (200, "slow", True)
    assert told["text"].startswith("echo ")
    assert told["reads"] > 5
    assert "error" in page.opened(ask, "localhost")


# ---- the end: nothing after this has a gateway


def test_a_gateway_that_is_killed_tells_nobody_half_an_answer_and_comes_back(
    client: openai.OpenAI, gateway: GatewayProcess, mock: MockProcess
) -> None:
    """What it had asked for ends upstream; the next process answers with the same keys."""
    mock.reset()
    stream = client.chat.completions.create(model="long", messages=words("until you die"), stream=True)
    next(iter(stream))
    (replica,) = actor_pids(gateway.process.pid if gateway.process else 0, "ServeReplica")
    os.kill(replica, signal.SIGKILL)
    heard: list[Any] = []
    with pytest.raises((openai.APIError, httpx2.TransportError)):
        heard.extend(stream)
    assert not any(choice.finish_reason for chunk in heard for choice in chunk.choices)
    wait_until(lambda: mock.stats()["total"]["in_flight"] == 0)
    raw = client.with_options(max_retries=10).chat.completions.with_raw_response
    assert raw.create(model="steady", messages=words("are you back")).headers["x-raycade-tier"] == "steady"


def test_sigterm_lets_answers_end(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    """A stream and a plain answer under way come whole, and longer than Ray's own handler would have let the process live."""
    assert gateway.process is not None
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ask: Any = {"model": "long", "max_tokens": 45}
        stream = client.chat.completions.create(**ask, messages=words("to the end"), stream=True)
        next(iter(stream))
        plain = pool.submit(client.chat.completions.create, **ask, messages=words("me too"))
        time.sleep(0.3)
        gateway.process.terminate()
        turned_away: list[tuple[str | None, bool]] = []

        def told_to_come_again() -> bool:
            try:
                client.chat.completions.create(model="steady", messages=words("too late"))
            except openai.InternalServerError as refused:
                turned_away.append((refused.code, "retry-after" in refused.response.headers))
            return bool(turned_away)

        wait_until(told_to_come_again)
        assert turned_away[0] == ("not_serving", True)
        text, reason, _ = read(stream)
        assert (reason, plain.result().choices[0].finish_reason) == ("length", "length")
        assert text
    assert gateway.stop() == 0
