"""Who scrapes regularly, and when the next scrape of each is due: so that a job that ends is seen to the end.

No clock: `now` is an argument, in seconds. Scrapers are told apart by what they call themselves.
"""

from collections import deque
from itertools import pairwise

__all__ = ["Scrapers"]

MOST = 16
LATE = 1.2
"""A scrape may come so much later than the longest pause before it."""
LATE_S = 0.5


class Scrapers:
    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}

    def scraped(self, name: str, now: float) -> None:
        """A scraper has come."""
        times = self._seen.pop(name, None) or deque(maxlen=3)
        times.append(now)
        self._seen[name] = times  # the last to come is the last to be forgotten
        if len(self._seen) > MOST:
            del self._seen[next(iter(self._seen))]

    def due(self, now: float, most_s: float, open_since: float = 0.0) -> dict[str, float]:
        """Those whose next scrape should come within `most_s`, and by when it will have: who came once is not regular.

        Before `open_since` nobody could come.
        """
        found = {}
        for name, times in self._seen.items():
            if len(times) > 1:
                by = (
                    max(times[-1], open_since)
                    + LATE * max(later - earlier for earlier, later in pairwise(times))
                    + LATE_S
                )
                if now < by <= now + most_s:
                    found[name] = by
        return found

    def plain(self) -> dict[str, list[float]]:
        """For a file. The clock is the machine's own, so that another process may go on with it."""
        return {name: list(times) for name, times in self._seen.items()}

    def load(self, plain: dict[str, list[float]]) -> None:
        self._seen = {str(name): deque(map(float, times), maxlen=3) for name, times in plain.items()}

    def waits(self, due: dict[str, float], since: float, now: float) -> float:
        """For how long to go on waiting for those of `due` that have not come since `since`; 0: for nobody."""
        late = (name for name in due if name in self._seen and self._seen[name][-1] < since)
        return max([0.0, *(due[name] - now for name in late)])
