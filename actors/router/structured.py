"""Structured output: from a reply's text to a JSON value that satisfies its schema, or to the reasons why not.

The router looks at each reply with `reply_of` + `parse_reply` + `Validator.errors` (asking.py); what it says to a model about
the schema is in demands.py. Nothing here guesses. A reply counts only if
it holds one JSON value as RFC 8259 defines it, which every parser downstream reads alike: no duplicate keys, NaN,
infinities or lone surrogates, bounded in depth and size. What is accepted is handed on in the reply's own bytes.

Around the value these are skipped: a byte-order mark, a leading `<think>...</think>`, code fences, and prose before and
after. A number, text, `true`, `false` or `null` must be the whole reply; in prose only an object or list is looked for.
When the first bracket that begins a JSON value does not lead through it (a reply cut short, say), the search ends: the
next bracket would be a part of the broken value, and a part is not the answer.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import jsonschema_rs
import orjson

from actors.errors import ConfigError

__all__ = [
    "MAX_ERRORS",
    "MAX_ERROR_CHARS",
    "MAX_SCHEMA_DEPTH",
    "ParseLimits",
    "Parsed",
    "Reply",
    "Unparsed",
    "Validator",
    "content_of",
    "cut",
    "parse_reply",
    "reply_of",
    "validator_of",
]

MAX_ERRORS = 10
MAX_ERROR_CHARS = 300
MAX_VALUE_CHARS = 60
MAX_LISTED_BYTES = 32 * 1024
MAX_SCHEMA_BYTES = 256 * 1024
MAX_SCHEMA_DEPTH = 100


class ParseLimits(NamedTuple):
    max_bytes: int = 1 << 20
    """Of the whole reply."""
    max_depth: int = 64
    """Of nested objects and lists."""


class Parsed(NamedTuple):
    """The reply holds a JSON value: these UTF-8 bytes of it."""

    value: bytes


class Unparsed(NamedTuple):
    """The reply holds no JSON value that counts; the reason is a sentence for a log and for the model."""

    reason: str


# Finding the value.

_FENCE = re.compile(r"^[ \t]*```[ \t]*(?:json|JSON)[ \t]*\r?\n", re.MULTILINE)
"""A line that announces JSON. Inside a JSON text no line can begin so, since line ends in texts are escaped."""
_FENCE_AROUND = re.compile(r"```[\w-]*[ \t]*\r?\n")
"""What a reply begins with that is one fence from end to end, whatever it announces."""
_OPENER = re.compile(r"[\[{]")
_BEGINS = re.compile(r'\{[ \t\r\n]*["}]|\[[ \t\r\n]*(?:["\]\[{]|-?[0-9]|-?Infinity|true\b|false\b|null\b|NaN)')
"""What a JSON object or list begins with; NaN and Infinity too, so that they are refused by name."""
_ASIDE = re.compile(r"\[[^\[\]{}]*\]|\{[^\[\]{}]*\}")
"""`[note]` or `{name}`: brackets of prose, with nothing nested in them."""
_KEY_BEFORE = re.compile(r'"[ \t\r\n]*:[ \t\r\n]*\Z')
"""Before a value: it was a key's, in an object that is not JSON as a whole."""
_GOES_ON = re.compile(r"[ \t\r\n]*[,:\]}]")
"""After a value: it was a part of something that is not JSON as a whole."""
_BLANK = " \t\r\n"


class _Refused(ValueError):
    """A value that JSON's grammar may allow and that we do not take."""


def parse_reply(text: str | bytes, limits: ParseLimits = ParseLimits()) -> Parsed | Unparsed:  # noqa: B008 (frozen)
    """The first JSON value of a model's reply, or why there is none. Never raises for any text or bytes."""
    try:
        size = len(text) if isinstance(text, bytes) else len(text.encode())
        if size > limits.max_bytes:
            return Unparsed(f"the reply is larger than {limits.max_bytes} bytes")
        reply = text.decode() if isinstance(text, bytes) else text
    except UnicodeError:
        return Unparsed("the reply is not valid UTF-8 text")
    reply = reply.lstrip("\ufeff" + _BLANK).rstrip("\ufeff" + _BLANK)
    if reply.startswith("<think>"):
        _, closed, reply = reply.partition("</think>")
        if not closed:
            return Unparsed("the reply breaks off while thinking")
        reply = reply.strip(_BLANK)
    if not reply:
        return Unparsed("the reply is empty")
    opened = _FENCE_AROUND.match(reply)
    if opened and reply.endswith("```", opened.end()):
        # Not one expression from fence to fence: over a run of blanks, which models fall into, that would take its square.
        reply = reply[opened.end() : -3].strip("\ufeff" + _BLANK)
    try:
        return Parsed(_value(reply, limits))
    except _Refused as error:
        return Unparsed(str(error))


