"""What a stream says: what is passed on, what it cost, and whether it is whole."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import Failure, Usage
from actors.tier.stream_rules import Broken, Complete, Delta, StreamReader, ask_usage, is_stream
from actors.tier.transport import TransportError

CHAT = "/chat/completions"
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def event(choices: list[Any], **fields: Any) -> bytes:
    return orjson.dumps({"id": "c-1", "object": "chat.completion.chunk", "model": "m-1", "choices": choices, **fields})


def says(text: str, index: int = 0, reason: str | None = None, **fields: Any) -> bytes:
    return event([{"index": index, "delta": {"content": text}, "finish_reason": reason}], **fields)


def delta(**parts: Any) -> bytes:
    return event([{"index": 0, "delta": parts, "finish_reason": None}])


def ends(reason: str = "stop", index: int = 0, **fields: Any) -> bytes:
    return event([{"index": index, "delta": {}, "finish_reason": reason}], **fields)


def fed(*datas: bytes, reader: StreamReader | None = None, **options: Any) -> tuple[StreamReader, list[Any]]:
    reader = reader or StreamReader(CHAT, **options)
    return reader, [reader.feed(data) for data in datas]


def passed(steps: list[Any]) -> list[bytes]:
    return [step.data for step in steps if isinstance(step, Delta)]


# ---- whole


def test_a_whole_stream_is_passed_on_as_it_came() -> None:
    """Every event's bytes, unknown fields and odd spacing included; text, usage and model are read from it."""
    odd = b'{ "x_new": [1.50, 1e400000], "choices":[{"index":0,"delta":{"content":"h\\u00e9"},"finish_reason":null}]}'
    odd = odd.replace(b"1e400000", b"1")
    datas = [delta(role="assistant", content=""), says("Hi"), odd, ends(), event([], usage=USAGE)]
    reader, steps = fed(*datas, b"[DONE]")
    assert passed(steps) == datas
    assert "".join(step.text for step in steps if isinstance(step, Delta)) == "Hihé"
    assert [step.said for step in steps[:-1]] == [False, True, True, False, False]
    assert reader.finish() == Complete(Usage(5, 2), "m-1", 0, True)


def test_completions_say_text() -> None:
    """The older endpoint's events have their text in the choice itself."""
    data = event([{"index": 0, "text": "Hi", "finish_reason": None}])
    reader, steps = fed(
        data, event([{"index": 0, "text": "", "finish_reason": "length"}]), reader=StreamReader("/completions")
    )
    assert steps[0] == Delta(data, "Hi", True)
    assert isinstance(reader.finish(), Complete)


