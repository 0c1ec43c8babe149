"""How many calls a second go to one endpoint: what it says in its headers, and what its refusals teach.

An endpoint that was never refused and says nothing is not paced: `rate` is None. The first refusal begins the search, a
pace that doubles each second from what was sent in the last one. The next one ends it, and each refusal from then on
is an episode, as in CUBIC (RFC 9438) and the adaptive mode of the AWS SDKs:

    pace    at the refusal: P. It falls to KEPT * P (when the last cut was just before: CUT_AGAIN * P),
            returns to PEAK * P within RETURN_S, first fast, then slowly, and probes beyond it, first slowly, then fast.

So most of the time goes by just below what was refused, and probes are gentle and rare: about one in ten seconds.

- The refusals of one moment are one episode: those of calls that were sent before the cut say nothing new.
- Actors of one tier hear of each other's episodes and fall likewise, without the pause: else one goes on for what another has
  just left, all learn the whole limit as their own, and are refused in turns.
- The pace ages by use: a call adds what it takes of a second. Pauses, idle times and other limits make it no faster.
- Larger paces grow relatively slower (by the root), and are refused more often: two who share meet.
- After a server error it does not grow for HOLD_S.
- A pace that has held nothing back for FORGET_S is forgotten.
- Refusals that a slower pace does not make rarer have other reasons. When CUTS of them, none later than RETURN_S, have slowed it
  down to HALF and the calls answered between two have not become more, it is forgotten and none is learned for CHANCE_S,
  then twice as long. Below a rate limit nothing is refused, so at a real one the calls in between grow without bound;
  unless others fill up what is left, so the chance ends when WORSE times as many are refused to one answered as before.

Pure: `now` is monotonic seconds.
"""

import math
from collections import deque
from typing import NamedTuple

from actors.tier.advice import Advice

__all__ = ["Pace"]

KEPT = 0.85
CUT_AGAIN = 0.6
PEAK = 0.95
RETURN_S = 5.0
DOUBLE_S = 8.0
"""So long after the return, the pace is twice its peak, at `REFERENCE_PER_S`."""
REFERENCE_PER_S = 400.0
SOON_S = 1.0
MOMENT_S = 0.2
"""A cut needs a moment to show; refusals within it are of the same one."""
HEED_AGAIN_S = 0.5
"""Word of another's refusals within so much of each other, or of an own one, is of the same one."""
FEW_PER_S = 4.0
"""Below this pace all of it goes slower, so that an episode keeps many calls for one refusal."""
SLACK_S = 0.025
"""What timers are late is caught up with, up to so much."""
HOLD_S = 1.0
FORGET_S = 30.0
LOOK_S = 1.0
IDLE = 0.03
SHUT_FIRST_S, SHUT_MOST_S = 0.5, 10.0
"""An endpoint that refuses everything without a word is asked after pauses that double from the one to the other."""
CUTS = 8
HALF = 0.5
MORE = 1.5
"""Times as many calls between refusals as before are taken for an effect of the slower pace."""
CHANCE_S, CHANCE_MOST_S = 30.0, 480.0
WORSE, WORSE_CALLS = 8.0, 50
"""Judged from so many calls on."""
LEAST_PER_S, MOST_PER_S = 4.0, 1e6
"""Where the search begins at least, and where no pace matters any more."""


class _Cut(NamedTuple):
    rate: float
    """The pace that was refused."""
    answered: int
    """Calls that succeeded since the cut before."""
    refused: int
    """And those that did not; the refusals of one moment are one cut."""


