"""What one gateway replica lets through: requests in flight in all, and of each key its requests a minute and its streams.

Refusing is cheap and at once: a caller who is told "later" within milliseconds can go elsewhere, one who waits in a line
that never moves cannot. Pure: `now` is an argument.
"""

from runtime.gateway.errors import BUSY_S, HttpError
from runtime.gateway.keys import Key

__all__ = ["Gate"]


class _Bucket:
    """Requests a minute as a token bucket of a tenth of a minute."""

    __slots__ = ("at", "level", "per_s", "room")

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_s = per_minute / 60.0
        self.room = max(1.0, per_minute / 10.0)
        self.level = self.room
        self.at = now

    def take(self, now: float) -> float:
        """0: taken; else so many seconds until there is one."""
        self.level = min(self.room, self.level + max(0.0, now - self.at) * self.per_s)
        self.at = now
        if self.level >= 1.0:
            self.level -= 1.0
            return 0.0
        return (1.0 - self.level) / self.per_s


class Gate:
    """Admits requests. `share`: of a key's requests a minute, what this replica may admit (1 / number of replicas)."""

    def __init__(self, max_queued: int, share: float = 1.0) -> None:
        self._max_queued = max_queued
        self._share = share
        self.in_flight = 0
        self._buckets: dict[str, tuple[int, _Bucket]] = {}
        self._streams: dict[str, int] = {}

    @property
    def streams(self) -> int:
        """Open streams, of all keys."""
        return sum(self._streams.values())

    def enter(self, key: Key, now: float) -> None:
        """Count a request in, or raise HttpError. What has entered must leave."""
        if self.in_flight >= self._max_queued:
            raise HttpError(
                429, "the gateway has all the requests it can hold", "rate_limit_error", "overloaded", None, BUSY_S
            )
        if key.requests_per_minute is not None:
            wait_s = self._bucket(key, key.requests_per_minute, now).take(now)
            if wait_s > 0:
                message = f"the key {key.name} may make {key.requests_per_minute} requests a minute"
                raise HttpError(429, message, "rate_limit_error", "rate_limit_exceeded", None, wait_s)
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1

    def enter_stream(self, key: Key) -> None:
        """Count a stream in, or raise HttpError."""
        open_now = self._streams.get(key.name, 0)
        if key.streams is not None and open_now >= key.streams:
            message = f"the key {key.name} may have {key.streams} streams at once"
            raise HttpError(429, message, "rate_limit_error", "too_many_streams", None, BUSY_S)
        self._streams[key.name] = open_now + 1

    def leave_stream(self, key: Key) -> None:
        left = self._streams[key.name] - 1
        if left:
            self._streams[key.name] = left
        else:
            del self._streams[key.name]

    def _bucket(self, key: Key, per_minute: int, now: float) -> _Bucket:
        known = self._buckets.get(key.name)
        if known is None or known[0] != per_minute:
            known = self._buckets[key.name] = (per_minute, _Bucket(per_minute * self._share, now))
        return known[1]
