"""What a reply means: the one place where an attempt's outcome is named.

It stands between the transport and everything that decides (breaker, limiter, plan, ledger): they see a `Whole` or a
`Failure` with a kind, never a status code. Three questions are answered at once, because only here the whole reply is at hand:

- Is the answer whole? A 200 is a success only if its body says that it was finished. An HTML page, an error object or a
  choice without a finish_reason under a 200 is a failure, and one that was probably paid for.
- Whose fault is it? `own_fault` marks what the request itself brings about, wherever it is sent.
- What did it cost? `billed` errs towards "unknown", since the ledger charges an unknown as if it had been billed.

RULES is read from the top; the first rule that fits decides. Nothing here raises, whatever the endpoint sends.
"""

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from actors.messages import Billed, Failure, FailureKind, Usage
from actors.tier.redact import one_line, redact
from actors.tier.retry_after import retry_after
from actors.tier.transport import TransportError
from actors.tier.usage import reported_usage

__all__ = ["RULES", "Outcome", "Rule", "Whole", "classify_error", "classify_reply", "redact"]

MAX_MESSAGE_CHARS: Final = 300
MAX_BODY_BYTES: Final = 4096


class Whole(NamedTuple):
    """The endpoint answered and the answer is finished."""

    usage: Usage | None
    """None: the reply does not say, or says nonsense."""
    model: str
    """The model that answered, as the reply names it; empty if it does not."""


Outcome = Whole | Failure


class Rule(NamedTuple):
    """Fits a reply whose status is in `statuses` and, where given, that has one of `codes` or says one of `says`."""

    kind: FailureKind
    statuses: Container[int]
    codes: frozenset[str] = frozenset()
    """Of error.code, error.type, error.status or innererror.code, lower-cased."""
    says: tuple[str, ...] = ()
    """Parts of the lower-cased error message, for endpoints that give no code."""
    own_fault: bool = False
    billed: Billed = "no"
    note: str = ""
    """What the message says first, where the endpoint's own words would leave a person guessing."""


_ANY = range(200, 600)
_4XX = range(400, 500)
_REFUSED = frozenset({400, 403, 413, 422})

