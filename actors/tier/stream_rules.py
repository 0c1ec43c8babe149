"""What a chat or completions stream says, event by event: what is passed on, what it cost, and whether it is whole. Pure.

It stands behind actors/tier/sse.py in the tier actor. Each event's data is parsed once, and passed on as the bytes that
came, so that fields nobody here knows survive. Whatever makes a stream no answer becomes a `Failure` by the same rules as
a whole reply's (actors/tier/classify.py).

When a stream is at its end:
- `[DONE]` came, or every choice has its finish_reason and the usage is in if it was asked for: it is `over`. Nothing more is
  waited for, not `[DONE]` either, which some servers never send.
- Every choice has its finish_reason, but the usage is missing: it is `finished`. Usage comes right behind, if it comes at
  all, so the reader waits no longer than USAGE_GRACE_S for it.
- Its body ended: without a finish_reason the answer is broken, in however good an order it ended.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

import orjson

from actors.messages import Failure, Usage
from actors.tier.classify import Whole, classify_error, classify_reply
from actors.tier.transport import TransportError
from actors.tier.usage import reported_usage

__all__ = ["USAGE_GRACE_S", "Broken", "Complete", "Delta", "StreamReader", "as_delta", "ask_usage", "is_stream"]

USAGE_GRACE_S: Final = 1.0
MAX_MALFORMED: Final = 3
"""So many events that cannot be read are passed over; one more, and the stream is not one to believe."""
MAX_CHOICES: Final = 1_024
"""More than any endpoint gives (128): a bound, since each choice is remembered."""

_AZURE: Final = frozenset({"prompt_filter_results", "prompt_annotations"})
"""Azure's filter results, which come without choices too."""
_USAGE_NULLS: Final = (b',"usage":null', b', "usage": null')


class Delta(NamedTuple):
    """An event to pass on."""

    data: bytes
    """As it came, but for the usage that the caller did not ask for."""
    text: str
    """What its only choice says in it (`content`, or `text` of completions); empty where there are several choices."""
    said: bool
    """Whether it has a part of an answer in it: text, reasoning, a tool call. The first such is the first token; what comes
    before it (a role, filter results) need not have been passed on before another tier is asked."""


class Complete(NamedTuple):
    """The answer is finished."""

    usage: Usage | None
    model: str
    malformed: int
    """Events that were passed over."""
    had_done: bool


class Broken(NamedTuple):
    """There is no whole answer; what was passed on is the beginning of one."""

    failure: Failure


