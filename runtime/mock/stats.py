"""What a tier of the mock has seen and done, for GET /stats: the witness that tests and benchmarks question."""

from collections import Counter
from hashlib import sha256
from typing import Any

__all__ = ["TierStats", "summed"]

_MAX_DIGESTS = 2_000_000
"""Bodies beyond these are not remembered: about 200 MB at worst."""


class TierStats:
    """Counters of one tier. `reset` starts anew but keeps what is in flight."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        self.requests = self.hangs = self.resets = self.abandoned = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.max_in_flight = self.in_flight
        self.duplicate_bodies = 0
        self.key_seen = False
        self.by_status: Counter[int] = Counter()
        self.outcomes: Counter[str] = Counter()
        self._digests: set[int] = set()

    def arrived(self, body: bytes, authorized: bool) -> int:
        """Count a request; gives the digest of its body."""
        self.requests += 1
        self.key_seen = self.key_seen or authorized
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        digest = int.from_bytes(sha256(body).digest()[:8], "little")
        if digest in self._digests:
            self.duplicate_bodies += 1
        elif len(self._digests) < _MAX_DIGESTS:
            self._digests.add(digest)
        return digest

    def answered(self, status: int) -> None:
        self.in_flight -= 1
        self.by_status[status] += 1

    def billed(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def lost(self) -> None:
        """The connection ended before the answer did."""
        self.in_flight -= 1

    def value(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
            "outcomes": dict(sorted(self.outcomes.items())),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "hangs": self.hangs,
            "resets": self.resets,
            "abandoned": self.abandoned,
            "distinct_bodies": len(self._digests),
            "duplicate_bodies": self.duplicate_bodies,
            "bodies_complete": len(self._digests) < _MAX_DIGESTS,
            "key_seen": self.key_seen,
        }


def summed(values: list[dict[str, Any]]) -> dict[str, int]:
    """Totals over the tiers, for what can be added."""
    names = (
        "requests",
        "in_flight",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "hangs",
        "resets",
        "abandoned",
    )
    return {name: sum(value[name] for value in values) for name in names}
