"""The sums over all sources: what each has last told of its life, and nothing twice.

A source's totals only grow and carry a sequence, so to take them in is to keep the newest: lost, repeated and reordered
messages change nothing, and the sums never fall. What is kept can be stored and loaded, so that sums outlive their
observer; a source that lives on tells everything again anyway.

A source that has said its last word is added to those that ended before it: a runtime that is up for months serves many
short programs, and must not keep each of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from actors.events import Distribution, Key, Totals

__all__ = ["Sums"]

ENDED = 10_000
"""So many names of sources that ended are known, the last ones: a late message from one of them is no new source."""


class Sums:
    """One an observer."""

    def __init__(self) -> None:
        self._sources: dict[str, Totals] = {}
        self._past = Totals("", 0, {}, {})
        """Of all sources that ended together; its sequence is their number."""
        self._ended: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._sources) + self._past.sequence

    def take(self, totals: Totals, last: bool = False) -> bool:
        """Take in what a source tells; False when something newer is known of it. `last`: it will tell no more."""
        known = self._sources.get(totals.source)
        if totals.source in self._ended or (known is not None and known.sequence >= totals.sequence):
            return False
        if last:
            self._sources.pop(totals.source, None)
            self._past = _plus(self._past, totals)
            self._end(totals.source)
        else:
            self._sources[totals.source] = totals
        return True

    def _end(self, source: str) -> None:
        self._ended[source] = None
        if len(self._ended) > ENDED:
            del self._ended[next(iter(self._ended))]

    def _all(self) -> Iterable[Totals]:
        return (self._past, *self._sources.values())

    def counters(self) -> dict[Key, int]:
        sums: dict[Key, int] = {}
        for totals in self._all():
            for key, count in totals.counters.items():
                sums[key] = sums.get(key, 0) + count
        return sums

    def distributions(self) -> dict[Key, Distribution]:
        sums: dict[Key, Distribution] = {}
        for totals in self._all():
            for key, distribution in totals.distributions.items():
                before = sums.get(key)
                sums[key] = distribution if before is None else before.plus(distribution)
        return sums

    def plain(self) -> dict[str, Any]:
        """All of it as JSON knows values."""
        return {
            "sources": [
                [
                    totals.source,
                    totals.sequence,
                    [[*key, count] for key, count in totals.counters.items()],
                    [[list(key), *distribution] for key, distribution in totals.distributions.items()],
                ]
                for totals in self._all()
            ],
            "ended": list(self._ended),
        }

    def load(self, plain: Mapping[str, Any]) -> None:
        """Take in what `plain` gave. Raises ValueError, TypeError or KeyError for anything else."""
        past, *sources = map(_totals, plain["sources"])
        self._past = past
        for totals in sources:
            self.take(totals)
        for source in plain["ended"]:
            self._end(str(source))


def _plus(one: Totals, other: Totals) -> Totals:
    """Both together, under the name of the first."""
    counters, distributions = dict(one.counters), dict(one.distributions)
    for key, count in other.counters.items():
        counters[key] = counters.get(key, 0) + count
    for key, distribution in other.distributions.items():
        before = distributions.get(key)
        distributions[key] = distribution if before is None else before.plus(distribution)
    return Totals(one.source, one.sequence + 1, counters, distributions)


def _totals(plain: Any) -> Totals:
    source, sequence, counters, distributions = plain
    return Totals(
        str(source),
        int(sequence),
        {tuple(map(str, key)): int(count) for *key, count in counters},
        {
            tuple(map(str, key)): Distribution(
                tuple(map(int, counts)),
                int(sum_us),
                tuple(None if each is None else (str(each[0]), float(each[1])) for each in exemplars),
            )
            for key, counts, sum_us, exemplars in distributions
        },
    )
