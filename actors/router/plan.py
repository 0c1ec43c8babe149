"""The plan of one request: which tier next, when to wait, when to give up.

`decide` sees the tiers in order with what is known of their health, what has happened to this request so far, and
the time; it returns `Try`, `Wait` or `GiveUp`. It reads no clock and draws no chance: both are arguments.

    kind of failure                               what it means for the request
    rate_limited, or held back before sending     not counted; the tier is cooling, the next one is tried
    server, overloaded, connection, malformed     once more at the same tier if the retry budget allows, then the next
    lost (the tier actor died)                    as above
    timeout                                       the next tier; this one again only when the others had their turn
    context_length                                only tiers with a larger window
    auth, not_found                               this tier never again; it is out for everybody
    bad_request, content_filter, cancelled        final: another try would end the same way

Rounds: every tier has `TRIES_A_ROUND` tries before any tier has more; within a round, the order of the configuration.
Going back to a tier costs exponential backoff with full jitter; going on to the next one costs nothing.
Waiting (for a limit, a budget, a recovering tier) is never an attempt.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from actors.messages import Attempt, Failure, FailureKind, Health, Request
from actors.settings import RouterSettings, TierSettings

__all__ = ["ActorState", "GiveUp", "Past", "Step", "TierState", "Try", "Wait", "decide"]

TRIES_A_ROUND = 2
BACKOFF_S = 0.25
BACKOFF_CAP_S = 10.0
LOOK_AGAIN_S = 1.0
"""A waiting request looks again at least this often: health changes without telling it."""
INTERACTIVE_PATIENCE_S = 2.0
"""A caller who waits at a terminal is told "no" rather than kept longer than this."""
DOWN_S = 0.25

FINAL: frozenset[FailureKind] = frozenset({"bad_request", "content_filter", "cancelled", "budget_exceeded", "internal"})


class ActorState:
    """What a router knows of one tier actor."""

    __slots__ = ("cooling_until", "dead_reason", "health", "open_until", "out", "outstanding", "probing", "trial", "up")

    def __init__(self) -> None:
        self.up = False
        self.open_until = 0.0
        self.cooling_until = 0.0
        self.dead_reason = ""
        self.outstanding = 0
        """Calls of this router that the actor holds, counted by the router."""
        self.trial = False
        """Its breaker is not closed: one call at a time finds out whether it may be."""
        self.probing = False
        """Such a call has gone to it, and it has not told of itself since."""
        self.out = 0
        """Its endpoints (bit by number) whose breaker is not closed."""
        self.health = Health()

    def observe(self, health: Health, now: float) -> None:
        """Take in what rode back on a completion, or came by itself."""
        self.health = health
        self.open_until = now + health.open_for_s if health.open_for_s else 0.0
        self.cooling_until = now + health.cooling_for_s if health.cooling_for_s else 0.0
        self.dead_reason = health.dead_reason
        self.trial = health.state != "closed"
        self.probing = False
        self.out = int(self.trial)
        if health.endpoints:
            self.out = sum(1 << at for at, endpoint in enumerate(health.endpoints) if endpoint.state != "closed")

    def sent(self) -> None:
        """A call goes to it."""
        self.outstanding += 1
        self.probing = self.trial

    def usable_at(self, now: float) -> float:
        """`now` when a call may go there now, else when it is worth another look."""
        if not self.up or self.probing:
            return max(now + DOWN_S, self.open_until)
        return max(now, self.open_until, self.cooling_until)


class TierState:
    """What a router knows of one tier."""

    __slots__ = ("actors", "exhausted_until", "index", "rank", "retry_allowed", "settings")

    def __init__(self, index: int, settings: TierSettings) -> None:
        self.index = index
        self.settings = settings
        self.rank = settings.rank
        self.actors = [ActorState() for _ in range(settings.replicas)]
        self.exhausted_until = 0.0
        """Until when the tier's own budget grants nothing."""
        self.retry_allowed = True
        """Whether the retry budget has a retry left."""

    def pick(self, now: float) -> int | None:
        """The usable actor with the fewest calls outstanding."""
        best, least = None, 0
        for index, actor in enumerate(self.actors):
            if (
                (best is None or actor.outstanding < least)
                and actor.usable_at(now) <= now
                and (not actor.trial or self._may_try(index))
            ):
                best, least = index, actor.outstanding
        return best

    def usable_at(self, now: float) -> float:
        tried = (actor for index, actor in enumerate(self.actors) if not actor.trial or self._may_try(index))
        return max(self.exhausted_until, min(actor.usable_at(now) for actor in tried))

    def held(self, index: int) -> int:
        """The endpoints that are out at the prober, for a call to another actor: see TierCall."""
        prober = self._prober()
        return 0 if index == prober else self.actors[prober].out

    def _prober(self) -> int:
        """The actor whose probes find out for the whole tier whether an endpoint is back: the first that is up.

        All routers see the same one, and its breaker bounds the probes. So an endpoint that is out for all actors of a
        tier gets one actor's probes, however many actors and routers there are. Only while routers differ on who is up,
        and when the prober was restarted and knows nothing, does it get more.
        """
        return next((index for index, actor in enumerate(self.actors) if actor.up), 0)

    def _may_try(self, index: int) -> bool:
        """Whether an actor whose breaker is not closed may have a call: the prober, and the others when it is well."""
        prober = self._prober()
        return index == prober or not self.actors[prober].trial

    @property
    def dead_reason(self) -> str:
        """Why the tier is out for good, when all its actors are."""
        return self.actors[0].dead_reason if all(actor.dead_reason for actor in self.actors) else ""


