"""actors/router/structured.py: what counts as a JSON answer."""

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.errors import ConfigError
from actors.router.structured import (
    Parsed,
    ParseLimits,
    Unparsed,
    Validator,
    content_of,
    parse_reply,
    validator_of,
)
from tests.unit.malformed import DRESSES, malformed

FENCE = "```"

ACCEPTED = [
    ('{"a":1}', '{"a":1}'),
    (' \n{"a": [1, 2]}\r\n', '{"a": [1, 2]}'),
    ('\ufeff{"a":1}', '{"a":1}'),
    (b'\xef\xbb\xbf{"a":1}', '{"a":1}'),
    (f'{FENCE}json\n{{"a":1}}\n{FENCE}', '{"a":1}'),
    (f'{FENCE}\n{{"a":1}}\n{FENCE}', '{"a":1}'),
    (f'{FENCE}JSON\r\n{{"a":1}}\r\n{FENCE}\n', '{"a":1}'),
    (f'{FENCE}json\n{{"a":1}}', '{"a":1}'),
    (f"{FENCE}json\ntrue\n{FENCE}", "true"),
    (f'{FENCE}\n{{"a":1}} {FENCE}', '{"a":1}'),
    (f'{FENCE}json\n{{"a":1}}\n{FENCE}{FENCE}', '{"a":1}'),
    (f'{FENCE}json\n{{"a": "{FENCE}"}}\n{FENCE}', f'{{"a": "{FENCE}"}}'),
    (f'Sure, here is:\n\n{FENCE}json\n{{"a":1}}\n{FENCE}\nAnything else?', '{"a":1}'),
    (f"As item [1] says:\n{FENCE}json\n[2]\n{FENCE}", "[2]"),
    ('Sure, here is the answer: {"a":1} I hope it helps.', '{"a":1}'),
    ('By the [note] on {name} it is {"a":1}', '{"a":1}'),
    ('<think>maybe {"a":0}</think>\n{"a":1}', '{"a":1}'),
    ('{"a":1}\n{"a":2}', '{"a":1}'),
    ("[]", "[]"),
    ("{}", "{}"),
    ("42", "42"),
    ("-0.5e3", "-0.5e3"),
    ('"text"', '"text"'),
    ("null", "null"),
    ('{"big": 123456789012345678901234567890}', '{"big": 123456789012345678901234567890}'),
    ('{"a": "\\u00e4 \\ud83d\\ude00 {[}]"}', '{"a": "\\u00e4 \\ud83d\\ude00 {[}]"}'),
    ("[" * 64 + "]" * 64, "[" * 64 + "]" * 64),
]

REFUSED = [
    ("", "is empty"),
    (" \ufeff ", "is empty"),
    ("I am sorry, I cannot do that.", "no JSON object or list"),
    ("The answer is 42", "no JSON object or list"),
    ('{"a": 1', "broken or cut short"),
    ('{"a": [{"b": 1}, {"b": 2', "broken or cut short"),
    (f'{FENCE}json\n{{"a": [{{"b": 1}}, {{"b"', "broken or cut short"),
    ('{"a": "cut', "broken or cut short"),
    ('{"a": 1,}', "broken or cut short"),
    ('{"a": "line\nbreak"}', "broken or cut short"),
    ("[01]", "broken or cut short"),
    ("[1, 2] ]", "part of something broken"),
    ('{"a":1}}', "part of something broken"),
    ('{"a":1}, "b": 2}', "part of something broken"),
    ('"items": [1, 2]', "part of something broken"),
    ("{'a': 1}", "no JSON object or list"),
    ("{'a': {\"b\": 1}}", "begins nothing that is JSON"),
    ('{a: {"b": 1}}', "begins nothing that is JSON"),
    ("[x for x in [1]]", "begins nothing that is JSON"),
    ('{"a": 1, "a": 2}', '"a" stands twice'),
    ('{"a": 1, "\\u0061": 1}', '"a" stands twice'),
    ('{"x": [{"k": 1, "k": 1}]}', '"k" stands twice'),
    ("[NaN]", "NaN is not JSON"),
    ('{"a": -Infinity}', "-Infinity is not JSON"),
    ("NaN", "no JSON object or list"),
    ('{"a": 1e999}', "out of range"),
    ('["\\ud800"]', "not valid Unicode"),
    ("\ud800{}", "not valid UTF-8"),
    (b"\xff{}", "not valid UTF-8"),
    ("[" * 65 + "]" * 65, "deeper than 64"),
    ('{"a":' * 65 + "1" + "}" * 65, "deeper than 64"),
    ("[" * 200_000, "too deeply"),
    ("[" + "1" * 5000 + "]", "too long"),
    ("<think>it must be {}", "breaks off while thinking"),
    ("True", "no JSON object or list"),
    ("{", "begins nothing that is JSON"),
    ("1 2", "no JSON object or list"),
]


@pytest.mark.parametrize(("reply", "value"), ACCEPTED)
def test_a_right_answer_is_accepted_in_its_own_bytes(reply: str | bytes, value: str) -> None:
    """Whatever stands around it, the value itself is not rewritten."""
    assert parse_reply(reply) == Parsed(value.encode())


