"""A stream over several attempts: what each tier is asked, and what of its answer is passed on.

The first attempt is passed on as it comes. When it breaks in the middle, the next tier goes on from the words that were
said, by the rules of actors/router/resume.py, and its events come under the id of the first. Where that cannot be, the
stream ends with an error: nobody gets a mixture of two answers, or the first half of one that looks whole.
"""

from collections.abc import Iterable
from typing import assert_never

import orjson

from actors.messages import Answer, Chunk, Failure, Refusal, Request
from actors.router.chunks import Identity, identity_of, model_of, renamed
from actors.router.resume import (
    Afresh,
    Continuation,
    Continue,
    Diverged,
    NotResumable,
    Prefill,
    Rest,
    refuses_prefill,
    resumption,
)
from actors.router.told import Told

__all__ = ["Divergence", "Telling"]


class Divergence(Exception):
    """The second answer is another one: the attempt is of no use."""


class Telling:
    """One stream. `ask` before each attempt, `hear` while it speaks, `ended` after it."""

    def __init__(self, request: Request, told: Told, resume: bool) -> None:
        self._request = request
        self._told = told
        self._resume = resume
        self._mode: Rest | Continuation | None = None
        """None: nothing had been said before this attempt."""
        self._identity: Identity | None = None
        self._last = b""
        """The newest event of an attempt that goes on from another's words."""
        self._no_prefill: set[int] = set()
        self._tier = ("", 0)
        self.broken: Failure | None = None
        """Why the stream cannot go on."""

    def ask(self, name: str, index: int, prefill: Prefill) -> Request | Failure:
        """What to ask of this tier, or why nothing can be."""
        self._tier = (name, index)
        told = self._told
        if not told.count:
            self._mode = None
            return self._request
        text, kept = told.text, told.kept
        if not self._resume:
            return self._ends("router.on_broken_stream is error")
        if text is None or kept is None:
            return self._ends("too much had been said to begin again")
        request = self._request
        prefill = "no" if index in self._no_prefill else prefill
        spoken = sum(bool(chunk.text) for chunk in kept)
        how = resumption(request.path, request.body, text, spoken, _forms(kept), prefill)
        match how:
            case NotResumable():
                return self._ends(how.reason)
            case Continue():
                self._mode = Continuation(text)
            case Afresh():
                self._mode = Rest(text)
            case _:
                assert_never(how)
        self._identity = self._identity or identity_of(kept[0].data)
        longer = len(how.body) - len(request.body)
        return request._replace(body=how.body, prompt_bound_tokens=request.prompt_bound_tokens + max(0, longer))

    def hear(self, chunks: list[Chunk]) -> None:
        """Pass on what is new. Raises Divergence."""
        self._told.begin(self._tier[0])
        if self._mode is None:
            self._told.hear(chunks)
            return
        passed = [chunk for each in chunks if (chunk := self._rest_of(each)) is not None]
        if passed:
            self._told.hear(passed)

    def ended(self, done: Answer | Failure | Refusal | None) -> bool:
        """Take in how the attempt ended. True: its failure is one of asking to continue, and says nothing of the request."""
        mode = self._mode
        if isinstance(done, Failure) and isinstance(mode, Continuation) and refuses_prefill(done):
            self._no_prefill.add(self._tier[1])
            return True
        if isinstance(done, Answer) and mode is not None:
            if isinstance(mode, Continuation):
                if held := mode.end():
                    self._told.hear([self._made(held)])
            elif mode.end() is not None:
                self._ends("the next tier gave a shorter answer")
        return False

    def _rest_of(self, chunk: Chunk) -> Chunk | None:
        mode, identity = self._mode, self._identity
        self._last = chunk.data
        assert mode is not None
        assert identity is not None
        text = mode.feed(chunk.text) if chunk.text else ""
        if isinstance(text, Diverged):
            self._ends("the next tier gives another answer")
            raise Divergence
        data = renamed(chunk.data, identity, text if chunk.text else None, reasons=False)
        return None if data is None else Chunk(data, text)

    def _made(self, text: str) -> Chunk:
        """An event of our own, for words that were held back."""
        assert self._identity is not None
        chat = self._request.path.endswith("/chat/completions")
        choice = {"index": 0, **({"delta": {"content": text}} if chat else {"text": text}), "finish_reason": None}
        kind = "chat.completion.chunk" if chat else "text_completion"
        event = {**dict(self._identity.fields), "object": kind, "model": model_of(self._last), "choices": [choice]}
        return Chunk(orjson.dumps(event), text)

    def _ends(self, why: str) -> Failure:
        self.broken = Failure("broken_stream", f"the answer broke off and could not be continued: {why}")
        return self.broken


def _forms(chunks: Iterable[Chunk]) -> set[str]:
    """What was passed on besides text, by the names of the deltas' fields. Read only when a stream has broken."""
    forms: set[str] = set()
    for chunk in chunks:
        try:
            choices = orjson.loads(chunk.data).get("choices") or ()
        except (orjson.JSONDecodeError, AttributeError):
            continue
        for choice in choices:
            delta = choice.get("delta")
            if isinstance(delta, dict):
                forms |= {name for name, value in delta.items() if value and name not in ("content", "role")}
    return forms
