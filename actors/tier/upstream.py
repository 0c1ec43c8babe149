"""The endpoints of one tier as an actor of it sees them: each one's condition, and which of them takes the next call.

A tier with one `base_url` has one `Upstream`, a fleet that serves the same model has several, each with a breaker, a
capacity and marks of its own, so that one dead replica is taken out alone. Calls wait for the tier, not for an endpoint:
when one goes out, those that wait go to the others.

`Balancer.choose` says what happens to the next call: an endpoint that is due for a probe gets it (else nobody would ever
see that it is back); otherwise the one with fewer calls in flight of two drawn by chance, which balances nearly as well
as looking at all of them and does not send every actor of a tier to the same one.

Pure: `now` (monotonic seconds) and chance are arguments. The actor counts `in_flight`.
"""

from typing import Final, NamedTuple
from urllib.parse import urlsplit

from actors.kinds import KINDS
from actors.messages import Answer, Failure, Health, Refusal
from actors.settings import TierSettings
from actors.tier.breaker import Breaker, Outcome, Permit
from actors.tier.capacity import Capacity
from actors.tier.outage import Outage

__all__ = ["Balancer", "Busy", "Upstream"]

LEASE_S: Final = 5.0
"""A call that finds out whether an outage is over may take this much longer than an attempt before another does."""
FORBIDDEN = 403
HELD_S: Final = 1.0
"""When all that is left is held, another actor's probe will tell; look again so soon."""
MAX_WHY_CHARS = 160
TOLD_S = 0.25


class Busy(NamedTuple):
    """No call now, but one that waits will be taken: at `ready_at`, or (None) when a call in flight has ended."""

    ready_at: float | None


FULL = Busy(None)


HEARD_S = 1.0
"""More calls than the limit are let in only where something has been heard of so lately: not where all hang."""


class Upstream:
    """One endpoint's condition."""

    __slots__ = (
        "_lease_s",
        "_pause_s",
        "absent",
        "address",
        "breaker",
        "capacity",
        "cooling_since",
        "heard_at",
        "in_flight",
        "index",
        "last_refusal",
        "out",
        "served",
    )

    def __init__(self, index: int, base_url: str, settings: TierSettings) -> None:
        self.index = index
        """Its place among the tier's `base_url`s: the same in every actor of the tier."""
        self.address = _address(base_url)
        self.breaker = Breaker(settings.breaker)
        self.capacity = Capacity(settings.concurrency)
        self.in_flight = 0
        self.heard_at = float("-inf")
        """When it last answered, or said a part of a stream."""
        self.out: Outage | None = None
        """It refuses the key, or what it served before is not there any more."""
        self.absent: dict[str, Outage] = {}
        """By path, since a chat endpoint need not have embeddings."""
        self.served: set[str] = set()
        """Paths that have answered."""
        self._pause_s = settings.breaker.recovery_timeout_s
        self._lease_s = settings.timeout_s + LEASE_S
        self.cooling_since = 0.0
        self.last_refusal = ""

    def blocked_until(self, now: float) -> float:
        """When it may be asked, slots and pace aside; at most `now`: now."""
        breaker, pause = self.breaker, self._paused_until()
        return pause if breaker.state == "closed" else max(pause, breaker.retry_at(now))

    def probes(self, path: str, now: float) -> bool:
        """Whether a call that is admitted now finds out if an outage is over. It keeps the others away meanwhile."""
        if self.out is None and not self.absent:
            return False
        of_all = self.out is not None and self.out.probe(now, self._lease_s)
        absent = self.absent.get(path)
        return (absent is not None and absent.probe(now, self._lease_s)) or of_all

    def takes(self, permit: Permit, now: float, probe: bool = False) -> bool:
        """Whether a call that was admitted before may still be sent."""
        paused = (self.capacity.cooling_until if probe else self._paused_until()) > now
        return not paused and permit.generation == self.breaker.generation

    def lacks(self, path: str, now: float) -> tuple[float, str] | None:
        """Until when this endpoint is known not to have the path, and what it said."""
        known = self.absent.get(path) if self.absent else None
        return (known.until, known.reason) if known is not None and known.until > now else None

    def _paused_until(self) -> float:
        return max(self.capacity.cooling_until, self.out.until if self.out is not None else 0.0)

    def refusal(self, until: float, now: float) -> Refusal:
        cooling = until <= self._paused_until()
        return Refusal("cooling" if cooling else "open", max(0.0, until - now))

    def learn(self, done: Answer | Failure, path: str, sent_at: float, now: float, probe: bool = False) -> Outcome:
        """What came of a call, for the capacity and the marks; returns what the breaker is to make of it."""
        if probe and (isinstance(done, Answer) or KINDS[done.kind].fault == "request"):
            # Whoever reads requests has a key and a model. Answers that were under way when it went out say nothing.
            self.absent.pop(path, None)
            self.out = None
        if isinstance(done, Answer):
            self.served.add(path)
            self.heard_at = now
            self.capacity.succeeded(self.in_flight, done.duration_s, now)
            return "success"
        match done.kind:
            case "rate_limited":
                if self.capacity.cooling_until <= now:
                    self.cooling_since = now
                self.capacity.refused(done.retry_after_s, sent_at, now)
                self.last_refusal = done.message
            case "overloaded":
                self.capacity.refused(done.retry_after_s, sent_at, now, overloaded=True)
            case "not_found" if path not in self.served or self.served - self.absent.keys() - {path}:
                outage = self.absent.setdefault(path, Outage(done.kind, self._pause_s, now))
                outage.refused(done.message, now)
            case "auth" if done.status == FORBIDDEN and self.served:
                pass  # the key serves others: it is this request that is forbidden
            case "not_found" | "auth":
                self.out = self.out or Outage(done.kind, self._pause_s, now)
                self.out.refused(done.message, now)
            case "timeout" | "connection" | "server" | "malformed":
                self.capacity.failed(now)
        return KINDS[done.kind].breaker

    def health(self, now: float) -> Health:
        """Its condition; durations in seconds from now, or until now (`since_s`)."""
        breaker, cooling_until = self.breaker, self._paused_until()
        why, since = "", 0.0 if breaker.changed_at is None else breaker.changed_at
        absent = max(self.absent.values(), key=lambda outage: outage.until) if self.absent else None
        if self.out is not None:
            why, since = self.out.reason, self.out.since
        elif breaker.state != "closed":
            why = breaker.why
        elif cooling_until > now:
            why, since = self.last_refusal, self.cooling_since
        elif absent is not None:
            why, since = absent.reason, absent.since
        return Health(
            breaker.state,
            0.0 if breaker.state == "closed" else max(0.0, breaker.retry_at(now) - now),
            max(0.0, cooling_until - now),
            self.in_flight,
            0,
            self.capacity.limit,
            breaker.opened,
            self.out.reason if self.out is not None else "",
            why[:MAX_WHY_CHARS],
            max(0.0, now - since) if since else 0.0,
            self.address,
            dead_kind=self.out.kind if self.out is not None else "auth",
            absent=absent.reason if absent is not None else "",
            cut_s=None if self.capacity.cut_at == float("-inf") else now - self.capacity.cut_at,
        )

    def check(self) -> None:
        """Assert what always holds; for tests."""
        self.breaker.check()
        assert self.in_flight >= 0


