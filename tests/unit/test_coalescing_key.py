"""The coalescing key: what makes two requests the same, and what does not."""

from typing import Any

import orjson
import pytest

from actors.coalescer.key import digest

BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 0.2,
    "logit_bias": {"1": 2, "3": {"a": 1, "b": 2}},
    "response_format": {"type": "json_schema", "json_schema": {"properties": {"a": {}, "b": {}}}},
}


def key(body: dict[str, Any] | None = None, **changes: Any) -> bytes:
    given: dict[str, Any] = {"path": "/chat/completions", "start_tier": 0, "min_quality": 0, **changes}
    return digest(given.pop("path"), BODY if body is None else body, **given)


def test_the_key_is_a_fixed_value() -> None:
    """32 bytes that are the same in every process, whatever its hash seed."""
    assert len(key()) == 32
    assert key() == key(dict(BODY))


@pytest.mark.parametrize(
    "field", ["model", "stream", "stream_options", "user", "metadata", "store", "safety_identifier", "prompt_cache_key"]
)
def test_delivery_and_booking_fields_are_not_part_of_it(field: str) -> None:
    """They change how an answer comes or is booked, not what it is."""
    assert key({**BODY, field: "x"}) == key({**BODY, field: {"y": 1}}) == key()


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "system", "content": "hi"}]},
        {"temperature": 0.3},
        {"temperature": 1},
        {"temperature": 1.0},
        {"seed": 1},
        {"n": 2},
        {"max_tokens": 5},
        {"tools": [{"type": "function"}]},
        {"text": {"format": "x"}},
        {"response_format": None},
        {"unknown_field": None},
    ],
    ids=str,
)
def test_what_changes_the_answer_is_part_of_it(change: dict[str, Any]) -> None:
    """Anything that an endpoint may read makes another request, known to us or not."""
    assert key({**BODY, **change}) != key()


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/completions"},
        {"start_tier": 1},
        {"min_quality": 1},
        {"prompt": "p@1"},
        {"schema": b"{}"},
    ],
    ids=str,
)
def test_who_may_answer_and_what_the_answer_must_be_is_part_of_it(change: dict[str, Any]) -> None:
    """No cheap answer stands for a good one, no free text for a checked one."""
    assert key(**change) != key()


def test_the_order_of_keys_does_not_matter_at_any_depth() -> None:
    """JSON objects have no order, and clients write them as they like."""
    turned = {"logit_bias": {"3": {"b": 2, "a": 1}, "1": 2}, "temperature": 0.2, **BODY}
    turned["messages"] = [{"content": "hi", "role": "user"}]
    assert key(dict(reversed(turned.items()))) == key()


@pytest.mark.parametrize("field", ["response_format", "tools", "functions", "text", "guided_json", "made_up"])
def test_the_order_inside_a_schema_or_an_unknown_field_does_matter(field: str) -> None:
    """A model writes the properties in the order of the schema, so another order is another question."""

    def ask(*names: str) -> bytes:
        return key({**BODY, field: [{"nested": {"properties": {name: {} for name in names}}}]})

    assert ask("a", "b") == ask("a", "b") != ask("b", "a")


def test_fields_count_by_their_value_and_not_by_how_they_are_written() -> None:
    """Escapes, white space and the spelling of a number are gone once the JSON is read; a key that stands twice is its last."""
    one = b'{"messages":[{"content":"caf\xc3\xa9 \xf0\x9f\x98\x80","role":"user"}],"temperature":100.0,"a":1}'
    two = rb'{ "a":0, "temperature":1e2, "messages":[{"role":"user","content":"caf\u00e9 \ud83d\ude00"}], "a":1}'
    assert key(orjson.loads(one)) == key(orjson.loads(two))
    assert key({"seed": 1}) != key({"seed": 1.0}), "not known to be the same, so asked twice"


def test_fields_cannot_be_shifted_into_each_other() -> None:
    """No two different requests are one text to the hash."""
    assert key({"tools": [1], "x": [2]}) != key({"tools": [1, 2], "x": []}) != key({"tools": [1], "x": [2], "y": []})
    assert key({"x": [1]}, prompt="p") != key({"x": [1]}, prompt="p\0") != key({"x": [1]}, schema=b"p")


@pytest.mark.parametrize("depth", [200, 252])
def test_a_deep_body_has_a_key(depth: int) -> None:
    """As deep as it can be encoded."""
    body: Any = "x"
    for _ in range(depth):
        body = {"a": body}
    assert len(key({"messages": body})) == len(key({"made_up": body})) == 32


@pytest.mark.parametrize("value", [2**64, -(2**70), "\ud800"], ids=["big", "small", "surrogate"])
def test_what_json_has_no_words_for_has_no_key(value: Any) -> None:
    """It is refused, as it is by whatever encodes the body, and never hashed as something else."""
    with pytest.raises(TypeError):
        key({"seed": value})
    with pytest.raises(TypeError):
        key({"made_up": [value]})


def test_the_order_of_messages_matters() -> None:
    """Lists have an order."""
    one, two = {"role": "user", "content": "1"}, {"role": "user", "content": "2"}
    assert key({"messages": [one, two]}) != key({"messages": [two, one]})
