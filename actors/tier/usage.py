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
    names = ("input_tokens", "output_tokens") if "input_tokens" in usage else ("prompt_tokens", "completion_tokens")
    prompt = _count(usage.get(names[0]))
    # Embeddings have no completion.
    completion = _count(usage.get(names[1], 0))
    if prompt is None or completion is None:
        return None
    # Gemini and xAI leave reasoning out of the completion and count it, and bill it, in the total.
    total = _count(usage.get("total_tokens", 0))
    if total is not None:
        completion = max(completion, total - prompt)
    cached = _detail(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    reasoning = _detail(usage, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens")
    # A part that is larger than its whole is nonsense; without it the price errs on the dear side.
    return Usage(prompt, completion, cached if cached <= prompt else 0, reasoning if reasoning <= completion else 0)


def _detail(usage: dict[str, Any], places: tuple[str, ...], name: str) -> int:
    for place in places:
        details = usage.get(place)
        if isinstance(details, dict):
            return _count(details.get(name)) or 0
    return 0
