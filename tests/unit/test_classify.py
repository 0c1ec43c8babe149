"""The table of what a reply means, case by case, and what holds for any reply at all."""

from email.utils import formatdate
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages import Failure, Usage
from actors.tier.classify import Outcome, Whole, classify_error, classify_reply
from actors.tier.redact import one_line, redact
from actors.tier.retry_after import MAX_RETRY_AFTER_S, retry_after, should_retry
from actors.tier.rules import RULES
from actors.tier.transport import TransportError
from actors.tier.usage import reported_usage

NOW = 1_790_000_000.0
CHAT = "/chat/completions"
USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}


def classify(
    status: int, body: object, path: str = CHAT, headers: dict[str, str] | None = None, secrets: tuple[str, ...] = ()
) -> Outcome:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return classify_reply(status, headers or {}, raw, path, NOW, secrets)


def failed(status: int, body: object, path: str = CHAT, **more: Any) -> Failure:
    outcome = classify(status, body, path, **more)
    assert isinstance(outcome, Failure), outcome
    return outcome


def error(message: str = "", code: object = None, type: object = None, **more: object) -> dict[str, object]:
    return {"error": {"message": message, "code": code, "type": type, **more}}


def chat(*reasons: object, **more: object) -> dict[str, object]:
    choices = [{"index": i, "message": {"content": "hi"}, "finish_reason": r} for i, r in enumerate(reasons)]
    return {"model": "m-1", "choices": choices, "usage": USAGE, **more}


# ---- whole answers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat("stop")),
        (CHAT, chat("length")),
        (CHAT, chat("stop", "tool_calls", "function_call", "eos")),
        (CHAT + "/?x=1", chat("stop", error=None)),
        ("/completions", {"model": "m-1", "choices": [{"text": "", "finish_reason": "stop"}], "usage": USAGE}),
        ("/embeddings", {"model": "m-1", "data": [{"embedding": [0.5]}, {"embedding": "AAA="}], "usage": USAGE}),
        ("/responses", {"model": "m-1", "status": "completed", "error": None, "usage": USAGE}),
        (
            "/responses",
            {
                "model": "m-1",
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
                "usage": USAGE,
            },
        ),
        ("/moderations", {"model": "m-1", "results": [], "usage": USAGE}),
    ],
)
def test_finished_answers_are_whole(path: str, body: object) -> None:
    """An answer that says that it was finished is a success, also when the caller's own max_tokens ended it."""
    assert classify(200, body, path) == Whole(Usage(12, 5), "m-1")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(None)),
        (CHAT, chat("stop", None)),
        (CHAT, chat("")),
        (CHAT, chat(7)),
        (CHAT, {"choices": [{"message": {"content": "no finish_reason"}}]}),
        (CHAT, {"choices": [{"finish_reason": "stop"}]}),
        (CHAT, {"choices": [{"finish_reason": "stop", "text": "not chat"}]}),
        (CHAT, {"choices": ["stop"]}),
        (CHAT, {"choices": []}),
        (CHAT, {"choices": None}),
        (CHAT, {}),
        (CHAT, []),
        (CHAT, "text"),
        (CHAT, b""),
        (CHAT, b"null"),
        (CHAT, b"<html><title>Sign in</title></html>"),
        (CHAT, b'{"choices": [{"message": {"content": "cut'),
        (CHAT, b"\xff\xfe\x00"),
        (CHAT, b"[" * 100_000),
        ("/completions", {"choices": [{"finish_reason": "stop", "message": {}}]}),
        ("/embeddings", {"data": {}}),
        ("/embeddings", {"data": []}),
        ("/embeddings", {"data": [{"index": 0}]}),
        ("/responses", {"status": "in_progress"}),
        ("/responses", {"status": "incomplete", "incomplete_details": None}),
        ("/responses", {}),
        (CHAT, {"error": {"message": "something odd"}}),
        (CHAT, {"error": "something odd"}),
    ],
)
def test_a_200_without_a_finished_answer_is_malformed(path: str, body: object) -> None:
    """A 200 proves nothing: what is not a finished answer is a failure that may have been paid for."""
    failure = failed(200, body, path)
    assert (failure.kind, failure.status, failure.own_fault) == ("malformed", 200, False)
    assert failure.billed == ("yes" if failure.usage else "unknown")


