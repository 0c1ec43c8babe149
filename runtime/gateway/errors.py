"""What a failed request looks like to an HTTP client: status, body and headers in OpenAI's shape. Pure.

    kind of failure                          status   type                     retry-after
    bad_request, content_filter,
      context_length                         the endpoint's own 4xx, with its own body where it was an error object
    no_tier                                  400      invalid_request_error
    runaway_loop                             429      rate_limit_error         when the window has moved on
    budget_exceeded                          429      insufficient_quota       when the window turns
    rate limited everywhere                  429      rate_limit_error         as the endpoints said
    all_tiers_exhausted, cancelled           503      server_error             when a tier will be tried again
    deadline                                 504      timeout_error
    auth, not_found (upstream)               502      server_error: the gateway's own trouble, told without its details
    invalid_output, malformed ...            502      server_error
    broken_stream                            an event in the stream: server_error
    internal                                 500      server_error

An endpoint's message is passed on only where it speaks of the caller's request. What it says of our key, our account or
our address is ours to read, in the log.
"""

import math
from typing import NamedTuple

import orjson

from actors.messages import Failure

__all__ = ["HttpError", "error_body", "of_failure"]

RETRY_S = 5.0
"""Where nobody can say when it is worth another try."""
BUSY_S = 1.0


class HttpError(Exception):
    """An answer that is an error. `param`: the field that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, message, kind, code, param, retry_after_s)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        return error_body(self.message, self.kind, self.code, self.param)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return _retry_after(self.retry_after_s)


class HttpFailure(NamedTuple):
    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]]


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """OpenAI's error object."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def of_failure(failure: Failure) -> HttpFailure:
    """What the caller of a failed request gets."""
    kind = failure.kind
    if kind in ("bad_request", "content_filter", "context_length"):
        status = failure.status if 400 <= failure.status < 500 else 400
        body = failure.body if _is_error(failure.body) else error_body(failure.message, "invalid_request_error", kind)
        return HttpFailure(status, body, [])
    match kind:
        case "no_tier":
            return _made(400, failure.message, "invalid_request_error", "no_tier")
        case "runaway_loop":
            return _made(429, failure.message, "rate_limit_error", kind, failure.retry_after_s or RETRY_S)
        case "budget_exceeded":
            return _made(429, failure.message, "insufficient_quota", kind, failure.retry_after_s)
        case "deadline" | "timeout":
            return _made(504, "no tier answered in time", "timeout_error", "deadline")
        case "internal":
            return _made(500, "something went wrong inside the gateway", "server_error", kind)
        case "invalid_output" | "broken_stream":
            return _made(502, failure.message, "server_error", kind)
        case "auth" | "not_found":
            return _made(502, "a model endpoint refuses the gateway; its operator has to look", "server_error", kind)
    again_s = RETRY_S if failure.retry_after_s is None else failure.retry_after_s
    if failure.attempts and all(attempt.kind == "rate_limited" for attempt in failure.attempts):
        return _made(429, "every tier is at its rate limit", "rate_limit_error", "rate_limit_exceeded", again_s)
    told = ", ".join(f"{attempt.tier} {attempt.kind}" for attempt in failure.attempts[-4:])
    message = f"no tier could answer: {told}" if told else "no tier can take a call now"
    return _made(503, message, "server_error", kind, again_s)


def _made(
    status: int, message: str, kind: str, code: str | None = None, retry_after_s: float | None = None
) -> HttpFailure:
    return HttpFailure(status, error_body(message, kind, code), _retry_after(retry_after_s))


def _retry_after(seconds: float | None) -> list[tuple[bytes, bytes]]:
    if seconds is None:
        return []
    return [(b"retry-after", str(max(1, math.ceil(seconds))).encode())]


def _is_error(body: bytes) -> bool:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and isinstance(value.get("error"), dict)
