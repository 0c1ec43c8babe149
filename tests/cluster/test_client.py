"""The Python client against real actors and the mock endpoint: what a program gets, and what becomes of what it leaves."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ParsedChatCompletion
from pydantic import BaseModel, Field, field_validator

from actors.errors import ClusterError, InputError, RequestFailed
from runtime import Client
from runtime.cluster import Cluster
from runtime.config import Config, resolve_prices
from runtime.mock.process import MockProcess

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.asyncio(loop_scope="module")]

SCENARIO: dict[str, Any] = {
    "seed": 7,
    "tiers": {
        "dead": {"status": 500},
        "steady": {"latency": 0.02, "tokens": 12, "tokens_per_s": 400},
        "cut": {"reset_mid_body": 1.0, "tokens": 12, "tokens_per_s": 200},
        "long": {"tokens": 400, "tokens_per_s": 10},
        "sleepy": {"latency": 20},
    },
}


@pytest.fixture(scope="module")
def mock() -> Iterator[MockProcess]:
    with MockProcess(SCENARIO) as process:
        yield process


def config(mock: MockProcess, folder: Path, **more: Any) -> Config:
    (folder / "prompts" / "greet").mkdir(parents=True, exist_ok=True)
    (folder / "prompts" / "greet" / "v1.yaml").write_text(
        'version: 1\ndescription: d\nmodel: steady\nuser_template: "Greet {name}."\nvariables: [name]\n'
    )
    tiers = [
        {
            "name": name,
            "model": f"model-{name}",
            "base_url": mock.tier_url(name),
            "price": {"prompt": 1, "completion": 2},
            "breaker": {"failure_threshold": 50},
            "structured": "native",
        }
        for name in ("dead", "cut", "steady", "long", "sleepy")
    ]
    return Config.model_validate(
        {
            "state_dir": str(folder / "state"),
            "tiers": tiers,
            "prompts": {"dir": str(folder / "prompts")},
            "telemetry": {"metrics_port": None},
            **more,
        }
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(local_ray: None, mock: MockProcess, tmp_path_factory: Any) -> AsyncIterator[Client]:
    async with Client(config(mock, tmp_path_factory.mktemp("client")), max_usd=100) as opened:
        yield opened


def text_of(completion: ChatCompletion) -> str:
    return completion.choices[0].message.content or ""


async def gone(mock: MockProcess, tier: str, than: int) -> float:
    """How long it takes until one call more than that was abandoned at the endpoint."""
    began = time.monotonic()
    async with asyncio.timeout(10):
        while mock.stats()["tiers"][tier]["abandoned"] <= than:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.02)
    return time.monotonic() - began


async def test_an_answer_has_openais_type_and_tells_how_it_came_about(client: Client) -> None:
    """A text, messages and a body ask the same; a dead tier costs the caller nothing but attempts."""
    answer = await client.complete("hello", model="steady", share=False)
    assert isinstance(answer, ChatCompletion)
    assert answer.usage is not None
    told = answer.model_extra["raycade"]  # type: ignore[index]
    usd = (answer.usage.prompt_tokens + 2 * answer.usage.completion_tokens) / 1e6
    assert told["tier"] == "steady"
    assert told["cost_usd"] == pytest.approx(usd, abs=1e-6)
    messages = [{"role": "user", "content": "hello"}]
    again = await client.complete(messages, model="steady", share=False)
    body = await client.complete({"messages": messages, "model": "steady"}, share=False)
    assert text_of(again) == text_of(body) == text_of(answer)
    fallen = await client.complete("from the dead", model="dead")
    assert fallen.model_extra["raycade"]["tier"] == "steady"  # type: ignore[index]
    assert isinstance(await client.embed(["a", "b"], model="steady"), CreateEmbeddingResponse)


async def test_an_earlier_answer_may_be_sent_back(client: Client) -> None:
    """As programs that hold a conversation do with the openai package."""
    first = await client.complete("one", model="steady")
    messages: list[Any] = [{"role": "user", "content": "one"}, first.choices[0].message]
    assert text_of(await client.complete([*messages, {"role": "user", "content": "two"}], model="steady"))


async def test_a_registered_prompt(client: Client) -> None:
    """The prompt makes the messages; what is said beside it goes before its defaults."""
    greeted = await client.complete(prompt="greet@1", variables={"name": "Ada"}, max_tokens=5)
    plain = await client.complete("Greet Ada.", model="steady", max_tokens=5)
    assert text_of(greeted) == text_of(plain)
    assert greeted.model_extra["raycade"]["prompt"] == "greet@1"  # type: ignore[index]
    with pytest.raises(InputError, match="name"):
        await client.complete(prompt="greet@1")


class City(BaseModel):
    name: str
    inhabitants: int = Field(ge=0)


class Never(City):
    @field_validator("name")
    @classmethod
    def _refused(cls, name: str) -> str:
        raise ValueError("this is no city")


async def test_an_object_of_a_class_of_ones_own(client: Client) -> None:
    """What only the class can refuse is asked for again too, and in the end refused with its reason."""
    answer = await client.parse(City, "Which city?", model="steady")
    assert isinstance(answer, ParsedChatCompletion)
    assert isinstance(answer.choices[0].message.parsed, City)
    with pytest.raises(RequestFailed, match="name: Value error, this is no city") as refused:
        await client.parse(Never, "Which city?", model="steady")
    assert refused.value.kind == "invalid_output"


async def test_a_stream_says_what_a_whole_answer_says(client: Client) -> None:
    """In openai's chunks; who speaks is known from the first one on, and at the end how it came about."""
    whole = await client.complete("say it slowly", model="steady")
    text = ""
    stream = client.stream("say it slowly", model="steady", stream_options={"include_usage": True})
    async for chunk in stream:
        assert isinstance(chunk, ChatCompletionChunk)
        assert stream.tier == "steady"
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == text_of(whole)
    assert chunk.usage == whole.usage
    assert stream.raycade["attempts"] == 1
    fallen = "".join([c.choices[0].delta.content or "" async for c in client.stream("fall over", model="cut")])
    assert fallen == text_of(await client.complete("fall over", model="steady"))