@pytest.mark.parametrize(
    ("body", "path", "kind", "own_fault"),
    [
        (chat("content_filter"), CHAT, "content_filter", True),
        (chat("stop", "content_filter"), CHAT, "content_filter", True),
        (chat("error"), CHAT, "server", False),
        (chat("abort"), CHAT, "server", False),
        (chat("insufficient_system_resource"), CHAT, "overloaded", False),
        (chat("SAFETY"), CHAT, "content_filter", True),  # Gemini
        (chat("content_filter: RECITATION"), CHAT, "content_filter", True),
        (chat("refusal"), CHAT, "content_filter", True),
        ({"choices": [{"finish_reason": "SAFETY", "index": 0}], "usage": USAGE}, CHAT, "content_filter", True),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "usage": USAGE},
            "/responses",
            "content_filter",
            True,
        ),
    ],
)
def test_answers_that_were_stopped_are_billed_failures(body: object, path: str, kind: str, own_fault: bool) -> None:
    """A filter or a fault that ends an answer is a failure, whose usage is still charged."""
    failure = failed(200, body, path)
    assert (failure.kind, failure.own_fault, failure.billed, failure.usage) == (kind, own_fault, "yes", Usage(12, 5))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (error("slow down", 429), "rate_limited"),  # OpenRouter
        (error("upstream", "502"), "server"),
        (error("too long", "context_length_exceeded"), "context_length"),
        (error("", None, "overloaded_error"), "overloaded"),
        ({"status": "failed", "error": {"code": "server_error", "message": "x"}}, "server"),  # responses
        ({"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "x"}}, "rate_limited"),
    ],
)
def test_an_error_under_a_200_keeps_its_own_kind(body: object, kind: str) -> None:
    """Gateways that answer 200 whatever happens are read by what the body says."""
    failure = failed(200, body, "/responses")
    assert (failure.kind, failure.billed) == (kind, "unknown")


# ---- errors by status and words