class Past:
    """What has happened to a request."""

    __slots__ = ("attempts", "counted", "deadline", "excluded", "failure", "strikes")

    def __init__(self, tiers: int, deadline: float) -> None:
        self.attempts: list[Attempt] = []
        self.counted = 0
        self.deadline = deadline
        self.excluded: set[int] = set()
        self.strikes = [0] * tiers
        self.failure: Failure | None = None
        """The last failure."""

    def endpoint_of(self, tier: TierState) -> int:
        """The endpoint of `tier` that failed the last attempt, where it has another; -1: none."""
        last = self.failure
        if last is None or len(tier.settings.base_url) == 1 or not self.attempts:
            return -1
        return last.endpoint if self.attempts[-1].tier == tier.settings.name else -1

    def note(self, tier: TierState, tiers: Sequence[TierState], failure: Failure) -> None:
        """Take in a failed attempt at `tier`."""
        self.failure = failure
        match failure.kind:
            case "rate_limited":
                return
            case "timeout":
                self.strikes[tier.index] += TRIES_A_ROUND
            case "context_length":
                window = tier.settings.context_tokens
                self.excluded.add(tier.index)
                self.excluded |= {
                    t.index
                    for t in tiers
                    if window is not None
                    and t.settings.context_tokens is not None
                    and t.settings.context_tokens <= window
                }
            case "auth" | "not_found":
                self.excluded.add(tier.index)
                return
            case _:
                self.strikes[tier.index] += 1
        self.counted += 1


class Try(NamedTuple):
    """Call this actor of this tier, after `delay_s`. `retry`: the tier is asked again, at the retry budget's cost."""

    tier: int
    actor: int
    delay_s: float
    retry: bool


class Wait(NamedTuple):
    """Nothing can be sent now; look again after `delay_s`."""

    delay_s: float


class GiveUp(NamedTuple):
    """The request has failed."""

    kind: FailureKind
    message: str
    retry_after_s: float | None = None


Step = Try | Wait | GiveUp