class StreamReader:
    """One stream's story so far. `feed` each event's data, in order; `finish` when it is `done`, `over` or ended."""

    __slots__ = (
        "_all_choices",
        "_bytes",
        "_chat",
        "_deltas",
        "_failure",
        "_forms",
        "_keeps_usage",
        "_open",
        "_path",
        "_secrets",
        "_seen",
        "_usage",
        "_wants_usage",
        "done",
        "malformed",
        "model",
    )

    _END: ClassVar[str] = "a finish_reason"

    def __init__(
        self,
        path: str,
        choices: int = 1,
        usage_for_caller: bool = True,
        usage_asked: bool = True,
        secrets: Sequence[str] = (),
    ) -> None:
        """`choices`: so many the request asks for. `usage_for_caller`: the caller asked for usage too, so it is passed on.
        `secrets` are taken out of what an endpoint says of an error."""
        self._path = path
        self._chat = path.partition("?")[0].rstrip("/").endswith("/chat/completions")
        self._all_choices = choices
        self._keeps_usage, self._wants_usage = usage_for_caller, usage_asked
        self._secrets = secrets
        self._open: set[int] = set()
        self._seen: set[int] = set()
        self._forms: set[str] = set()
        self._failure: Failure | None = None
        self._bytes = self._deltas = 0
        self.malformed = 0
        self.model = ""
        self._usage: Usage | None = None
        self.done = False
        """`[DONE]` came: nothing counts after it."""

    # ---- where it stands

    @property
    def finished(self) -> bool:
        """Every choice that was asked for has its finish_reason."""
        return not self._open and len(self._seen) >= self._all_choices

    @property
    def usage(self) -> Usage | None:
        """Of the whole answer. What some endpoints tell on the way is not kept: it is not what they charge."""
        return self._usage

    @property
    def over(self) -> bool:
        """There is nothing more to wait for."""
        return self.done or (self.finished and (self._usage is not None or not self._wants_usage))

    @property
    def failed(self) -> bool:
        """Whatever comes now, it is no answer."""
        return self._failure is not None

    @property
    def forms(self) -> frozenset[str]:
        """What there was besides text, by the names of the deltas' fields (`tool_calls`, `reasoning_content` ...)."""
        return frozenset(self._forms)

    @property
    def said_tokens(self) -> int:
        """Events with a part of an answer in them: most endpoints send one for each token, and none fewer tokens."""
        return self._deltas

    @property
    def most_tokens(self) -> int:
        """An upper bound of the completion's tokens that were sent, for an answer without usage: a token of a byte-level
        vocabulary is at least one byte of text. Reasoning that an endpoint hides is not in it."""
        return max(self._bytes, self._deltas)

    # ---- events

    def feed(self, data: bytes) -> Delta | Failure | None:
        """What is to be done about an event: pass it on, end with a failure, or nothing."""
        if self.done or self._failure is not None:
            return self._failure
        if data == b"[DONE]" or not data:
            self.done = data == b"[DONE]"
            return None
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            if data.strip() == b"[DONE]":
                self.done = True
                return None
            return self._pass_over()
        if type(event) is not dict:
            return self._pass_over()
        choices = event.get("choices")
        if type(choices) is not list or event.get("error"):
            return self._without_choices(event, data)
        if not self.model:
            model = event.get("model")
            self.model = model[:128] if isinstance(model, str) else ""
        usage = event.get("usage")
        if not self._keeps_usage and "usage" in event:
            data = _without_usage(event, data)
        text, said = "", False
        for choice in choices:
            if type(choice) is not dict:
                return self._pass_over()
            index = choice.get("index", 0)
            if type(index) is not int or not 0 <= index < MAX_CHOICES:
                return self._pass_over()
            if index not in self._seen:
                self._seen.add(index)
                self._open.add(index)
            if self._chat:
                delta = choice.get("delta")
                part = delta.get("content") if type(delta) is dict else None
                if type(delta) is dict and len(delta) > (part is not None) and self._other_parts(delta):
                    said = True
            else:
                part = choice.get("text")
            if type(part) is str and part:
                self._bytes += len(part) if part.isascii() else len(part.encode())
                text, said = part, True
            reason = choice.get("finish_reason")
            if type(reason) is str and reason:
                failure = self._ended(reason, said)
                if failure is not None:
                    return failure
                self._open.discard(index)
        self._deltas += said
        if usage and not self._open and self._seen:
            self._usage = reported_usage(event) or self._usage
        if usage and not choices and not self._keeps_usage and not _AZURE.intersection(event):
            return None  # it is there only because we asked for it
        return Delta(data, text if self._all_choices == 1 and len(choices) == 1 else "", said)

    def finish(self) -> Complete | Broken:
        """The stream is at its end: `[DONE]` came, it is `over`, or its body ended in good order."""
        if self._failure is None and (self._open or not self._seen):
            what = "with no answer in it" if not self._seen else f"without {self._END}"
            self._fail(Failure("malformed", f"the answer was cut short: the stream ended {what}"))
        if self._failure is not None:
            return Broken(self._failure)
        return Complete(self.usage, self.model, self.malformed, self.done)

    def lost(self, error: TransportError) -> Complete | Broken:
        """The connection broke or stalled, which nobody need know of an answer that was finished."""
        if self._failure is None and (self.done or self.finished):
            return self.finish()
        return Broken(self._failure or self._fail(classify_error(error, self._secrets)))

    # ----

    def _other_parts(self, delta: dict[str, Any]) -> bool:
        """What else a delta says: reasoning, tool calls, a refusal, audio."""
        said = False
        for name, value in delta.items():
            if name in ("content", "role") or not value:
                continue
            said = True
            if len(self._forms) < 32:
                self._forms.add(name)
            self._bytes += len(value.encode()) if isinstance(value, str) else len(_dumped(value))
        return said

    def _without_choices(self, event: dict[str, Any], data: bytes) -> Failure | None:
        if event.get("error"):
            failure = self._classified(data)
        elif event.get("object") == "error" or event.get("type") == "error":  # older vLLM
            failure = self._classified(b'{"error":%b}' % data)
        else:
            return None if event.get("type") == "ping" else self._pass_over()
        return None if failure is None else self._fail(failure)

    def _ended(self, reason: str, said: bool) -> Failure | None:
        """Some reasons say that the answer was broken off. One that was filtered in its middle ends so for its caller too."""
        if reason in ("stop", "length", "tool_calls"):
            return None
        reply = {"choices": [{"message": {}, "text": "", "finish_reason": reason}]}
        outcome = self._classified(orjson.dumps(reply))
        if outcome is None or (outcome.kind == "content_filter" and (said or self._deltas)):
            return None
        return self._fail(outcome)

    def _classified(self, reply: bytes) -> Failure | None:
        outcome = classify_reply(200, {}, reply, self._path, 0.0, self._secrets)
        return None if isinstance(outcome, Whole) else outcome

    def _fail(self, failure: Failure) -> Failure:
        self._failure = failure._replace(usage=self._usage, billed="yes" if self._usage else "unknown")
        return self._failure

    def _pass_over(self) -> Failure | None:
        self.malformed += 1
        if self.malformed <= MAX_MALFORMED:
            return None
        return self._fail(Failure("malformed", f"{self.malformed} events of the stream could not be read"))


