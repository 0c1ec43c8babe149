"""Requests and tokens per minute of one tier actor, over aiolimiter's leaky bucket.

A bucket that holds a minute's worth would let two minutes' worth pass in the first one. So a bucket holds one
second's worth (at least one request), and refills just so fast that no window of 60 s ever sees more than the limit:
capacity + 60 s * refill = limit. The tier's limit is shared equally over its actors.
"""

from aiolimiter import AsyncLimiter

__all__ = ["RateLimits"]


class _Bucket:
    def __init__(self, per_minute: float, least: float) -> None:
        self.capacity = max(per_minute / 60.0, min(least, per_minute))
        # A limit of one request a minute has no refill left beside its capacity: then one a minute it is.
        refill_per_s = (per_minute - self.capacity) / 60.0 or per_minute / 60.0
        self._limiter = AsyncLimiter(self.capacity, self.capacity / refill_per_s)

    async def take(self, amount: float) -> None:
        # More than the bucket ever holds is taken as a full bucket, since it would never pass otherwise.
        await self._limiter.acquire(min(amount, self.capacity))


class RateLimits:
    """Waits until a call may be sent. `share`: 1 / number of the tier's actors."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None, share: float) -> None:
        self._requests = _Bucket(requests_per_minute * share, 1.0) if requests_per_minute else None
        self._tokens = _Bucket(tokens_per_minute * share, 4_000.0) if tokens_per_minute else None

    @property
    def unlimited(self) -> bool:
        return self._requests is None and self._tokens is None

    async def wait(self, tokens: int) -> None:
        """Take one request and `tokens` tokens from the buckets, waiting for them in turn."""
        if self._requests is not None:
            await self._requests.take(1.0)
        if self._tokens is not None:
            await self._tokens.take(float(tokens))
