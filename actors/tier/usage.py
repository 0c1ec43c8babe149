"""The tokens that a reply reports: what budgets charge, so a number is believed only if it can be true."""

from typing import Any, Final

from actors.messages import Usage

__all__ = ["reported_usage"]

MAX_USAGE_TOKENS: Final = 1_000_000_000
"""More than any one call can take; a count above it is a defect of the endpoint, not a bill."""


def _count(value: object) -> int | None:
    # bool is an int to Python, not to a bill.
    return value if type(value) is int and 0 <= value <= MAX_USAGE_TOKENS else None


def reported_usage(reply: Any) -> Usage | None:
    """The usage in a parsed reply of chat, completions, embeddings or responses; None if there is none to believe."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(usage, dict):
        return None
    names = ("prompt_tokens", "completion_tokens") if "prompt_tokens" in usage else ("input_tokens", "output_tokens")
    prompt = _count(usage.get(names[0]))
    total = _count(usage.get("total_tokens"))
    # Embeddings have no completion; whoever has one and does not count it must at least give the total.
    uncounted = 0 if total is not None or "data" in reply else None
    completion = _count(usage.get(names[1], uncounted))
    if prompt is None or completion is None:
        return None
    cached = _detail(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    if not cached:
        cached = _count(usage.get("prompt_cache_hit_tokens")) or 0  # DeepSeek
    if names[0] == "input_tokens" and "input_tokens_details" not in usage:
        # Anthropic counts what it reads from and writes to its cache beside the input, not in it.
        cached = _count(usage.get("cache_read_input_tokens")) or 0
        prompt += cached + (_count(usage.get("cache_creation_input_tokens")) or 0)
    # Gemini and xAI leave reasoning out of the completion and count it, and bill it, in the total.
    if total is not None:
        completion = max(completion, total - prompt)
    if not prompt and not completion:
        return None  # every call has a prompt: this endpoint does not count
    reasoning = _detail(usage, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens")
    # A part that is larger than its whole is nonsense; without it the price errs on the dear side.
    return Usage(prompt, completion, cached if cached <= prompt else 0, reasoning if reasoning <= completion else 0)


def _detail(usage: dict[str, Any], places: tuple[str, ...], name: str) -> int:
    for place in places:
        details = usage.get(place)
        if isinstance(details, dict):
            return _count(details.get(name)) or 0
    return 0