@pytest.mark.parametrize(
    ("status", "body", "kind", "own_fault"),
    [
        (400, error("bad temperature", None, "invalid_request_error"), "bad_request", True),
        (400, error("... maximum context length is 8192 tokens ..."), "context_length", True),  # vLLM
        (400, error("x", "context_length_exceeded"), "context_length", True),
        (400, error("prompt is too long: 210000 tokens > 200000 maximum"), "context_length", True),  # Anthropic
        (400, {"object": "error", "message": "maximum context length is 10", "code": 400}, "context_length", True),
        (400, [error("The input token count (9) exceeds the maximum")], "context_length", True),  # Gemini
        (
            422,
            {"error": "`inputs` tokens + `max_new_tokens` must be <= 1", "error_type": "validation"},
            "context_length",
            True,
        ),
        (413, b"<html>Request Entity Too Large</html>", "context_length", True),
        (413, error("Request too large ... TPM", "rate_limit_exceeded"), "context_length", True),  # Groq
        (
            400,
            error("x", "content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}),
            "content_filter",
            True,
        ),
        (400, error("x", "content_policy_violation"), "content_filter", True),
        (403, error("Your input was flagged", 403), "content_filter", True),  # OpenRouter
        (404, error("The model `x` does not exist", "model_not_found"), "not_found", False),
        (403, error("no access to model", "model_not_found"), "not_found", False),
        (404, b"404 page not found", "not_found", False),
        # OpenAI responses: one request's own reference, which says nothing about the tier
        (404, error("Item with id 'rs_1' not found.", None, "invalid_request_error"), "bad_request", True),
        (405, b"", "not_found", False),
        (400, error("zz is not a valid model ID", 400), "not_found", False),
        (401, error("Incorrect API key", "invalid_api_key"), "auth", False),
        (403, b"<html>Forbidden</html>", "auth", False),
        (400, [error("API key not valid. Please pass a valid API key.", 400)], "auth", False),  # Gemini
        (402, error("Insufficient Balance"), "auth", False),
        (407, b"", "auth", False),
        (408, b"", "timeout", False),
        (409, error("conflict"), "server", False),
        (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, "bad_request", True),
        (429, error("Rate limit reached", "rate_limit_exceeded"), "rate_limited", False),
        (429, b"", "rate_limited", False),
        (429, error("You exceeded your current quota", "insufficient_quota", "insufficient_quota"), "auth", False),
        (429, [error("You exceeded your current quota", 429, status="RESOURCE_EXHAUSTED")], "rate_limited", False),
        (429, error("busy", None, "engine_overloaded_error"), "overloaded", False),  # Moonshot
        (500, error("oops", None, "server_error"), "server", False),
        (500, error("The server is overloaded"), "overloaded", False),
        (500, chat("stop"), "server", False),
        (502, b"<html><head><title>502 Bad Gateway</title>", "server", False),
        (503, b"", "overloaded", False),
        (504, b"", "server", False),
        (529, error("Overloaded", None, "overloaded_error"), "overloaded", False),
        (599, b"", "server", False),
        (301, b"", "server", False),
        (307, b"", "server", False),
        (418, b"", "bad_request", True),
        (100, b"", "malformed", False),
        (0, b"", "malformed", False),
        (999, b"", "malformed", False),
        (-1, b"", "malformed", False),
    ],
)
def test_errors_by_status_and_words(status: int, body: object, kind: str, own_fault: bool) -> None:
    """Each vendor's way of saying it ends in the one kind that the plan acts on."""
    failure = failed(status, body)
    assert (failure.kind, failure.own_fault, failure.status) == (kind, own_fault, status)


@pytest.mark.parametrize(
    ("status", "body", "billed"),
    [
        (400, error("bad"), "no"),
        (401, b"", "no"),
        (429, b"", "no"),
        (500, b"", "no"),
        (503, b"", "no"),
        (400, error("x", "content_filter"), "unknown"),  # Azure charges the prompt
        (408, b"", "unknown"),
        (504, b"", "unknown"),
        (500, chat("stop"), "yes"),  # it says what it used
    ],
)
def test_what_is_billed(status: int, body: object, billed: str) -> None:
    """Refusals are free; where work may have been done nobody can tell; a reported usage is believed."""
    assert failed(status, body).billed == billed


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_names_the_configuration(status: int) -> None:
    """A person who reads it learns that base_url is wrong."""
    assert "redirects are not followed; check base_url" in failed(status, b"").message


def test_messages_say_what_happened() -> None:
    """Status, the vendor's code and words, and our note where they would leave one guessing."""
    assert failed(429, error("Rate limit\nreached", "rate_limit_exceeded")).message == (
        "HTTP 429, rate_limit_exceeded: Rate limit reached"
    )
    assert "quota or credit is used up: No money" in failed(429, error("No money", "insufficient_quota")).message
    assert failed(502, b"<html><title>502 Bad Gateway</title></html>").message.endswith("an HTML page, 502 Bad Gateway")
    assert "no finish_reason" in failed(200, chat(None)).message
    assert failed(404, b"404 page not found").message.endswith(": 404 page not found")


def test_every_rule_can_decide() -> None:
    """The last rule fits anything, and no rule stands behind one that leaves it nothing."""
    assert not RULES[-1].codes
    assert not RULES[-1].says
    for number, rule in enumerate(RULES):
        shadows = [r for r in RULES[:number] if not r.codes and not r.says]
        probe = [s for s in range(-5, 1000) if s in rule.statuses and not any(s in r.statuses for r in shadows)]
        assert probe, rule


@pytest.mark.parametrize(
    ("raised", "billed"),
    [
        (TransportError("timeout", "no whole reply", True), "unknown"),
        (TransportError("connection", "refused", False), "no"),
        (TransportError("malformed", "not HTTP", True), "unknown"),
    ],
)
def test_transport_errors(raised: TransportError, billed: str) -> None:
    """What surely never left is free; the kind is the transport's."""
    failure = classify_error(raised)
    assert (failure.kind, failure.billed, failure.message, failure.own_fault) == (
        raised.kind,
        billed,
        raised.message,
        False,
    )


AZURE_FOUND = {
    "hate": {"filtered": True, "severity": "high"},
    "jailbreak": {"filtered": True, "detected": True},
    "self_harm": {"filtered": False, "severity": "safe"},
    "sexual": "odd",
}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, error("The response was filtered", "content_filter", innererror={"content_filter_result": AZURE_FOUND})),
        (400, error("The response was filtered", "content_filter", content_filter_results=AZURE_FOUND)),
        (
            200,
            {
                "choices": [
                    {"finish_reason": "content_filter", "message": {}, "content_filter_results": AZURE_FOUND},
                ]
            },
        ),
    ],
)
def test_a_content_filters_refusal_carries_its_reason(status: int, body: object) -> None:
    """What was found stands in the message, before the vendor's words, which may be long."""
    failure = failed(status, body)
    assert failure.kind == "content_filter"
    assert "filtered: hate (high), jailbreak" in failure.message
    assert "self_harm" not in failure.message
    assert b"content_filter_result" in failure.body, "the whole is in the row's line"


