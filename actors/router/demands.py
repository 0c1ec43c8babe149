"""What is said to a model about a schema: the demand, in the way its tier takes, and the repeated demand after a wrong reply.

    native_format   a `response_format` that binds the endpoint
    instructed      words in the system message, for all the others
    ask_again       the reply, what was wrong with it, and the request for another

attempts.py makes the demand for each attempt, since the tiers of one cascade take it differently; a tier that answers 400 to
the native way (`format_refused`) gets words from then on. Pure.
"""

import re
from functools import lru_cache
from typing import Any

import orjson

from actors.errors import ConfigError
from actors.router.structured import MAX_ERROR_CHARS, MAX_ERRORS, MAX_SCHEMA_DEPTH, cut, validator_of

__all__ = ["ask_again", "demand_tokens", "format_refused", "instructed", "native_format", "own_schema"]

MAX_REPLY_CHARS = 16_000


@lru_cache(maxsize=64)
def native_format(schema: bytes) -> bytes:
    """The `response_format` that binds an endpoint to the schema.

    `strict` only where the schema is of the form that OpenAI's strict mode takes, since it answers 400 to any other.
    """
    demanded = orjson.loads(schema)
    title = demanded.get("title") if isinstance(demanded, dict) else None
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", title)[:64] if isinstance(title, str) else ""
    return orjson.dumps(
        {
            "type": "json_schema",
            "json_schema": {
                "name": name.strip("_") or "answer",
                "schema": demanded,
                "strict": _strict(demanded),
            },
        }
    )


def own_schema(response_format: object) -> bytes:
    """The schema in a request's own `response_format`; b"" when it demands none. Raises ConfigError for a wrong one."""
    if not isinstance(response_format, dict) or response_format.get("type") != "json_schema":
        return b""
    form = response_format.get("json_schema")
    schema = form.get("schema") if isinstance(form, dict) else None
    if schema is None:
        return b""
    try:
        encoded = orjson.dumps(schema)
    except (TypeError, ValueError):
        raise ConfigError("not a JSON Schema: it cannot be encoded") from None
    validator_of(encoded)
    return encoded


def demand_tokens(schema: bytes, response_format: bytes = b"") -> int:
    """Upper bound of what the demand adds to a prompt, in whichever way a tier makes it."""
    return max(len(response_format), len(native_format(schema))) + len(_INSTRUCTION)


_INSTRUCTION = (
    "Answer with one JSON value and nothing else: no prose, no code fence. It must satisfy this JSON Schema:\n"
)


def instructed(body: bytes, schema: bytes) -> bytes:
    """The chat body with a demand for JSON by the schema, in words. Raises ValueError for a body without messages.

    In the system message that is there, because many chat templates refuse a second.
    """
    request = _chat(body)
    instruction = _INSTRUCTION + schema.decode()
    messages = request["messages"]
    first = messages[0] if messages else None
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        content = first.get("content")
        if isinstance(content, str):
            first["content"] = f"{content}\n\n{instruction}" if content else instruction
            return _encoded(request)
        if isinstance(content, list):
            content.append({"type": "text", "text": instruction})
            return _encoded(request)
    messages.insert(0, {"role": "system", "content": instruction})
    return _encoded(request)


_ABOUT_FORMAT = re.compile(
    r"response[ _]?format|json[ _]?schema|structured[ _]?output|guided[ _]?(?:json|decoding)", re.I
)
_NOT_HERE = re.compile(
    r"not (?:\w+ )?(?:support|available|implement|permitted|allowed)|doesn't support|does not support|unsupported|unavailable"
    r"|unknown|unrecogni[sz]ed|unexpected|extra (?:inputs|fields)|extra_forbidden|input should be|only supports",
    re.I,
)
_OF_THE_SCHEMA = re.compile(r"invalid schema|in context=|schema (?:is|was) (?:invalid|too)", re.I)


def format_refused(message: str) -> bool:
    """Whether an endpoint's 400 says that it does not know `response_format: json_schema` at all.

    Not when it finds fault with the schema: that is the request's own matter, and the next request may have a better one.
    """
    return bool(_ABOUT_FORMAT.search(message) and _NOT_HERE.search(message) and not _OF_THE_SCHEMA.search(message))


def ask_again(body: bytes, reply: str, errors: list[str]) -> bytes:
    """The chat body with the failed reply and what was wrong with it. Raises ValueError for a body without messages.

    The reply is cut at MAX_REPLY_CHARS and the errors at MAX_ERRORS, so that a runaway reply is not paid for again.
    """
    request = _chat(body)
    if len(reply) > MAX_REPLY_CHARS:
        reply = reply[:MAX_REPLY_CHARS] + " … (cut)"
    reasons = "\n".join(f"- {cut(error, MAX_ERROR_CHARS)}" for error in errors[: MAX_ERRORS + 1])
    demand = f"This answer cannot be used:\n{reasons}\nAnswer again with the corrected JSON value and nothing else."
    request["messages"] += [
        {"role": "assistant", "content": reply.encode(errors="replace").decode()},
        {"role": "user", "content": demand.encode(errors="replace").decode()},
    ]
    return _encoded(request)


def _chat(body: bytes) -> dict[str, Any]:
    request = orjson.loads(body)
    if not isinstance(request, dict) or not isinstance(request.get("messages"), list):
        raise ValueError("a schema needs a chat body, an object with a list of messages")
    return request


def _encoded(request: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(request)
    except orjson.JSONEncodeError:  # it reads deeper than it writes
        raise ValueError("the body is nested too deeply") from None


def _strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes the schema: an object at the top, every object closed, all keys required."""
    return isinstance(schema, dict) and schema.get("type") == "object" and _closed(schema, 0)


def _closed(schema: Any, depth: int) -> bool:
    if isinstance(schema, list):
        return all(_closed(each, depth + 1) for each in schema)
    if not isinstance(schema, dict):
        return True
    if depth > MAX_SCHEMA_DEPTH or "allOf" in schema or "oneOf" in schema or "patternProperties" in schema:
        return False
    if schema.get("type") == "object" or "properties" in schema:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if schema.get("additionalProperties") is not False or not isinstance(properties, dict):
            return False
        if not isinstance(required, list) or set(properties) != set(required):
            return False
    named = [each for key in ("properties", "$defs", "definitions") for each in _mapping(schema.get(key)).values()]
    return all(_closed(each, depth + 1) for each in [*named, schema.get("items"), schema.get("anyOf")])


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
