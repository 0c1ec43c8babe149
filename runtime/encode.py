"""From an OpenAI body to the request that the router gets: where the cascade starts, schema, key and bounds. No I/O.

Every door makes its requests here: batch rows (runtime/batch/rows.py), the gateway and the Python client.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from actors.coalescer.key import digest
from actors.errors import ConfigError, InputError
from actors.messages import Request
from actors.router.demands import demand_tokens, own_schema
from actors.router.measure import LIMIT_FIELDS, measure
from actors.settings import QUALITIES, StructuredSettings, TierSettings

__all__ = ["CASCADE", "BodyEncoder", "Terms", "filled", "rank_of"]

CASCADE = "auto"
"""As `model`: start at the first tier."""


class Terms(NamedTuple):
    """What a request's door says beside its body."""

    min_quality: int = 0
    prompt: str = ""
    """`name@version` of the registered prompt that made the body."""
    schema: bytes = b""
    """That the answer must satisfy, where that is not the body's own `response_format`."""
    retries: int | None = None
    escalate: bool | None = None
    """Of answers that do not satisfy the schema; None: as raycade.yaml says."""
    key: str = ""
    tiers: tuple[str, ...] | None = None
    """Names of those that the caller may use; None: all."""
    interactive: bool = False
    deadline_s: float | None = None
    """None: router.deadline_s."""
    stream: bool = False


NO_TERMS = Terms()


class BodyEncoder:
    """Turns bodies into requests. One a door."""

    def __init__(
        self,
        tiers: Sequence[TierSettings],
        *,
        deadline_s: float,
        job: str = "",
        share: bool = True,
        structured: StructuredSettings = StructuredSettings(),  # noqa: B008 (frozen)
    ) -> None:
        self._starts: dict[str, int] = {CASCADE: 0}
        for index, tier in enumerate(tiers):
            self._starts.setdefault(tier.name, index)
        for index, tier in enumerate(tiers):
            self._starts.setdefault(tier.model, index)
        self._names = [tier.name for tier in tiers]
        self._deadline_s = deadline_s
        self._job = job
        self._share = share
        self._structured = structured

    def request(self, id: str, path: str, source: dict[str, Any], terms: Terms = NO_TERMS) -> Request:
        """The request for a JSON body. Raises InputError with code and field."""
        start, barred, sent, body, schema = self._shaped(path, source, terms)
        own = body is not sent
        try:
            encoded, response_format = orjson.dumps(sent), orjson.dumps(body["response_format"]) if own else b""
        except (TypeError, ValueError) as error:  # what JSON can say and orjson cannot: a lone surrogate, say
            raise _unsayable(error) from None
        shared = self._digest(path, body, start, barred, schema, terms) if self._share else b""
        measured = measure(path, sent, encoded)
        demanded_tokens = demand_tokens(schema, response_format) if schema else 0
        structured = self._structured
        return Request(
            id=id,
            path=path,
            body=encoded,
            digest=shared,
            prompt_bound_tokens=measured.prompt_bound_tokens + demanded_tokens,
            max_tokens=measured.max_tokens,
            choices=measured.choices,
            start_tier=start,
            min_quality=terms.min_quality,
            barred=barred,
            deadline_s=self._deadline_s if terms.deadline_s is None else terms.deadline_s,
            interactive=terms.interactive,
            job=self._job,
            key=terms.key,
            prompt=terms.prompt,
            schema=schema,
            response_format=response_format,
            reply_retries=structured.retries if terms.retries is None else terms.retries,
            escalate=structured.escalate if terms.escalate is None else terms.escalate,
            stream=terms.stream,
            images=measured.images,
            small_images=measured.small_images,
            opaque=measured.opaque,
            predicted_tokens=measured.predicted_tokens,
        )

    def digest(self, path: str, source: dict[str, Any], terms: Terms = NO_TERMS) -> bytes:
        """The request's `digest` alone, for a third of the cost. Raises InputError."""
        if not self._share:
            return b""
        start, barred, _, body, schema = self._shaped(path, source, terms)
        return self._digest(path, body, start, barred, schema, terms)

    def _shaped(
        self, path: str, source: dict[str, Any], terms: Terms
    ) -> tuple[int, int, dict[str, Any], dict[str, Any], bytes]:
        """Where the cascade starts, which tiers are barred, what is sent, that with its own format, the schema."""
        model = source.get("model")
        start = self._starts.get(model or CASCADE) if model is None or isinstance(model, str) else None
        if start is None:
            names = ", ".join(self._starts)
            raise InputError("unknown_model", f"expected one of {names}; found {model!r:.80}", field="model")
        own_fields = ("model", "stream") if terms.stream else ("model", "stream", "stream_options")
        body = {name: value for name, value in source.items() if name not in own_fields}
        barred = 0
        if terms.tiers is not None:
            barred = sum(1 << at for at, name in enumerate(self._names) if name not in terms.tiers)
        for name in LIMIT_FIELDS.get(path, ()):
            if name in body and body[name] is None:
                del body[name]  # it would stand behind the tier's own limit, and lift it
        # What is streamed is on its way before anybody could judge it: its format is the endpoint's affair. Unless it is
        # a registered prompt's: such an answer is judged first, and said in one piece (actors/router/whole.py).
        schema, own = (b"", False) if terms.stream and not terms.schema else _demand(path, body, terms.schema)
        sent = body
        if schema:
            sent = {name: value for name, value in body.items() if name != "response_format"}
        return start, barred, sent, body if own else sent, schema

    def _digest(self, path: str, body: dict[str, Any], start: int, barred: int, schema: bytes, terms: Terms) -> bytes:
        try:
            shared = digest(
                path, body, start_tier=start, min_quality=terms.min_quality, prompt=terms.prompt, schema=schema
            )
            if terms.stream and not schema:  # who asks for usage gets other events
                shared = sha256(b"stream" + orjson.dumps(body.get("stream_options")) + shared).digest()
        except (TypeError, ValueError) as error:
            raise _unsayable(error) from None
        if barred:  # who may use other tiers gets other answers
            shared = sha256(b"barred %d " % barred + shared).digest()
        return shared


