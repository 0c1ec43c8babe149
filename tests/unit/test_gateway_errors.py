"""What the caller of a failed request gets."""

import orjson
import pytest

from actors.messages import Attempt, Failure
from runtime.gateway.errors import of_failure

UPSTREAM = orjson.dumps({"error": {"message": "max_tokens is too large", "type": "invalid_request_error", "code": "x"}})
LIMITED = (Attempt("a", 0, "rate_limited", 429, 0.1), Attempt("b", 0, "rate_limited", 429, 0.1))
BROKEN = (Attempt("a", 0, "server", 500, 0.1), Attempt("b", 0, "rate_limited", 429, 0.1))


@pytest.mark.parametrize(
    ("failure", "status", "kind", "code"),
    [
        (Failure("bad_request", "no", status=422, body=UPSTREAM), 422, "invalid_request_error", "x"),
        (Failure("bad_request", "no", status=422, body=b"<html>"), 422, "invalid_request_error", "bad_request"),
        (Failure("context_length", "too long", status=200), 400, "invalid_request_error", "context_length"),
        (Failure("content_filter", "no"), 400, "invalid_request_error", "content_filter"),
        (Failure("no_tier", "none"), 400, "invalid_request_error", "no_tier"),
        (Failure("runaway_loop", "loop"), 429, "rate_limit_error", "runaway_loop"),
        (Failure("budget_exceeded", "gone"), 429, "insufficient_quota", "budget_exceeded"),
        (Failure("deadline", "late"), 504, "timeout_error", "deadline"),
        (Failure("auth", "HTTP 401: key sk-secret"), 502, "server_error", "auth"),
        (Failure("not_found", "http://10.0.0.7/v1"), 502, "server_error", "not_found"),
        (Failure("internal", "ValueError: x"), 500, "server_error", "internal"),
        (Failure("all_tiers_exhausted", "x", attempts=LIMITED), 429, "rate_limit_error", "rate_limit_exceeded"),
        (Failure("all_tiers_exhausted", "x", attempts=BROKEN), 503, "server_error", "all_tiers_exhausted"),
        (Failure("all_tiers_exhausted", "x"), 503, "server_error", "all_tiers_exhausted"),
    ],
)
def test_each_kind_of_failure_has_its_status_and_openais_shape(
    failure: Failure, status: int, kind: str, code: str
) -> None:
    """SDKs choose their exception by status and type, and people theirs by code."""
    told = of_failure(failure)
    error = orjson.loads(told.body)["error"]
    assert (told.status, error["type"], error["code"]) == (status, kind, code)
    assert error["message"]


@pytest.mark.parametrize("kind", ["auth", "not_found", "internal"])
def test_what_an_endpoint_says_of_us_is_not_passed_on(kind: str) -> None:
    """Our key, our address and our code are no caller's affair."""
    failure = Failure(kind, "HTTP 401 from http://10.0.0.7: key sk-secret", body=UPSTREAM)  # type: ignore[arg-type]
    told = of_failure(failure)
    assert b"10.0.0.7" not in told.body
    assert b"sk-secret" not in told.body
    assert b"max_tokens" not in told.body


@pytest.mark.parametrize(
    ("failure", "seconds"),
    [
        (Failure("all_tiers_exhausted", "x", retry_after_s=12.2), b"13"),
        (Failure("all_tiers_exhausted", "x", retry_after_s=0.0), b"1"),
        (Failure("all_tiers_exhausted", "x"), b"5"),
        (Failure("budget_exceeded", "x", retry_after_s=3000.0), b"3000"),
    ],
)
def test_who_may_come_again_is_told_when(failure: Failure, seconds: bytes) -> None:
    """Whole seconds, rounded up: who obeys is not refused again."""
    assert dict(of_failure(failure).headers)[b"retry-after"] == seconds


def test_a_budget_for_which_no_window_turns_names_no_time() -> None:
    """A limit in all does not come back by waiting."""
    assert of_failure(Failure("budget_exceeded", "x")).headers == []
