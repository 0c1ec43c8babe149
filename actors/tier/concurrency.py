"""How many calls are kept in flight at one endpoint, found by whether more of them pay.

By Little's law calls in flight = answers per second * latency. So when some more calls in flight make each of them slower
by as much, they brought nothing: they wait in the endpoint's queue. What a step in the limit brought is

    pays = 1 - ln(latency after / latency before) / ln(limit after / limit before)      1: all of it, 0: nothing

and it is measured by our own steps, never against a latency of long ago: rows change in length, and two jobs at one
endpoint would take each other's queue for the way it is.

    doubling   a round at each limit; it goes on while a doubling pays ENDS_BELOW; then to the knee and a little ROOM
    steady     rests at the limit
    probing    every few seconds a step down by STEP for a round. It hardly cost anything (pays < LEAST): there was
               a queue, down to the knee. It cost nearly all of its share (pays > MOST): no queue, the limit grows

- Only rounds in which the limit was what held calls back count: not when calls were scarce, and not while paced.
- A round lasts until the mean of its latencies is known well enough. Logarithms: an outlier counts little.
- The limit moves over the time of a call, up or down, or the calls of a step (or the gap that it left) would stay together
  for ever, and wait for each other. What was sent meanwhile tells nothing.
- While the limit holds calls back they are spaced, a little closer than they end, as TCP's pacing does: else those that
  once began together would end and begin together ever after, and wait in the endpoint's queue beside idle slots.
- Callers who wait in person are let in while it doubles, whether rounds have ended or not.
- A failure begins the round anew: growth waits, and nothing shrinks. An overload (503, 529) takes KEPT, once a moment.

Pure: `now` is monotonic seconds, and the caller counts what is in flight.
"""

import math
from typing import Literal

__all__ = ["Concurrency"]

START = 20
CEILING = 4_096
UNFELT_S = 0.01
"""Is added to each latency: a queue of some milliseconds hurts nobody, and full pipes are cheaper for both sides."""
ENDS_BELOW = 0.5
ROOM = 1.1
"""Above the knee, so that no slot is ever without a call."""
STEP = 1.5
LEAST, MOST = 0.5, 0.7
SHRINKS = 1.3
GROWS, GROWS_FASTEST = 1.15, 2.0
"""Each growth in a row is a larger one."""
REST_S = 7.0
RESTS = 8.0
"""Times the length of the probe before: it costs a few hundredths of the throughput at most."""
SPACED = 1.1
"""Times the rate at which calls end, at most, are sent while the limit holds calls back."""
SPACED_FROM_S = 0.02
"""Faster calls are not worth a timer each."""
LATE_S, LATE = 0.005, 0.02
"""A call that is late (in seconds, or in latencies if that is more) does not delay those after it."""
KEPT = 0.7
"""Of the limit, when the endpoint says that it is overloaded."""
SURE = 0.05
"""Standard error of a round's mean logarithm that is good enough."""
ENOUGH = 400
"""Latencies that are enough in any case."""


class _Round:
    """Mean and spread of the logarithms of latencies, once `settle` calls of another limit have ended."""

    __slots__ = ("count", "mean", "settle", "squares")

    def __init__(self, settle: int) -> None:
        self.settle = settle
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0

    def add(self, latency_s: float) -> None:
        if self.settle > 0:
            self.settle -= 1
            return
        value = math.log(latency_s + UNFELT_S)
        self.count += 1
        off = value - self.mean
        self.mean += off / self.count
        self.squares += off * (value - self.mean)

    def done(self, least: int) -> bool:
        count = self.count
        return count >= least and (count >= ENOUGH or self.squares <= (SURE * count) ** 2)


