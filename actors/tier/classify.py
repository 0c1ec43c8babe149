"""What a reply means: the one place where an attempt's outcome is named.

It stands between the transport and everything that decides (breaker, limiter, plan, ledger): they see a `Whole` or a
`Failure` with a kind, never a status code. Three questions are answered at once, because only here the whole reply is at hand:

- Is the answer whole? A 200 is a success only if its body says that it was finished. An HTML page, an error object or a
  choice without a finish_reason under a 200 is a failure, and one that was probably paid for.
- Which kind of failure is it, and so whose fault? The tables say (actors/tier/rules.py, actors/kinds.py), except that an
  endpoint's own `x-should-retry` goes before them.
- What did it cost? `billed` errs towards "unknown", since the ledger charges an unknown as if it had been billed.

Nothing here raises, whatever the endpoint sends.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from actors.kinds import KINDS
from actors.messages import Failure, FailureKind, Usage
from actors.tier.redact import one_line, redact
from actors.tier.retry_after import retry_after, should_retry
from actors.tier.rules import RULES, UNFINISHED, Rule
from actors.tier.transport import TransportError
from actors.tier.usage import reported_usage

__all__ = ["Outcome", "Whole", "classify_error", "classify_reply", "redact"]

MAX_MESSAGE_CHARS: Final = 300
MAX_BODY_BYTES: Final = 4096


class Whole(NamedTuple):
    """The endpoint answered and the answer is finished."""

    usage: Usage | None
    """None: the reply does not say, or says nonsense."""
    model: str
    """The model that answered, as the reply names it; empty if it does not."""


Outcome = Whole | Failure


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
    again = should_retry(headers)
    kind = rule.kind
    if again and KINDS[kind].then in ("final", "refused", "out"):
        kind = "server"  # it says that the same request may well be answered, so the trouble is its own
    return Failure(
        kind=kind,
        message=_message(status, rule, trouble, body, reply, secrets),
        status=status,
        retry_after_s=retry_after(headers, now_unix, limited=kind == "rate_limited"),
        billed="yes" if usage else "unknown" if 200 <= status < 300 else rule.billed,
        body=_bounded_body(body, secrets),
        own_fault=KINDS[kind].fault == "request",
        usage=usage,
        not_again=again is False,
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
    filtered: str = ""
    """What a content filter found: `filtered: hate (high), violence (medium)`."""


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
        message = choice.get("message")
        # Some vendors add their own word: `content_filter: SAFETY`. What was stopped may well have no message.
        if kind := UNFINISHED.get(reason.partition(":")[0].strip().lower()):
            refusal = _text(message.get("refusal")) if isinstance(message, dict) else ""
            text = f"the answer was stopped: finish_reason is {reason}{': ' if refusal else ''}{refusal}"
            trouble = trouble or _stopped(kind, text, _filtered(choice))
        elif chat and not isinstance(message, dict):
            return _malformed("the reply has a choice without `message`")
        elif not chat and not isinstance(choice.get("text"), str):
            return _malformed("the reply has a choice without `text`")
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


def _stopped(kind: FailureKind, text: str, filtered: str = "") -> _Trouble:
    return _Trouble(200, _Complaint(text=text, filtered=filtered), Rule(kind, (), billed="unknown"))


def _filtered(where: dict[str, Any]) -> str:
    """What Azure's content filter found: {"content_filter_results": {"hate": {"filtered": true, "severity": "high"}}}."""
    results = where.get("content_filter_results") or where.get("content_filter_result")
    found = []
    for category, result in results.items() if isinstance(results, dict) else ():
        if isinstance(result, dict) and result.get("filtered") is True:
            severity = _text(result.get("severity"))
            found.append(f"{category} ({severity})" if severity else str(category))
    return f"filtered: {', '.join(found[:8])}" if found else ""


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
    codes = _codes(error)
    filtered = _filtered(error)
    if isinstance(inner, dict):
        codes += _codes(inner)
        filtered = filtered or _filtered(inner)
    text = _text(error.get("message"))
    if not text and "detail" in error:
        detail = error["detail"]
        text = detail if isinstance(detail, str) else _dumped(detail)
    code = error.get("code")
    inside = int(code) if isinstance(code, int | str) and re.fullmatch(r"[45]\d\d", str(code)) else 0
    return _Complaint(codes, text, inside, filtered)


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
    head = ", ".join(part for part in (f"HTTP {status}", code, complaint.filtered, rule.note) if part)
    return redact(one_line(f"{head}: {said}" if said else head), secrets)[:MAX_MESSAGE_CHARS]


def _bounded_body(body: bytes, secrets: Sequence[str]) -> bytes:
    # Cut after redaction and with some overlap, so that a secret across the bound is seen whole.
    text = body[: MAX_BODY_BYTES + 512].decode(errors="replace")
    clean = redact(text, secrets)
    kept = body if clean == text else clean.encode()
    return kept[:MAX_BODY_BYTES]
