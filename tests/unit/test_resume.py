"""How a broken stream goes on: what the next tier is asked, and which part of its answer is new."""

from typing import Any

import orjson
import pytest

from actors.messages import Failure
from actors.router.chunks import identity_of, renamed
from actors.router.resume import (
    Afresh,
    Continuation,
    Continue,
    Diverged,
    NotResumable,
    Rest,
    refuses_prefill,
    resumption,
)

CHAT = "/chat/completions"
MESSAGES = [{"role": "user", "content": "tell me"}]


def body(**fields: Any) -> bytes:
    return orjson.dumps({"messages": MESSAGES, "stream": True, **fields})


def continued(done: Any) -> dict[str, Any]:
    assert isinstance(done, Continue)
    asked: dict[str, Any] = orjson.loads(done.body)
    return asked


def test_a_tier_that_continues_gets_what_was_said() -> None:
    """As the last message, with what vLLM needs to take it so, without white space at its end, and with fewer tokens left."""
    asked = continued(resumption(CHAT, body(max_tokens=100, user="u"), "Once upon \n", 3, (), "message"))
    assert asked == {
        "messages": [*MESSAGES, {"role": "assistant", "content": "Once upon"}],
        "stream": True,
        "user": "u",
        "max_tokens": 97,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }


def test_the_dialect_of_a_marked_prefix() -> None:
    """DeepSeek and Mistral mark the message, and know no other fields."""
    asked = continued(resumption(CHAT, body(max_completion_tokens=5), "Once", 9, (), "prefix"))
    assert asked["messages"][-1] == {"role": "assistant", "content": "Once", "prefix": True}
    assert asked["max_completion_tokens"] == 1
    assert "continue_final_message" not in asked


def test_a_request_with_a_prefill_of_its_own_keeps_one_last_message() -> None:
    """Its own beginning and what was said after it are one text."""
    own = [*MESSAGES, {"role": "assistant", "content": "{", "name": "bot"}]
    asked = continued(resumption(CHAT, body(messages=own), '"a":', 1, (), "message"))
    assert asked["messages"] == [*MESSAGES, {"role": "assistant", "content": '{"a":', "name": "bot"}]


@pytest.mark.parametrize("prompt", ["Once", ["Once"]])
def test_completions_get_a_longer_prompt(prompt: object) -> None:
    """There the prompt and the answer are one text already."""
    request = orjson.dumps({"prompt": prompt, "max_tokens": 10})
    asked = continued(resumption("/completions", request, " upon", 1, (), "message"))
    assert asked == {"prompt": "Once upon", "max_tokens": 9}


@pytest.mark.parametrize(
    ("request_body", "said", "forms", "prefill"),
    [
        (body(), "Once", (), "no"),
        (body(), "", ("reasoning_content",), "message"),
        (body(response_format={"type": "json_object"}), '{"a"', (), "message"),
        (body(guided_regex="a+"), "aa", (), "message"),
        (body(messages=[]), "Once", (), "message"),
        (
            body(messages=[*MESSAGES, {"role": "assistant", "content": [{"type": "text", "text": "O"}]}]),
            "n",
            (),
            "message",
        ),
    ],
)
def test_what_cannot_be_continued_is_asked_afresh(
    request_body: bytes, said: str, forms: tuple[str, ...], prefill: Any
) -> None:
    """A tier without prefill, nothing said yet, and an answer that is held to a form: the same request again, byte for byte."""
    assert resumption(CHAT, request_body, said, 1, forms, prefill) == Afresh(request_body)


@pytest.mark.parametrize(
    ("request_body", "forms", "reason"),
    [
        (body(n=2), (), "several choices"),
        (body(best_of=3), (), "several choices"),
        (body(), ("tool_calls",), "tool_calls"),
        (body(), ("reasoning_content", "refusal"), "refusal"),
        (body(echo=True), (), "not only"),
        (b"nonsense", (), "cannot be read"),
    ],
)
def test_what_cannot_be_resumed_says_so(request_body: bytes, forms: tuple[str, ...], reason: str) -> None:
    """Half a tool call or half of n answers are continued by nobody."""
    done = resumption(CHAT, request_body, "Once", 1, forms, "message")
    assert isinstance(done, NotResumable)
    assert reason in done.reason


