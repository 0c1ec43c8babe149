"""Requests and tokens per minute of one tier actor, over aiolimiter's leaky bucket.

A bucket that holds a minute's worth would let two minutes' worth pass in the first one. So a bucket holds about one
second's worth, and refills just so fast that no window of 60 s ever sees more than the limit:
capacity + 60 s * refill = limit. Two cases are coarser than a second:
- Up to 60 requests a minute go one at a time, at even distances; then no window of 60 s can hold more than the limit.
- A call of more tokens than a bucket holds passes when the bucket is empty of debts, and is paid for afterwards by those
  behind it. So the rate is right over time, while one window may see more by what that one call is above the bucket.

Calls pass in the order in which they came: aiolimiter alone would always prefer the smallest, and starve the large ones.
The tier's limit is shared equally over its actors.
"""

import asyncio

from aiolimiter import AsyncLimiter

__all__ = ["RateLimits"]

TOKENS_AT_ONCE = 4_000.0
"""A token bucket holds at least this much (or half a minute's worth), since a second's worth is often less than a call."""


class _Bucket(AsyncLimiter):
    def __init__(self, capacity: float, refill_per_s: float) -> None:
        super().__init__(capacity, capacity / refill_per_s)
        self._turn = asyncio.Lock()

    async def take(self, amount: float) -> None:
        async with self._turn:
            await self.acquire(min(amount, self.max_rate))
            self._level += max(0.0, amount - self.max_rate)


def _requests(per_minute: float) -> _Bucket:
    if per_minute > 60.0:
        return _Bucket(per_minute / 60.0, (per_minute - per_minute / 60.0) / 60.0)
    # A fraction of a request cannot be sent: 2.5 a minute are two, and a share below one is one every so many minutes.
    return _Bucket(1.0, (per_minute // 1.0 or per_minute) / 60.0)


def _tokens(per_minute: float) -> _Bucket:
    capacity = max(per_minute / 60.0, min(TOKENS_AT_ONCE, per_minute / 2.0))
    return _Bucket(capacity, (per_minute - capacity) / 60.0)


class RateLimits:
    """Waits until a call may be sent. `share`: 1 / number of the tier's actors."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None, share: float) -> None:
        self._requests = _requests(requests_per_minute * share) if requests_per_minute else None
        self._tokens = _tokens(tokens_per_minute * share) if tokens_per_minute else None

    @property
    def unlimited(self) -> bool:
        return self._requests is None and self._tokens is None

    async def wait(self, tokens: int) -> None:
        """Take one request and `tokens` tokens from the buckets, waiting for them in turn."""
        if self._requests is not None:
            await self._requests.take(1.0)
        if self._tokens is not None:
            await self._tokens.take(float(tokens))
