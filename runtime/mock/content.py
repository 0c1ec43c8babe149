"""The text of an answer: recognisably the answer to this very request, and the same every time. Pure.

An echo is `echo <first 16 hex digits of the SHA-256 of the last user message>`, then the X of every `[[tag:X]]` in that
message, then filler words up to the wanted number of tokens. The head is never cut, even when fewer tokens are wanted.
"""

import re
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from runtime.mock.ask import Ask, count_tokens
from runtime.mock.behaviour import Behaviour
from runtime.mock.instance import instance
from runtime.mock.scenario import Conduct, Dress

__all__ = ["Content", "echo", "make_content"]

_TAG = re.compile(r"\[\[tag:([^\]]+)\]\]")
# Three letters and a space: one token by the mock's own count.
_WORDS = (
    "the and for not but all any one two few new old own our its can may let see say put get run set try use way day"
)
_FILLER = " ".join(_WORDS.split()) + " "


class Content(NamedTuple):
    text: str
    tokens: int
    cut: bool
    """True when the request's token limit ended the text: finish_reason `length`."""


def echo(source: str) -> str:
    """What every answer to `source` begins with (or carries, if it is JSON)."""
    digest = sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    tags = " ".join(_TAG.findall(source)) if "[[tag:" in source else ""
    return f"echo {digest} {tags}" if tags else f"echo {digest}"


def make_content(ask: Ask, source: str, choice: int, behaviour: Behaviour) -> Content:
    conduct = behaviour.conduct
    head = echo(source)
    limit = ask.max_tokens
    if conduct.replies:
        reply = conduct.replies[behaviour.number % len(conduct.replies)]
        text = reply if isinstance(reply, str) else orjson.dumps(reply).decode()
        return _limited(text.replace("{echo}", head), limit)
    if ask.json or conduct.reply == "json":
        return _limited(_json(ask, head, behaviour), limit)
    tokens = conduct.tokens if limit is None or limit >= conduct.tokens else limit
    # Each word with the space before it is one token; the head takes what it needs.
    words = (tokens * 4 - len(head)) // 4
    if words > 0:
        at = (int(head[5:7], 16) + choice) % (len(_FILLER) // 4) * 4
        filler = (_FILLER * ((at + words * 4) // len(_FILLER) + 1))[at : at + words * 4 - 1]
        head = f"{head} {filler}"
    return Content(head, tokens, tokens < conduct.tokens)


def _limited(text: str, limit: int | None) -> Content:
    tokens = count_tokens(text)
    if limit is None or tokens <= limit:
        return Content(text, tokens, False)
    return Content(text.encode()[: limit * 4].decode(errors="ignore"), limit, True)


def _json(ask: Ask, head: str, behaviour: Behaviour) -> str:
    conduct: Conduct = behaviour.conduct
    if conduct.json_value is not None:
        value: Any = _filled(conduct.json_value, head)
    elif ask.schema is not None:
        value = instance(ask.schema, head, int(head[5:13], 16))
    else:
        value = {"echo": head}
    dress = conduct.dress[behaviour.number % len(conduct.dress)] if conduct.dress else "plain"
    return dressed(value, dress)


def dressed(value: Any, dress: Dress) -> str:
    """The value as a model may present it."""
    if dress == "mistyped":
        value = {name: _mistyped(part) for name, part in value.items()} if isinstance(value, dict) else _mistyped(value)
    text = orjson.dumps(value).decode()
    match dress:
        case "fenced":
            return f"```json\n{text}\n```"
        case "prefixed":
            return f"Sure! Here is the JSON you asked for:\n{text}\nLet me know if you need anything else."
        case "truncated":
            return text[: max(1, len(text) * 2 // 3)]
        case _:
            return text


def _mistyped(value: Any) -> Any:
    return [value] if isinstance(value, str | None) else f"{value}" if isinstance(value, int | float) else "none"


def _filled(value: Any, head: str) -> Any:
    if isinstance(value, str):
        return value.replace("{echo}", head)
    if isinstance(value, list):
        return [_filled(part, head) for part in value]
    return {name: _filled(part, head) for name, part in value.items()} if isinstance(value, dict) else value