class Concurrency:
    """The limit of one endpoint. A number in the configuration stays as it is."""

    def __init__(self, setting: Literal["auto"] | int) -> None:
        self._auto = setting == "auto"
        self._limit: int = START if setting == "auto" else setting
        self._stage: Literal["doubling", "steady", "probing"] = "doubling"
        self._round: _Round | None = None
        self._settle = self._limit
        self._before: tuple[int, float] | None = None
        """Limit and mean logarithm of the round to compare with."""
        self._probe_at = self._rest_until = 0.0
        self._growth = 1.0
        self._cut_at = float("-inf")
        self._from, self._moved_at, self._moves_s = self._limit, 0.0, 0.0
        """Where the last move of the limit began, when, and how long it takes."""
        self._ended_at = self._apart_s = 0.0
        """When a call ended last, and how far apart they end while the limit holds calls back."""
        self._full_at = float("-inf")
        """When the limit last held calls back."""
        self._next_at = 0.0
        """When the next call may be sent for the sake of spacing."""

    @property
    def limit(self) -> int:
        return self._limit

    def ready_at(self, in_flight: int, now: float) -> float | None:
        """When there is room for another call; None: once one has ended."""
        start, limit = self._from, self._limit
        if in_flight < min(start, limit):
            return self._next_at if self._spaces(now) else now
        if in_flight >= max(start, limit):
            return None
        # In between: from when on the moving limit is above what is in flight, or until when.
        at = self._moved_at + self._moves_s * (in_flight + (limit > start) - start) / (limit - start)
        return at if limit > start else now if now < at else None

    def sent(self, now: float) -> None:
        """A call is sent."""
        if self._spaces(now):
            late_s = max(LATE_S, LATE * self._apart_s * self._limit)
            self._next_at = max(self._next_at, now - late_s) + self._apart_s / SPACED

    def _spaces(self, now: float) -> bool:
        latency_s = self._apart_s * self._limit  # Little's law
        return latency_s > SPACED_FROM_S and now < self._full_at + latency_s

    def succeeded(self, in_flight: int, latency_s: float, now: float) -> None:
        """A call succeeded while `in_flight` calls (this one included) were under way."""
        if not self._auto:
            return
        self.ended(now)
        if in_flight >= self._limit:
            self._full_at = now
        elif not self._spaces(now):
            self._round = None
            return
        round_ = self._round
        if round_ is None:
            round_ = self._round = _Round(self._settle)
        round_.add(latency_s)
        if round_.done(self._limit):
            self._end(round_, now)

    def ended(self, now: float) -> None:
        """A call ended, well or not."""
        if now < self._full_at + max(SPACED_FROM_S, self._apart_s * self._limit):
            self._apart_s += (now - self._ended_at - self._apart_s) / (2 * self._limit)
        self._ended_at = now

    def overloaded(self, sent_at: float, now: float) -> None:
        """The endpoint says that it has too much to do. Those sent before the last cut say nothing new."""
        if self._auto and sent_at >= self._cut_at:
            self._cut_at = now
            self._stage, self._rest_until, self._growth = "steady", now + REST_S, 1.0
            self._settle = self._limit
            self._limit = self._from = max(1, int(self._limit * KEPT))
            self._round = None

    def wanted(self, calls: int) -> None:
        """So many calls that cannot wait have waited. While the endpoint's knee is not known they are let in, twice as many
        as before at most: long answers would teach it too late, since a round takes as long as they do."""
        if self._auto and self._stage == "doubling":
            self._limit = self._from = self._settle = min(CEILING, self._limit + min(calls, self._limit))
            self._round = None

    def void(self) -> None:
        """Something else than the limit holds calls back, or the endpoint fails: this round tells nothing."""
        self._round = None

    def _end(self, round_: _Round, now: float) -> None:
        limit, mean = self._limit, round_.mean
        match self._stage:
            case "doubling":
                if limit >= CEILING:
                    self._rest(limit, REST_S, mean, now)
                elif self._before is not None and self._pays(limit, mean) < ENDS_BELOW:
                    self._rest(max(START, limit * ROOM * math.exp(self._before[1] - mean)), 0.0, mean, now)
                else:
                    self._before = (limit, mean)
                    self._set(2.0 * limit, mean, now)
            case "steady":
                if now < self._rest_until:
                    if round_.count >= ENOUGH:  # a fresh one, without settling: nothing has changed
                        self._round = _Round(0)
                elif limit == 1:
                    self._rest(2, REST_S, mean, now)
                else:
                    self._before = (limit, mean)
                    self._stage, self._probe_at = "probing", now
                    self._set(limit / STEP, mean, now)
            case "probing":
                assert self._before is not None
                before, slower = self._before
                pays = self._pays(limit, mean)
                rest_s = max(REST_S, RESTS * (now - self._probe_at))
                if pays > MOST:
                    self._growth = min(GROWS_FASTEST, self._growth * GROWS)
                    self._rest(max(before + 1, before * self._growth), 0.0, mean, now)
                elif pays < LEAST:
                    self._growth = 1.0
                    self._rest(max(before / SHRINKS, before * ROOM * math.exp(mean - slower)), rest_s, mean, now)
                else:
                    self._growth = 1.0
                    self._rest(before, rest_s, mean, now)

    def _pays(self, limit: int, mean: float) -> float:
        """How much the step between the round before and this one brings, or would."""
        assert self._before is not None
        return 1.0 - (mean - self._before[1]) / math.log(limit / self._before[0])

    def _rest(self, limit: float, rest_s: float, mean: float, now: float) -> None:
        self._stage = "steady"
        self._rest_until = now + rest_s
        self._set(limit, mean, now)

    def _set(self, to: float, mean: float, now: float) -> None:
        limit = max(1, min(CEILING, round(to)))
        self._settle = limit + self._limit
        self._from, self._moved_at = self._limit, now
        self._moves_s = max(0.0, math.exp(mean) - UNFELT_S)
        self._limit = limit
        self._round = None