def filled(path: str, said: Mapping[str, Any], prompt: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a registered prompt, with what is said beside it: that goes before the prompt's defaults.

    Any limit on the answer's length goes before any that the prompt has, whatever either is called.
    """
    limits = LIMIT_FIELDS.get(path, ())
    bounded = any(said.get(name) is not None for name in limits)
    body = dict(said)
    for name, default in prompt.items():
        absent = said.get(name) in ((None, CASCADE) if name == "model" else (None,))
        if name == "messages" or (absent and not (bounded and name in limits)):
            body[name] = default
    return body


def _unsayable(error: Exception) -> InputError:
    return InputError("invalid_body", f"cannot be encoded: {error}", field="body")


def rank_of(quality: str) -> int:
    """0 basic, 1 medium, 2 high."""
    return QUALITIES.index(quality)


def _demand(path: str, body: dict[str, Any], schema: bytes) -> tuple[bytes, bool]:
    """The schema that the answer must satisfy, and whether it is from the request's own `response_format`."""
    chat = path == "/chat/completions"
    if schema:
        if not chat:
            raise InputError("invalid_body", "a schema needs a request to /v1/chat/completions", field="url")
        if not isinstance(body.get("messages"), list):
            raise InputError("invalid_body", "expected a list of messages", field="messages")
        return schema, False
    if not chat or "response_format" not in body or not isinstance(body.get("messages"), list):
        return b"", False
    try:
        schema = own_schema(body["response_format"])
    except ConfigError as error:
        raise InputError("invalid_body", error.message, field="response_format") from None
    # Of several choices each would have to be right, and a request has room for one value: they are left to the caller.
    return (b"", False) if body.get("n") not in (None, 1) else (schema, bool(schema))
