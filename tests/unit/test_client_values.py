"""What a program says to the client, and what it gets back."""

import pickle
from typing import Any

import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from pydantic import BaseModel

from actors.errors import InputError, RequestFailed
from actors.messages import Amount, Attempt, Failure
from runtime.client_values import RowAsk, body_of, failed, parsed, row_ask, typed
from runtime.config import Config, served_name
from runtime.encode import filled

ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": '{"n": 1}'}, "finish_reason": "stop"}],
}


class Number(BaseModel):
    n: int


def test_a_text_messages_and_a_body_are_all_bodies() -> None:
    """What is named beside them goes before what they say; messages of an earlier answer become plain."""
    assert body_of("hi", {}) == {"messages": [{"role": "user", "content": "hi"}]}
    earlier = ChatCompletionMessage(role="assistant", content="yes")
    assert body_of([earlier], {"seed": 1}) == {"messages": [{"role": "assistant", "content": "yes"}], "seed": 1}
    said = {"messages": [], "seed": 1}
    assert body_of(said, {"seed": 2}) == {"messages": [], "seed": 2}
    assert said["seed"] == 1


def test_rows_of_every_form() -> None:
    """As `complete` takes it, as OpenAI's Batch format has it, or variables of a prompt."""
    chat = "/chat/completions"
    assert row_ask("hi", False) == RowAsk(chat, "hi", None, None)
    assert row_ask({"messages": []}, False).ask == {"messages": []}
    row = {"custom_id": "1", "url": "/v1/embeddings", "body": {"input": "x"}}
    assert row_ask(row, False) == RowAsk("/embeddings", {"input": "x"}, None, "1")
    assert row_ask({"custom_id": "1", "name": "Ada"}, True) == RowAsk(chat, None, {"name": "Ada"}, "1")
    assert row_ask({"variables": {"name": "Ada"}}, True) == RowAsk(chat, None, {"name": "Ada"}, None)


@pytest.mark.parametrize(
    ("row", "prompted", "said"),
    [
        (7, False, "a mapping, a text or a list of messages, found int"),
        (b"x", False, "found bytes"),
        ("text", True, "a mapping of variables, found str"),
        ({"url": "/v1/x", "body": {}}, False, "url: expected one of /v1/chat/completions"),
        ({"body": 1}, False, "body: expected an object, found int"),
    ],
)
def test_a_row_that_is_none_says_why(row: Any, prompted: bool, said: str) -> None:
    """In one line."""
    with pytest.raises(InputError) as wrong:
        row_ask(row, prompted)
    assert said in str(wrong.value)


def test_answers_have_openais_types() -> None:
    """With what is told of them beside it, also where an endpoint deviates from what OpenAI documents."""
    answer = typed(ChatCompletion, orjson.dumps(ANSWER), {"tier": "a"})
    assert answer.choices[0].message.content == '{"n": 1}'
    assert answer.model_extra == {"raycade": {"tier": "a"}}
    odd = typed(ChatCompletion, orjson.dumps({**ANSWER, "service_tier": "turbo", "created": None}), {"tier": "a"})
    assert isinstance(odd, ChatCompletion)
    assert odd.choices[0].finish_reason == "stop"
    assert odd.model_extra == {"raycade": {"tier": "a"}}


def test_a_parsed_answer_holds_the_object() -> None:
    """Beside the text it was made of."""
    whole = parsed(Number, Number(n=1), orjson.dumps(ANSWER), {"tier": "a"})
    assert whole.choices[0].message.parsed == Number(n=1)
    assert whole.choices[0].message.content == '{"n": 1}'
    assert whole.model_extra == {"raycade": {"tier": "a"}}


def test_a_failure_survives_pickling_with_all_it_carries() -> None:
    """Programs on Ray pass it between processes."""
    attempt = Attempt("a", 0, "server", 500, 0.1, "broken")
    error = failed(Failure("all_tiers_exhausted", "all failed", 500, 3.0, attempts=(attempt,), cost=Amount(1, 2)))
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, RequestFailed)
    assert str(again) == str(error) == "all_tiers_exhausted: all failed"
    assert (again.kind, again.status, again.retry_after_s, again.attempts) == (
        "all_tiers_exhausted",
        500,
        3.0,
        (attempt,),
    )
    assert again.cost_usd == 2e-6


def test_what_is_said_beside_a_prompt_goes_before_its_defaults() -> None:
    """Any limit on the length replaces any other; the messages are the prompt's."""
    made = {"messages": ["p"], "max_tokens": 10, "temperature": 0, "model": "a"}
    path = "/chat/completions"
    assert filled(path, {}, made) == made
    said = {"max_completion_tokens": 5, "temperature": None, "model": "auto", "messages": []}
    assert filled(path, said, made) == {
        "max_completion_tokens": 5,
        "temperature": 0,
        "model": "a",
        "messages": ["p"],
    }
    assert filled(path, {"model": "b"}, made)["model"] == "b"


def test_who_shares_a_runtime_has_the_same_limits() -> None:
    """What the actors go by tells configurations apart; what each door reads for itself does not."""
    tier = {"name": "a", "model": "m", "base_url": "http://h", "price": {"prompt": 1, "completion": 1}}
    one = Config.model_validate({"tiers": [tier]})
    door = {"gateway": {"max_queued": 5}, "prompts": {"dir": "p"}, "budget": {"keys": {"k": {"usd": {"per_day": 1}}}}}
    assert served_name(Config.model_validate({"tiers": [tier], **door})) == served_name(one)
    for other in (
        {"tiers": [{**tier, "requests_per_minute": 5}]},
        {"tiers": [tier], "budget": {"usd": {"per_day": 1}}},
        {"tiers": [tier], "state_dir": "elsewhere"},
        {"tiers": [tier], "telemetry": {"metrics_port": None}},
        {"tiers": [tier], "ledger": "postgresql://u@h/d"},
    ):
        assert served_name(Config.model_validate(other)) != served_name(one)
        places = {served_name(Config.model_validate(each)).split("-")[0] for each in (other, {"tiers": [tier]})}
        assert len(places) == 1 + bool(other.keys() & {"state_dir", "ledger"})
