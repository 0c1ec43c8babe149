"""The sums over all sources: what each has last told of its life, and nothing twice.

A source's totals only grow and carry a sequence, so to take them in is to keep the newest: lost, repeated and reordered
messages change nothing, and the sums never fall. What is kept can be stored and loaded, so that sums outlive their
observer; a source that lives on tells everything again anyway.
"""

from collections.abc import Iterable
from typing import Any

from actors.events import Distribution, Key, Totals

__all__ = ["Sums"]


class Sums:
    """One an observer."""

    def __init__(self) -> None:
        self._sources: dict[str, Totals] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def take(self, totals: Totals) -> bool:
        """Take in what a source tells; False when something newer is known of it."""
        known = self._sources.get(totals.source)
        if known is not None and known.sequence >= totals.sequence:
            return False
        self._sources[totals.source] = totals
        return True

    def counters(self) -> dict[Key, int]:
        sums: dict[Key, int] = {}
        for totals in self._sources.values():
            for key, count in totals.counters.items():
                sums[key] = sums.get(key, 0) + count
        return sums

    def distributions(self) -> dict[Key, Distribution]:
        sums: dict[Key, Distribution] = {}
        for totals in self._sources.values():
            for key, distribution in totals.distributions.items():
                before = sums.get(key)
                sums[key] = distribution if before is None else before.plus(distribution)
        return sums

    def plain(self) -> list[Any]:
        """All of it as JSON knows values."""
        return [
            [
                totals.source,
                totals.sequence,
                [[*key, count] for key, count in totals.counters.items()],
                [[list(key), *distribution] for key, distribution in totals.distributions.items()],
            ]
            for totals in self._sources.values()
        ]

    def load(self, plain: Iterable[Any]) -> None:
        """Take in what `plain` gave. Raises ValueError, TypeError or KeyError for anything else."""
        for source, sequence, counters, distributions in plain:
            self.take(
                Totals(
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
            )