def decide(
    request: Request, tiers: Sequence[TierState], past: Past, settings: RouterSettings, now: float, chance: float
) -> Step:
    """The next step. `chance` is a random number in [0, 1)."""
    last = past.failure
    if last is not None and last.kind in FINAL:
        return GiveUp(last.kind, last.message)
    if now >= past.deadline:
        return GiveUp("deadline", _summary(f"not done within {request.deadline_s:g} s", past))
    if past.counted >= settings.max_attempts:
        return GiveUp("all_tiers_exhausted", _summary(f"failed {past.counted} times", past))

    chosen: tuple[int, TierState, int] | None = None
    soonest = float("inf")
    allowed = 0
    for tier in tiers[request.start_tier :] if request.start_tier else tiers:
        if tier.rank < request.min_quality or request.barred >> tier.index & 1:
            continue
        allowed += 1
        if tier.index in past.excluded or tier.dead_reason:
            continue
        actor = None if tier.exhausted_until > now else tier.pick(now)
        if actor is None:
            soonest = min(soonest, tier.usable_at(now))
            waits = settings.on_rate_limit == "wait" and not request.interactive
            if waits and past.strikes[tier.index] < TRIES_A_ROUND and _only_cooling(tier, now):
                break  # a batch row waits for the better tier, unless that one has had its turn
            continue
        strikes = past.strikes[tier.index]
        tries = strikes if tier.retry_allowed or not strikes else _whole_rounds(strikes)
        if chosen is None or tries // TRIES_A_ROUND < chosen[0]:
            chosen = (tries // TRIES_A_ROUND, tier, actor)
            if tries < TRIES_A_ROUND:
                break

    if chosen is not None:
        _, tier, actor = chosen
        strikes = past.strikes[tier.index]
        if not strikes:
            return Try(tier.index, actor, 0.0, retry=False)
        backoff = chance * min(BACKOFF_CAP_S, BACKOFF_S * 2.0 ** (past.counted - 1))
        left = (past.deadline - now) / 2  # a retry that begins after the deadline would be paid for and thrown away
        if tier.retry_allowed:
            return Try(tier.index, actor, min(backoff, left), retry=True)
        return Wait(min(DOWN_S + backoff, left))
    if soonest < float("inf"):
        pause = soonest - now
        if request.interactive and pause > INTERACTIVE_PATIENCE_S:
            return GiveUp("all_tiers_exhausted", _summary("no tier can take a call now", past), retry_after_s=pause)
        return Wait(max(0.01, min(pause, LOOK_AGAIN_S, past.deadline - now)))
    return _nothing_left(request, tiers, past, allowed)


def _only_cooling(tier: TierState, now: float) -> bool:
    return any(actor.up and actor.open_until <= now < actor.cooling_until for actor in tier.actors)


def _whole_rounds(strikes: int) -> int:
    return -(-strikes // TRIES_A_ROUND) * TRIES_A_ROUND


def _nothing_left(request: Request, tiers: Sequence[TierState], past: Past, allowed: int) -> GiveUp:
    if not allowed:
        names = ", ".join(f"{tier.settings.name} ({tier.settings.quality})" for tier in tiers)
        kind: Literal["no_tier"] = "no_tier"
        return GiveUp(
            kind, f"no tier from the start of the cascade on has the quality that is asked for; there are {names}"
        )
    last = past.failure
    if last is not None and last.kind in ("context_length", "auth", "not_found"):
        return GiveUp(last.kind, last.message)
    dead = next((tier for tier in tiers if tier.dead_reason), None)
    if dead is not None:
        return GiveUp("auth", f"tier {dead.settings.name} is out: {dead.dead_reason}")
    return GiveUp("all_tiers_exhausted", _summary("no tier is left to try", past))


def _summary(what: str, past: Past) -> str:
    """One line that tells the attempts: `failed 3 times: premium server 500 x2, standard timeout`."""
    counts: dict[str, int] = {}
    for attempt in past.attempts:
        label = f"{attempt.tier} {attempt.kind}{f' {attempt.status}' if attempt.status else ''}"
        counts[label] = counts.get(label, 0) + 1
    told = ", ".join(label if count == 1 else f"{label} x{count}" for label, count in counts.items())
    return f"{what}: {told}" if told else what
