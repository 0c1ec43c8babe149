"""From an HTTP request's parts to a request of the router: what is checked before anything is spent. Pure.

Only the shape that our own rules need is checked here (the body is an object, its content is there, `stream` is a
boolean); everything else passes through, and the endpoint judges it. What would choose an address, a key or a header
upstream is refused: those are the operator's, and gateways have been robbed by passing them on.
"""

from collections.abc import Mapping
from copy import copy
from typing import Any, Protocol

import orjson
from pydantic import Field, JsonValue, ValidationError

from actors.errors import InputError
from actors.messages import Request
from actors.settings import QUALITIES, Quality, Settings, StructuredSettings, TierSettings
from runtime.encode import CASCADE, BodyEncoder, Terms, filled, rank_of
from runtime.gateway.errors import HttpError
from runtime.gateway.keys import Key
from runtime.prompts import Rendered

__all__ = ["CONTENT", "Asks", "Rendering"]

CONTENT: Mapping[str, str] = {
    "/chat/completions": "messages",
    "/completions": "prompt",
    "/embeddings": "input",
    "/responses": "input",
}
"""By path below /v1: the field without which a request asks nothing."""

STREAMED = frozenset({"/chat/completions", "/completions", "/responses"})
PROMPTED = "/chat/completions"

OPERATORS_OWN = frozenset(
    {
        "api_base",
        "api_key",
        "api_version",
        "base_url",
        "custom_llm_provider",
        "extra_body",
        "extra_headers",
        "extra_query",
        "headers",
        "litellm_params",
        "organization",
    }
)
"""Fields that some libraries obey when they stand in a body."""
MAX_DEPTH_MESSAGE = "the body is nested too deeply, or holds what JSON has no words for"


class Extras(Settings):
    """The `raycade` object that a body may carry (`extra_body={"raycade": {...}}` in the openai package)."""

    min_quality: Quality | None = None
    deadline_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    prompt: str | None = Field(None, min_length=1, max_length=200)
    """`NAME` or `NAME@VERSION` of a registered prompt, which makes the messages."""
    variables: dict[str, JsonValue] | None = None
    unit: str | None = Field(None, min_length=1, max_length=200)
    """Whom or what the version is chosen for, such as a user; None: the variables."""


class Rendering(Protocol):
    """The registered prompts (runtime/gateway/prompts.py)."""

    def rendered(self, ref: str, variables: Mapping[str, Any], unit: str | None) -> Rendered: ...


