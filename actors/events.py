"""The facts that metrics are made of, and the tally that adds them up where results arrive.

    router --Result(attempts)--> door: Tally.request(...) -> Totals, once a second -> observer (actors/observer)

A request's attempts travel on its own result (`messages.Attempt`), and the door that takes the result counts them: a
batch's driver counts a row together with the line it writes. So a row is counted exactly when it is answered, and no
death of a router, tier, budget or coalescer can take a count away or make it twice. What no door ever heard of, the
attempts that died with their router, is in no counter here; the ledger books it as unknown.

A tally only grows, and what it sends is always all of it: a message that is lost, repeated or late changes nothing, and
nothing has to be kept until it is acknowledged. Amounts are whole (micro-dollars, microseconds), so sums are exact.

Labels are bounded: tiers, models, kinds, paths, prompt versions. A text of a user's (a custom_id, a prompt, an error's
message) is never one. Recording a request of one attempt costs about two microseconds.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from actors.messages import Attempt

__all__ = ["BOUNDS_S", "NONE", "NOT_A_CALL", "Distribution", "Key", "Tally", "Totals"]

Key = tuple[str, ...]
"""A metric of the table in actors/observer/metrics.py, by its short name, and the values of its labels in order."""
Exemplar = tuple[str, float]
"""Request id and seconds."""

BOUNDS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Upper bounds of the buckets; OpenTelemetry advises these for the duration of a model's operation."""
NONE = "none"
"""The label of what never came to a tier, or of a row whose tier is not known."""
NOT_A_CALL = frozenset({"budget_exceeded"})
"""Kinds of attempts that ended before anything was sent."""
PER_MICRO = 1_000_000
MOST_PROMPTS = 1_000
"""Prompt versions beyond these are counted together."""


class Distribution(NamedTuple):
    """A histogram: how many fell into each bucket (the last has no bound), their sum, one example of each bucket."""

    counts: tuple[int, ...]
    sum_us: int
    exemplars: tuple[Exemplar | None, ...]

    def plus(self, other: "Distribution") -> "Distribution":
        return Distribution(
            tuple(map(sum, zip(self.counts, other.counts, strict=True))),
            self.sum_us + other.sum_us,
            tuple(theirs or ours for ours, theirs in zip(self.exemplars, other.exemplars, strict=True)),
        )


class Totals(NamedTuple):
    """Everything that one source has counted in its life. Of two of one source the one with the larger sequence holds."""

    source: str
    """Unique for ever: a process that begins anew has a new one."""
    sequence: int
    counters: dict[Key, int]
    distributions: dict[Key, Distribution]


class _Histogram:
    __slots__ = ("counts", "exemplars", "sum_us")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_us = 0
        self.exemplars: list[Exemplar | None] = [None] * (len(BOUNDS_S) + 1)

    def observe(self, seconds: float, request_id: str) -> None:
        bucket = bisect_left(BOUNDS_S, seconds)
        self.counts[bucket] += 1
        self.sum_us += int(seconds * PER_MICRO)
        self.exemplars[bucket] = (request_id, seconds)


class _Tier:
    """What is counted of one tier on every row, as plain attributes: a key for each would cost more than the counting."""

    __slots__ = ("booked_usd_micros", "by_path", "completion_tokens", "kinds", "model", "name", "prompt_tokens")

    def __init__(self, name: str, model: str) -> None:
        self.name, self.model = name, model
        self.kinds: dict[str, int] = {}
        self.by_path: dict[str, _Histogram] = {}
        self.prompt_tokens = self.completion_tokens = self.booked_usd_micros = 0


