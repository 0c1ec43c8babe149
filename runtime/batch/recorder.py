"""What `--report` tells of a run beyond its tally: how it went over time, its slowest rows, its prompt versions.

    run: a row has ended   -> Recorder.answered / failed / shared
    display: what is shown -> Recorder.saw (conditions of tiers), Recorder.event

No clock and no I/O: `now` is an argument, in seconds of any clock. Memory is bounded whatever the number of rows: time is
kept in at most `BINS` slices, which are joined in pairs when they do not suffice; latencies in buckets; of rows only the
slowest. Recording a row takes about three microseconds, and only a run with `--report` has a recorder.
"""

import heapq
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

from actors.events import NOT_A_CALL
from actors.messages import Attempt, Failure, Result

__all__ = ["CODES", "TEXT", "Example", "Latencies", "Period", "Recorder", "Slice", "Slow", "VersionSums"]

BINS = 160
FIRST_WIDTH_S = 0.5
SLOWEST = 12
PERIODS = 300
"""Of all tiers together; later ones are counted only."""
EVENTS = 200
VERSIONS = 50
CODES = 100
TEXT = 240
"""Characters of a text from elsewhere that are kept."""
BOUNDS_S = tuple(0.001 * 2 ** (step / 4) for step in range(81))
"""From a millisecond to 17 minutes, each bound 19% above the one before."""


class Latencies:
    """How long things took, in buckets: quantiles are right to a tenth."""

    __slots__ = ("count", "counts")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.count = 0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.count += 1

    def join(self, other: "Latencies") -> None:
        self.counts = [one + two for one, two in zip(self.counts, other.counts, strict=True)]
        self.count += other.count

    def quantile(self, share: float) -> float | None:
        """Seconds; None of nothing."""
        if not self.count:
            return None
        rank, below = max(1, ceil(share * self.count)), 0
        for bucket, count in enumerate(self.counts):
            if below + count >= rank:
                low = BOUNDS_S[bucket - 1] if bucket else 0.0
                high = BOUNDS_S[min(bucket, len(BOUNDS_S) - 1)]
                return low + (high - low) * (rank - below) / count
            below += count
        raise AssertionError("unreachable")


class Slice:
    """What ended within a stretch of time."""

    __slots__ = ("failed", "latencies", "shared", "tiers")

    def __init__(self) -> None:
        self.tiers: Counter[str] = Counter()
        """Rows that a tier answered."""
        self.shared = self.failed = 0
        self.latencies = Latencies()

    def join(self, other: "Slice") -> None:
        self.tiers.update(other.tiers)
        self.shared += other.shared
        self.failed += other.failed
        self.latencies.join(other.latencies)


class Slow(NamedTuple):
    """A row that took long."""

    seconds: float
    """From handing it out to its answer: waits, retries and fallback included."""
    number: int
    custom_id: str
    tier: str
    attempts: int
    at_endpoint_s: float
    outcome: str


class Example(NamedTuple):
    """The first row that failed in one way."""

    custom_id: str
    message: str


@dataclass
class TierSums:
    calls: int = 0
    failed: int = 0
    usd_micros: int = 0
    tokens: int = 0
    latencies: Latencies = field(default_factory=Latencies)


@dataclass
class VersionSums:
    """What a run shows of one prompt version."""

    rows: int = 0
    shared: int = 0
    failed: int = 0
    refused_replies: int = 0
    tokens: int = 0
    usd_micros: int = 0
    latencies: Latencies = field(default_factory=Latencies)


@dataclass
class Period:
    """A time in which a tier was not well."""

    tier: str
    word: str
    detail: str
    began: float
    ended: float


