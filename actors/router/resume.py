"""How a stream that broke goes on with another tier: what to ask, and what of the new answer to pass on. Pure.

Two ways, told apart by the tier's `prefill`:
- It continues a text: the request gets what was said as a last assistant message (`Continue`). There are two dialects.
  `true` sends that message with `continue_final_message: true, add_generation_prompt: false`, which vLLM and SGLang need;
  llama.cpp, OpenRouter and Anthropic's endpoint (models before 4.6) go by the message alone and ignore the fields.
  `prefix` marks the message `prefix: true`, as DeepSeek (under /beta) and Mistral ask. Completions just get a longer prompt.
- It does not: it is asked the same again (`Afresh`), and its answer is passed on from where the first one broke, if it
  begins with what was said (`Rest`); else it has diverged.

A tier that refuses a prefill (`refuses_prefill`) is asked afresh.
"""

from collections.abc import Collection
from typing import Any, Final, Literal, NamedTuple

import orjson

from actors.messages import Failure
from actors.tier.response_events import is_responses

__all__ = [
    "Afresh",
    "Continuation",
    "Continue",
    "Diverged",
    "NotResumable",
    "Prefill",
    "Rest",
    "Resumption",
    "refuses_prefill",
    "resumption",
]

Prefill = Literal["no", "message", "prefix"]
"""What a tier takes; `message` is `prefill: true` in raycade.yaml."""

ECHO_CHARS: Final = 24
"""A continuation that begins with at least so much of the very text is one that repeats it all, as Mistral's do. A shorter
text may begin again by itself ("ha" after "ha")."""

_CONSTRAINED: Final = ("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
_CONSTRAINED_TOO: Final = ("structured_outputs", "grammar", "json_schema", "regex", "ebnf")
"""An answer that is held to a form is held to it from its first token: what continues one would begin it again."""
_CAPS: Final = ("max_tokens", "max_completion_tokens")


class Continue(NamedTuple):
    """Ask this; its answer goes through `Continuation(said)`."""

    body: bytes


class Afresh(NamedTuple):
    """Ask the same again; its answer goes through `Rest(said)`."""

    body: bytes


class NotResumable(NamedTuple):
    """The stream ends here, with an error that says why."""

    reason: str


class Diverged(NamedTuple):
    """The new answer is another one. `at`: so many characters were the same."""

    at: int


Resumption = Continue | Afresh | NotResumable


def resumption(
    path: str, body: bytes, said: str, said_tokens: int, forms: Collection[str], prefill: Prefill
) -> Resumption:
    """How to go on after `said`. `body` is the request as it was sent first; `said_tokens` counts the events of it that said
    something, which a continuation may say fewer; `forms` names what else was passed on (StreamReader.forms)."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        request = None
    if not isinstance(request, dict):
        return NotResumable("its request cannot be read")
    if is_responses(path):
        return NotResumable("the Responses API has no way to")
    others = sorted(form for form in forms if not form.startswith("reasoning"))
    if others:
        return NotResumable(f"{others[0]} had been passed on already")
    if request.get("n", 1) not in (1, None) or request.get("best_of", 1) not in (1, None):
        return NotResumable("it has several choices")
    if request.get("echo") or request.get("suffix"):
        return NotResumable("its text is not only the answer's")
    kept = said.rstrip()
    constrained = any(request.get(name) for name in (*_CONSTRAINED, *_CONSTRAINED_TOO))
    if prefill == "no" or constrained or not kept:
        return Afresh(body)
    continued = _continued(path, request, kept, prefill)
    if continued is None:
        return Afresh(body)
    for name in _CAPS:
        cap = continued.get(name)
        if type(cap) is int:
            continued[name] = max(1, cap - said_tokens)
    try:
        return Continue(orjson.dumps(continued))
    except orjson.JSONEncodeError:  # deeper than orjson writes
        return Afresh(body)


def refuses_prefill(failure: Failure) -> bool:
    """Whether a tier that was asked to continue says that it does not: no caller sees that."""
    return failure.kind == "bad_request"


def _continued(path: str, request: dict[str, Any], kept: str, prefill: Prefill) -> dict[str, Any] | None:
    if not path.partition("?")[0].rstrip("/").endswith("/chat/completions"):
        prompt = request.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        return {**request, "prompt": prompt + kept} if isinstance(prompt, str) else None
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return None
    message: dict[str, Any] = {"role": "assistant", "content": kept}
    if messages[-1].get("role") == "assistant":
        # The request has a prefill of its own: one message, or the model would see its answer cut in two.
        begun = messages[-1].get("content")
        if not isinstance(begun, str):
            return None
        message = {**messages[-1], "content": begun + kept}
        messages = messages[:-1]
    if prefill == "prefix":
        return {**request, "messages": [*messages, {**message, "prefix": True}]}
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    return {**request, "messages": [*messages, message], **flags}


class Rest:
    """Of a second answer from the beginning: what comes after `said`.

    `feed` its text as it comes; each call gives what to pass on, or `Diverged`, after which nothing more is fed.
    """

    __slots__ = ("_at", "_said")

    def __init__(self, said: str) -> None:
        self._said, self._at = said, 0

    def feed(self, text: str) -> str | Diverged:
        at = self._at
        if at == len(self._said):
            return text
        part = self._said[at : at + len(text)]
        if text.startswith(part):
            self._at += len(part)
            return text[len(part) :]
        return Diverged(at + _common(part, text))

    def end(self) -> Diverged | None:
        """The second answer is finished: one that ends before what was said does is another."""
        return None if self._at == len(self._said) else Diverged(self._at)


class Continuation:
    """Of an answer that continues `said`: all of it, but for what it repeats.

    The request holds what was said without the white space at its end, which endpoints refuse or cut away; so the white
    space that the continuation begins with, as far as it is the same, was passed on already. And some repeat the whole
    text. While that may be so, nothing is passed on; `end` gives what is still held.
    """

    __slots__ = ("_echo", "_held", "_kept", "_tail")

    def __init__(self, said: str) -> None:
        self._kept = said.rstrip()
        self._tail = said[len(self._kept) :]
        self._held = ""
        self._echo = len(self._kept) >= ECHO_CHARS

    def feed(self, text: str) -> str:
        if self._echo:
            self._held += text
            if len(self._held) < len(self._kept) and self._kept.startswith(self._held):
                return ""
            self._echo = False
            text, self._held = self._held.removeprefix(self._kept), ""
        if self._tail and text:
            same = _common(self._tail, text)
            self._tail = self._tail[same:] if same == len(text) else ""
            return text[same:]
        return text

    def end(self) -> str:
        """The continuation is finished: what was held as a repetition was none."""
        self._echo = False
        held, self._held = self._held, ""
        return self.feed(held)


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