class Tally:
    """Counts what ends at one door. `models`: the model of each tier, by the tier's name."""

    def __init__(self, source: str, models: Mapping[str, str]) -> None:
        self.source = source
        self._sequence = 0
        self._models = models
        self._tiers: dict[str, _Tier] = {}
        self._requests: dict[tuple[str, str], int] = {}
        self._durations: dict[str, _Histogram] = {}
        self._rare: dict[Key, int] = {}
        self._rarer: dict[Key, _Histogram] = {}
        self._prompts: set[str] = set()
        # Told as nought from the beginning: what Prometheus first sees of a counter is no increase to it.
        for name in models:
            self._tier(name)

    def request(
        self,
        tier: str,
        outcome: str,
        attempts: Iterable[Attempt] = (),
        path: str = "",
        prompt: str = "",
        request_id: str = "",
        seconds: float | None = None,
        checked: bool = False,
    ) -> None:
        """A request ended. `outcome`: ok, coalesced, or the code of its error; `prompt` is `name@version`.

        `seconds`: from the door to the answer. `request_id` is one of ours, not the caller's custom_id. `checked`: its
        answers were held against a schema.
        """
        requests, key = self._requests, (tier, outcome)
        requests[key] = requests.get(key, 0) + 1
        if seconds is not None:
            histogram = self._durations.get(outcome)
            if histogram is None:
                histogram = self._durations[outcome] = _Histogram()
            histogram.observe(seconds, request_id)
        if prompt:
            self.add(("prompt_requests", *self._version(prompt), outcome), 1)
        if attempts:
            self.attempts(attempts, path, prompt, request_id, checked)

    def attempts(
        self,
        attempts: Iterable[Attempt],
        path: str = "",
        prompt: str = "",
        request_id: str = "",
        checked: bool = False,
    ) -> None:
        """Attempts of a request that ended, or that was put off."""
        for attempt in attempts:
            kind = attempt.kind
            if kind in NOT_A_CALL:
                continue
            tier = self._tiers.get(attempt.tier) or self._tier(attempt.tier)
            tier.kinds[kind] = tier.kinds.get(kind, 0) + 1
            if kind == "ok":
                histogram = tier.by_path.get(path)
                if histogram is None:
                    histogram = tier.by_path[path] = _Histogram()
                histogram.observe(attempt.duration_s, request_id)
                if checked:
                    self.add(("structured_answers", *self._version(prompt), tier.name), 1)
                if attempt.first_token_s:
                    self._observe(("first_token", tier.model), attempt.first_token_s, request_id)
                if attempt.per_token_s:
                    self._observe(("per_token", tier.model), attempt.per_token_s, request_id)
                if attempt.malformed_events:
                    self.add(("malformed_events", tier.name), attempt.malformed_events)
            tokens, usd_micros = attempt.booked
            if tokens or usd_micros:
                used = attempt.prompt_tokens + attempt.completion_tokens
                tier.prompt_tokens += attempt.prompt_tokens
                tier.completion_tokens += attempt.completion_tokens
                tier.booked_usd_micros += usd_micros
                if prompt:
                    version = self._version(prompt)
                    self.add(("prompt_tokens", *version), tokens)
                    self.add(("prompt_cost", *version), usd_micros)
                if tokens > used:  # what nobody saw the usage of is booked whole
                    self.add(("unknown_tokens", tier.name), tokens - used)
                    self.add(("unknown_cost", tier.name), usd_micros)
                if attempt.overrun_tokens or attempt.overrun_usd_micros:
                    self.add(("overrun_tokens", tier.name), attempt.overrun_tokens)
                    self.add(("overrun_cost", tier.name), attempt.overrun_usd_micros)
            if attempt.misfit:
                self.misfit(prompt, tier.name)

    def misfit(self, prompt: str, tier: str) -> None:
        """An answer of the tier does not satisfy its request's schema."""
        self.add(("structured_failures", *self._version(prompt), tier), 1)

    def _observe(self, key: Key, seconds: float, request_id: str) -> None:
        histogram = self._rarer.get(key)
        if histogram is None:
            histogram = self._rarer[key] = _Histogram()
        histogram.observe(seconds, request_id)

    def add(self, key: Key, amount: int) -> None:
        """Add to any other counter: for what is rare."""
        self._rare[key] = self._rare.get(key, 0) + amount

    def totals(self) -> Totals:
        """All that was counted so far."""
        self._sequence += 1
        counters = dict(self._rare)
        distributions: dict[Key, Distribution] = {}

        def add(key: Key, amount: int) -> None:
            counters[key] = counters.get(key, 0) + amount

        for (name, outcome), count in self._requests.items():
            add(("requests", name, outcome), count)
            if outcome == "coalesced":
                add(("coalesced",), count)
            elif outcome == "runaway_loop":
                add(("runaway",), count)
        for tier in self._tiers.values():
            for kind, count in tier.kinds.items():
                add(("attempts", tier.name, kind), count)
            add(("tokens", tier.model, "prompt"), tier.prompt_tokens)
            add(("tokens", tier.model, "completion"), tier.completion_tokens)
            add(("cost", tier.model), tier.booked_usd_micros)
            add(("tier_tokens", tier.name, "prompt"), tier.prompt_tokens)
            add(("tier_tokens", tier.name, "completion"), tier.completion_tokens)
            add(("tier_cost", tier.name), tier.booked_usd_micros)
            for path, histogram in tier.by_path.items():
                key = ("duration", tier.model, f"/v1{path}")
                made = _made(histogram)
                before = distributions.get(key)
                distributions[key] = made if before is None else before.plus(made)
        distributions |= {("request_duration", outcome): _made(each) for outcome, each in self._durations.items()}
        distributions |= {key: _made(each) for key, each in self._rarer.items()}
        return Totals(self.source, self._sequence, counters, distributions)

    def _tier(self, name: str) -> _Tier:
        tier = self._tiers[name] = _Tier(name, self._models.get(name, NONE))
        return tier

    def _version(self, prompt: str) -> tuple[str, str]:
        if prompt not in self._prompts:
            if len(self._prompts) >= MOST_PROMPTS:
                return "other", NONE
            self._prompts.add(prompt)
        name, _, version = prompt.partition("@")
        return name or NONE, version or NONE


def _made(histogram: _Histogram) -> Distribution:
    return Distribution(tuple(histogram.counts), histogram.sum_us, tuple(histogram.exemplars))