@pytest.mark.parametrize(("reply", "reason"), REFUSED)
def test_a_wrong_answer_is_refused_with_a_reason(reply: str | bytes, reason: str) -> None:
    """Broken, cut, ambiguous and oversized values never pass, and no part of a broken value does."""
    found = parse_reply(reply)
    assert isinstance(found, Unparsed)
    assert reason in found.reason
    assert len(found.reason) < 200


def test_limits_are_those_of_the_caller() -> None:
    """Size counts bytes, of text too."""
    assert isinstance(parse_reply('"ääää"', ParseLimits(max_bytes=10)), Parsed)
    assert isinstance(parse_reply('"ääää"', ParseLimits(max_bytes=9)), Unparsed)
    assert isinstance(parse_reply("[[1]]", ParseLimits(max_depth=2)), Parsed)
    assert isinstance(parse_reply("[[1]]", ParseLimits(max_depth=1)), Unparsed)
    assert isinstance(parse_reply("[[[]]]", ParseLimits(max_depth=2)), Unparsed)


@pytest.mark.parametrize(
    "reply", [f"{FENCE}\n{{}}{' ' * 900_000}x", f"{FENCE}json\n{{{' ' * 900_000}", "[x] " * 200_000]
)
def test_a_reply_of_a_megabyte_of_blanks_is_soon_judged(reply: str) -> None:
    """Models fall into blanks without end; the router that reads them has other rows to see to meanwhile."""
    assert parse_reply(reply) is not None


def test_depth_is_not_the_number_of_brackets() -> None:
    """A long flat list is not deep."""
    assert isinstance(parse_reply(json.dumps([{"a": []}] * 500)), Parsed)


@pytest.mark.parametrize("cut", range(1, 73))
def test_no_prefix_of_an_answer_passes_for_the_answer(cut: int) -> None:
    """An answer cut short by max_tokens is refused wherever the cut falls."""
    whole = '{"items": [{"id": 1, "tags": ["a", "b"]}, {"id": 2, "tags": []}], "n": 2}'
    assert len(whole) == 73
    assert isinstance(parse_reply("Here it is: " + whole[:cut]), Unparsed)


def _strictly(text: bytes) -> Any:
    """Independent of the module: JSON without duplicate keys, constants and infinite numbers."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    def constant(name: str) -> Any:
        raise AssertionError(name)

    def finite(number: str) -> float:
        assert math.isfinite(float(number))
        return float(number)

    return json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_float=finite)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(each) for each in value.values()), default=0)
    return 1 + max((_depth(each) for each in value), default=0) if isinstance(value, list) else 0


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
CONTAINERS = st.lists(JSON_VALUES, max_size=4) | st.dictionaries(st.text(max_size=6), JSON_VALUES, max_size=4)
JSON_PIECES = [*'{}[]":,10-\\', '"a"', '"b":', "1e9", "1e999", "NaN", "Infinity", "null", "true", "\\u", "\\ud800"]
OTHER_PIECES = [
    "\n",
    " ",
    "\t",
    "\ufeff",
    FENCE,
    FENCE + "json\n",
    "'",
    "//",
    "/*",
    "<think>",
    "</think>",
    "Sure: ",
    "é",
]
PIECES = st.sampled_from([*JSON_PIECES, *OTHER_PIECES, "\ud800", "\x00", "\u2028"])
MANGLED = st.tuples(CONTAINERS.map(json.dumps), st.integers(0, 200), st.integers(0, 200), PIECES).map(
    lambda parts: parts[0][: parts[1]] + parts[3] + parts[0][parts[2] :]
)


@settings(max_examples=1500)
@given(st.one_of(st.lists(PIECES, max_size=25).map("".join), MANGLED, st.text(), st.binary()))
@example("{" * 5000)
@example('{"a":' * 5000)
def test_any_reply_is_a_strict_value_or_a_reason(reply: str | bytes) -> None:
    """Never an exception, and never a value that is not JSON without duplicate keys, NaN and infinities."""
    found = parse_reply(reply)
    if isinstance(found, Parsed):
        value = _strictly(found.value)
        orjson.loads(found.value)
        assert _depth(value) <= ParseLimits().max_depth
        text = reply if isinstance(reply, bytes) else reply.encode()
        assert found.value in text
    else:
        assert found.reason


def test_of_five_thousand_malformed_replies_none_is_accepted() -> None:
    """Thirteen kinds of damage, seven dresses: never an exception, never a repaired answer or a part of one."""
    accepted = [(what, reply) for what, reply in malformed(5000, seed=7) if isinstance(parse_reply(reply), Parsed)]
    assert not accepted


@given(CONTAINERS)
def test_the_dresses_of_the_malformed_hide_no_right_answer(value: Any) -> None:
    """What the corpus puts around a damaged value does not by itself make it refused."""
    text = json.dumps(value)
    for dress in DRESSES:
        assert parse_reply(dress(text)) == Parsed(text.encode())


@given(CONTAINERS, st.booleans(), st.sampled_from([None, 2]), st.text(alphabet="abc .,!?\n", max_size=20))
def test_a_value_in_prose_or_fences_is_found_whole(
    value: Any, ascii_only: bool, indent: int | None, prose: str
) -> None:
    """However it is written, what comes out is what went in."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    dressings = [
        text,
        f"{prose}\n{FENCE}json\n{text}\n{FENCE}\n{prose}",
        f"{FENCE}\n{text}\n{FENCE}",
        f"{prose} {text}\n\nDone",
    ]
    for reply in dressings:
        found = parse_reply(reply)
        assert found == Parsed(text.encode())
        assert isinstance(found, Parsed)
        assert json.loads(found.value) == value