def is_stream(status: int, headers: Mapping[str, str]) -> bool:
    """Whether a reply is read as a stream. What calls itself JSON or a page is read whole, and classified as any reply;
    every other name is taken for a stream, since servers mislabel theirs."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return 200 <= status < 300 and status != 204 and "json" not in kind and "html" not in kind


def ask_usage(body: bytes) -> tuple[bytes, bool]:
    """The body of a streamed request with `stream_options.include_usage`, and whether its sender had asked for that.

    Only a body that has stream_options of its own is written anew. A body that is no object stays as it is: the endpoint
    says what is wrong with it.
    """
    start = body.find(b"{") + 1
    if b'"stream_options"' not in body:
        rest = body[start:]
        if not start or rest.lstrip()[:1] in (b"}", b""):
            return body, False
        return b'%b"stream_options":{"include_usage":true},%b' % (body[:start], rest), False
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body, False
    options = request.get("stream_options", {}) if isinstance(request, dict) else False
    if options is not None and not isinstance(options, dict):
        return body, False
    asked = bool(options and options.get("include_usage"))
    if asked:
        return body, True
    return _dumped({**request, "stream_options": {**(options or {}), "include_usage": True}}) or body, False


def as_delta(body: bytes, usage_for_caller: bool) -> tuple[bytes, str]:
    """A whole answer as the one event of a stream, and its text if it has one choice."""
    value = orjson.loads(body)
    text = ""
    for choice in value["choices"]:
        if "message" in choice:
            choice["delta"] = choice.pop("message")
            text = choice["delta"].get("content") or ""
            for index, call in enumerate(choice["delta"].get("tool_calls") or ()):
                call["index"] = index  # by which a stream's reader puts them together
        else:
            text = choice.get("text") or ""
    if any("delta" in choice for choice in value["choices"]):
        value["object"] = "chat.completion.chunk"
    if not usage_for_caller:
        value.pop("usage", None)
    return orjson.dumps(value), text if len(value["choices"]) == 1 else ""


def _without_usage(event: dict[str, Any], data: bytes) -> bytes:
    if event["usage"] is None:
        for null in _USAGE_NULLS:
            if null in data:
                return data.replace(null, b"", 1)
    return _dumped({name: value for name, value in event.items() if name != "usage"}) or data


def _dumped(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # deeper than orjson writes
        return b""
