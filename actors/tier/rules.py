"""What a reply that is no answer means: the table, read from the top; the first rule that fits names the kind.

    status, error code, words of the message  ->  RULES
    finish_reason of a reply that is not done ->  UNFINISHED
    exception of a send                       ->  its TransportError carries the kind; actors/tier/wire.py and http1.py
                                                  name each, and whether the endpoint may have seen the request
    kind -> retriable, whose fault, breaker   ->  actors/kinds.py

Vendors agree on the words more than on the status, so codes and words go before it. Each line names who says so; where
it can be read:

    OpenAI      platform.openai.com/docs/guides/error-codes, and the openai package's `_base_client.py`
    Azure       learn.microsoft.com/azure/ai-services/openai: concepts/content-filter, how-to/manage-costs
    Anthropic   docs.anthropic.com/en/api/errors
    Google      ai.google.dev/gemini-api/docs/troubleshooting, ai.google.dev/api/generate-content#FinishReason
    Groq        console.groq.com/docs/errors
    OpenRouter  openrouter.ai/docs/api-reference/errors
    DeepSeek    api-docs.deepseek.com/quick_start/error_codes and /api/create-chat-completion
    DashScope   www.alibabacloud.com/help/en/model-studio/error-code
    vLLM, llama.cpp, TGI, Ollama, Bedrock, Moonshot: the texts of their servers
    statuses    RFC 9110, section 15; developers.cloudflare.com/support (520 to 524)
"""

from collections.abc import Container, Mapping
from typing import Final, NamedTuple

from actors.messages import Billed, FailureKind

__all__ = ["RULES", "UNFINISHED", "Rule"]


class Rule(NamedTuple):
    """Fits a reply whose status is in `statuses` and, where given, that has one of `codes` or says one of `says`."""

    kind: FailureKind
    statuses: Container[int]
    codes: frozenset[str] = frozenset()
    """Of error.code, error.type, error.status or innererror.code, lower-cased."""
    says: tuple[str, ...] = ()
    """Parts of the lower-cased error message, for endpoints that give no code."""
    billed: Billed = "no"
    note: str = ""
    """What the message says first, where the endpoint's own words would leave a person guessing."""


_ANY = range(200, 600)
_4XX = range(400, 500)
_REFUSED = frozenset({400, 403, 413, 422})
NO_MODEL: Final = "the model is not there"
NO_MONEY: Final = "the account's quota or credit is used up"
NO_KEY: Final = "the key was refused"

RULES: Final[tuple[Rule, ...]] = (
    # -- What the words say.
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
        # "There will be a charge for this request as the prompt was evaluated": Azure, concepts/content-filter.
        billed="unknown",
    ),
    Rule(
        "content_filter",
        _REFUSED,
        # Azure; OpenRouter, 403; DeepSeek
        says=("content management policy", "input was flagged", "content exists risk"),
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
        note=NO_MODEL,
    ),
    Rule("not_found", _REFUSED, says=("is not a valid model id",), note=NO_MODEL),  # OpenRouter, 400
    # OpenAI responses, 404: what one request names is gone, so it must not take the tier from all others.
    Rule("bad_request", {404}, says=("item with id", "response with id")),
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
        note=NO_MONEY,
    ),
    Rule("auth", {402}, note=NO_MONEY),  # OpenRouter, DeepSeek
    Rule(
        "auth",
        {400},
        says=("credit balance is too low",),  # Anthropic
        note=NO_MONEY,
    ),
    Rule(
        "auth",
        _4XX,
        codes=frozenset({"invalid_api_key", "api_key_invalid", "authentication_error"}),  # OpenAI, Google, Anthropic
        note=NO_KEY,
    ),
    Rule("auth", {400}, says=("api key not valid", "incorrect api key"), note=NO_KEY),  # Gemini, xAI
    Rule("context_length", {413}, note="the request is too large for this endpoint"),
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
    Rule("bad_request", _4XX),
    Rule("server", range(200, 300), codes=frozenset({"server_error", "internal_server_error"}), billed="unknown"),
    # Whatever is left was a 2xx that says neither answer nor known error, or a status that does not exist.
    Rule("malformed", range(-(10**9), 10**9), billed="unknown"),
)

UNFINISHED: Final[Mapping[str, FailureKind]] = {
    "content_filter": "content_filter",
    "refusal": "content_filter",  # Anthropic
    "safety": "content_filter",  # Google's own words, which its OpenAI-compatible endpoint passes on in capitals
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
    "image_safety": "content_filter",
    "error": "server",  # OpenRouter: the upstream failed after it had begun
    "abort": "server",  # vLLM: the request was aborted in the engine
    "insufficient_system_resource": "overloaded",  # DeepSeek
}
"""By finish_reason, lower-cased. Any other word is an end in good order: `stop`, `length` (the caller's own max_tokens),
`tool_calls`, `function_call`, and what other servers say (`eos`, `end_turn`)."""
