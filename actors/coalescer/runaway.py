"""Runaway loops: the same request over and over, from a program that does not notice that it has its answer.

Stands beside the table, which asks it before it lets anybody lead. Two counts a key, over the last `WINDOW_S` seconds:

    calls      times the key was led, each of which is a call to an endpoint and costs money; at most max_per_minute
    requests   claims of the key, also those that follow a call or are served from what is kept, and so cost nothing;
               at most `REQUESTS_PER_CALL` times that, and never less than `REQUESTS_AT_LEAST`

The second bound is so much wider because many equal requests at once are how coalescing is meant to be used; it ends
the loop that spins on kept answers. Keys are those of the table, so the count is each caller's own unless
`coalesce.across_keys` is on. What is refused is not counted: a loop that goes on gets max_per_minute calls a minute.

Nearly all keys come once, thousands a second, and must not be remembered one by one. So a claim first goes through a
filter of fixed size: a byte a slot, keys share slots by hash, and two arrays take turns, so that together they hold at
least the last window. Only a key whose slot has seen `SUSPECT` claims has its times remembered.

The error is on one side only. A key that was led at most max_per_minute times in the last minute is never refused,
whatever it shares its slot with: the filter decides who is counted, never what the count is. A loop may be refused
late: by the SUSPECT - 1 claims that the filter took, and, should more than `keys` keys repeat at the same time, after
those longest unseen were forgotten.

Pure: `now` is an argument.
"""

from array import array
from bisect import bisect_right
from typing import Literal, NamedTuple

__all__ = ["REQUESTS_AT_LEAST", "REQUESTS_PER_CALL", "SUSPECT", "WINDOW_S", "Loops", "Runaway"]

WINDOW_S = 60.0
REQUESTS_PER_CALL = 20
REQUESTS_AT_LEAST = 2_000
SUSPECT = 3
"""At 5,000 new keys a second one in ten shares its slot with two others and is counted for nothing; with 2 it would be
four in ten."""
SLOTS = 1 << 20
KEYS = 1 << 16


class Runaway(NamedTuple):
    """A claim that is refused: it would have been number `times` of its kind within `window_s`."""

    what: Literal["calls", "requests"]
    times: int
    limit: int
    window_s: float
    retry_after_s: float


class _Times:
    """When a suspected key was led and claimed, oldest first; what is older than the window goes when it is looked at."""

    __slots__ = ("calls", "requests")

    def __init__(self) -> None:
        self.calls = array("d")
        self.requests = array("d")


class Loops:
    """Counts claims and leads by key. `slots`, a power of two, and `keys` bound the memory."""

    def __init__(self, max_per_minute: int, slots: int = SLOTS, keys: int = KEYS) -> None:
        self._max_calls = max_per_minute
        self._max_requests = max(max_per_minute * REQUESTS_PER_CALL, REQUESTS_AT_LEAST)
        self._slots = slots
        self._keys = keys
        self._seen = bytearray(slots)
        self._seen_before = bytearray(slots)
        self._turned_at: float | None = None
        self._suspects: dict[bytes, _Times] = {}  # longest unseen first

    def __len__(self) -> int:
        """Keys that are counted one by one."""
        return len(self._suspects)

    def claim(self, key: bytes, now: float, leads: bool) -> Runaway | None:
        """Count a claim of `key`, which would get to make the call if `leads`; or refuse it.

        Keys must be well mixed in their first eight bytes, as digests are.
        """
        if self._turned_at is None or now - self._turned_at >= WINDOW_S:
            self._turn(now)
        times = self._suspects.pop(key, None)
        if times is None:
            slot = int.from_bytes(key[:8], "little") & (self._slots - 1)
            seen = self._seen[slot] + 1
            if seen <= SUSPECT:  # it need not count further
                self._seen[slot] = seen
            if seen + self._seen_before[slot] < SUSPECT:
                return None
            times = _Times()
            if len(self._suspects) >= self._keys:
                del self._suspects[next(iter(self._suspects))]
        self._suspects[key] = times
        runaway = _over(times.requests, "requests", self._max_requests, now)
        if runaway is None and leads:
            runaway = _over(times.calls, "calls", self._max_calls, now)
        if runaway is None:
            times.requests.append(now)
            if leads:
                times.calls.append(now)
        return runaway

    def lead(self, key: bytes, now: float) -> Runaway | None:
        """Count that one who has claimed `key` before gets to make the call after all; or refuse it."""
        times = self._suspects.get(key)
        if times is None:
            return None
        runaway = _over(times.calls, "calls", self._max_calls, now)
        if runaway is None:
            times.calls.append(now)
        return runaway

    def _turn(self, now: float) -> None:
        """Begin the next window. Keys that were not seen in the last one are as good as new."""
        idle = self._turned_at is None or now - self._turned_at >= 2 * WINDOW_S
        self._seen_before = bytearray(self._slots) if idle else self._seen
        self._seen = bytearray(self._slots)
        self._turned_at = now
        old = now - WINDOW_S
        for key in [key for key, times in self._suspects.items() if not _since(times, old)]:
            del self._suspects[key]


def _since(times: _Times, old: float) -> bool:
    return any(at and at[-1] > old for at in (times.calls, times.requests))


def _over(times: "array[float]", what: Literal["calls", "requests"], limit: int, now: float) -> Runaway | None:
    old = now - WINDOW_S
    gone = bisect_right(times, old)
    if gone:
        del times[:gone]
    return Runaway(what, len(times) + 1, limit, WINDOW_S, times[0] - old) if len(times) >= limit else None
