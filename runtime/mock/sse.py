"""The events of a streamed answer, as bytes. Pure; `stream` sends them at the scenario's pace."""

from itertools import count
from typing import Any, NamedTuple

import orjson

from runtime.mock.ask import Ask
from runtime.mock.behaviour import Behaviour
from runtime.mock.content import Content
from runtime.mock.shapes import (
    contents,
    error_body,
    finish_reason,
    metered,
    pieces,
    quoted,
    responses_body,
    with_logprobs,
)

__all__ = ["Events", "chat_events", "completions_events", "responses_events", "stamp"]

_DONE = b"data: [DONE]\n\n"
_BAD = b'data: {"id":"chatcmpl-\n\n'
_ERROR = b"data: %b\n\n"
_CHAT = b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":%d,"model":%b,"choices":[%b]%b}\n\n'
_TEXT = b'data: {"id":"cmpl-%b","object":"text_completion","created":%d,"model":%b,"choices":[%b]%b}\n\n'
_ROLE = b'{"index":%d,"delta":{"role":"assistant","content":"","refusal":null},"finish_reason":null,"logprobs":null}'
_DELTA = b'{"index":%d,"delta":{"content":%b},"finish_reason":null,"logprobs":null}'
_TOOL = (
    b'{"index":%d,"delta":{"tool_calls":[{"index":0,"id":"call_%b%d","type":"function","function":{"name":%b,"arguments":""}}]},'
    b'"finish_reason":null,"logprobs":null}'
)
_ARGUMENTS = b'{"index":%d,"delta":{"tool_calls":[{"index":0,"function":{"arguments":%b}}]},"finish_reason":null,"logprobs":null}'
_STOP = b'{"index":%d,"delta":{},"finish_reason":%b,"logprobs":null}'
_TEXT_DELTA = b'{"index":%d,"text":%b,"finish_reason":null,"logprobs":null}'
_TEXT_STOP = b'{"index":%d,"text":"","finish_reason":%b,"logprobs":null}'
_UNSTAMPED = b"@" * 16


class Events(NamedTuple):
    opening: bytes
    tokens: list[bytes]
    """One entry per token; what has no pace of its own stands in opening and closing."""
    closing: bytes
    prompt_tokens: int
    completion_tokens: int


def chat_events(ask: Ask, behaviour: Behaviour, id_: bytes, created: int) -> Events:
    return _events(_CHAT, _DELTA, _STOP, _ROLE, ask, behaviour, id_, created)


def completions_events(ask: Ask, behaviour: Behaviour, id_: bytes, created: int) -> Events:
    return _events(_TEXT, _TEXT_DELTA, _TEXT_STOP, b"", ask, behaviour, id_, created)


def _events(
    whole: bytes, delta: bytes, stop: bytes, role: bytes, ask: Ask, behaviour: Behaviour, id_: bytes, created: int
) -> Events:
    made = contents(ask, behaviour)
    model = quoted(ask.model)

    # Asked for, usage stands in the last event and is null in the others; else there is none.
    no_usage = b',"usage":null' if ask.include_usage else b""

    def event(choices: bytes, usage: bytes = no_usage) -> bytes:
        return whole % (id_, created, model, choices, usage)

    opening = b"".join(event(role % index) for index in range(len(made))) if role else b""
    tokens = []
    for index, content in enumerate(made):
        if ask.tool:
            opening += event(_TOOL % (index, id_, index, quoted(ask.tool)))
        for piece in (
            _stamped(content) if behaviour.conduct.stamped and not ask.json else pieces(content.text, content.tokens)
        ):
            choice = (_ARGUMENTS if ask.tool else delta) % (index, orjson.dumps(piece))
            tokens.append(event(with_logprobs(choice, [piece]) if ask.logprobs else choice))
    usage, prompt, completion = metered(behaviour.conduct, ask.prompt_tokens, sum(content.tokens for content in made))
    if behaviour.outcome == "truncated":
        return Events(opening, tokens, b"", prompt, completion)
    middle = len(tokens) // 2
    if behaviour.outcome == "error_event":
        return Events(opening, tokens[:middle], _ERROR % error_body(500), prompt, completion)
    if behaviour.outcome == "bad_event":
        tokens.insert(middle, _BAD)
    closing = [
        event(stop % (index, b'"tool_calls"' if ask.tool else finish_reason(content.cut, False)))
        for index, content in enumerate(made)
    ]
    if ask.include_usage:
        closing.append(event(b"", b',"usage":' + usage))
    done = b"" if behaviour.outcome == "no_done" else _DONE
    return Events(opening, tokens, b"".join(closing) + done, prompt, completion)


def responses_events(ask: Ask, behaviour: Behaviour, id_: bytes, created: int) -> Events:
    """The typed events of the Responses API: numbered, under their names, without `[DONE]`."""
    made = responses_body(ask, behaviour._replace(outcome="answer"), id_, created)
    whole = orjson.loads(made.body)
    item = whole["output"][0]
    part = item["content"][0]
    numbers = count()
    place = {"output_index": 0}
    here = {**place, "item_id": item["id"], "content_index": 0}

    def event(kind: str, **fields: Any) -> bytes:
        value = {"type": kind, **fields, "sequence_number": next(numbers)}
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(value))

    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    opening = (
        event("response.created", response=begun)
        + event("response.in_progress", response=begun)
        + event("response.output_item.added", **place, item={**item, "status": "in_progress", "content": []})
        + event("response.content_part.added", **here, part={**part, "text": ""})
    )
    tokens = [
        event("response.output_text.delta", **here, delta=piece, logprobs=[])
        for piece in pieces(part["text"], made.completion_tokens)
    ]
    middle = len(tokens) // 2
    if behaviour.outcome == "truncated":
        return Events(opening, tokens, b"", made.prompt_tokens, made.completion_tokens)
    if behaviour.outcome == "error_event":
        closing = event("error", code="server_error", message="The mock was told to fail.", param=None)
        return Events(opening, tokens[:middle], closing, made.prompt_tokens, made.completion_tokens)
    if behaviour.outcome == "bad_event":
        tokens.insert(middle, _BAD)
    closing = (
        event("response.output_text.done", **here, text=part["text"], logprobs=[])
        + event("response.content_part.done", **here, part=part)
        + event("response.output_item.done", **place, item=item)
        + event(f"response.{whole['status']}", response=whole)
    )
    return Events(opening, tokens, closing, made.prompt_tokens, made.completion_tokens)


def stamp(data: bytes, microseconds: int) -> bytes:
    """Stamped tokens with the time at which they are written."""
    return data.replace(_UNSTAMPED, b"%016d" % microseconds)


def _stamped(content: Content) -> list[str]:
    head = content.text.removeprefix("echo ")[:16]
    return [f"{head}.{number:06d}.{_UNSTAMPED.decode()} " for number in range(content.tokens)]