class Balancer:
    """A tier's endpoints. `choose`, count the call in `in_flight`, then `settle` it."""

    def __init__(self, settings: TierSettings) -> None:
        self.all = [Upstream(index, url, settings) for index, url in enumerate(settings.base_url)]
        self._in_trial: list[Upstream] = []
        """Those whose breaker is not closed."""
        self._told: tuple[Health, ...] = ()
        self._told_at = float("-inf")

    @property
    def paced(self) -> bool:
        """Whether calls wait for a rate limit, rather than for a slot, wherever they could go."""
        well = [each.capacity.paced for each in self.all if each.breaker.state == "closed"]
        return bool(well) and all(well)

    def choose(self, path: str, avoid: int, held: int, now: float, chance: float) -> "Upstream | Busy | Refusal":
        """Who takes the next call, by a number in [0, 1). A Refusal tells when the first of them may be asked again.

        `avoid`: the number of one that is used only when no other is ready; -1: none. `held`: those (bit by number)
        that another actor finds out about: avoided likewise, and never probed from here.
        """
        every, count = self.all, len(self.all)
        if self._in_trial:
            for each in self._in_trial:
                if each.index != avoid and self._may_probe(each, held, path, now):
                    return each
        elif count == 1 and (only := every[0]).out is None and not only.absent and now >= only.capacity.cooling_until:
            ready_at = only.capacity.ready_at(only.in_flight, now)  # most tiers, nearly always: a short way
            if ready_at is None:
                return FULL
            return only if ready_at <= now else Busy(ready_at)
        if count == 1:
            return every[0] if self._ready(every[0], path, now) else self._why_none(path, held, now)
        at, rest = divmod(chance * count, 1.0)
        one = every[int(at)]
        two = every[(int(at) + 1 + int(rest * (count - 1))) % count]
        if two.in_flight < one.in_flight:
            one, two = two, one
        for each in (one, two):
            if each.index != avoid and not held >> each.index & 1 and self._ready(each, path, now):
                return each
        ready = [each for each in every if self._ready(each, path, now)]
        if ready:
            return min(ready, key=lambda each: (each.index == avoid or held >> each.index & 1, each.in_flight))
        if avoid >= 0 and self._may_probe(every[avoid], held, path, now):
            return every[avoid]
        return self._why_none(path, held, now)

    def wanted(self, calls: int, now: float) -> None:
        """So many calls have waited for a slot that cannot wait."""
        for each in self.all:
            if each.breaker.state == "closed" and each.out is None and now - each.heard_at <= HEARD_S:
                each.capacity.wanted(calls, now)

    def settle(
        self, upstream: Upstream, permit: Permit, outcome: Outcome, now: float, duration_s: float, said: str = ""
    ) -> None:
        """End a call at an endpoint; `said`: its failure's message."""
        upstream.in_flight -= 1
        breaker = upstream.breaker
        generation = breaker.generation
        breaker.settle(permit, outcome, now, duration_s)
        if breaker.generation != generation:
            if breaker.why and said:
                breaker.why += f", last: {said}"
            self._in_trial = [each for each in self.all if each.breaker.state != "closed"]
            self._told_at = float("-inf")

    def another(self, than: Upstream, path: str, now: float) -> bool:
        """Whether some other endpoint might take a call to `path`."""
        others = (each for each in self.all if each is not than)
        return any(each.blocked_until(now) <= now and each.lacks(path, now) is None for each in others)

    def health(self, now: float) -> Health:
        """The tier's condition here: that of the endpoint that can take a call first, with the sums over all.

        It rides on every batch of completions, so each endpoint's own is made anew only `TOLD_S` after the last time, and
        when a breaker changed its state.
        """
        every = self.all
        if len(every) == 1:
            return every[0].health(now)
        if now >= self._told_at + TOLD_S:
            self._told, self._told_at = tuple(each.health(now) for each in every), now
        first = min(every, key=lambda each: (each.blocked_until(now), each.breaker.state != "closed"))
        slots = sum(each.capacity.limit for each in every if each.breaker.state == "closed" and each.out is None)
        told = first.health(now)
        return told._replace(
            dead_reason=told.dead_reason if all(each.out is not None for each in every) else "",
            absent=told.absent if all(each.absent for each in every) else "",
            in_flight=sum(each.in_flight for each in every),
            limit=slots or first.capacity.limit,
            opened=sum(each.breaker.opened for each in every),
            address="",
            endpoints=self._told,
        )

    @staticmethod
    def _ready(each: Upstream, path: str, now: float) -> bool:
        """Whether it takes an ordinary call now."""
        if each.breaker.state != "closed" or each.blocked_until(now) > now or each.lacks(path, now) is not None:
            return False
        ready_at = each.capacity.ready_at(each.in_flight, now)
        return ready_at is not None and ready_at <= now

    @staticmethod
    def _may_probe(each: Upstream, held: int, path: str, now: float) -> bool:
        """Whether it is due for a probe. That needs no slot: calls from before the outage may hang in all of them."""
        return (
            each.breaker.state != "closed"
            and not held >> each.index & 1
            and each.blocked_until(now) <= now
            and each.lacks(path, now) is None
        )

    def _why_none(self, path: str, held: int, now: float) -> Busy | Refusal:
        """None is ready: whether to wait for a slot or for the pace, or to go elsewhere."""
        lacking = [each.lacks(path, now) for each in self.all]
        if None not in lacking:
            until, said = min(known for known in lacking if known is not None)
            return Refusal("absent", until - now, said)
        soonest: tuple[float, Upstream] | None = None
        paces: list[float] = []
        for each, known in zip(self.all, lacking, strict=True):
            if known is not None or (each.breaker.state != "closed" and held >> each.index & 1):
                continue
            until = each.blocked_until(now)
            if soonest is None or until < soonest[0]:
                soonest = (until, each)
            pace = each.capacity.ready_at(each.in_flight, now)
            if until <= now and pace is not None:
                paces.append(pace)
        if soonest is None:
            return Refusal("open", HELD_S)
        until, first = soonest
        return first.refusal(until, now) if until > now else Busy(min(paces, default=None))

    def check(self) -> None:
        """Assert what always holds; for tests."""
        for each in self.all:
            each.check()
        assert self._in_trial == [each for each in self.all if each.breaker.state != "closed"]


def _address(base_url: str) -> str:
    """Host, port and path: what a person knows the endpoint by, without what may be secret."""
    parts = urlsplit(base_url)
    return parts.netloc.rpartition("@")[2] + parts.path
