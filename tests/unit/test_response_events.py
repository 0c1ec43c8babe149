"""Streams of the Responses API: what is passed on, what it cost, and whether it is whole."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import Failure, Usage
from actors.router.resume import NotResumable, resumption
from actors.tier.response_events import ResponseReader, as_events
from actors.tier.stream_rules import Broken, Complete, Delta
from actors.tier.transport import TransportError
from runtime.gateway.errors import error_body
from runtime.gateway.response_events import OutgoingEvents
from runtime.mock.ask import read_ask, responses
from runtime.mock.behaviour import Behaviour
from runtime.mock.scenario import Conduct
from runtime.mock.sse import responses_events

PATH = "/responses"
USAGE = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
WHOLE = {"id": "r", "object": "response", "model": "m-1", "status": "completed", "error": None, "usage": USAGE}


def event(kind: str, **fields: Any) -> bytes:
    return orjson.dumps({"type": kind, **fields})


def says(text: str) -> bytes:
    return event("response.output_text.delta", output_index=0, content_index=0, item_id="i", delta=text)


CREATED = event("response.created", response={**WHOLE, "status": "in_progress", "usage": None})
ADDED = event("response.output_item.added", output_index=0, item={"type": "message"})
ENDS = event("response.completed", response=WHOLE)


def fed(*datas: bytes) -> tuple[ResponseReader, list[Any]]:
    reader = ResponseReader(PATH)
    return reader, [reader.feed(data) for data in datas]


def test_a_whole_stream_is_passed_on_as_it_came_and_ends_with_its_last_event() -> None:
    """The first token is the first event that says something; nothing is waited for after `response.completed`."""
    datas = [CREATED, ADDED, says("Hi"), event("response.new_kind", x=1), ENDS]
    reader, steps = fed(*datas)
    assert [step.data for step in steps] == datas
    assert [step.said for step in steps] == [False, False, True, True, True]
    assert reader.over
    assert reader.finish() == Complete(Usage(5, 2), "m-1", 0, False)
    assert reader.said_tokens == 1


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ((), "malformed"),
        ((CREATED,), "malformed"),
        ((CREATED, says("Hi")), "malformed"),
        ((CREATED, says("Hi"), b"[DONE]"), "malformed"),
        (
            (
                CREATED,
                event("response.failed", response={**WHOLE, "status": "failed", "error": {"code": "server_error"}}),
            ),
            "server",
        ),
        ((CREATED, event("response.incomplete", response={**WHOLE, "status": "incomplete"})), "malformed"),
        (
            (
                CREATED,
                event(
                    "response.incomplete",
                    response={**WHOLE, "status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
                ),
            ),
            "content_filter",
        ),
        ((CREATED, says("Hi"), event("error", code="rate_limit_exceeded", message="slow down")), "rate_limited"),
        ((CREATED, event("error", error={"code": "server_error", "message": "oops"})), "server"),
        ((b'{"error": {"code": "server_error", "message": "oops"}}',), "server"),
        ((b"{", b"[]", b"{}", b'{"type": 3}'), "malformed"),
    ],
)
def test_what_is_no_whole_answer_is_a_failure(events: tuple[bytes, ...], kind: str) -> None:
    """However good the order it ends in, and whatever it has said before."""
    reader, _ = fed(*events)
    ended = reader.finish()
    assert isinstance(ended, Broken)
    assert ended.failure.kind == kind


def test_a_connection_that_breaks_matters_only_before_the_end() -> None:
    broken = TransportError("connection", "reset", sent=True)
    assert isinstance(fed(CREATED, says("Hi"))[0].lost(broken), Broken)
    assert isinstance(fed(CREATED, says("Hi"), ENDS)[0].lost(broken), Complete)


def test_an_answer_that_was_cut_at_its_callers_limit_or_filtered_in_its_middle_is_finished() -> None:
    """As a chat's `length` and `content_filter` are."""
    for reason in ("max_output_tokens", "content_filter"):
        response = {**WHOLE, "status": "incomplete", "incomplete_details": {"reason": reason}}
        reader, _ = fed(CREATED, says("Hi"), event("response.incomplete", response=response))
        assert isinstance(reader.finish(), Complete)


@given(st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([CREATED, says("a"), ENDS, b"[DONE]", b"null"]))))
def test_whatever_comes_is_read(datas: list[bytes]) -> None:
    """No exception, and only a stream with `response.completed` in it is complete."""
    reader, _ = fed(*datas)
    if isinstance(reader.finish(), Complete):
        assert ENDS in datas


def test_an_answer_in_one_piece_becomes_the_events_of_a_stream() -> None:
    """Numbered, with the text in a delta, and whole to whoever reads them as a stream."""
    item = {"id": "i", "type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}
    reader, steps = fed(*as_events(orjson.dumps({**WHOLE, "output": [item, {"type": "reasoning", "id": "x"}, 3]})))
    assert all(isinstance(step, Delta) for step in steps)
    events = [orjson.loads(step.data) for step in steps]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["delta"] for event in events if "delta" in event] == ["Hi"]
    assert reader.finish() == Complete(Usage(5, 2), "m-1", 0, False)


def test_the_mocks_stream_is_whole_unless_it_is_told_otherwise() -> None:
    """What the tests before HTTP and the tests over HTTP are made with says the same."""
    ask = read_ask(b'{"model": "m", "input": "hello", "stream": true}', responses)
    for outcome, whole in (("answer", True), ("bad_event", True), ("truncated", False), ("error_event", False)):
        events = responses_events(ask, Behaviour(outcome, 0.0, Conduct(), 0), b"1", 1)  # type: ignore[arg-type]
        text = b"".join((events.opening, *events.tokens, events.closing))
        blocks = [block.partition(b"data: ")[2] for block in text.split(b"\n\n") if block]
        reader, _ = fed(*blocks)
        assert isinstance(reader.finish(), Complete) == whole, outcome
        assert reader.malformed == (outcome == "bad_event")


def test_nothing_of_it_is_continued_by_another_tier() -> None:
    assert isinstance(resumption(PATH, b'{"input":"hi"}', "", 3, (), "message"), NotResumable)


def test_events_go_out_under_their_names_and_an_error_in_both_shapes() -> None:
    outgoing = OutgoingEvents()
    assert outgoing.framed(says("Hi")).startswith(b'event: response.output_text.delta\ndata: {"type"')
    assert (
        outgoing.framed(b'{"x":1,"type":"response.created"}')
        == b'event: response.created\ndata: {"x":1,"type":"response.created"}\n\n'
    )
    head, _, data = outgoing.error(error_body("it broke", "server_error", "broken_stream")).partition(b"\ndata: ")
    told = orjson.loads(data)
    assert head == b"event: error"
    assert (told["type"], told["code"], told["message"], told["error"]["code"]) == (
        "error",
        "broken_stream",
        "it broke",
        "broken_stream",
    )
    assert outgoing.done == b""


def test_failures_are_said_without_secrets() -> None:
    reader = ResponseReader(PATH, ("hush-hush",))
    failure = reader.feed(event("error", code="server_error", message="your key hush-hush"))
    assert isinstance(failure, Failure)
    assert "hush-hush" not in failure.message
