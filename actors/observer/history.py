"""The last minutes, as a page draws them: what each tier did in every `EVERY_S`, and the prompt versions side by side.

Taken from the observer's sums, whose counters only grow: a sample is the difference to the one before. Bounded: `KEPT`
samples of `MOST_TIERS` tiers. Pure: `now` is Unix seconds.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from actors.events import BOUNDS_S, Distribution, Key

__all__ = ["EVERY_S", "KEPT", "History", "prompts", "quantile"]

EVERY_S = 2.0
KEPT = 150
MOST_TIERS = 50
NONE = (0,) * (len(BOUNDS_S) + 1)


class _Sums(NamedTuple):
    """A tier's counters at one moment."""

    answered: int = 0
    failed: int = 0
    refused: int = 0
    tokens: int = 0
    usd_micros: int = 0


class _Sample(NamedTuple):
    """What a tier did since the sample before, by the second where that makes sense."""

    answered_per_s: float
    failed_per_s: float
    refused_per_s: float
    tokens_per_s: float
    usd_micros: int
    """Since the observer began."""
    p50_s: float | None
    p95_s: float | None
    """Of the answers of the tier's model; None: there were none."""


class History:
    """One an observer."""

    def __init__(self) -> None:
        self._at: deque[float] = deque(maxlen=KEPT)
        self._samples: dict[str, deque[_Sample]] = {}
        self._sums: dict[str, _Sums] = {}
        self._counts: dict[str, tuple[int, ...]] = {}

    def due(self, now: float) -> bool:
        return not self._at or now - self._at[-1] >= EVERY_S or now < self._at[-1]

    def take(
        self,
        counters: Mapping[Key, int],
        distributions: Mapping[Key, Distribution],
        models: Mapping[str, str],
        now: float,
    ) -> None:
        """Take a sample. `models`: of each tier."""
        past_s = min(60.0, max(0.001, now - self._at[-1])) if self._at else EVERY_S
        sums, counts = _by_tier(counters), _by_model(distributions)
        for name in list(models)[:MOST_TIERS]:
            new, model = sums.get(name, _Sums()), models[name]
            old = self._sums.get(name, new)
            ended = tuple(
                after - before
                for after, before in zip(counts.get(model, NONE), self._counts.get(model, NONE), strict=True)
            )
            samples = self._samples.setdefault(name, deque(maxlen=KEPT))
            samples.append(
                _Sample(
                    (new.answered - old.answered) / past_s,
                    (new.failed - old.failed) / past_s,
                    (new.refused - old.refused) / past_s,
                    (new.tokens - old.tokens) / past_s,
                    new.usd_micros,
                    quantile(ended, 0.5),
                    quantile(ended, 0.95),
                )
            )
            self._sums[name] = new
        self._counts = counts
        self._at.append(now)

    def plain(self) -> dict[str, Any]:
        """Series of equal length, the newest last; a tier that came later has `None` before."""
        tiers = {}
        for name, samples in self._samples.items():
            missing: list[float | None] = [None] * (len(self._at) - len(samples))
            columns = zip(*samples, strict=True)
            tiers[name] = {
                field: missing + [_short(value) for value in column]
                for field, column in zip(_Sample._fields, columns, strict=True)
            }
        return {"at": [round(at, 1) for at in self._at], "tiers": tiers}


def prompts(counters: Mapping[Key, int]) -> list[dict[str, Any]]:
    """Prompt versions side by side, from their counters."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    fields = {"prompt_tokens": "tokens", "prompt_cost": "usd_micros", "structured_failures": "refused_answers"}
    for key, count in counters.items():
        field = "requests" if key[0] == "prompt_requests" else fields.get(key[0])
        if field is None:
            continue
        row = found.setdefault(
            (key[1], key[2]),
            {"prompt": key[1], "version": key[2], "requests": 0, "failed": 0}
            | dict.fromkeys(("tokens", "usd_micros", "refused_answers"), 0),
        )
        row[field] += count
        if field == "requests" and key[3] not in ("ok", "coalesced"):
            row["failed"] += count
    return [found[key] for key in sorted(found)]


def _by_tier(counters: Mapping[Key, int]) -> dict[str, _Sums]:
    found: dict[str, _Sums] = {}
    for key, count in counters.items():
        match key:
            case ("attempts", tier, kind):
                sums = found.get(tier, _Sums())
                found[tier] = sums._replace(
                    answered=sums.answered + count * (kind == "ok"),
                    failed=sums.failed + count * (kind not in ("ok", "rate_limited")),
                    refused=sums.refused + count * (kind == "rate_limited"),
                )
            case ("tier_tokens", tier, _):
                sums = found.get(tier, _Sums())
                found[tier] = sums._replace(tokens=sums.tokens + count)
            case ("tier_cost", tier):
                found[tier] = found.get(tier, _Sums())._replace(usd_micros=count)
            case _:
                pass
    return found


def _by_model(distributions: Mapping[Key, Distribution]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for key, each in distributions.items():
        if key[0] == "duration":
            found[key[1]] = tuple(map(sum, zip(found.get(key[1], NONE), each.counts, strict=True)))
    return found


def quantile(counts: Sequence[float], share: float) -> float | None:
    """Of a histogram with `BOUNDS_S`; None of nothing. Within a bucket as if its calls were spread evenly, as Prometheus has it; beyond the last bound, that bound."""
    total = sum(counts)
    if total <= 0:
        return None
    rank, below, low = share * total, 0.0, 0.0
    for count, bound in zip(counts, (*BOUNDS_S, BOUNDS_S[-1]), strict=True):
        if count and below + count >= rank:
            return low + (bound - low) * (rank - below) / count
        below, low = below + count, bound
    return BOUNDS_S[-1]


def _short(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else round(value, 4)