async def test_whoever_leaves_a_stream_ends_its_call(client: Client, mock: MockProcess) -> None:
    """By leaving the loop, by being cancelled, and by closing it: the endpoint's connection is closed within a second."""
    before = mock.stats()["tiers"]["long"]["abandoned"]
    async for _ in client.stream("leave the loop", model="long"):
        break
    assert await gone(mock, "long", before) < 1

    async def read() -> None:
        async for _ in client.stream("be cancelled", model="long"):
            reading.set()

    reading = asyncio.Event()
    task = asyncio.create_task(read())
    await reading.wait()
    task.cancel()
    assert await gone(mock, "long", before + 1) < 1
    async with client.stream("close it", model="long") as stream:
        await anext(stream)
    assert await gone(mock, "long", before + 2) < 1
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_every_row_of_a_map_has_one_outcome(client: Client) -> None:
    """Rows of every form; a wrong one fails alone; in flight are never more than the window."""
    read = 0

    def rows() -> Iterator[Any]:
        nonlocal read
        for number in range(300):
            read += 1
            yield f"[[tag:row-{number}]] hello {number}"
        yield {"messages": [{"role": "user", "content": "a body"}]}
        yield {"custom_id": "e", "url": "/v1/embeddings", "body": {"input": "a row of a batch", "model": "steady"}}
        yield {"custom_id": "w", "url": "/v1/nothing", "body": {}}
        yield [{"role": "user"}, "no message"]
        yield 7

    taken, outcomes = 0, []
    async for outcome in client.map(rows(), window=20, model="steady"):
        taken += 1
        assert read - taken <= 20
        outcomes.append(outcome)
    assert sorted(outcome.number for outcome in outcomes) == list(range(305))
    by_number = {outcome.number: outcome for outcome in outcomes}
    for number in range(300):
        assert by_number[number].row.endswith(f"hello {number}")
        assert isinstance(by_number[number].value, ChatCompletion)
    assert isinstance(by_number[301].value, CreateEmbeddingResponse)
    for number in (302, 303, 304):
        assert isinstance(by_number[number].error, InputError)
        assert by_number[number].value is None
    variables = [{"name": "Ada"}, {"custom_id": "2", "variables": {"name": "Grace"}}]
    greeted = [outcome async for outcome in client.map(variables, prompt="greet@1")]
    assert [outcome.error for outcome in greeted] == [None, None]
    cities = [outcome async for outcome in client.map(["a", "b"], model="steady", into=City)]
    assert all(isinstance(outcome.value.choices[0].message.parsed, City) for outcome in cities)


