"""What a program says to the client and what it gets back: messages to bodies, answers to the openai package's types. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import orjson
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ParsedChatCompletion
from openai.types.responses import Response
from pydantic import BaseModel, ValidationError

from actors.errors import InputError, RaycadeError, RequestFailed
from actors.messages import Failure
from runtime.batch.reader import PATHS

__all__ = ["CHAT", "TYPES", "Ask", "Outcome", "RowAsk", "body_of", "failed", "parsed", "row_ask", "typed"]

CHAT = "/chat/completions"
TYPES: Mapping[str, type[BaseModel]] = {
    CHAT: ChatCompletion,
    "/completions": Completion,
    "/embeddings": CreateEmbeddingResponse,
    "/responses": Response,
}
"""Of answers, by path."""

Ask = str | Sequence[Any] | Mapping[str, Any]
"""One user message, a list of messages, or a whole body."""
Value = TypeVar("Value", bound=BaseModel)


class Outcome(NamedTuple):
    """How a row of `Client.map` ended: with a value or with an error, never both."""

    number: int
    """Of the row, from 0."""
    row: Any
    """As it was given."""
    value: Any
    """The answer in the openai package's type for the row's url; None: it failed."""
    error: RaycadeError | None = None


class RowAsk(NamedTuple):
    """What a row asks."""

    path: str
    ask: Ask | None
    variables: Mapping[str, Any] | None
    unit: str | None


def body_of(ask: Ask | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The body that is meant; `fields` go before what it says itself."""
    body: dict[str, Any]
    if ask is None:
        body = {}
    elif isinstance(ask, str):
        body = {"messages": [{"role": "user", "content": ask}]}
    elif isinstance(ask, Mapping):
        body = dict(ask)
    else:
        body = {"messages": ask}
    body.update(fields)
    messages = body.get("messages")
    if isinstance(messages, Sequence) and not isinstance(messages, str):
        body["messages"] = [_plain(message) for message in messages]
    return body


def _plain(message: Any) -> Any:
    """A message of an earlier answer may be sent back as it is."""
    return message.model_dump(exclude_none=True) if isinstance(message, BaseModel) else message


def row_ask(row: Any, prompted: bool) -> RowAsk:
    """What a row asks: like the first argument of `complete`, or a row of OpenAI's Batch format. Raises InputError.

    `prompted`: a prompt makes the messages, and a row without `variables` is itself the variables.
    """
    if not isinstance(row, Mapping):
        if prompted or isinstance(row, bytes) or not isinstance(row, str | Sequence):
            raise InputError("invalid_row", f"expected a mapping{_or_more(prompted)}, found {type(row).__name__}")
        return RowAsk(CHAT, row, None, None)
    custom_id = row.get("custom_id")
    unit = custom_id if isinstance(custom_id, str) else None
    if prompted:
        variables = row["variables"] if "variables" in row else {k: v for k, v in row.items() if k != "custom_id"}
        return RowAsk(CHAT, None, variables, unit)
    if "body" not in row:
        return RowAsk(CHAT, row, None, None)
    path = PATHS.get(row.get("url", f"/v1{CHAT}"))
    if path is None:
        raise InputError("unknown_url", f"expected one of {', '.join(PATHS)}, found {row['url']!r:.80}", field="url")
    if not isinstance(row["body"], Mapping):
        raise InputError("invalid_body", f"expected an object, found {type(row['body']).__name__}", field="body")
    return RowAsk(path, row["body"], None, unit)


def _or_more(prompted: bool) -> str:
    return " of variables" if prompted else ", a text or a list of messages"


def typed(kind: type[Value], body: bytes, told: Mapping[str, Any] | None = None) -> Value:
    """An answer in its type, with what is told of it as the extra field `raycade`.

    Validated, which takes a twentieth of the time of the openai package's own way; an answer that deviates from what OpenAI
    documents is taken in that way all the same.
    """
    try:
        value = kind.model_validate_json(body)
    except ValidationError:
        value = kind.construct(**orjson.loads(body))
    if told is not None and value.model_extra is not None:
        value.model_extra["raycade"] = dict(told)
    return value


def parsed(kind: type[Value], value: Value, body: bytes, told: Mapping[str, Any]) -> ParsedChatCompletion[Value]:
    """A chat answer together with the object that it holds."""
    completion = orjson.loads(body)
    choice, *others = completion["choices"]
    message = {**choice["message"], "parsed": value}
    whole = {**completion, "choices": [{**choice, "message": message}, *others], "raycade": dict(told)}
    made: ParsedChatCompletion[Value]
    try:
        made = ParsedChatCompletion[kind].model_validate(whole)  # type: ignore[valid-type]
    except ValidationError:
        made = ParsedChatCompletion[kind].construct(**whole)  # type: ignore[valid-type]
    return made


def failed(failure: Failure) -> RequestFailed:
    """What a program gets to see of a failure."""
    return RequestFailed(
        failure.kind,
        failure.message,
        failure.status,
        failure.retry_after_s,
        failure.attempts,
        failure.cost.usd_micros / 1e6,
        failure.body,
    )