def test_a_refusal_in_words_is_told() -> None:
    """Where the answer itself says why."""
    body = {"choices": [{"finish_reason": "content_filter", "message": {"refusal": "I can't help with that."}}]}
    assert failed(200, body).message.endswith("finish_reason is content_filter: I can't help with that.")


@pytest.mark.parametrize(
    "found", [None, 7, [], {"hate": None}, {"hate": {"filtered": "yes"}}, {"": {"filtered": True}}]
)
def test_rubbish_for_a_reason_is_no_reason(found: object) -> None:
    """The refusal stays one."""
    assert failed(400, error("no", "content_filter", content_filter_result=found)).kind == "content_filter"


# ---- what the endpoint says of asking again


@pytest.mark.parametrize(
    ("status", "kind", "as_told"),
    [
        (400, "bad_request", "server"),
        (401, "auth", "server"),
        (404, "not_found", "server"),
        (408, "timeout", "timeout"),
        (413, "context_length", "context_length"),
        (429, "rate_limited", "rate_limited"),
        (500, "server", "server"),
        (503, "overloaded", "overloaded"),
    ],
)
def test_x_should_retry_goes_before_the_tables(status: int, kind: str, as_told: str) -> None:
    """`true` makes a failure that would be final one of the endpoint's; `false` keeps its kind, and the request away."""
    assert (failed(status, b"").kind, failed(status, b"").not_again) == (kind, False)
    told = failed(status, b"", headers={"x-should-retry": "true"})
    assert (told.kind, told.not_again, told.own_fault) == (as_told, False, as_told == "context_length")
    told = failed(status, b"", headers={"x-should-retry": "false"})
    assert (told.kind, told.not_again) == (kind, True)


@pytest.mark.parametrize(
    ("said", "expected"),
    [("true", True), ("false", False), (" True ", True), ("FALSE", False)]
    + [
        (rubbish, None)
        for rubbish in ("", "1", "0", "yes", "no", "null", "truefalse", "\x00", "true, false", "t" * 9999)
    ],
)
def test_x_should_retry_is_true_or_false_or_nothing(said: str, expected: bool | None) -> None:
    """As the SDKs read it; anything else is as if it had not been said."""
    assert should_retry({"x-should-retry": said}) is expected


# ---- usage


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, Usage(12, 5)),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}, Usage(12, 5, 8)),
        ({**USAGE, "completion_tokens_details": {"reasoning_tokens": 4}}, Usage(12, 5, 0, 4)),
        ({**USAGE, "prompt_tokens_details": None}, Usage(12, 5)),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": 99}}, Usage(12, 5)),
        ({**USAGE, "completion_tokens_details": {"reasoning_tokens": -1}}, Usage(12, 5)),
        ({"prompt_tokens": 12, "total_tokens": 12}, Usage(12, 0)),  # embeddings
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}, Usage(10, 30)),  # Gemini, xAI: reasoning
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 10**15}, Usage(10, 5)),
        (
            {
                "input_tokens": 3,
                "output_tokens": 2,
                "input_tokens_details": {"cached_tokens": 1},
                "output_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(3, 2, 1, 2),
        ),
        ({"prompt_tokens": -1, "completion_tokens": 5}, None),
        ({"prompt_tokens": 1.5, "completion_tokens": 5}, None),
        ({"prompt_tokens": True, "completion_tokens": 5}, None),
        ({"prompt_tokens": "12", "completion_tokens": 5}, None),
        ({"prompt_tokens": 12, "completion_tokens": 10**15}, None),
        ({"prompt_tokens": 12, "completion_tokens": None}, None),
        ({"prompt_tokens": 12}, None),  # an answer that is not counted is not free
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),  # an endpoint that does not count
        ({**USAGE, "prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 4}, Usage(12, 5, 8)),  # DeepSeek
        ({**USAGE, "prompt_cache_hit_tokens": 13}, Usage(12, 5)),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": "8"}}, Usage(12, 5)),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": True}}, Usage(12, 5)),
        ({**USAGE, "completion_tokens_details": {"reasoning_tokens": 4.0}}, Usage(12, 5)),
        (
            {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 7},
            Usage(50, 2, 40),  # Anthropic
        ),
        (
            {
                "input_tokens": 9,
                "output_tokens": 5,
                "total_tokens": 94,
                "output_tokens_details": {"reasoning_tokens": 80},
            },
            Usage(9, 85, 0, 80),
        ),
        ({}, None),
        (None, None),
        ([1], None),
    ],
)
def test_usage(usage: object, expected: Usage | None) -> None:
    """What the reply reports is what is billed; nonsense is nothing rather than a number."""
    assert reported_usage({"usage": usage}) == expected
    assert failed(200, chat(None, usage=usage)).usage == expected
    assert classify(200, chat("stop", usage=usage)) == Whole(expected, "m-1")


