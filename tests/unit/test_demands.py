"""actors/router/demands.py: how an answer by a schema is asked for, and asked for again."""

import json
from typing import Any

import orjson
import pytest

from actors.errors import ConfigError
from actors.router.demands import ask_again, demand_tokens, format_refused, instructed, native_format, own_schema

SCHEMA = orjson.dumps(
    {
        "title": "A ticket!",
        "type": "object",
        "additionalProperties": False,
        "required": ["id"],
        "properties": {"id": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
    }
)


class TestAsking:
    """Bodies that demand the schema."""

    BODY = orjson.dumps({"messages": [{"role": "user", "content": "hi"}], "temperature": 0})

    def test_natively(self) -> None:
        """A response_format with a name the endpoint takes."""
        assert orjson.loads(native_format(SCHEMA)) == {
            "type": "json_schema",
            "json_schema": {"name": "A_ticket", "schema": orjson.loads(SCHEMA), "strict": True},
        }

    @pytest.mark.parametrize(
        ("schema", "strict"),
        [
            ({"type": "object", "properties": {}, "additionalProperties": False}, True),
            ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, False),
            ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, False),
            ({"type": "array", "items": {"type": "string"}}, False),
            (
                {
                    "type": "object",
                    "properties": {"a": {"type": "object"}},
                    "required": ["a"],
                    "additionalProperties": False,
                },
                False,
            ),
            (True, False),
        ],
    )
    def test_strict_only_where_openai_takes_it(self, schema: Any, strict: bool) -> None:
        """Strict mode answers 400 to objects that are open or have optional keys."""
        form = orjson.loads(native_format(orjson.dumps(schema)))["json_schema"]
        assert (form["strict"], form["name"]) == (strict, "answer")

    def test_by_instruction(self) -> None:
        """A system message of its own."""
        request = orjson.loads(instructed(self.BODY, SCHEMA))
        assert [message["role"] for message in request["messages"]] == ["system", "user"]
        assert SCHEMA.decode() in request["messages"][0]["content"]

    @pytest.mark.parametrize("content", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
    def test_by_instruction_in_the_system_message_that_is_there(self, content: Any) -> None:
        """Many chat templates refuse a second one."""
        body = orjson.dumps({"messages": [{"role": "system", "content": content}, {"role": "user", "content": "hi"}]})
        messages = orjson.loads(instructed(body, SCHEMA))["messages"]
        assert len(messages) == 2
        assert messages[0]["content"][: len(content)] == content
        assert "JSON Schema" in json.dumps(messages[0])

    def test_again_with_what_was_wrong(self) -> None:
        """The reply, then the reasons."""
        messages = orjson.loads(ask_again(self.BODY, "{oops", ["$.id: is missing", "two\nlines"]))["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant", "user"]
        assert messages[1]["content"] == "{oops"
        assert "- $.id: is missing\n- two lines\n" in messages[2]["content"]

    def test_again_is_bounded(self) -> None:
        """A runaway reply is not sent and paid for a second time in full."""
        body = ask_again(self.BODY, "x" * 1_000_000, ["e" * 10_000] * 1000)
        assert len(body) < 25_000

    def test_again_with_text_that_is_no_unicode(self) -> None:
        """A reply with half a character still becomes a body."""
        assert orjson.loads(ask_again(self.BODY, "a\ud800", ["\ud800"]))["messages"][1]["content"] == "a?"

    @pytest.mark.parametrize(
        "body", [b"[]", b"{}", b'{"messages":5}', b"x", b'{"messages":[],"a":' + b"[" * 300 + b"]" * 300 + b"}"]
    )
    def test_what_is_no_chat_body_is_a_value_error(self, body: bytes) -> None:
        """Embeddings have no answer to check."""
        with pytest.raises(ValueError):
            instructed(body, SCHEMA)
        with pytest.raises(ValueError):
            ask_again(body, "", [])

    def test_the_bound_covers_every_way_of_asking(self) -> None:
        """What is reserved for a prompt covers the demand, whichever tier makes it."""
        added = len(instructed(self.BODY, SCHEMA)) - len(self.BODY)
        text = len(orjson.loads(instructed(self.BODY, SCHEMA))["messages"][0]["content"])
        assert text <= demand_tokens(SCHEMA) < 4 * added
        assert demand_tokens(SCHEMA) >= len(native_format(SCHEMA))
        assert demand_tokens(b"{}", b"x" * 5000) >= 5000


class TestOwn:
    """A request's own `response_format`."""

    def test_its_schema_is_taken(self) -> None:
        """As it is; other formats demand none."""
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
        assert own_schema(form) == b'{"type":"object"}'
        for other in (
            None,
            5,
            {"type": "json_object"},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": {}},
        ):
            assert own_schema(other) == b""

    def test_a_wrong_one_is_refused_before_it_is_paid_for(self) -> None:
        """One sentence with the place in the schema."""
        with pytest.raises(ConfigError, match=r"not a JSON Schema: \$\.type"):
            own_schema({"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}})


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ("Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.", True),
        ("This response_format type is unavailable now", True),
        ("This model does not support response format `json_schema`. See supported models.", True),
        (
            "[{'type': 'extra_forbidden', 'loc': ('body', 'response_format'), 'msg': 'Extra inputs are not permitted'}]",
            True,
        ),
        ("response_format.type: Input should be 'text' or 'json_object'", True),
        ("Unrecognized request argument supplied: response_format", True),
        ("guided_json is not supported by this engine", True),
        ("Invalid schema for response_format 'answer': In context=(), 'additionalProperties' is required", False),
        ("Unsupported value: 'temperature' does not support 0.2 with this model.", False),
        ("This model's maximum context length is 8192 tokens", False),
        ("", False),
    ],
)
def test_an_endpoint_that_does_not_know_schemas_is_told_from_one_that_dislikes_this_one(
    message: str, refused: bool
) -> None:
    """The first gets words from then on; the second may take the next request's schema."""
    assert format_refused(message) is refused