@pytest.mark.parametrize(
    "parts",
    [
        {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a'}}]},
        {"reasoning_content": "let me see"},
        {"reasoning": "hm", "content": ""},
        {"refusal": "no"},
        {"function_call": {"name": "f", "arguments": ""}},
        {"audio": {"data": "aGk="}},
    ],
)
def test_other_parts_of_an_answer_count_as_said(parts: dict[str, Any]) -> None:
    """Tool calls, reasoning and refusals are passed on untouched, count as the first token, and are remembered by name."""
    data = delta(**parts)
    reader, (step,) = fed(data)
    assert step == Delta(data, "", True)
    assert reader.forms == parts.keys() - {"content"}
    assert reader.most_tokens >= 2


def test_a_role_or_a_null_says_nothing() -> None:
    """What comes before the first token is not the first token."""
    _, steps = fed(delta(role="assistant", content="", refusal=None, tool_calls=None), delta(content=None), delta())
    assert [step.said for step in steps] == [False, False, False]


def test_an_answer_is_over_without_done_and_without_waiting() -> None:
    """With every finish_reason and the usage in, nothing is waited for; without the usage it is only finished."""
    reader, _ = fed(says("Hi"), ends())
    assert (reader.finished, reader.over) == (True, False)
    reader.feed(event([], usage=USAGE))
    assert reader.over
    assert reader.finish() == Complete(Usage(5, 2), "m-1", 0, False)
    unasked, _ = fed(says("Hi"), ends(), usage_asked=False)
    assert unasked.over


def test_usage_beside_the_finish_reason_is_usage() -> None:
    """Some endpoints have no event of its own for it."""
    reader, _ = fed(says("Hi"), ends(usage=USAGE))
    assert reader.over
    assert reader.usage == Usage(5, 2)


def test_usage_on_the_way_is_not_the_bill() -> None:
    """Counts that come before the end, as some endpoints send with every event, are neither waited for nor charged."""
    reader, _ = fed(says("Hi", usage={**USAGE, "completion_tokens": 1}), says("!"), ends())
    assert reader.usage is None
    assert (reader.finished, reader.over) == (True, False)


def test_several_choices_are_whole_when_all_are() -> None:
    """One of n that has no finish_reason is a broken answer; text for a resumption is not gathered."""
    reader, steps = fed(says("a"), says("b", 1), ends(), choices=2)
    assert [step.text for step in steps] == ["", "", ""]
    assert not reader.finished
    assert isinstance(reader.finish(), Broken)
    whole, _ = fed(says("a"), says("b", 1), ends(), ends(index=1), choices=2)
    assert whole.finished
    assert isinstance(whole.finish(), Complete)


def test_a_choice_that_ends_before_another_begins_does_not_end_the_stream() -> None:
    """With n of 2, one that is finished is not all."""
    reader, _ = fed(says("a"), ends(usage=USAGE), choices=2, usage_asked=False)
    assert not reader.over


def test_an_endpoint_that_gives_fewer_choices_is_whole_at_its_end() -> None:
    """Some ignore n: at `[DONE]` all that began has ended."""
    reader, _ = fed(says("a"), ends(), b"[DONE]", choices=2)
    assert isinstance(reader.finish(), Complete)


# ---- usage that the caller did not ask for


def test_usage_of_our_own_asking_is_withheld() -> None:
    """The event that is there only for it, the nulls in all others, and what stands beside the last choice."""
    datas = [
        says("Hi").replace(b"]}", b'],"usage":null}'),
        says("Ho").replace(b"]}", b'], "usage": null}'),
        b'{"usage": null,"choices":[{"index":0,"delta":{"content":"x"}}]}',
        ends(usage=USAGE),
        event([], usage=USAGE),
    ]
    reader, steps = fed(*datas, usage_for_caller=False)
    assert passed(steps)[:2] == [says("Hi"), says("Ho")]
    assert len(passed(steps)) == 4
    assert all("usage" not in orjson.loads(data) for data in passed(steps))
    assert reader.usage == Usage(5, 2)


def test_a_text_that_speaks_of_usage_is_left_alone() -> None:
    """Only the field is taken out."""
    data = says(',"usage":null')
    assert fed(data, usage_for_caller=False)[1][0] == Delta(data, ',"usage":null', True)


def test_filter_results_without_choices_are_passed_on() -> None:
    """Azure's first event has no choices, and is no usage event."""
    data = event([], prompt_filter_results=[{"prompt_index": 0}])
    assert passed(fed(data, usage_for_caller=False)[1]) == [data]


# ---- broken


@pytest.mark.parametrize("datas", [[], [b"[DONE]"], [says("Hi")], [says("Hi"), b"[DONE]"], [event([], usage=USAGE)]])
def test_without_a_finish_reason_there_is_no_answer(datas: list[bytes]) -> None:
    """However the stream ended, and whatever it said before."""
    reader, _ = fed(*datas)
    done = reader.finish()
    assert isinstance(done, Broken)
    assert (done.failure.kind, done.failure.billed) == ("malformed", "unknown")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"error": {"message": "The server had an error", "type": "server_error"}}, "server"),
        ({"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}, "rate_limited"),
        ({"error": {"message": "maximum context length is 8192 tokens", "code": 400}}, "context_length"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "overloaded"),
        ({"object": "error", "message": "This model's maximum context length is 10", "code": 400}, "context_length"),
        (
            {"error": {"code": 502, "message": "upstream"}, "choices": [{"delta": {}, "finish_reason": "error"}]},
            "server",
        ),
        ({"error": "engine died"}, "malformed"),
    ],
)
def test_an_error_in_the_stream_ends_it(data: dict[str, Any], kind: str) -> None:
    """Whichever way it is worded, it is classified as a whole reply's is, and may have been billed."""
    reader, steps = fed(says("Hi"), orjson.dumps(data), ends())
    assert isinstance(steps[1], Failure)
    assert (steps[1].kind, steps[1].billed) == (kind, "unknown")
    assert reader.finish() == Broken(steps[1])


def test_an_error_shows_no_secret() -> None:
    """What an endpoint quotes of the key is taken out."""
    _, (step,) = fed(orjson.dumps({"error": {"message": "bad key sk-canary-123456"}}), secrets=("sk-canary-123456",))
    assert isinstance(step, Failure)
    assert "canary" not in repr(step)


@pytest.mark.parametrize(
    ("reason", "kind"), [("error", "server"), ("abort", "server"), ("content_filter", "content_filter")]
)
def test_a_reason_that_says_broken_off(reason: str, kind: str) -> None:
    """The endpoint gave up: no event of that is passed on."""
    _, steps = fed(delta(role="assistant"), ends(reason))
    assert isinstance(steps[1], Failure)
    assert steps[1].kind == kind


def test_a_filtered_answer_that_had_begun_ends_so() -> None:
    """Its caller sees the finish_reason, as from the endpoint itself."""
    reader, steps = fed(says("Hi"), ends("content_filter"))
    assert isinstance(steps[1], Delta)
    assert isinstance(reader.finish(), Complete)


BAD = [
    b'{"id":"c-1","choi',
    b"[1]",
    b"7",
    b'{"hello":1}',
    b'{"choices":[3]}',
    b'{"choices":[{"index":-1}]}',
    b"\xff\xfe",
]