class Pace:
    """The pace of one endpoint's calls."""

    def __init__(self) -> None:
        self.advice = Advice()
        self._learned: float | None = None
        self._searching = False
        self._low = self._peak = self._age_s = 0.0
        self.cut_at = float("-inf")
        """When a refusal last slowed it down."""
        self._heeded_at = self._episode_at = float("-inf")
        self._resumes_at = self._bound_at = self._hold_until = float("-inf")
        self._answered = 1
        """Calls that succeeded since the last cut."""
        self._cuts: deque[_Cut] = deque(maxlen=CUTS)
        self._refused = 0
        """And those that were refused."""
        self._chance_s, self._chance_until = CHANCE_S, float("-inf")
        self._before_chance = _Cut(0.0, 0, 0)
        self._tried = 0
        """Calls that were sent in the chance: answers may take long, and refusals come at once."""
        self._shut_s = 0.0
        self.binds = False
        self._idle_s = 0.0
        self._look_at = self._free_at = 0.0
        self._began: float | None = None
        self._second = float("-inf")
        self._sent_now = self._sent_before = 0
        """Calls sent in the second that began at `_second`, and in the one before."""

    @property
    def rate(self) -> float | None:
        """Calls per second; None: not paced."""
        learned, told = self._learned, self.advice.rate
        if learned is None or told is None:
            return learned or told
        return min(learned, told)

    def ready_at(self, now: float) -> float:
        """When the next call may go, at most `now`: at once."""
        if self._learned is None and self.advice.rate is None:
            return now
        return self._free_at

    def sent(self, now: float) -> None:
        rate = self.rate
        if self._learned is None:
            self._tried += 1
            self._count(now)
        if rate is None:
            return
        took_s = 1.0 / rate
        idle_s = now - SLACK_S - self.advice.burst_s - self._free_at
        if idle_s > 0:
            self._idle_s += idle_s
            self._free_at += idle_s
        self._free_at += took_s
        if now >= self._look_at:
            self._look(now)
        if self._learned is not None and now >= self._hold_until:
            self._age_s += took_s
            self._learned = min(MOST_PER_S, self._aged())

    def _look(self, now: float) -> None:
        """Once a second: whether the pace was used up, and so was what held calls back."""
        self.binds = self._idle_s < IDLE * (LOOK_S + now - self._look_at)
        if self.binds:
            self._bound_at = now
        elif now - self._bound_at > FORGET_S:
            self._forget()
        self._idle_s, self._look_at = 0.0, now + LOOK_S

    def succeeded(self) -> None:
        self._answered += 1
        self._shut_s = 0.0

    def failed(self, now: float) -> None:
        self._hold_until = now + HOLD_S

    def refused(self, retry_after_s: float, sent_at: float, now: float) -> float:
        """A call that was sent at `sent_at` was refused; returns until when nothing should be sent."""
        until = now + retry_after_s
        self._refused += 1
        again = sent_at < self._resumes_at or now < self._episode_at + MOMENT_S
        if now < self._chance_until and self._worse():
            self._chance_until, self._learned, again = now, self._before_chance.rate, False
        if again:
            if retry_after_s:  # else each refusal in a dense row of them would excuse the next
                self._resumes_at = max(self._resumes_at, until)
        else:
            if not self._answered and not retry_after_s:
                self._shut_s = min(SHUT_MOST_S, max(SHUT_FIRST_S, 2.0 * self._shut_s))
                until = now + self._shut_s
            self._cut(now)
            self._resumes_at = until
        self._free_at = max(self._free_at, self._resumes_at)
        return self._resumes_at

    def heed(self, at: float, now: float) -> None:
        """Another actor that calls the same endpoint was slowed down by a refusal at `at`: both are too fast together.

        Nothing was refused here, so nothing pauses. Told again, it does nothing."""
        learned = self._learned
        if learned is None or at <= max(self.cut_at, self._heeded_at) + HEED_AGAIN_S:
            return
        self._heeded_at = now
        self._begin(KEPT * learned, PEAK * learned)

    def _cut(self, now: float) -> None:
        learned = self._learned
        if learned is not None and self._answered:
            if self._age_s > RETURN_S:
                self._cuts.clear()
            self._cuts.append(_Cut(learned, self._answered, self._refused))
            if self._in_vain():
                answered, refused = sum(cut.answered for cut in self._cuts), sum(cut.refused for cut in self._cuts)
                self._before_chance = _Cut(learned, answered, refused)
                self._forget()
                self._chance_until = now + self._chance_s
                self._chance_s = min(CHANCE_MOST_S, 2.0 * self._chance_s)
                self._answered = self._refused = self._tried = 0
        if now < self._chance_until:
            self._answered, self._episode_at = 0, now
            return
        if learned is None:
            recent = self._sent_now + self._sent_before * max(0.0, 1.0 - (now - self._second))
            peak = max(LEAST_PER_S, recent)
            searching = self._began is None or now - self._began < SOON_S
            self._begin(peak if searching else KEPT * peak, peak, searching)
        elif self._answered:
            self._begin(learned * (CUT_AGAIN if now - self._resumes_at < SOON_S else KEPT), PEAK * learned)
        else:
            self._begin(self._low, self._peak, self._searching)
        self._answered = self._refused = 0
        self.cut_at = self._episode_at = self._bound_at = now
        self._free_at = now + 1.0 / self._low

    def _begin(self, low: float, peak: float, searching: bool = False) -> None:
        """Go on from `low`: to `peak` and slowly beyond it, or doubling."""
        self._learned = self._low = low
        self._peak, self._searching, self._age_s = peak, searching, 0.0

    def _in_vain(self) -> bool:
        """Whether the last cuts slowed the calls down and left the refusals as frequent as they were."""
        cuts = list(self._cuts)
        if len(cuts) < CUTS or cuts[-1].rate > HALF * cuts[0].rate:
            return False
        before, after = (sum(cut.answered for cut in half) for half in (cuts[: CUTS // 2], cuts[CUTS // 2 :]))
        return after <= MORE * before

    def _worse(self) -> bool:
        """Whether a chance was given in vain: without a pace far more is refused than with one."""
        _, answered, refused = self._before_chance
        return self._tried >= WORSE_CALLS and self._refused * answered > WORSE * refused * (self._tried - self._refused)

    def _forget(self) -> None:
        self._learned = None
        self._cuts.clear()

    def _aged(self) -> float:
        """The pace at its age."""
        if self._searching:
            return self._low * math.pow(2.0, min(self._age_s, 30.0))
        age_s = self._age_s / max(1.0, FEW_PER_S / self._peak)
        if age_s < RETURN_S:
            return self._peak - (self._peak - self._low) * (1.0 - age_s / RETURN_S) ** 3
        double_s = DOUBLE_S * max(0.4, math.sqrt(self._peak / REFERENCE_PER_S))
        return self._peak * (1.0 + ((age_s - RETURN_S) / double_s) ** 3)

    def _count(self, now: float) -> None:
        if self._began is None:
            self._began = now
        since_s = now - self._second
        if since_s >= 1.0:
            self._sent_before = self._sent_now if since_s < 2.0 else 0
            self._sent_now = 0
            self._second = self._second + 1.0 if since_s < 2.0 else now
        self._sent_now += 1
