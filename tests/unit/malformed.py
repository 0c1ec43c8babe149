"""Replies that no reader may take for an answer: right JSON objects with one thing wrong in each, dressed as models do.

A corpus made by rule, the same for the same seed. What is wrong is chosen so that the whole is no JSON any more; a parser
that accepts a reply of these has repaired it, or has taken a part of it for the whole.
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["malformed"]

WORDS = (
    "refund",
    "kettle",
    "it's broken",
    "naïve",
    "a, b",
    "[sic]",
    "{x}",
    'say "hi"',
    "",
    "50 %",
    "line\nbreak",
    "日本",
    "0x1F",
)


def _value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind < 2:
        return rng.choice(WORDS)
    if kind == 2:
        return rng.choice([0, -1, 3.25, 1e6, 12345678901])
    if kind == 3:
        return rng.choice([True, False, None])
    if kind == 4:
        return [rng.choice(WORDS) for _ in range(rng.randrange(3))]
    if kind == 5:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(1, 4))]
    return _object(rng, depth + 1)


def _object(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    keys = rng.sample(["id", "queue", "items", "note", "when", "who", "tags", "price"], rng.randrange(1, 6))
    return {key: _value(rng, depth) for key in keys}


def _outside(text: str, chars: str) -> list[int]:
    """Where these characters stand outside of texts."""
    places, inside, escaped = [], False, False
    for at, char in enumerate(text):
        if inside:
            inside = escaped or char != '"'
            escaped = char == "\\" and not escaped
            if not inside and '"' in chars:
                places.append(at)
        elif char in chars:
            places.append(at)
            inside = char == '"'
        else:
            inside = char == '"'
    return places


def _drop(chars: str) -> Callable[[random.Random, str], str]:
    def damaged(rng: random.Random, text: str) -> str:
        places = _outside(text, chars)
        at = rng.choice(places)
        return text[:at] + text[at + 1 :]

    return damaged


def _cut(rng: random.Random, text: str) -> str:
    return text[: rng.randrange(1, len(text))]


def _trailing_comma(rng: random.Random, text: str) -> str:
    at = rng.choice(_outside(text, "}]"))
    return text[:at] + "," + text[at:]


def _value_replaced(*words: str) -> Callable[[random.Random, str], str]:
    def damaged(rng: random.Random, text: str) -> str:
        at = rng.choice(_outside(text, ":"))
        return f"{text[: at + 1]} {rng.choice(words)}, {json.dumps(rng.choice(WORDS) + '!')}: {text[at + 1 :]}"

    return damaged


def _twice(rng: random.Random, text: str) -> str:
    key = next(iter(json.loads(text)))
    return f"{text[:-1]}, {json.dumps(key)}: {json.dumps(rng.choice(WORDS))}}}"


def _bare_keys(rng: random.Random, text: str) -> str:
    key = json.dumps(next(iter(json.loads(text))))
    return text.replace(key, key.strip('"'), 1)


def _comment(rng: random.Random, text: str) -> str:
    at = rng.choice(_outside(text, ",:")) if _outside(text, ",:") else 1
    return text[: at + 1] + rng.choice([" // the note\n", " /* the note */ ", " # note\n"]) + text[at + 1 :]


def _single_quotes(rng: random.Random, text: str) -> str:
    return text.replace('"', "'")


def _broken_text(rng: random.Random, text: str) -> str:
    at = rng.choice(_outside(text, ":"))
    broken = rng.choice(['"a\nb"', '"\\x41"', '"\\ud800"', '"\\u12"', '"a\tb"', '"half'])
    return f'{text[: at + 1]} {broken}, "zz": {text[at + 1 :]}'


def _extra_end(rng: random.Random, text: str) -> str:
    return text + rng.choice(["}", "]", "}}", " }", "\n]", ', "more": 1}', ": 1}"])


def _lost_start(rng: random.Random, text: str) -> str:
    return text[1:] if rng.random() < 0.5 else text[rng.choice(_outside(text, ":")) :]


DAMAGE: dict[str, Callable[[random.Random, str], str]] = {
    "cut short": _cut,
    "a bracket that is missing": _drop("}]"),
    "a quote that is missing": _drop('"'),
    "a colon that is missing": _drop(":"),
    "a comma too many": _trailing_comma,
    "words of other languages": _value_replaced(
        "None", "True", "undefined", "'x'", "NaN", "-Infinity", "01", "+1", ".5", "1e999"
    ),
    "a key that stands twice": _twice,
    "a key without quotes": _bare_keys,
    "a comment": _comment,
    "single quotes": _single_quotes,
    "a broken text": _broken_text,
    "an end too many": _extra_end,
    "no beginning": _lost_start,
}
DRESSES: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    lambda text: f"```json\n{text}\n```",
    lambda text: f"```\n{text}\n```",
    lambda text: f"Sure, here is the JSON:\n{text}\nAnything else?",
    lambda text: f"Sure!\n\n```json\n{text}\n```\nI hope it helps.",
    lambda text: f"\ufeff{text}",
    lambda text: f"<think>It must be an object.</think>{text}",
)


def malformed(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """What is wrong, and the reply."""
    rng = random.Random(seed)
    names = list(DAMAGE)
    made = 0
    while made < count:
        name = names[made % len(names)]
        value = _object(rng)
        text = json.dumps(value, indent=rng.choice([None, None, 2]), ensure_ascii=rng.random() < 0.5)
        damaged = DAMAGE[name](rng, text)
        try:
            json.loads(damaged)
        except ValueError:
            pass
        else:
            if name not in ("a key that stands twice", "words of other languages", "a broken text"):
                continue  # by chance still right: a quote dropped from an empty text, say
        made += 1
        yield name, rng.choice(DRESSES)(damaged)