@pytest.mark.parametrize("bad", BAD)
def test_one_event_that_cannot_be_read_is_passed_over(bad: bytes) -> None:
    """And counted. A few are; more make the stream one not to believe."""
    reader, steps = fed(says("a"), bad, says("b"), ends(), b"[DONE]")
    assert len(passed(steps)) == 3
    assert reader.finish() == Complete(None, "m-1", 1, True)
    broken, steps = fed(says("a"), bad, bad, bad, bad, ends())
    assert isinstance(steps[4], Failure)
    assert isinstance(broken.finish(), Broken)


def test_keepalives_are_nothing() -> None:
    """An empty data field and a ping are neither passed on nor malformed."""
    reader, steps = fed(*[b"", b'{"type":"ping"}'] * 9, says("a"), ends())
    assert len(passed(steps)) == 2
    assert reader.malformed == 0


def test_nothing_counts_after_done() -> None:
    """What follows `[DONE]` belongs to no answer."""
    reader, steps = fed(says("a"), ends(), b"[DONE]", says("b"), b'{"error":"x"}')
    assert len(passed(steps)) == 2
    assert isinstance(reader.finish(), Complete)


def test_a_connection_lost_after_the_answer_is_no_loss() -> None:
    """Between the finish_reason and the end only the usage can be lost; before it, the answer is."""
    error = TransportError("connection", "the connection broke", sent=True)
    assert fed(says("a"), ends())[0].lost(error) == Complete(None, "m-1", 0, False)
    done = fed(says("a"))[0].lost(error)
    assert isinstance(done, Broken)
    assert (done.failure.kind, done.failure.billed) == ("connection", "unknown")


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "index", "content", "text", "finish_reason", "usage", "error", "role"]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=20,
)


@given(
    st.lists(st.one_of(JSON.map(orjson.dumps), st.binary(max_size=10)), max_size=6),
    st.booleans(),
    st.sampled_from([CHAT, "/completions"]),
)
def test_nothing_an_endpoint_sends_raises(datas: list[bytes], asked: bool, path: str) -> None:
    """Any JSON in any place, and no JSON."""
    reader = StreamReader(path, usage_for_caller=asked)
    for data in datas:
        assert isinstance(reader.feed(data), Delta | Failure | None)
    assert isinstance(reader.finish(), Complete | Broken)


def test_deep_json_is_passed_on_or_over() -> None:
    """Deeper than orjson writes, but not than it reads."""
    deep: Any = b"[" * 500 + b"]" * 500
    data = b'{"choices":[{"delta":{"content":"a","x":%b}}],"usage":{"a":1}}' % deep
    reader = StreamReader(CHAT, usage_for_caller=False)
    assert isinstance(reader.feed(data), Delta)


# ---- tokens without usage


def test_tokens_are_bounded_by_what_was_sent() -> None:
    """Bytes of UTF-8, and at least one token an event: a bound from above, for the ledger."""
    reader, _ = fed(says("héllo"), says("日本"), delta(reasoning_content="abc"))
    assert reader.most_tokens == 6 + 6 + 3
    assert reader.said_tokens == 3


# ---- asking for usage


@pytest.mark.parametrize(
    ("body", "expected", "asked"),
    [
        (b'{"stream":true}', {"stream": True, "stream_options": {"include_usage": True}}, False),
        (
            b' {\n "a": "\\"stream_options\\"" }',
            {"a": '"stream_options"', "stream_options": {"include_usage": True}},
            False,
        ),
        (b'{"stream_options":null}', {"stream_options": {"include_usage": True}}, False),
        (b'{"stream_options":{"x":1}}', {"stream_options": {"x": 1, "include_usage": True}}, False),
        (b'{"stream_options":{"include_usage":false}}', {"stream_options": {"include_usage": True}}, False),
        (b'{"stream_options":{"include_usage":true,"x":1}}', {"stream_options": {"include_usage": True, "x": 1}}, True),
    ],
)
def test_usage_is_asked_for(body: bytes, expected: dict[str, Any], asked: bool) -> None:
    """The caller's own options are kept, and so is whether it asked."""
    sent, was_asked = ask_usage(body)
    assert (orjson.loads(sent), was_asked) == (expected, asked)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"nonsense", b'{"stream_options":7}', b'["stream_options"]'])
def test_what_is_no_request_stays_as_it_is(body: bytes) -> None:
    """The endpoint says what is wrong with it."""
    assert ask_usage(body) == (body, False)


def test_the_rest_of_a_body_is_not_written_anew() -> None:
    """Numbers and spacing of the caller's are what the endpoint gets."""
    body = b'{"temperature": 1.0000000000000000001, "stream" : true}'
    assert ask_usage(body)[0].endswith(body[1:])


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (200, "text/event-stream; charset=utf-8", True),
        (200, "text/plain", True),
        (200, "", True),
        (200, "application/json", False),
        (200, "text/html", False),
        (204, "", False),
        (429, "text/event-stream", False),
    ],
)
def test_which_reply_is_a_stream(status: int, kind: str, expected: bool) -> None:
    """Errors and JSON are read whole, also where a stream was asked for."""
    assert is_stream(status, {"content-type": kind} if kind else {}) is expected
