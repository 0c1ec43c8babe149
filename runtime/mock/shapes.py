"""The bytes of an answer in OpenAI's shapes. Pure: ids and times are arguments.

Built from templates instead of dumping objects, since this runs once per request. Only what comes from the request or
the scenario (model, content) passes through orjson for its quotes.
"""

import base64
import hashlib
import math
import struct
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from runtime.mock.ask import Ask
from runtime.mock.behaviour import Behaviour
from runtime.mock.content import Content, make_content
from runtime.mock.scenario import Conduct

__all__ = [
    "Made",
    "chat_body",
    "completions_body",
    "contents",
    "embeddings_body",
    "error_body",
    "metered",
    "models_body",
    "pieces",
    "responses_body",
    "with_logprobs",
]

_USAGE = (
    b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d},'
    b'"completion_tokens_details":{"reasoning_tokens":0}}'
)
_CHAT = b'{"id":"chatcmpl-%b","object":"chat.completion","created":%d,"model":%b,"choices":[%b],"usage":%b}'
_CHAT_CHOICE = (
    b'{"index":%d,"message":{"role":"assistant","content":%b,"refusal":null},"finish_reason":%b,"logprobs":null}'
)
_TOOL_CHOICE = (
    b'{"index":%d,"message":{"role":"assistant","content":null,"tool_calls":[%b],"refusal":null},"finish_reason":%b,'
    b'"logprobs":null}'
)
_TOOL_CALL = b'{"id":"call_%b%d","type":"function","function":{"name":%b,"arguments":%b}}'
_TEXT = b'{"id":"cmpl-%b","object":"text_completion","created":%d,"model":%b,"choices":[%b],"usage":%b}'
_TEXT_CHOICE = b'{"index":%d,"text":%b,"finish_reason":%b,"logprobs":null}'

_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ERROR_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded", 503: "overloaded"}
_ERROR_TEXTS = {
    429: "Rate limit reached. Please slow down.",
    500: "The server had an error while processing your request.",
    503: "The engine is currently overloaded, please try again later.",
}


class Made(NamedTuple):
    body: bytes
    prompt_tokens: int
    completion_tokens: int


@lru_cache(maxsize=1024)
def quoted(text: str) -> bytes:
    """JSON string of a text that comes again and again, such as a model's name."""
    return orjson.dumps(text)


def finish_reason(cut: bool, truncated: bool) -> bytes:
    return b"null" if truncated else b'"length"' if cut else b'"stop"'


def metered(conduct: Conduct, prompt: int, completion: int) -> tuple[bytes, int, int]:
    """The usage that an answer tells, and the tokens that it is metered at."""
    if conduct.usage_factor != 1.0:
        prompt, completion = (math.ceil(count * conduct.usage_factor) for count in (prompt, completion))
    if conduct.usage == "absent":
        return b"null", prompt, completion
    return _USAGE % (prompt, completion, prompt + completion, int(prompt * conduct.cached)), prompt, completion


def contents(ask: Ask, behaviour: Behaviour) -> list[Content]:
    return [make_content(ask, source, choice, behaviour) for source in ask.sources for choice in range(ask.choices)]


def chat_body(ask: Ask, behaviour: Behaviour, id_: bytes, created: int) -> Made:
    if not ask.tool and not ask.logprobs:
        return _choices_body(_CHAT, _CHAT_CHOICE, ask, behaviour, id_, created)
    made = contents(ask, behaviour)
    choices = []
    for index, content in enumerate(made):
        if ask.tool:
            call = _TOOL_CALL % (id_, index, quoted(ask.tool), orjson.dumps(content.text))
            choices.append(_TOOL_CHOICE % (index, call, b'"tool_calls"'))
        else:
            told = _CHAT_CHOICE % (index, orjson.dumps(content.text), finish_reason(content.cut, False))
            choices.append(with_logprobs(told, pieces(content.text, content.tokens)))
    completion = sum(content.tokens for content in made)
    usage, prompt, completion = metered(behaviour.conduct, ask.prompt_tokens, completion)
    return Made(_CHAT % (id_, created, quoted(ask.model), b",".join(choices), usage), prompt, completion)


