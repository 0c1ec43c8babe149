"""One stream for the caller out of two upstream: the events of the second under the name of the first. Pure.

A stream that was not resumed is never touched. In one that was, every event from the second upstream on gets the `id` and
`created` that the caller has seen, so that clients which gather by id gather one answer; and where the text was cut
(actors/router/resume.py), the text that is left. Model and usage stay those of the tier which answered.
"""

from typing import Any, NamedTuple

import orjson

__all__ = ["Identity", "identity_of", "model_of", "renamed"]

_NAMES = ("id", "created")
_HEAVY = ("logprobs", "token_ids")
"""What belongs to the text as a whole, and to no part of it."""


class Identity(NamedTuple):
    """What the caller has seen of the first upstream; fields that it did not give are absent."""

    fields: tuple[tuple[str, Any], ...]


def identity_of(data: bytes) -> Identity:
    """From the first event that was passed on."""
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        event = {}
    return Identity(tuple((name, event[name]) for name in _NAMES if isinstance(event, dict) and name in event))


def model_of(data: bytes) -> str:
    """The model that an event names; empty: none."""
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        return ""
    model = event.get("model") if isinstance(event, dict) else None
    return model if isinstance(model, str) else ""


def renamed(data: bytes, identity: Identity, text: str | None = None, reasons: bool = True) -> bytes | None:
    """An event of a later upstream as the caller gets it; None if nothing of it is left.

    `text`: what its only choice says, where that is not what it said; None: as it is. `reasons` False drops reasoning,
    which the caller has had from the first upstream. The second role goes too, and with it an event that had no more.
    """
    event = orjson.loads(data)
    event.update(identity.fields)
    choices = event.get("choices") or []
    rests = not choices
    for choice in choices:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            delta.pop("role", None)
            if not reasons:
                for name in [name for name in delta if name.startswith("reasoning")]:
                    del delta[name]
        if text is not None:
            said = delta if isinstance(delta, dict) else choice
            name = "content" if said is delta else "text"
            if said.get(name) != text:
                said[name] = text
                for heavy in _HEAVY:
                    if choice.get(heavy):
                        choice[heavy] = None
        said_anything = any(delta.values()) if isinstance(delta, dict) else bool(choice.get("text"))
        rests = rests or said_anything or bool(choice.get("finish_reason"))
    rests = rests or bool(event.get("usage"))
    try:
        return orjson.dumps(event) if rests else None
    except orjson.JSONEncodeError:  # deeper than orjson writes
        return data