class Recorder:
    """One a run. `began`: the moment from which times are told, by the clock of every `now`."""

    def __init__(self, began: float) -> None:
        self.width_s = FIRST_WIDTH_S
        self.slices: list[Slice] = []
        self.latencies = Latencies()
        self.tiers: dict[str, TierSums] = {}
        self.versions: dict[str, VersionSums] = {}
        self.examples: dict[str, Example] = {}
        """By error code."""
        self.shared_rows = self.shared_tokens = 0
        self.periods: list[Period] = []
        self.periods_left_out = 0
        self.events: deque[tuple[float, str]] = deque(maxlen=EVENTS)
        self.events_in_all = 0
        self.ended = 0.0
        """Seconds from the beginning to the last thing that was recorded."""
        self._began = began
        self._slowest: list[Slow] = []
        self._unwell: dict[str, Period] = {}

    # ------------------------------------------------------------------ rows

    def answered(
        self, now: float, number: int, custom_id: str, result: Result, prompt: str, since: float, latency_s: float
    ) -> None:
        """A row led its own call and has its answer. `latency_s`: how long the endpoints took that answered."""
        place = self._slice(now)
        place.tiers[result.tier] += 1
        place.latencies.add(latency_s)
        self.latencies.add(latency_s)
        self._attempts(result.attempts)
        self._slow(now - since, number, custom_id, result.tier, len(result.attempts), latency_s, "answered")
        if prompt:
            version = self._version(prompt)
            version.rows += 1
            version.refused_replies += result.refused_replies
            version.tokens += result.cost.tokens
            version.usd_micros += result.cost.usd_micros
            version.latencies.add(latency_s)

    def shared(self, now: float, tokens: int, prompt: str) -> None:
        """A row has another row's answer."""
        self._slice(now).shared += 1
        self.shared_rows += 1
        self.shared_tokens += tokens
        if prompt:
            version = self._version(prompt)
            version.rows += 1
            version.shared += 1

    def failed(self, now: float, number: int, custom_id: str, failure: Failure, prompt: str, since: float) -> None:
        """A row failed after it was sent."""
        self.refused(now, custom_id, failure.kind, failure.message)
        self._attempts(failure.attempts)
        tier = failure.attempts[-1].tier if failure.attempts else ""
        if since:
            took = sum(attempt.duration_s for attempt in failure.attempts)
            self._slow(now - since, number, custom_id, tier, len(failure.attempts), took, failure.kind)
        if prompt:
            version = self._version(prompt)
            version.rows += 1
            version.failed += 1
            version.refused_replies += failure.refused_replies
            version.tokens += failure.cost.tokens
            version.usd_micros += failure.cost.usd_micros

    def refused(self, now: float, custom_id: str, code: str, message: str) -> None:
        """A row failed that was not sent."""
        self._slice(now).failed += 1
        if code not in self.examples and len(self.examples) < CODES:
            self.examples[code] = Example(custom_id[:TEXT], message[:TEXT])

    def put_off(self, attempts: Iterable[Attempt]) -> None:
        """Calls of a row that is not done but waits for budget."""
        self._attempts(attempts)

    # ------------------------------------------------------------------ what else was seen

    def saw(self, now: float, tier: str, word: str, detail: str = "") -> None:
        """A tier's condition; an empty word while it is well."""
        at = self._at(now)
        period = self._unwell.get(tier)
        if period is not None:
            period.ended = at
            if period.word == word:
                return
            del self._unwell[tier]
        if word:
            if len(self.periods) >= PERIODS:
                self.periods_left_out += 1
                return
            self._unwell[tier] = Period(tier, word, detail[:TEXT], at, at)
            self.periods.append(self._unwell[tier])

    def event(self, now: float, text: str) -> None:
        self.events.append((self._at(now), text[: 2 * TEXT]))
        self.events_in_all += 1

    # ------------------------------------------------------------------ what came of it

    def slowest(self) -> list[Slow]:
        return sorted(self._slowest, reverse=True)

    # ------------------------------------------------------------------

    def _at(self, now: float) -> float:
        at = max(0.0, now - self._began)
        self.ended = max(self.ended, at)
        return at

    def _slice(self, now: float) -> Slice:
        at = self._at(now)
        while at >= self.width_s * BINS:
            for first, second in zip(self.slices[::2], self.slices[1::2], strict=False):
                first.join(second)
            self.slices = self.slices[::2]
            self.width_s *= 2
        index = int(at / self.width_s)
        while len(self.slices) <= index:
            self.slices.append(Slice())
        return self.slices[index]

    def _attempts(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            if attempt.kind in NOT_A_CALL:
                continue
            tier = self.tiers.get(attempt.tier)
            if tier is None:
                tier = self.tiers[attempt.tier] = TierSums()
            tier.calls += 1
            if attempt.kind == "ok":
                tier.latencies.add(attempt.duration_s)
            elif attempt.kind != "cancelled":
                tier.failed += 1
            tokens, usd_micros = attempt.booked
            tier.tokens += tokens
            tier.usd_micros += usd_micros

    def _slow(
        self,
        seconds: float,
        number: int,
        custom_id: str,
        tier: str,
        attempts: int,
        at_endpoint_s: float,
        outcome: str,
    ) -> None:
        slowest = self._slowest
        if len(slowest) < SLOWEST:
            heapq.heappush(slowest, Slow(seconds, number, custom_id[:TEXT], tier, attempts, at_endpoint_s, outcome))
        elif seconds > slowest[0].seconds:
            row = Slow(seconds, number, custom_id[:TEXT], tier, attempts, at_endpoint_s, outcome)
            heapq.heapreplace(slowest, row)

    def _version(self, prompt: str) -> VersionSums:
        version = self.versions.get(prompt)
        if version is None:
            name = prompt if len(self.versions) < VERSIONS else "other versions"
            version = self.versions.setdefault(name, VersionSums())
        return version