SCHEMA = orjson.dumps(
    {
        "title": "A ticket!",
        "type": "object",
        "additionalProperties": False,
        "required": ["id", "tags"],
        "properties": {
            "id": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
        },
    }
)


class TestValidator:
    """Readable reasons."""

    def test_a_right_value_has_no_errors(self) -> None:
        """And the compiled schema is kept."""
        assert validator_of(SCHEMA).errors(b'{"id": null, "tags": ["a"]}') == []
        assert validator_of(bytes(SCHEMA)) is validator_of(SCHEMA)

    def test_each_error_names_its_place(self) -> None:
        """What a model needs to correct itself."""
        errors = Validator(SCHEMA).errors(b'{"id": "x", "tags": ["a", "c"], "more": 1}')
        assert sorted(error.partition(":")[0] for error in errors) == ["$", "$.id", "$.tags[1]"]
        assert any("'more' was unexpected" in error for error in errors)
        assert any('not of type "integer"' in error and 'found "x"' in error for error in errors)
        assert Validator(SCHEMA).errors(b'{"id": 1}') == ['$: "tags" is a required property']

    def test_types_are_not_guessed(self) -> None:
        """A number in quotes is text."""
        assert Validator(b'{"type":"integer"}').errors(b'"5"')
        assert Validator(b'{"type":"boolean"}').errors(b"1")

    def test_errors_are_bounded_in_number_and_length(self) -> None:
        """A reply of thousands of wrong items does not become a prompt of thousands of lines."""
        value = orjson.dumps({"id": 1, "tags": ["x" * 10_000, *("c" * 1000)]})
        errors = Validator(SCHEMA).errors(value)
        assert len(errors) == 11
        assert errors[-1] == "and more"
        assert all(len(error) <= 300 for error in errors)

    def test_of_a_large_value_the_first_error_is_told(self) -> None:
        """A runaway reply may have as many errors as bytes, and the router has other rows to see to."""
        items = b'{"anyOf":[{"type":"string"},{"type":"object","required":["x"]}]}'
        of_list = Validator(b'{"type":"array","items":' + items + b"}")
        first, more = of_list.errors(b"[" + b"1," * 400_000 + b"1]")
        assert first.startswith("$[0]: ")
        assert more == "and perhaps more"
        assert of_list.errors(orjson.dumps(["x"] * 200_000)) == []

    def test_a_slow_pattern_gives_up(self) -> None:
        """A reply cannot hang the router in somebody's regular expression."""
        schema = b'{"type":"string","pattern":"^(a+)+$"}'
        assert Validator(schema).errors(orjson.dumps("a" * 40 + "b"))

    @pytest.mark.parametrize(
        "schema",
        [
            b"",
            b"{",
            b"[]",
            b'"x"',
            b'{"type":"strin"}',
            b'{"$ref":"http://example.com/x"}',
            b'{"$ref":"file:///etc/passwd"}',
            b'{"$ref":"#/nowhere"}',
            b'{"pattern":"("}',
            b'{"not":' * 150 + b"{}" + b"}" * 150,
            b'{"enum":["' + b"x" * 300_000 + b'"]}',
        ],
    )
    def test_what_is_no_schema_is_one_line(self, schema: bytes) -> None:
        """Nothing is fetched from anywhere to find out."""
        with pytest.raises(ConfigError, match=r"^not a JSON Schema: ") as caught:
            Validator(schema)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


class TestContent:
    """The text of a chat completion."""

    @pytest.mark.parametrize(
        ("message", "text"),
        [
            ({"content": "hello"}, "hello"),
            ({"content": ""}, None),
            ({"content": None, "refusal": "no"}, None),
            ({"tool_calls": []}, None),
            ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
            ({"content": []}, None),
            ({"content": 5}, None),
        ],
    )
    def test_of_the_first_choice(self, message: dict[str, Any], text: str | None) -> None:
        """Text as it is or in parts; None where there is none."""
        body = orjson.dumps({"choices": [{"message": message}, {"message": {"content": "other"}}]})
        assert content_of(body) == text

    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"5", b"{}", b'{"choices":[]}', b'{"choices":[5]}', b'{"choices":{"0":1}}', b"<html>"]
    )
    def test_of_anything_else_is_none(self, body: bytes) -> None:
        """Never an exception."""
        assert content_of(body) is None