# ---- when to come back


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "86400"}, 3600.0),
        ({"retry-after": formatdate(NOW + 90, usegmt=True)}, 90.0),
        ({"retry-after": formatdate(NOW - 90, usegmt=True)}, 0.0),
        ({"retry-after": formatdate(NOW + 90)}, 90.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "Mon, 99 Foo 20x6 99:99:99 GMT"}, None),
        ({"retry-after": "9" * 5000}, None),
        ({"retry-after": "1e309"}, None),
        ({"retry-after": "0x10"}, None),
        ({"retry-after": "7, 9"}, None),
        ({"retry-after": "7 seconds"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 +2359"}, 0.0),
        ({"retry-after": formatdate(NOW + 90).replace("-0000", "+0100")}, 0.0),
        ({"retry-after": formatdate(NOW + 7290).replace("-0000", "+0200")}, 90.0),
        ({"retry-after-ms": "-1"}, 0.0),
        ({"retry-after-ms": "1e300"}, MAX_RETRY_AFTER_S),
        ({"retry-after-ms": "", "retry-after": "", "x-ratelimit-reset-tokens": ""}, None),
        ({"x-ratelimit-reset-tokens": "-5s"}, None),
        ({"x-ratelimit-reset-tokens": "5s5s"}, None),
        ({"x-ratelimit-reset-tokens": "nan"}, None),
        ({"x-ratelimit-reset-tokens": "9" * 40 + "s"}, None),
        ({"x-ratelimit-reset-tokens": "9" * 20 + "h"}, MAX_RETRY_AFTER_S),
        ({"x-ratelimit-reset-tokens": formatdate(NOW + 90, usegmt=True)}, None),
        ({"x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-reset-tokens": "1h2m3.5s"}, 3600.0),
        ({"x-ratelimit-reset-tokens": "12"}, 12.0),
        ({"x-ratelimit-reset-tokens": "1790000060"}, None),
        ({"x-ratelimit-reset-tokens": "a while"}, None),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "9s"}, 1.0),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-reset-tokens": "9s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-remaining-requests": "50",
            },
            9.0,
        ),
        ({"retry-after": "2", "x-ratelimit-reset-requests": "50s"}, 2.0),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    """Every form in which endpoints say when; nonsense is as if nothing had been said."""
    assert retry_after(headers, NOW) == (None if expected is None else pytest.approx(expected))
    assert failed(429, b"", headers=headers).retry_after_s == retry_after(headers, NOW)


def test_the_reset_headers_count_for_rate_limits_only() -> None:
    """They stand in every reply of OpenAI's, also in a 500 that has nothing to do with them."""
    headers = {"x-ratelimit-reset-requests": "50s"}
    assert failed(500, b"", headers=headers).retry_after_s is None
    assert failed(503, b"", headers={"retry-after": "5"}).retry_after_s == 5


# ---- secrets and bounds

KEY = "sk-canary-7Hq2mZx9Wv4LbT1c/+x"


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {KEY}.",
        f"Incorrect API key provided: {KEY[:8]}************{KEY[-4:]}.",
        f"header was Authorization: Bearer {KEY}",
        f"you sent {KEY[:9]}",
        f"it ends in {KEY[-6:]}",
        f"middle {KEY[7:19]} of it",
        f"twice {KEY} and {KEY}{KEY}",
        KEY.replace("/", "\\/"),
        "x" * 290 + KEY,
    ],
)
def test_no_part_of_the_key_is_carried_on(said: str) -> None:
    """Endpoints quote the key they refuse; neither the message nor the body that we keep does."""
    failure = failed(401, error(said), secrets=(KEY,))
    for shown in (failure.message, failure.body.decode()):
        assert KEY not in shown
        assert not any(KEY[i : i + 11] in shown for i in range(len(KEY) - 10))
        assert KEY[:6] not in shown
        assert KEY[-6:] not in shown


def test_words_are_not_taken_for_keys() -> None:
    """What a person needs to read stays readable."""
    text = "You must provide a Bearer token in the Authorization header; see **docs**, not a task-list"
    assert redact(text, (KEY, "x", "")) == text