RULES: Final[tuple[Rule, ...]] = (
    # -- What the words say goes before the status: vendors agree on the words more than on the status.
    Rule(
        "context_length",
        _ANY,
        codes=frozenset(
            {
                "context_length_exceeded",  # OpenAI, Azure, Groq, LiteLLM
                "string_above_max_length",  # OpenAI: one message longer than the API takes
                "exceed_context_size_error",  # llama.cpp server
                "tokens_limit_reached",  # GitHub Models, 413
                "request_too_large",  # Anthropic, 413
            }
        ),
        own_fault=True,
    ),
    Rule(
        "context_length",
        _REFUSED | {500},  # 500: older llama.cpp and Ollama
        says=(
            "maximum context length",  # OpenAI, vLLM, DeepSeek
            "maximum model length",  # vLLM: "longer than the maximum model length of"
            "exceeds the available context size",  # llama.cpp
            "exceeds the context window",  # OpenAI responses
            "prompt is too long",  # Anthropic
            "input is too long",  # Bedrock
            "input token count",  # Gemini: "The input token count (n) exceeds the maximum"
            "`inputs` tokens + `max_new_tokens`",  # text-generation-inference, 422
        ),
        own_fault=True,
    ),
    Rule(
        "content_filter",
        _ANY,
        codes=frozenset(
            {
                "content_filter",  # Azure, 400
                "responsibleaipolicyviolation",  # Azure, in innererror
                "content_policy_violation",  # OpenAI
                "moderation_blocked",  # OpenAI images
                "invalid_prompt",  # OpenAI reasoning models: "flagged as potentially violating our usage policy"
                "data_inspection_failed",  # Alibaba DashScope
            }
        ),
        own_fault=True,
        # "There will be a charge for this request as the prompt was evaluated": Azure, concepts/content-filter.
        billed="unknown",
    ),
    Rule(
        "content_filter",
        _REFUSED,
        # Azure; OpenRouter, 403; DeepSeek
        says=("content management policy", "input was flagged", "content exists risk"),
        own_fault=True,
        billed="unknown",
    ),
    Rule(
        # A wrong name is the tier's, not the request's. Before 401/403: OpenAI gives 403 for a model out of reach.
        "not_found",
        _4XX,
        codes=frozenset(
            {
                "model_not_found",  # OpenAI 404 and 403, Groq
                "model_decommissioned",  # Groq, 400
                "deploymentnotfound",  # Azure, 404
            }
        ),
    ),
    Rule("not_found", _REFUSED, says=("is not a valid model id",)),  # OpenRouter, 400
    Rule(
        # An empty account does not fill up by waiting: out, like a wrong key. Codes only: Gemini words its
        # per-minute limits "You exceeded your current quota" as well.
        "auth",
        _4XX,
        codes=frozenset(
            {
                "insufficient_quota",  # OpenAI, 429
                "billing_hard_limit_reached",  # OpenAI, 400
                "billing_not_active",  # OpenAI, 429
                "insufficient_balance",
                "billing_error",  # Anthropic, 402
            }
        ),
        note="the account's quota or credit is used up",
    ),
    Rule("auth", {402}, note="the account's quota or credit is used up"),  # OpenRouter, DeepSeek
    Rule(
        "auth",
        {400},
        says=("credit balance is too low",),  # Anthropic
        note="the account's quota or credit is used up",
    ),
    Rule(
        "auth",
        _4XX,
        codes=frozenset({"invalid_api_key", "api_key_invalid", "authentication_error"}),  # OpenAI, Google, Anthropic
        note="the key was refused",
    ),
    Rule("auth", {400}, says=("api key not valid", "incorrect api key"), note="the key was refused"),  # Gemini, xAI
    Rule("context_length", {413}, own_fault=True, note="the request is too large for this endpoint"),
    Rule(
        "overloaded",
        _ANY,
        codes=frozenset({"overloaded_error", "engine_overloaded_error", "server_overloaded", "model_overloaded"}),
    ),
    Rule(
        "rate_limited",
        _ANY,
        codes=frozenset({"rate_limit_exceeded", "rate_limit_error", "resource_exhausted", "throttlingexception"}),
    ),
    Rule("overloaded", range(500, 600), says=("overloaded", "at capacity", "no available server")),
    # -- Then the status.
    Rule("auth", {401, 403}, note="the key was refused or may not do this"),
    Rule("auth", {407}, note="the proxy asks for credentials"),
    Rule("not_found", {404, 405, 410}, note="the address or the model is not there; check base_url and model"),
    Rule("timeout", {408}, billed="unknown"),  # Azure may bill it: "a 408 error due to a timeout", how-to/manage-costs
    Rule("rate_limited", {429}),
    Rule("server", {409, 421, 424, 425, 499}),  # 409: a lock timed out, the SDK retries it. None is the request's doing
    Rule("overloaded", {498, 503, 529}),  # 503: RFC 9110 15.6.4; 498: Groq flex capacity; 529: Anthropic
    # A gateway that gave up waiting (504, Cloudflare 524) leaves a model at work behind it, which may bill.
    Rule("server", {504, 524}, billed="unknown", note="a gateway gave up waiting for the endpoint"),
    # A gateway that could not get through (502, Cloudflare 520 to 523) tells of a broken server, not of a busy one.
    Rule("server", {502, 520, 521, 522, 523}, note="a gateway could not reach the endpoint"),
    Rule("server", range(500, 600)),
    Rule("server", range(300, 400), note="redirects are not followed; check base_url"),
    Rule("bad_request", _4XX, own_fault=True),
    Rule("server", range(200, 300), codes=frozenset({"server_error", "internal_server_error"}), billed="unknown"),
    # Whatever is left was a 2xx that says neither answer nor known error, or a status that does not exist.
    Rule("malformed", range(-(10**9), 10**9), billed="unknown"),
)