def pieces(text: str, tokens: int) -> list[str]:
    """The text in at most as many pieces as it has tokens."""
    size = -(-len(text) // tokens) if tokens else 1
    return [text[at : at + size] for at in range(0, len(text), size)]


def with_logprobs(choice: bytes, tokens: list[str]) -> bytes:
    """A choice that ends with `"logprobs":null}`, with the log probabilities of its tokens."""
    told = [{"token": token, "logprob": -0.25, "bytes": list(token.encode()), "top_logprobs": []} for token in tokens]
    return choice.removesuffix(b"null}") + orjson.dumps({"content": told, "refusal": None}) + b"}"


def completions_body(ask: Ask, behaviour: Behaviour, id_: bytes, created: int) -> Made:
    return _choices_body(_TEXT, _TEXT_CHOICE, ask, behaviour, id_, created)


def _choices_body(whole: bytes, each: bytes, ask: Ask, behaviour: Behaviour, id_: bytes, created: int) -> Made:
    truncated = behaviour.outcome == "truncated"
    if ask.choices == 1 and len(ask.sources) == 1:
        text, completion, cut = make_content(ask, ask.sources[0], 0, behaviour)
        choices = each % (0, orjson.dumps(text), finish_reason(cut, truncated))
    else:
        made = contents(ask, behaviour)
        completion = sum(content.tokens for content in made)
        choices = b",".join(
            each % (index, orjson.dumps(content.text), finish_reason(content.cut, truncated))
            for index, content in enumerate(made)
        )
    usage, prompt, completion = metered(behaviour.conduct, ask.prompt_tokens, completion)
    return Made(whole % (id_, created, quoted(ask.model), choices, usage), prompt, completion)


def responses_body(ask: Ask, behaviour: Behaviour, id_: bytes, created: int) -> Made:
    content = make_content(ask, ask.sources[0], 0, behaviour)
    whole = not content.cut and behaviour.outcome != "truncated"
    status = "completed" if whole else "incomplete"
    text = {"type": "output_text", "text": content.text, "annotations": []}
    body = {
        "id": f"resp_{id_.decode()}",
        "object": "response",
        "created_at": created,
        "status": status,
        "error": None,
        "incomplete_details": None if whole else {"reason": "max_output_tokens"},
        "instructions": None,
        "metadata": {},
        "model": ask.model,
        "output": [
            {
                "id": f"msg_{id_.decode()}",
                "type": "message",
                "status": status,
                "role": "assistant",
                "content": [text],
            }
        ],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": {
            "input_tokens": ask.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": content.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": ask.prompt_tokens + content.tokens,
        },
    }
    return Made(orjson.dumps(body), ask.prompt_tokens, content.tokens)


def embeddings_body(ask: Ask, behaviour: Behaviour, id_: bytes, created: int) -> Made:
    data = [
        {"object": "embedding", "index": index, "embedding": _embedding(source, ask.dimensions, ask.base64)}
        for index, source in enumerate(ask.sources)
    ]
    usage = {"prompt_tokens": ask.prompt_tokens, "total_tokens": ask.prompt_tokens}
    body = {"object": "list", "data": data, "model": ask.model, "usage": usage}
    return Made(orjson.dumps(body), ask.prompt_tokens, 0)


def _embedding(text: str, dimensions: int, as_base64: bool) -> list[float] | str:
    """A unit vector that depends on the text alone; rounded to the 32-bit floats that base64 carries, so both forms agree."""
    raw = struct.unpack(f"<{dimensions}i", hashlib.shake_256(text.encode()).digest(4 * dimensions))
    length = math.sqrt(sum(part * part for part in raw)) or 1.0
    packed = struct.pack(f"<{dimensions}f", *(part / length for part in raw))
    return base64.b64encode(packed).decode() if as_base64 else list(struct.unpack(f"<{dimensions}f", packed))


def models_body(names: list[str], created: int) -> bytes:
    return orjson.dumps({"object": "list", "data": [model_value(name, created) for name in names]})


def model_value(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "raycade-mock"}


def error_body(status: int, message: str | None = None, code: str | None = None, param: str | None = None) -> bytes:
    """An error as OpenAI words it."""
    kind = _ERROR_TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    text = message or _ERROR_TEXTS.get(status) or f"The mock was told to answer {status}."
    error = {"message": text, "type": kind, "param": param, "code": code or _ERROR_CODES.get(status)}
    return orjson.dumps({"error": error})
