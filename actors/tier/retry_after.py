"""When an endpoint that refused wants to be asked again, read from its headers."""

import math
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = ["MAX_RETRY_AFTER_S", "duration_s", "retry_after", "should_retry"]

MAX_RETRY_AFTER_S: Final = 3600.0

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


def retry_after(headers: Mapping[str, str], now_unix: float, limited: bool = True) -> float | None:
    """Seconds until the endpoint wants to be asked again, in [0, 3600]; None when it does not say.

    Read in this order: retry-after-ms (Azure and OpenAI, as the SDK reads it), Retry-After (RFC 9110: seconds or a date) and,
    for a rate limit only, x-ratelimit-reset-requests and -tokens, which stand in every reply and mean nothing otherwise.
    """
    found = _number(headers.get("retry-after-ms", ""))
    if found is not None:
        return _clamped(found / 1000)
    after = headers.get("retry-after", "").strip()
    found = _number(after)
    if found is None and after:
        found = _seconds_until(after, now_unix)
    if found is None and limited:
        found = _reset(headers)
    return None if found is None else _clamped(found)


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """What the endpoint says of sending it the same request again (OpenAI, Anthropic, and proxies that have retried
    themselves); None: nothing, or nothing that the SDKs read.
    """
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def _clamped(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def _number(text: str) -> float | None:
    try:
        value = float(text) if len(text) <= 32 else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _seconds_until(date: str, now_unix: float) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
        # RFC 9110 dates are GMT, also when they do not say so.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now_unix
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _reset(headers: Mapping[str, str]) -> float | None:
    """The longest wait of the limits that are used up; when none says that it is, the shortest wait of any."""
    used_up: list[float] = []
    waits: list[float] = []
    for limit in ("requests", "tokens"):
        wait = duration_s(headers.get(f"x-ratelimit-reset-{limit}", ""))
        if wait is not None:
            waits.append(wait)
            if headers.get(f"x-ratelimit-remaining-{limit}", "").strip() == "0":
                used_up.append(wait)
    return max(used_up) if used_up else min(waits, default=None)


def duration_s(text: str) -> float | None:
    """`1s`, `6m0s`, `20ms`, `1h2m3.5s` (OpenAI, Groq), or plain seconds (Azure)."""
    text = text.strip()
    if not text or len(text) > 32:
        return None
    match = _DURATION.fullmatch(text)
    if match is None:
        number = _number(text)
        # Some gateways give the moment itself; a clock other than ours is not to be guessed at.
        return number if number is not None and 0 <= number <= 86_400 else None
    hours, minutes, seconds, millis = (float(part) if part else 0.0 for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + millis / 1000
