"""Text from an endpoint, made fit for a log, an error line or a person: one line, and without anybody's key."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import orjson

__all__ = ["one_line", "redact"]


def one_line(text: str) -> str:
    """`text` on one line of characters that can be seen: no terminal escapes, nothing invisible that turns text around.

    Cut well above any bound we keep, so that a reply of megabytes is not searched through.
    """
    text = text[:8192]
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split())


_KEYISH = re.compile(
    r"""(?ix)
    \bbearer\s+(?=\S*\d)[^\s"',}]{8,}   # a header, quoted; not the words "bearer token"
    | \bsk-[\w*-]{6,}                   # OpenAI, Anthropic, OpenRouter ...
    | \bAIza[\w-]{10,}                  # Google
    | [\w-]{0,40}\*{3,}[\w*-]*          # a key that its owner has starred out, with the ends still readable
    """
)
_MASK: Final = "[redacted]"
_GRAM: Final = 6


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """`text` without `secrets`, without 11 characters or more in a row of any of them, without their first or last 6,
    and without whatever else looks like a key.

    Endpoints quote parts of the key they refuse. Secrets of less than 4 characters are left alone: they are words
    like `x`, given where no key is needed.
    """
    for secret in secrets:
        if len(secret) < 4:
            continue
        for form in _forms(secret):
            text = text.replace(form, _MASK)
        for gram in _grams(secret):
            seen = 0
            while (start := text.find(gram, seen)) >= 0:
                end = start + len(gram)
                while start > 0 and text[start - 1 : end] in secret:
                    start -= 1
                while end < len(text) and text[start : end + 1] in secret:
                    end += 1
                text = text[:start] + _MASK + text[end:]
                seen = start + len(_MASK)
    return _KEYISH.sub(_MASK, text)


@lru_cache(maxsize=64)
def _forms(secret: str) -> tuple[str, ...]:
    """The secret as it is, and as it stands inside JSON."""
    quoted = orjson.dumps(secret.encode("utf-8", "replace").decode()).decode()[1:-1]
    return tuple(dict.fromkeys((secret, quoted, quoted.replace("/", "\\/"))))


@lru_cache(maxsize=64)
def _grams(secret: str) -> tuple[str, ...]:
    """Pieces such that any part of 11 characters holds one of them whole: every sixth, and the last six."""
    if len(secret) < 2 * _GRAM:
        return ()
    starts = [*range(0, len(secret) - _GRAM + 1, _GRAM), len(secret) - _GRAM]
    return tuple(secret[start : start + _GRAM] for start in starts)
