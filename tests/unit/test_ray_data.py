"""Rows of a Ray Data pipeline: which column asks what, what is wrong with it, and what a row gets of its answer."""

import sys
from typing import Any

import orjson
import pyarrow as pa
import pytest

from actors.errors import InputError
from actors.messages import Amount, Result, Usage
from runtime.ray_data import ANSWERED, Answered, answered, ask_of, joined

USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("row", "body"),
    [
        ({"prompt": "hi", "body": None}, {"messages": USER}),
        ({"prompt": "", "messages": None}, {"messages": [{"role": "user", "content": ""}]}),
        ({"messages": [{**USER[0], "name": None}]}, {"messages": USER}),
        ({"messages": orjson.dumps(USER).decode(), "prompt": float("nan")}, {"messages": USER}),
        ({"body": {"messages": USER, "seed": 1, "stop": None}}, {"messages": USER, "seed": 1}),
        ({"body": orjson.dumps({"messages": USER})}, {"messages": USER}),
        ({"prompt": "hi", "max_tokens": 5.0, "tier": "b"}, {"messages": USER, "max_tokens": 5, "model": "b"}),
        ({"prompt": "hi", "max_tokens": float("nan"), "tier": None}, {"messages": USER}),
    ],
)
def test_a_row_asks_with_one_of_three_columns(row: dict[str, Any], body: dict[str, Any]) -> None:
    """As struct or as JSON; null is the same as absent, in Arrow's way and in NumPy's."""
    assert ask_of(row, {}, list(row)) == (body, {})


def test_what_a_row_says_goes_before_what_the_pipeline_says() -> None:
    """For fields of the body and for what goes beside it."""
    fields = {"temperature": 0, "max_tokens": 9, "min_quality": "medium", "share": False}
    body, beside = ask_of({"prompt": "hi"}, fields, ["prompt"])
    assert (body["temperature"], body["max_tokens"]) == (0, 9)
    assert beside == {"min_quality": "medium", "share": False}
    row = {"body": {"messages": USER, "temperature": 1}, "max_tokens": 3, "min_quality": "high"}
    body, beside = ask_of(row, fields, list(row))
    assert (body["temperature"], body["max_tokens"], beside["min_quality"]) == (1, 3, "high")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": 1, "text": "hi"}, "expected one of prompt, messages, body; found none in the columns id, text"),
        ({"prompt": "a", "messages": USER}, "expected one of prompt, messages, body; found prompt and messages"),
        ({"prompt": 7}, "prompt: expected a text, found 7"),
        ({"messages": "hello"}, "messages: expected a struct or JSON; found a text that is none"),
        ({"messages": {"role": "user"}}, "messages: expected a list of messages, found {'role': 'user'}"),
        ({"body": "[1]"}, "body: expected an object, found '[1]'"),
        ({"prompt": "a", "max_tokens": "ten"}, "max_tokens: expected a whole number above 0, found 'ten'"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens: expected a whole number above 0, found 1.5"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens: expected a whole number above 0, found True"),
        ({"prompt": "a", "tier": 3}, "tier: expected the name of a tier, found 3"),
    ],
)
def test_a_wrong_row_names_its_column(row: dict[str, Any], said: str) -> None:
    """With what was expected and what was found."""
    with pytest.raises(InputError) as wrong:
        ask_of(row, {}, list(row))
    assert str(wrong.value) == said


def result(message: dict[str, Any], **more: Any) -> Result:
    body = orjson.dumps({"choices": [{"message": message}]})
    return Result(body, 200, "a", (), Usage(3, 4), Amount(7, 1500), **more)


def test_a_row_gets_the_text_or_what_there_is_instead() -> None:
    """The validated value of a schema, a tool call as JSON; a shared call costs the row nothing."""
    assert answered(result({"content": "yes"})) == Answered("yes", "a", 3, 4, 0.0015)
    assert answered(result({"content": "yes"}, coalesced=True)).cost_usd == 0
    assert answered(result({"content": "```{}```"}, parsed=b'{"a":1}')).answer == '{"a":1}'
    called = {"content": None, "tool_calls": [{"id": "1"}]}
    assert orjson.loads(answered(result(called)).answer or "") == called


@pytest.mark.parametrize("rows", [[], [Answered("a", "t", 1, 2, 0.5)], [Answered(error="e: m")] * 2])
def test_every_batch_has_the_same_columns_and_types(rows: list[Answered]) -> None:
    """Where all rows failed too, and where there are none; a column `tier` is replaced where it stands."""
    table = pa.table({"tier": pa.array([1] * len(rows), pa.int64()), "id": pa.array(range(len(rows)), pa.int64())})
    out = joined(table, rows)
    assert out.schema.names == ["tier", "id", "answer", "prompt_tokens", "completion_tokens", "cost_usd", "error"]
    assert [out.schema.field(name).type for name in ANSWERED.names] == ANSWERED.types
    assert [tuple(row[name] for name in ANSWERED.names) for row in out.to_pylist()] == [tuple(row) for row in rows]


def test_without_pyarrow_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback of some package's own."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "runtime.ray_data")
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'raycade\[data\]'"):
        import runtime.ray_data  # noqa: F401