async def test_whoever_leaves_a_map_ends_its_calls(client: Client, mock: MockProcess) -> None:
    """And what the rows themselves raise is raised, after the rows before have ended."""
    before = mock.stats()["tiers"]["sleepy"]["abandoned"]

    async def rows() -> AsyncIterator[Any]:
        yield {"messages": [{"role": "user", "content": "first"}], "model": "steady"}
        for number in range(5):
            yield {"messages": [{"role": "user", "content": f"asleep {number}"}], "model": "sleepy"}
        await asyncio.sleep(3600)

    async for outcome in client.map(rows()):
        assert outcome.number == 0
        while mock.stats()["tiers"]["sleepy"]["in_flight"] < 5:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.02)
        break
    assert await gone(mock, "sleepy", before + 4) < 1

    def broken() -> Iterator[Any]:
        yield "well"
        raise OSError("the file ends here")

    mapped = client.map(broken(), model="steady")
    assert (await anext(mapped)).error is None
    with pytest.raises(OSError, match="the file ends here"):
        await anext(mapped)


async def test_what_is_wrong_is_said_in_one_line(client: Client) -> None:
    """With the field before anything is sent, with the kind where it was."""
    for named, field in (
        ({"model": "gpt-99"}, "model"),
        ({"min_quality": "best"}, "min_quality"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"stream": True}, "stream"),
        ({"prompt": "unheard"}, ""),
        ({"variables": {}}, "variables"),
    ):
        ask = None if "prompt" in named else "hi"
        with pytest.raises(InputError) as wrong:
            await client.complete(ask, **named)  # type: ignore[arg-type]
        assert field in wrong.value.field
        assert "\n" not in str(wrong.value)
    with pytest.raises(InputError, match="a list of at least one message"):
        await client.complete([])
    with pytest.raises(RequestFailed) as late:
        await client.complete("be quick", model="sleepy", deadline_s=0.2)
    assert late.value.kind == "deadline"
    with pytest.raises(RequestFailed) as late:
        async for _ in client.stream("be quick too", model="sleepy", deadline_s=0.2):
            pass
    assert late.value.kind == "deadline"


async def test_a_runtime_that_is_up_is_found(local_ray: None, mock: MockProcess, tmp_path: Path) -> None:
    """By whoever has the same configuration, on any Ray; it outlives them, and is ended by name."""
    asked = config(mock, tmp_path)
    asked = asked.model_copy(update={"tiers": [tier for tier in asked.tiers if tier.name == "steady"]})
    up = await Cluster.up(asked, resolve_prices(asked), "")
    import ray

    @ray.remote(num_cpus=0)
    def inside(asked: Config) -> str | None:
        from runtime import SyncClient

        with SyncClient(asked) as client:
            return client.complete("found").choices[0].message.content

    try:
        await up.close()
        poor = Client(asked, max_tokens=1)
        with pytest.raises(ClusterError, match="async with Client"):
            await poor.complete("too soon")
        async with Client(asked) as one, poor:
            assert text_of(await one.complete("found")) == await inside.remote(asked)
            with pytest.raises(RequestFailed, match=f"job:{poor.name}") as refused:
                await poor.complete("on credit")
            assert refused.value.kind == "budget_exceeded"
        async with Client(asked) as again:
            assert text_of(await again.complete("still there"))
        with pytest.raises(ClusterError, match=r"another raycade\.yaml"):
            await Client(config(mock, tmp_path)).open()
        elsewhere = asked.model_copy(update={"state_dir": str(tmp_path / "elsewhere")})
        assert await Cluster.down(elsewhere, "") == []
    finally:
        assert await Cluster.down(asked, "") == [up.name]


async def test_a_router_that_dies_loses_no_request_and_splices_no_stream(client: Client, mock: MockProcess) -> None:
    """What had not begun to speak is asked again by the next router; what had begun ends as broken."""
    import ray

    waiting = [asyncio.create_task(client.complete(f"survive {n}", model="steady", share=False)) for n in range(20)]
    stream = client.stream("break", model="long")
    async with asyncio.timeout(30):
        await anext(stream)
        ray.kill(client._cluster.handles["router/0"], no_restart=False)
        with pytest.raises(RequestFailed) as broken:
            async for _ in stream:
                pass
        assert broken.value.kind == "broken_stream"
        after = [asyncio.create_task(client.complete(f"after {n}", model="steady")) for n in range(5)]
        assert len(await asyncio.gather(*waiting, *after)) == 25