# finish_reason -> kind, of replies that ended without being done. Any other word is an end in good order: `stop`,
# `length` (the caller's own max_tokens), `tool_calls`, `function_call`, and what other servers say (`eos`, `end_turn`).
_UNFINISHED: Final[Mapping[str, FailureKind]] = {
    "content_filter": "content_filter",
    "error": "server",  # OpenRouter: the upstream failed after it had begun
    "abort": "server",  # vLLM: the request was aborted in the engine
    "insufficient_system_resource": "overloaded",  # DeepSeek
}


def classify_reply(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    path: str,
    now_unix: float,
    secrets: Sequence[str] = (),
) -> Outcome:
    """The outcome of one HTTP reply to a POST to `path`.

    `headers` have lower-cased names; `now_unix` is only for a Retry-After that is a date; `secrets` are taken out of
    whatever is carried on.
    """
    reply = _parsed(body)
    if 200 <= status < 300:
        trouble = _trouble(reply, path)
        if trouble is None:
            return Whole(reported_usage(reply), one_line(_text(reply.get("model")))[:128])
    else:
        trouble = _Trouble(status, _complaint(reply))
    usage = reported_usage(reply)
    rule = trouble.rule or next(rule for rule in RULES if _fits(rule, trouble))
    return Failure(
        kind=rule.kind,
        message=_message(status, rule, trouble, body, reply, secrets),
        status=status,
        retry_after_s=retry_after(headers, now_unix, limited=rule.kind == "rate_limited"),
        billed="yes" if usage else "unknown" if 200 <= status < 300 else rule.billed,
        body=_bounded_body(body, secrets),
        own_fault=rule.own_fault,
        usage=usage,
    )


def classify_error(error: TransportError, secrets: Sequence[str] = ()) -> Failure:
    """The outcome of a send that brought no whole reply."""
    message = redact(one_line(error.message), secrets)[:MAX_MESSAGE_CHARS]
    return Failure(error.kind, message, billed="unknown" if error.sent else "no")


# ---- what is in the body


class _Complaint(NamedTuple):
    """What an endpoint says of an error, whichever way it words it."""

    codes: tuple[str, ...] = ()
    text: str = ""
    status: int = 0
    """A status code inside the body, as gateways give under a 200."""


class _Trouble(NamedTuple):
    status: int
    complaint: _Complaint
    rule: Rule | None = None


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _trouble(reply: Any, path: str) -> _Trouble | None:
    """Why a 2xx is not an answer; None when it is one."""
    if not isinstance(reply, dict):
        return _malformed("the reply is not a JSON object")
    if reply.get("error"):
        complaint = _complaint(reply)
        return _Trouble(complaint.status or 200, complaint)
    path = path.partition("?")[0].rstrip("/")
    if path.endswith("/completions"):
        return _unfinished_choices(reply, chat=path.endswith("/chat/completions"))
    if path.endswith("/embeddings"):
        data = reply.get("data")
        if not isinstance(data, list) or not data:
            return _malformed("the reply has no `data`")
        if not all(isinstance(item, dict) and item.get("embedding") for item in data):
            return _malformed("the reply has an item without `embedding`")
        return None
    if path.endswith("/responses"):
        return _unfinished_response(reply)
    return None


def _malformed(text: str) -> _Trouble:
    return _Trouble(200, _Complaint(text=text))


def _unfinished_choices(reply: dict[str, Any], chat: bool) -> _Trouble | None:
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        return _malformed("the reply has no `choices`")
    trouble: _Trouble | None = None
    for choice in choices:
        if not isinstance(choice, dict):
            return _malformed("the reply has a choice that is not an object")
        reason = choice.get("finish_reason")
        if not isinstance(reason, str) or not reason:
            return _malformed("the answer was cut short: a choice has no finish_reason")
        if chat and not isinstance(choice.get("message"), dict):
            return _malformed("the reply has a choice without `message`")
        if not chat and not isinstance(choice.get("text"), str):
            return _malformed("the reply has a choice without `text`")
        if kind := _UNFINISHED.get(reason):
            trouble = trouble or _stopped(kind, f"the answer was stopped: finish_reason is {reason}")
    return trouble


