"""From an input row to the request that the router gets: model, prompt, schema, key and bounds. No I/O."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from actors.coalescer.key import digest
from actors.errors import ConfigError, InputError
from actors.messages import Request
from actors.router.demands import demand_tokens, own_schema
from actors.router.measure import LIMIT_FIELDS, measure
from actors.settings import QUALITIES, StructuredSettings, TierSettings
from runtime.batch.reader import Row, RowError

__all__ = ["Encoder", "Rendered"]

CASCADE = "auto"


class Rendered(NamedTuple):
    """A prompt row's body, and what its prompt version asks for."""

    body: dict[str, Any]
    ref: str
    """`name@version`."""
    min_quality: int
    schema: bytes
    retries: int | None = None
    escalate: bool | None = None
    """Of answers that do not satisfy the schema; None: as raycade.yaml says."""


class Encoder:
    """Turns rows into requests. One a job."""

    def __init__(
        self,
        tiers: Sequence[TierSettings],
        *,
        min_quality: int,
        deadline_s: float,
        job: str,
        share: bool,
        schema: bytes = b"",
        structured: StructuredSettings = StructuredSettings(),  # noqa: B008 (frozen)
        render: Callable[[str, Mapping[str, Any]], Rendered] | None = None,
    ) -> None:
        self._tiers = tiers
        self._firsts: dict[tuple[int, int], str] = {}
        self._starts: dict[str, int] = {CASCADE: 0}
        for index, tier in enumerate(tiers):
            self._starts.setdefault(tier.name, index)
        for index, tier in enumerate(tiers):
            self._starts.setdefault(tier.model, index)
        self._min_quality = min_quality
        self._deadline_s = deadline_s
        self._job = job
        self._share = share
        self._schema = schema
        self._structured = structured
        self._render = render

    def first_tier(self, request: Request) -> str:
        """Name of the tier that the request should have, were all tiers well."""
        key = (request.start_tier, request.min_quality)
        name = self._firsts.get(key)
        if name is None:
            fit = [tier.name for tier in self._tiers[key[0] :] if tier.rank >= key[1]]
            name = self._firsts[key] = fit[0] if fit else ""
        return name

    def encode(self, row: Row) -> Request:
        """The request of a row. Raises RowError."""
        rendered = self._rendered(row)
        source, prompt, min_quality, schema = row.body, "", self._min_quality, self._schema
        retries, escalate = self._structured.retries, self._structured.escalate
        if rendered is not None:
            source, prompt = rendered.body, rendered.ref
            min_quality, schema = max(min_quality, rendered.min_quality), schema or rendered.schema
            retries = retries if rendered.retries is None else rendered.retries
            escalate = escalate if rendered.escalate is None else rendered.escalate
        start = self._starts.get(source.get("model") or CASCADE)
        if start is None:
            names = ", ".join(self._starts)
            raise _refuse(row, "unknown_model", "body.model", f"expected one of {names}; found {source['model']!r:.80}")
        body = {name: value for name, value in source.items() if name not in ("model", "stream", "stream_options")}
        for name in LIMIT_FIELDS.get(row.path, ()):
            if name in body and body[name] is None:
                del body[name]  # it would stand behind the tier's own limit, and lift it
        schema, own = self._demand(row, body, schema)
        sent = body
        if schema:
            sent = {name: value for name, value in body.items() if name != "response_format"}
        try:
            encoded, response_format = orjson.dumps(sent), orjson.dumps(body["response_format"]) if own else b""
        except (TypeError, ValueError) as error:  # what JSON can say and orjson cannot: a lone surrogate, say
            raise _refuse(row, "invalid_body", "body", f"cannot be encoded: {error}") from None
        measured = measure(row.path, sent, encoded)
        demanded_tokens = demand_tokens(schema, response_format) if schema else 0
        return Request(
            id=row.custom_id,
            path=row.path,
            body=encoded,
            digest=self._digest(row.path, body if own else sent, start, min_quality, prompt, schema),
            prompt_bound_tokens=measured.prompt_bound_tokens + demanded_tokens,
            max_tokens=measured.max_tokens,
            choices=measured.choices,
            start_tier=start,
            min_quality=min_quality,
            deadline_s=self._deadline_s,
            job=self._job,
            prompt=prompt,
            schema=schema,
            response_format=response_format,
            reply_retries=retries,
            escalate=escalate,
            images=measured.images,
            small_images=measured.small_images,
            opaque=measured.opaque,
            predicted_tokens=measured.predicted_tokens,
        )

    def _demand(self, row: Row, body: dict[str, Any], schema: bytes) -> tuple[bytes, bool]:
        """The schema that the answer must satisfy, and whether it is from the row's own `response_format`."""
        chat = row.path == "/chat/completions"
        if schema:
            if not chat:
                raise _refuse(row, "invalid_body", "url", "a schema needs a row for /v1/chat/completions")
            if not isinstance(body.get("messages"), list):
                raise _refuse(row, "invalid_body", "body.messages", "expected a list of messages")
            return schema, False
        if not chat or "response_format" not in body or not isinstance(body.get("messages"), list):
            return b"", False
        try:
            schema = own_schema(body["response_format"])
        except ConfigError as error:
            raise _refuse(row, "invalid_body", "body.response_format", error.message) from None
        # Of several choices each would have to be right, and a row has room for one value: they are left to the caller.
        return (b"", False) if body.get("n") not in (None, 1) else (schema, bool(schema))

    def _digest(
        self, path: str, body: dict[str, Any], start: int, min_quality: int, prompt: str, schema: bytes
    ) -> bytes:
        if not self._share:
            return b""
        return digest(path, body, start_tier=start, min_quality=min_quality, prompt=prompt, schema=schema)

    def _rendered(self, row: Row) -> Rendered | None:
        if row.variables is None:
            return None
        if self._render is None:
            raise _refuse(row, "invalid_body", "variables", "a row with variables needs --prompt NAME")
        try:
            return self._render(row.custom_id, row.variables)
        except InputError as error:
            raise _refuse(row, error.code, error.field or "variables", error.message) from None
        except ConfigError as error:
            raise _refuse(row, "invalid_prompt", "variables", str(error)) from None


def rank_of(quality: str) -> int:
    """0 basic, 1 medium, 2 high."""
    return QUALITIES.index(quality)


def _refuse(row: Row, code: str, field: str, message: str) -> RowError:
    return RowError(row.number, code, message, row.file, row.line, field, row.custom_id)