def test_messages_are_one_bounded_line_and_bodies_are_bounded() -> None:
    """A reply of megabytes, with terminal escapes and direction marks, is a short plain line."""
    failure = failed(500, error("\x1b[31mred\x1b[0m\r\nnext\u202eline\u2028\x00" + "x" * 1_000_000))
    assert len(failure.message) <= 300
    assert failure.message.isprintable()
    assert len(failure.body) == 4096
    assert one_line(" a\n\tb\u200b ") == "a b"


# ---- whatever comes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "message",
                    "code",
                    "type",
                    "status",
                    "choices",
                    "finish_reason",
                    "data",
                    "usage",
                    "innererror",
                    "model",
                    "detail",
                    "text",
                    "reason",
                    "prompt_tokens",
                    "completion_tokens",
                    "total_tokens",
                    "prompt_tokens_details",
                    "cached_tokens",
                    "input_tokens",
                    "incomplete_details",
                    "embedding",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)
bodies = st.binary(max_size=200) | json_values.map(
    lambda value: orjson.dumps(value, default=str) if _small(value) else b"{}"
)
texts = st.text(max_size=40) | st.sampled_from(
    ["", "1", "1e309", "6m0s", "Wed, 21 Oct 2015 07:28:00 GMT", "-0", "\x00", "true", "false"]
)
header_maps = st.dictionaries(
    st.sampled_from(
        [
            "retry-after",
            "retry-after-ms",
            "x-should-retry",
            "x-ratelimit-reset-requests",
            "x-ratelimit-reset-tokens",
            "content-type",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-remaining-tokens",
        ]
    ),
    texts,
)
statuses = st.sampled_from([200, 201, 204, 301, 400, 401, 403, 404, 413, 422, 429, 500, 503]) | st.integers(-10, 1100)
paths = st.sampled_from([CHAT, "/completions", "/embeddings", "/responses", "/models", ""])


def _small(value: object) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:  # an integer that orjson does not write
        return False
    return True


@settings(max_examples=500, deadline=None)
@given(status=statuses, headers=header_maps, body=bodies, path=paths)
def test_any_reply_has_an_outcome(status: int, headers: dict[str, str], body: bytes, path: str) -> None:
    """No status, header or body raises, and every outcome keeps its bounds."""
    outcome = classify_reply(status, headers, body, path, NOW, (KEY,))
    if isinstance(outcome, Whole):
        assert 200 <= status < 300
        assert isinstance(orjson.loads(body), dict)
        usage = outcome.usage
    else:
        assert outcome.message.isprintable()
        assert 0 < len(outcome.message) <= 300
        assert len(outcome.body) <= 4096
        assert outcome.retry_after_s is None or 0 <= outcome.retry_after_s <= 3600
        assert outcome.billed in ("no", "yes", "unknown")
        assert (outcome.usage is not None) == (outcome.billed == "yes")
        usage = outcome.usage
    assert usage is None or min(usage) >= 0
    assert usage is None or (usage.cached_tokens <= usage.prompt_tokens)


@settings(max_examples=300, deadline=None)
@given(
    choices=st.lists(
        st.fixed_dictionaries(
            {"message": st.just({"content": "x"}), "text": st.just("x")},
            optional={
                "finish_reason": st.none() | st.sampled_from(["stop", "length", "content_filter", ""]) | json_values
            },
        ),
        max_size=4,
    ).filter(_small),
    path=st.sampled_from([CHAT, "/completions"]),
)
def test_no_answer_without_a_finish_reason_is_ever_whole(choices: list[dict[str, object]], path: str) -> None:
    """A completion succeeds only if it has choices and each of them says why it ended."""
    outcome = classify(200, {"choices": choices}, path)
    reasons = [choice.get("finish_reason") for choice in choices]
    if isinstance(outcome, Whole):
        assert reasons
        assert all(isinstance(reason, str) and reason and reason != "content_filter" for reason in reasons)
    elif reasons and all(reason in ("stop", "length") for reason in reasons):
        raise AssertionError(outcome)


@settings(max_examples=300, deadline=None)
@given(
    key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=12, max_size=60),
    before=st.text(max_size=30),
    after=st.text(max_size=30),
    data=st.data(),
)
def test_no_long_part_of_any_key_survives(key: str, before: str, after: str, data: st.DataObject) -> None:
    """Eleven characters in a row of a key are never left, wherever they stand."""
    start = data.draw(st.integers(0, len(key) - 11))
    end = data.draw(st.integers(start + 11, len(key)))
    shown = redact(before + key[start:end] + after, (key,))
    assert key[start:end] not in shown