class Asks:
    """Reads bodies. One a gateway; knows the tiers. `prompts` None: none are served."""

    def __init__(
        self,
        tiers: list[TierSettings],
        *,
        min_quality: str,
        deadline_s: float,
        share: bool,
        structured: StructuredSettings = StructuredSettings(),  # noqa: B008 (frozen)
        prompts: Rendering | None = None,
    ) -> None:
        self._encoder = BodyEncoder(tiers, deadline_s=deadline_s, share=share, structured=structured)
        self._prompts = prompts
        self._tiers = tiers
        self._min_quality = rank_of(min_quality)
        self._deadline_s = deadline_s

    def models(self, key: Key) -> list[str]:
        """What `model` may be for this key: `auto` and the names of its tiers."""
        return [CASCADE, *(tier.name for tier in self._tiers if _may(key, tier))]

    def with_prompts(self, prompts: Rendering) -> "Asks":
        """The same with other prompts: a batch has those that were live when it began."""
        other = copy(self)
        other._prompts = prompts
        return other

    def read(
        self, id: str, path: str, body: bytes, headers: Mapping[str, str], key: Key, unit: str | None = None
    ) -> Request:
        """The request in a POST to `path`. Raises HttpError with the field that is wrong.

        `unit`: what a prompt's version is chosen for, where the body does not say.
        """
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise HttpError(400, f"the body is not JSON: {error}", code="invalid_json") from None
        if not isinstance(value, dict):
            raise HttpError(400, "expected a JSON object as the body", code="invalid_body")
        for name in value.keys() & OPERATORS_OWN:
            raise HttpError(400, f"a request cannot set {name} here", code="not_allowed", param=name)
        extras = _extras(value.pop("raycade", None))
        prompt = self._prompted(path, value, extras, key, extras.unit or unit)
        content = CONTENT[path]
        if value.get(content) is None and not (path == "/responses" and value.get("prompt") is not None):
            raise HttpError(400, f"{content} is missing", code="missing_field", param=content)
        if path == "/chat/completions" and not isinstance(value["messages"], list):
            raise HttpError(400, "expected a list of messages", code="invalid_type", param="messages")
        stream = value.get("stream")
        if stream is not None and not isinstance(stream, bool):
            raise HttpError(400, "expected true or false", code="invalid_type", param="stream")
        if stream and path not in STREAMED:
            raise HttpError(400, f"answers of {path} are not streamed here", code="not_supported", param="stream")
        return self._request(id, path, value, headers, extras, key, bool(stream), prompt)

    def _prompted(
        self, path: str, value: dict[str, Any], extras: Extras, key: Key, unit: str | None
    ) -> Rendered | None:
        """Have a registered prompt make the body's messages. What the caller says beside them goes before its defaults."""
        if extras.prompt is None:
            if extras.variables is not None or extras.unit is not None:
                raise HttpError(
                    400, "variables and unit go with a prompt", code="missing_field", param="raycade.prompt"
                )
            return None
        if path != PROMPTED:
            message = f"prompts are for /v1{PROMPTED}, not for /v1{path}"
            raise HttpError(400, message, code="not_supported", param="raycade.prompt")
        if value.get("messages"):
            message = "the prompt makes the messages: leave them out, or send an empty list"
            raise HttpError(400, message, code="not_allowed", param="messages")
        if self._prompts is None:
            raise HttpError(400, "no prompts are served here", code="unknown_prompt", param="raycade.prompt")
        try:
            made = self._prompts.rendered(extras.prompt, extras.variables or {}, unit)
        except InputError as error:
            param = f"raycade.{error.field or 'prompt'}"
            raise HttpError(400, error.message, code=error.code, param=param) from None
        if made.schema:
            if value.get("response_format") is not None:
                message = f"the prompt {made.ref} has a schema of its own"
                raise HttpError(400, message, code="not_allowed", param="response_format")
            if value.get("n") not in (None, 1):
                message = f"the prompt {made.ref} has a schema, which one answer has to satisfy"
                raise HttpError(400, message, code="not_allowed", param="n")
        asked = value.get("model")
        value.update(filled(path, value, made.body))
        model = value.get("model")
        if model != asked and not any(model in (tier.name, tier.model) and _may(key, tier) for tier in self._tiers):
            message = f"the prompt {made.ref} asks for a model that is not served to this key"
            raise HttpError(400, message, code="not_allowed", param="raycade.prompt")
        return made

    def _request(
        self,
        id: str,
        path: str,
        value: dict[str, Any],
        headers: Mapping[str, str],
        extras: Extras,
        key: Key,
        stream: bool,
        prompt: Rendered | None,
    ) -> Request:
        model = value.get("model")
        if any(model in (tier.name, tier.model) and not _may(key, tier) for tier in self._tiers):
            raise self._no_model(model, key)
        try:
            request = self._encoder.request(
                id,
                path,
                value,
                Terms(
                    min_quality=max(
                        self._min_quality, _quality(headers, extras), 0 if prompt is None else prompt.min_quality
                    ),
                    prompt="" if prompt is None else prompt.ref,
                    schema=b"" if prompt is None else prompt.schema,
                    retries=None if prompt is None else prompt.retries,
                    escalate=None if prompt is None else prompt.escalate,
                    key=key.name,
                    tiers=key.tiers,
                    interactive=True,
                    deadline_s=min(self._deadline_s, _deadline_s(headers, extras)),
                    stream=stream,
                ),
            )
        except InputError as error:
            if error.code == "unknown_model":
                raise self._no_model(model, key) from None
            message = MAX_DEPTH_MESSAGE if error.field == "body" else error.message
            raise HttpError(400, message, code=error.code, param=error.field or None) from None
        return request

    def _no_model(self, model: object, key: Key) -> HttpError:
        names = ", ".join(self.models(key))
        return HttpError(
            404, f"there is no model {model!r:.80}; there are: {names}", code="model_not_found", param="model"
        )


def _may(key: Key, tier: TierSettings) -> bool:
    return key.tiers is None or tier.name in key.tiers


def _extras(value: Any) -> Extras:
    if value is None:
        return Extras()
    try:
        return Extras.model_validate(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(("raycade", *(str(step) for step in first["loc"])))
        wrong = HttpError(400, f"{field}: {first['msg']}", code="invalid_field", param=field)
    raise wrong


def _quality(headers: Mapping[str, str], extras: Extras) -> int:
    asked = headers.get("x-raycade-min-quality") or extras.min_quality
    if not asked:
        return 0
    if asked not in QUALITIES:
        raise HttpError(
            400, f"x-raycade-min-quality: expected {', '.join(QUALITIES)}; found {asked!r:.40}", code="invalid_header"
        )
    return rank_of(asked)


def _deadline_s(headers: Mapping[str, str], extras: Extras) -> float:
    asked = headers.get("x-raycade-deadline")
    if asked is None:
        return extras.deadline_s or float("inf")
    try:
        seconds = float(asked)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise HttpError(
            400, f"x-raycade-deadline: expected seconds, a number above 0; found {asked!r:.40}", code="invalid_header"
        )
    return seconds