def _clean(reply: str, limits: ParseLimits) -> bytes | None:
    """The whole reply, when it is a JSON object or list and nothing else: the usual case, in a third of the time.

    The fast parser keeps the last of two equal keys; so what it has read, written again, must have as many keys.
    """
    if reply[:1] not in ("{", "["):
        return None
    try:
        data = reply.encode()
        value = orjson.loads(data)
        if reply.count("{") + reply.count("[") > limits.max_depth and _deeper(value, limits.max_depth):
            return None
        return data if _keys(reply) == _keys(orjson.dumps(value).decode()) else None
    except (UnicodeError, orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None


def _keys(text: str) -> int:
    """How many keys a valid JSON text has: a colon outside of a text stands behind each, and nowhere else."""
    if "\\" in text:
        text = text.replace("\\\\", "").replace('\\"', "")
    return "".join(text.split('"')[::2]).count(":")


def _value(reply: str, limits: ParseLimits) -> bytes:
    if (clean := _clean(reply, limits)) is not None:
        return clean
    if reply[:1] in _LITERAL_STARTS:
        try:
            value, end = _decode(reply, 0)
        except json.JSONDecodeError:
            pass  # prose that begins like a number or a word of JSON, such as "true to the text: {...}"
        else:
            if end == len(reply):
                return _accepted(reply, value, limits)
    announced = None if reply[:1] in ("{", "[") else _FENCE.search(reply)
    start = _start(reply, announced.end() if announced else 0)
    try:
        value, end = _decode(reply, start)
    except json.JSONDecodeError as error:
        raise _Refused(f"the JSON value is broken or cut short at character {error.pos + 1}: {error.msg}") from None
    if _KEY_BEFORE.search(reply, max(0, start - 20), start):
        raise _Refused(f"the JSON value at character {start + 1} is a part of something broken")
    if _GOES_ON.match(reply, end):
        raise _Refused(
            f"the JSON value is followed by {reply[end:].lstrip(_BLANK)[0]!r}, so it is a part of something broken"
        )
    return _accepted(reply[start:end], value, limits)


_LITERAL_STARTS = frozenset('"-0123456789tfn')


def _start(reply: str, position: int) -> int:
    while True:
        opener = _OPENER.search(reply, position)
        if opener is None:
            raise _Refused("the reply holds no JSON object or list")
        if _BEGINS.match(reply, opener.start()):
            return opener.start()
        aside = _ASIDE.match(reply, opener.start())
        if aside is None:
            raise _Refused(f"the bracket at character {opener.start() + 1} begins nothing that is JSON")
        position = aside.end()


def _decode(text: str, start: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise _Refused("the JSON value is nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except _Refused:
        raise
    except ValueError:  # Python refuses to read integers of thousands of digits
        raise _Refused("the JSON value holds a number that is too long") from None


def _accepted(text: str, value: Any, limits: ParseLimits) -> bytes:
    if text.count("{") + text.count("[") > limits.max_depth and _deeper(value, limits.max_depth):
        raise _Refused(f"the JSON value is nested deeper than {limits.max_depth}")
    data = text.encode()
    try:
        # A second parser must agree: it refuses lone surrogates, and numbers like 1e999 that Python reads as infinite.
        orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _Refused("the JSON value holds text that is not valid Unicode, or numbers out of range") from None
    return data


def _deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth + 1):
        level = [item for each in level for item in _items(each)]
        if not level:
            return False
    return True


def _items(value: Any) -> Iterator[Any]:
    """The children of a container that is itself a level; a leaf has none."""
    if isinstance(value, dict):
        yield from value.values()
        if not value:
            yield None
    elif isinstance(value, list):
        yield from value
        if not value:
            yield None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        keys: set[str] = set()
        for key, _ in pairs:
            if key in keys:
                raise _Refused(f"the key {_short(key)} stands twice in one object")
            keys.add(key)
    return mapping


def _no_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


# Validating it.


class Validator:
    """A compiled JSON Schema. Nothing is fetched: a `$ref` to elsewhere makes the schema invalid."""

    def __init__(self, schema: bytes) -> None:
        """Raises ConfigError for bytes that are no JSON Schema."""
        problem = ""
        try:
            if len(schema) > MAX_SCHEMA_BYTES:
                problem = f"it is larger than {MAX_SCHEMA_BYTES // 1024} KiB"
            else:
                loaded = orjson.loads(schema)
                if _deeper(loaded, MAX_SCHEMA_DEPTH):
                    problem = f"it is nested deeper than {MAX_SCHEMA_DEPTH}"
                elif isinstance(loaded, dict | bool):
                    self._validator = jsonschema_rs.validator_for(loaded, mask="the value", offline=True)
                else:
                    problem = "it is neither an object nor true or false"
        except jsonschema_rs.ValidationError as error:
            problem = _told(error)
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            problem = cut(str(error).partition("\n")[0], MAX_ERROR_CHARS)
        if problem:
            raise ConfigError(f"not a JSON Schema: {problem}")

    def errors(self, value: bytes) -> list[str]:
        """What is wrong with a value that `parse_reply` accepted, a sentence each with its place; empty: nothing.

        Of a large value only the first: the library finds all of them at once, whose number may be that of its bytes.
        """
        loaded = orjson.loads(value)
        if len(value) > MAX_LISTED_BYTES:
            try:
                self._validator.validate(loaded)
            except jsonschema_rs.ValidationError as first:
                return [_told(first), "and perhaps more"]
            return []
        found: list[str] = []
        for error in self._validator.iter_errors(loaded):
            if len(found) == MAX_ERRORS:
                found.append("and more")
                break
            found.append(_told(error))
        return found


@lru_cache(maxsize=64)
def validator_of(schema: bytes) -> Validator:
    """The compiled schema, kept for the next row; a job has a handful of them, a gateway's clients bring their own."""
    return Validator(schema)


def _told(error: jsonschema_rs.ValidationError) -> str:
    return cut(f"{_place(error.instance_path)}: {_sentence(error)}", MAX_ERROR_CHARS)


def _sentence(error: jsonschema_rs.ValidationError) -> str:
    text = error.message
    branches = getattr(error.kind, "context", None)
    if branches:
        firsts = [branch[0] for branch in branches[:4] if branch]
        inner = (f"{_place(each.instance_path)}: {each.message}" for each in firsts)
        text = f"fits none of the alternatives ({'; '.join(inner)})"
    if isinstance(error.instance, dict | list) or (error.instance is None and "null" not in text):
        return text
    return f"{text}, found {_short(error.instance)}"


def _place(path: list[str | int]) -> str:
    return cut("$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path), 120)


def _short(value: object) -> str:
    return cut(json.dumps(value, ensure_ascii=False, default=str), MAX_VALUE_CHARS)


def cut(text: str, length: int) -> str:
    text = "".join(char if char.isprintable() else " " for char in text[: length + 1])
    return text if len(text) <= length else text[: length - 1] + "…"


# Reading the response it came in.


class Reply(NamedTuple):
    """What the first choice of a chat completion holds."""

    text: str
    refusal: str = ""
    """What the model said instead of an answer, where the endpoint tells the two apart."""
    calls_tool: bool = False


def reply_of(body: bytes) -> Reply | None:
    """The first choice of a chat completion; None when it is none."""
    try:
        message = orjson.loads(body)["choices"][0]["message"]
        content, refusal, calls = message.get("content"), message.get("refusal"), message.get("tool_calls")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return None
    if isinstance(content, list):  # some endpoints give the text in parts
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    return Reply(
        content if isinstance(content, str) else "",
        refusal if isinstance(refusal, str) and not content else "",
        isinstance(calls, list) and bool(calls),
    )


def content_of(body: bytes) -> str | None:
    """The text of the first choice of a chat completion; None when there is none (a tool call, a refusal, no chat)."""
    reply = reply_of(body)
    return reply.text or None if reply is not None else None
