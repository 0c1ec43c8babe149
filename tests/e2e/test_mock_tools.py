"""What the mock's answers have besides text: tool calls, log probabilities, and stamps for those who measure."""

import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import jsonschema_rs
import openai
import orjson
import pytest
from openai import OpenAI

from runtime.mock.process import MockProcess

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "time"}},
]
SAYS: Any = [{"role": "user", "content": "how is it?"}]


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    tiers: dict[str, Any] = {"default": {"tokens_per_s": 500, "tokens": 12, "stamped": True}}
    with MockProcess({"tiers": tiers}) as mock, OpenAI(base_url=mock.url, api_key="any", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_that_is_demanded_is_called(client: OpenAI, choice: Any) -> None:
    """With arguments that satisfy its schema, the same whole and streamed."""
    ask: Any = {"model": "m", "messages": SAYS, "tools": TOOLS, "tool_choice": choice}
    said = client.chat.completions.create(**ask).choices[0]
    assert said.finish_reason == "tool_calls"
    assert said.message.content is None
    call = said.message.tool_calls[0]
    assert call.function.name == "weather"
    jsonschema_rs.validate(SCHEMA, orjson.loads(call.function.arguments))
    name, arguments = "", ""
    for chunk in client.chat.completions.create(**ask, stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            name, arguments = name + (part.function.name or ""), arguments + (part.function.arguments or "")
    assert (name, arguments) == ("weather", call.function.arguments)


def test_a_tool_that_is_only_offered_is_not_called(client: OpenAI) -> None:
    """And one that is not among the tools cannot be demanded."""
    said = client.chat.completions.create(model="m", messages=SAYS, tools=TOOLS).choices[0]
    assert (said.finish_reason, said.message.tool_calls) == ("stop", None)
    unknown: Any = {"type": "function", "function": {"name": "nothing"}}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="m", messages=SAYS, tools=TOOLS, tool_choice=unknown)


def test_log_probabilities_are_of_the_text(client: OpenAI) -> None:
    """Token by token they make the text."""
    said = client.chat.completions.create(model="m", messages=SAYS, logprobs=True).choices[0]
    assert said.logprobs is not None
    assert "".join(each.token for each in said.logprobs.content or ()) == said.message.content


def test_stamped_tokens_say_whose_which_and_when(client: OpenAI) -> None:
    """For benchmarks: a reader on this machine can tell how late a token is."""
    stream = client.chat.completions.create(model="m", messages=SAYS, stream=True)
    head = sha256(SAYS[0]["content"].encode()).hexdigest()[:16]
    numbers, lags = [], []
    for chunk in stream:
        if chunk.choices and (text := chunk.choices[0].delta.content):
            for token in text.split():
                hash_, number, at = token.split(".")
                assert hash_ == head
                numbers.append(int(number))
                lags.append(time.monotonic() - int(at) / 1e6)
    assert numbers == list(range(12))
    assert all(0 <= lag < 10 for lag in lags)