def test_a_refused_prefill_is_told_apart() -> None:
    """Anthropic's newer models answer 400; a tier that is down has refused nothing."""
    assert refuses_prefill(Failure("bad_request", "Prefilling assistant messages is no longer supported", 400))
    assert not refuses_prefill(Failure("server", "no", 500))


# ---- which part is new


def test_a_second_answer_that_diverges_says_where() -> None:
    rest = Rest("Once upon a time")
    assert [rest.feed("Once "), rest.feed("upon")] == ["", ""]
    assert rest.feed(" two") == Diverged(10)
    assert Rest("Once").end() == Diverged(0)


def test_a_continuation_that_repeats_it_all_is_cut() -> None:
    """As Mistral's do; a short text that begins again by itself is not."""
    said = "Once upon a time there was a "
    whole = Continuation(said)
    assert "".join([whole.feed("Once upon a time there"), whole.feed(" was a king"), whole.end()]) == "king"
    alike = Continuation(said)
    assert "".join([alike.feed("Once upon"), alike.feed(" another"), alike.end()]) == "Once upon another"
    held = Continuation(said)
    assert "".join([held.feed("Once"), held.end()]) == "Once"
    short = Continuation("ha ")
    assert short.feed("ha") == "ha"


def test_white_space_that_was_sent_comes_once() -> None:
    """The request does not hold the last white space, so the continuation may bring it again, or not."""
    assert Continuation("Once ").feed(" upon") == "upon"
    assert Continuation("Once ").feed("upon") == "upon"
    parts = Continuation("Once\n\n")
    assert [parts.feed("\n"), parts.feed("\n"), parts.feed("\nupon")] == ["", "", "\nupon"]


# ---- one stream out of two

FIRST = b'{"id":"a","created":1,"model":"m-1","choices":[{"index":0,"delta":{"role":"assistant","content":"On"}}]}'


def second(choice: dict[str, Any], **fields: Any) -> bytes:
    return orjson.dumps({"id": "b", "created": 2, "model": "m-2", "choices": [{"index": 0, **choice}], **fields})


def test_the_caller_sees_one_id_and_who_answered() -> None:
    """The id is the first upstream's; whatever else the second says stays, its model and usage too."""
    data = second({"delta": {"role": "assistant", "content": "ce"}, "finish_reason": None}, usage={"x": 1}, other=[1])
    event = orjson.loads(renamed(data, identity_of(FIRST)) or b"")
    assert (event["id"], event["created"], event["model"]) == ("a", 1, "m-2")
    assert (event["choices"][0]["delta"], event["usage"], event["other"]) == ({"content": "ce"}, {"x": 1}, [1])


def test_of_a_repeated_text_the_rest_is_left() -> None:
    """With no probabilities of tokens that are not all there; and nothing of an event that was all repeated."""
    identity = identity_of(FIRST)
    data = second({"delta": {"content": "Once"}, "logprobs": {"content": [1]}, "finish_reason": None})
    event = orjson.loads(renamed(data, identity, text="ce") or b"")
    assert event["choices"][0] == {"index": 0, "delta": {"content": "ce"}, "logprobs": None, "finish_reason": None}
    assert renamed(data, identity, text="") is None
    last = second({"delta": {"content": "Once"}, "finish_reason": "stop"})
    assert orjson.loads(renamed(last, identity, text="") or b"")["choices"][0]["finish_reason"] == "stop"
    completion = second({"text": "Once", "finish_reason": None})
    assert orjson.loads(renamed(completion, identity, text="e") or b"")["choices"][0]["text"] == "e"


def test_a_second_role_and_second_thoughts_go() -> None:
    """The caller has had both."""
    identity = identity_of(FIRST)
    assert renamed(second({"delta": {"role": "assistant", "content": ""}}), identity) is None
    thinks = second({"delta": {"reasoning_content": "hm"}})
    assert renamed(thinks, identity, reasons=False) is None
    assert b"hm" in (renamed(thinks, identity) or b"")
    usage = orjson.dumps({"id": "b", "choices": [], "usage": {"prompt_tokens": 1}})
    assert b'"id":"a"' in (renamed(usage, identity) or b"")