def _unfinished_response(reply: dict[str, Any]) -> _Trouble | None:
    status = reply.get("status")
    if status == "completed":
        return None
    details = reply.get("incomplete_details")
    reason = _text(details.get("reason")) if isinstance(details, dict) else ""
    if status == "incomplete" and reason == "max_output_tokens":
        return None
    if status == "incomplete" and reason == "content_filter":
        return _stopped("content_filter", "the answer was stopped by the content filter")
    return _malformed(f"the response is not complete: status is {_text(status) or 'absent'}")


def _stopped(kind: FailureKind, text: str) -> _Trouble:
    rule = Rule(kind, (), own_fault=kind == "content_filter", billed="unknown")
    return _Trouble(200, _Complaint(text=text), rule)


def _complaint(reply: Any) -> _Complaint:
    """Shapes: {"error": {...}} OpenAI; [{"error": {...}}] Gemini; {"error": "text"} Ollama and TGI; {"message": ...}
    Mistral, Bedrock and older vLLM; {"detail": ...} FastAPI.
    """
    if isinstance(reply, list) and reply:
        reply = reply[0]
    if not isinstance(reply, dict):
        return _Complaint()
    error = reply.get("error")
    if isinstance(error, str):
        return _Complaint(_codes(reply), error)
    if not isinstance(error, dict):
        error = reply
    inner = error.get("innererror")
    codes = _codes(error) + (_codes(inner) if isinstance(inner, dict) else ())
    text = _text(error.get("message"))
    if not text and "detail" in error:
        detail = error["detail"]
        text = detail if isinstance(detail, str) else _dumped(detail)
    code = error.get("code")
    inside = int(code) if isinstance(code, int | str) and re.fullmatch(r"[45]\d\d", str(code)) else 0
    return _Complaint(codes, text, inside)


def _codes(error: dict[str, Any]) -> tuple[str, ...]:
    found = (error.get(name) for name in ("code", "type", "status", "error_type", "__type"))
    return tuple(one_line(value.lower())[:64] for value in found if isinstance(value, str) and value)


def _dumped(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # deeper than orjson writes
        return ""


def _fits(rule: Rule, trouble: _Trouble) -> bool:
    if trouble.status not in rule.statuses:
        return False
    if not rule.codes and not rule.says:
        return True
    complaint = trouble.complaint
    if not rule.codes.isdisjoint(complaint.codes):
        return True
    text = complaint.text.lower()
    return any(part in text for part in rule.says)


# ---- what people read


_TITLE = re.compile(r"<title[^>]*>([^<]{1,200})", re.IGNORECASE)


def _message(status: int, rule: Rule, trouble: _Trouble, body: bytes, reply: Any, secrets: Sequence[str]) -> str:
    complaint = trouble.complaint
    said = complaint.text
    if reply is None and body:
        page = body[:8192].decode(errors="replace")
        title = _TITLE.search(page)
        said = f"{said}; it begins with {page[:120]!r}" if said else page
        if title:
            said = f"an HTML page, {title[1]}"
        elif page.lstrip()[:1] == "<":
            said = "an HTML page"
    code = next((code for code in complaint.codes if not code.isdecimal()), "")
    head = ", ".join(part for part in (f"HTTP {status}", code, rule.note) if part)
    return redact(one_line(f"{head}: {said}" if said else head), secrets)[:MAX_MESSAGE_CHARS]


def _bounded_body(body: bytes, secrets: Sequence[str]) -> bytes:
    # Cut after redaction and with some overlap, so that a secret across the bound is seen whole.
    text = body[: MAX_BODY_BYTES + 512].decode(errors="replace")
    clean = redact(text, secrets)
    kept = body if clean == text else clean.encode()
    return kept[:MAX_BODY_BYTES]
