"""From a body to a request of the router: what is refused, with which field, and what passes through."""

from typing import Any

import orjson
import pytest

from actors.messages import Request
from actors.settings import TierSettings
from runtime.gateway.asks import Asks
from runtime.gateway.errors import HttpError
from runtime.gateway.keys import Key
from runtime.gateway.limits import Gate

TIERS = [
    TierSettings.model_validate({"name": name, "model": f"m-{name}", "base_url": "http://x", "quality": quality})
    for name, quality in (("best", "high"), ("cheap", "basic"))
]
ASKS = Asks(TIERS, min_quality="basic", deadline_s=60.0, share=True)
ME = Key("k")
CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}


def read(body: Any, path: str = "/chat/completions", headers: dict[str, str] | None = None, key: Key = ME) -> Request:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return ASKS.read("id", path, data, headers or {}, key)


def test_a_chat_becomes_a_request() -> None:
    """Interactive, in the caller's name, and with every field that we do not know."""
    ask = read({**CHAT, "model": "cheap", "logprobs": True, "tools": [], "new_field": {"a": [1]}, "stream": False})
    assert (ask.start_tier, ask.interactive, ask.key, ask.stream) == (1, True, "k", False)
    assert orjson.loads(ask.body) == {
        "messages": CHAT["messages"],
        "logprobs": True,
        "tools": [],
        "new_field": {"a": [1]},
    }


def test_headers_and_the_raycade_object_say_quality_and_deadline() -> None:
    """The header wins; the deadline is never longer than the operator's; neither goes upstream."""
    ask = read({**CHAT, "raycade": {"min_quality": "medium", "deadline_s": 5}})
    assert (ask.min_quality, ask.deadline_s) == (1, 5.0)
    assert b"raycade" not in ask.body
    ask = read(CHAT, headers={"x-raycade-min-quality": "high", "x-raycade-deadline": "600"})
    assert (ask.min_quality, ask.deadline_s) == (2, 60.0)


@pytest.mark.parametrize(
    ("body", "path", "headers", "status", "code", "param"),
    [
        (b"{", "/chat/completions", {}, 400, "invalid_json", None),
        (b"[]", "/chat/completions", {}, 400, "invalid_body", None),
        (b"", "/chat/completions", {}, 400, "invalid_json", None),
        ({"model": "auto"}, "/chat/completions", {}, 400, "missing_field", "messages"),
        ({"messages": "hi"}, "/chat/completions", {}, 400, "invalid_type", "messages"),
        ({}, "/embeddings", {}, 400, "missing_field", "input"),
        ({}, "/completions", {}, 400, "missing_field", "prompt"),
        ({}, "/responses", {}, 400, "missing_field", "input"),
        ({**CHAT, "model": "gpt-99"}, "/chat/completions", {}, 404, "model_not_found", "model"),
        ({**CHAT, "model": ["a"]}, "/chat/completions", {}, 404, "model_not_found", "model"),
        ({**CHAT, "stream": "yes"}, "/chat/completions", {}, 400, "invalid_type", "stream"),
        ({**CHAT, "raycade": {"quality": "high"}}, "/chat/completions", {}, 400, "invalid_field", "raycade.quality"),
        ({**CHAT, "raycade": 3}, "/chat/completions", {}, 400, "invalid_field", "raycade"),
        (CHAT, "/chat/completions", {"x-raycade-min-quality": "best"}, 400, "invalid_header", None),
        (CHAT, "/chat/completions", {"x-raycade-deadline": "soon"}, 400, "invalid_header", None),
        (CHAT, "/chat/completions", {"x-raycade-deadline": "nan"}, 400, "invalid_header", None),
        (CHAT, "/chat/completions", {"x-raycade-deadline": "-1"}, 400, "invalid_header", None),
        (b'{"messages":' + b"[" * 300 + b"]" * 300 + b"}", "/chat/completions", {}, 400, "invalid_body", "body"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(
    body: Any, path: str, headers: dict[str, str], status: int, code: str, param: str | None
) -> None:
    """One clear error in OpenAI's shape, before anything is spent."""
    with pytest.raises(HttpError) as refused:
        read(body, path, headers)
    assert (refused.value.status, refused.value.code, refused.value.param) == (status, code, param)


@pytest.mark.parametrize("field", ["api_base", "base_url", "api_key", "extra_headers", "custom_llm_provider"])
def test_a_client_never_chooses_an_address_a_key_or_a_header(field: str) -> None:
    """Some upstreams obey such fields: gateways have sent their keys to strangers that way."""
    with pytest.raises(HttpError) as refused:
        read({**CHAT, field: "http://evil"})
    assert (refused.value.status, refused.value.param) == (400, field)


def test_a_key_sees_its_own_tiers_only() -> None:
    """Neither the list nor an error names the others."""
    key = Key("k", tiers=("cheap",))
    assert ASKS.models(key) == ["auto", "cheap"]
    with pytest.raises(HttpError, match="there are: auto, cheap") as refused:
        read({**CHAT, "model": "gpt-99"}, key=key)
    assert "best" not in refused.value.message


def test_too_much_at_once_is_refused_and_not_queued() -> None:
    """What leaves makes room for the next."""
    gate = Gate(2)
    gate.enter(Key("a"), 0.0)
    gate.enter(Key("a"), 0.0)
    with pytest.raises(HttpError) as refused:
        gate.enter(Key("b"), 0.0)
    assert (refused.value.status, refused.value.retry_after_s) == (429, 1.0)
    gate.leave()
    gate.enter(Key("b"), 0.0)


def test_a_keys_requests_a_minute() -> None:
    """Never more than the limit and a tenth in any minute; another key is not touched by it."""
    gate, key, admitted = Gate(10_000), Key("a", requests_per_minute=60), 0
    refused: list[HttpError] = []
    for tick in range(6000):
        try:
            gate.enter(key, tick * 0.01)
            admitted += 1
        except HttpError as error:
            refused.append(error)
    assert 60 <= admitted <= 66
    assert {error.status for error in refused} == {429}
    assert all(error.retry_after_s is not None and 0 < error.retry_after_s <= 1 for error in refused)
    gate.enter(Key("b"), 60.0)


def test_a_keys_streams_at_once() -> None:
    """The next may begin when one has ended."""
    gate, key = Gate(10), Key("a", streams=1)
    gate.enter_stream(key)
    with pytest.raises(HttpError):
        gate.enter_stream(key)
    gate.leave_stream(key)
    gate.enter_stream(key)
