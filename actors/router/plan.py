"""The plan of one request: which tier next, when to wait, when to give up.

`decide` sees the tiers in order with what is known of their health, what has happened to this request so far, and
the time; it returns `Try`, `Wait` or `GiveUp`. It reads no clock and draws no chance: both are arguments. What a failure
of each kind means stands in actors/kinds.py; `Past.note` keeps what follows from it for this request.

Turns: the tier with the fewest turns behind it is asked, and among equals the first of the configuration. A failure is
a turn, with two exceptions: the request's first one, if it came quickly, does not end the tier's turn, so that a hiccup
is tried once more where it happened; and a silence until the timeout is `SILENT_TURNS`, so that others are asked that
often before this tier is again. Going back to a tier costs exponential backoff with full jitter, a Retry-After where the
failure had one, and a retry of the retry budget; going on to the next one costs nothing. Waiting (for a limit, a budget,
a recovering tier) is never an attempt. A tier that is out and has never served is nothing to wait for.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, assert_never

from actors.kinds import KINDS
from actors.messages import Attempt, Failure, FailureKind, Health, Heed, Request
from actors.settings import RouterSettings, TierSettings

__all__ = ["ActorState", "GiveUp", "Past", "Step", "TierState", "Try", "Wait", "decide", "ends"]

SILENT_TURNS = 3
QUICK = 0.25
"""A failure is quick when it took at most this part of the tier's timeout_s."""
SPARSE_TEXT = 8
"""Bytes a token. A prompt's bound is its bytes, and text has 2 to 5 of them to a token: at 8, nearly nothing fits that
this says does not. Only nearly, so such a tier comes late instead of never, and its endpoint has the last word."""
BACKOFF_S = 0.25
BACKOFF_CAP_S = 10.0
LOOK_AGAIN_S = 1.0
"""A waiting request looks again at least this often: health changes without telling it."""
INTERACTIVE_PATIENCE_S = 2.0
"""A caller who waits at a terminal is told "no" rather than kept longer than this."""
DOWN_S = 0.25
NEWS_S, NEWS_AGAIN_S = 2.0, 0.5
"""A refusal is news for so long, and those within so much of each other are one."""
UNEVEN = 16
"""Calls that wait at one actor while another has none are worth moving from so many on,"""
LEVEL_AGAIN_S = 0.5
"""and after so long again."""


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
        """Its breaker is not closed, or it was out: one call at a time finds out whether it may be asked."""
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
        self.trial = health.state != "closed" or bool(health.dead_reason)
        self.probing = False
        self.out = int(health.state != "closed")
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

    __slots__ = (
        "_level_at",
        "_slowed_at",
        "actors",
        "exhausted_until",
        "index",
        "rank",
        "retry_allowed",
        "served",
        "settings",
    )

    def __init__(self, index: int, settings: TierSettings) -> None:
        self.index = index
        self.settings = settings
        self.rank = settings.rank
        self.actors = [ActorState() for _ in range(settings.replicas)]
        self.exhausted_until = 0.0
        """Until when the tier's own budget grants nothing."""
        self.retry_allowed = True
        """Whether the retry budget has a retry left."""
        self.served = False
        """It has answered this router before: when it is out, it may well come back."""
        self._level_at = 0.0
        self._slowed_at: dict[int, float] = {}
        """By endpoint: the last refusal that the tier's actors were told of."""

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

    def slowed(self, health: Health, now: float) -> list[Heed]:
        """What an actor's condition tells the others: endpoints that have just refused a call of it."""
        news = []
        for endpoint, each in enumerate(health.endpoints or (health,)):
            if each.cut_s is not None and each.cut_s < NEWS_S:
                at = now - each.cut_s
                if at > self._slowed_at.get(endpoint, float("-inf")) + NEWS_AGAIN_S:
                    self._slowed_at[endpoint] = at
                    news.append(Heed(endpoint, each.cut_s))
        return news

    def uneven(self, now: float) -> tuple[int, int] | None:
        """The actor at which calls wait while another has none waiting, and how many of them should go there.

        Calls go to the actor with the fewest; but what one gave back in a pause, or lost with its process, the others
        have, and at the end of a job no new calls come to make it even.
        """
        if now < self._level_at:
            return None
        at = max(range(len(self.actors)), key=lambda index: self.actors[index].health.queued)
        most = self.actors[at]
        idle = self.pick(now) if most.health.queued >= UNEVEN else None
        if idle is None or self.actors[idle].trial or self.actors[idle].health.queued:
            return None
        calls = min(most.health.queued, (most.outstanding - self.actors[idle].outstanding) // 2)
        if calls < UNEVEN:
            return None
        self._level_at = now + LEVEL_AGAIN_S
        return at, calls

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

    def dead(self, now: float) -> str:
        """Why the tier is out, while all its actors are: a wrong key, a model that vanished."""
        dead = all(actor.dead_reason and actor.cooling_until > now for actor in self.actors)
        return self.actors[0].dead_reason if dead else ""


class Past:
    """What has happened to a request."""

    __slots__ = ("attempts", "counted", "deadline", "excluded", "failed", "failure", "not_before", "turns")

    def __init__(self, tiers: int, deadline: float) -> None:
        self.attempts: list[Attempt] = []
        self.counted = 0
        self.deadline = deadline
        self.excluded: set[int] = set()
        """Tiers that are no use to this request."""
        self.failed: set[int] = set()
        """Tiers that may be asked again, at the cost of a retry."""
        self.turns = [0] * tiers
        self.not_before = [0.0] * tiers
        """Until when a tier does not want to see this request again (its Retry-After)."""
        self.failure: Failure | None = None
        """The last failure."""

    def endpoint_of(self, tier: TierState) -> int:
        """The endpoint of `tier` that failed the last attempt, where it has another; -1: none."""
        last = self.failure
        if last is None or len(tier.settings.base_url) == 1 or not self.attempts:
            return -1
        return last.endpoint if self.attempts[-1].tier == tier.settings.name else -1

    def note(self, tier: TierState, tiers: Sequence[TierState], failure: Failure, now: float) -> None:
        """Take in a failed attempt at `tier`."""
        kind, index = KINDS[failure.kind], tier.index
        first_and_quick = not self.counted and failure.duration_s <= QUICK * tier.settings.timeout_s
        self.failure = failure
        self.counted += kind.counts
        if failure.not_again:
            self.excluded.add(index)
        match kind.then:
            case "again" | "elsewhere":
                self.failed.add(index)
                if kind.then == "elsewhere":
                    self.turns[index] += SILENT_TURNS
                elif not first_and_quick:
                    self.turns[index] += 1
                if failure.retry_after_s is not None:
                    self.not_before[index] = now + failure.retry_after_s
            case "larger":
                self.excluded.add(index)
                window = tier.settings.context_tokens
                if window is not None:
                    self.excluded |= {t.index for t in tiers if (t.settings.context_tokens or window + 1) <= window}
            case "out" if tier.served and tier.dead(now):
                pass  # out for everybody: who has time waits for it
            case "out" | "refused":
                self.excluded.add(index)
            case "wait" | "final":
                pass  # the tier's health keeps everybody away from it; the plan ends with the failure
            case _:
                assert_never(kind.then)

    def take_in(self, other: "Past") -> None:
        """What a second copy of the request has met is known to the first, though it is none of its attempts."""
        self.excluded |= other.excluded
        self.failed |= other.failed
        self.turns = [own + others for own, others in zip(self.turns, other.turns, strict=True)]
        self.not_before = [max(pair) for pair in zip(self.not_before, other.not_before, strict=True)]


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
    if last is not None and ends(last.kind, settings):
        return GiveUp(last.kind, last.message)
    if now >= past.deadline:
        out = next((f"; tier {t.settings.name} is out: {t.dead(now)}" for t in tiers if t.dead(now)), "")
        return GiveUp("deadline", _summary(f"not done within {request.deadline_s:g} s", past) + out)
    if past.counted >= settings.max_attempts:
        return GiveUp("all_tiers_exhausted", _summary(f"failed {past.counted} times", past))

    waits = settings.on_rate_limit == "wait" and not request.interactive
    best: tuple[int, bool] | None = None
    chosen: tuple[TierState, int] | None = None
    soonest = float("inf")
    allowed = 0
    for tier in tiers[request.start_tier :] if request.start_tier else tiers:
        if tier.rank < request.min_quality or request.barred >> tier.index & 1:
            continue
        allowed += 1
        index = tier.index
        if index in past.excluded:
            continue
        if tier.dead(now):
            if tier.served and not request.interactive:
                soonest = min(soonest, tier.usable_at(now))
            continue
        window, turns = tier.settings.context_tokens, past.turns[index]
        if window is not None and request.prompt_bound_tokens > window * SPARSE_TEXT:
            turns += SILENT_TURNS
        not_before = past.not_before[index]
        actor = None if tier.exhausted_until > now or not_before > now else tier.pick(now)
        if actor is None:
            soonest = min(soonest, max(not_before, tier.usable_at(now)))
            if waits and not turns and _only_cooling(tier, now):
                chosen = None  # a batch row waits for the better tier, unless that one has had its turn
                break
            continue
        blocked = index in past.failed and not tier.retry_allowed
        order = (turns + blocked, blocked)
        if best is None or order < best:
            best, chosen = order, (tier, actor)
            if not turns and not blocked:
                break

    if chosen is not None:
        tier, actor = chosen
        if tier.index not in past.failed:
            return Try(tier.index, actor, 0.0, retry=False)
        backoff = chance * min(BACKOFF_CAP_S, BACKOFF_S * 2.0 ** (past.counted - 1))
        left = (past.deadline - now) / 2  # a retry that begins after the deadline would be paid for and thrown away
        if tier.retry_allowed:
            return Try(tier.index, actor, min(backoff, left), retry=True)
        return Wait(min(DOWN_S + backoff, max(0.01, left), past.deadline - now))
    if soonest < float("inf"):
        pause = soonest - now
        if request.interactive and pause > INTERACTIVE_PATIENCE_S:
            return GiveUp("all_tiers_exhausted", _summary("no tier can take a call now", past), retry_after_s=pause)
        return Wait(min(max(0.01, min(pause, LOOK_AGAIN_S)), past.deadline - now))
    return _nothing_left(request, tiers, past, allowed, now)


def ends(kind: FailureKind, settings: RouterSettings) -> bool:
    """Whether a failure of this kind ends its request."""
    known = KINDS.get(kind)
    if known is None:  # of a whole request, such as a tier's budget that ended: told if nothing else is left
        return False
    return known.then == "final" or (known.then == "refused" and settings.on_content_filter == "final")


def _only_cooling(tier: TierState, now: float) -> bool:
    return any(actor.up and actor.open_until <= now < actor.cooling_until for actor in tier.actors)


def _nothing_left(request: Request, tiers: Sequence[TierState], past: Past, allowed: int, now: float) -> GiveUp:
    if not allowed:
        names = ", ".join(f"{tier.settings.name} ({tier.settings.quality})" for tier in tiers)
        kind: Literal["no_tier"] = "no_tier"
        return GiveUp(
            kind, f"no tier from the start of the cascade on has the quality that is asked for; there are {names}"
        )
    last = past.failure
    if last is not None and last.kind in KINDS and KINDS[last.kind].then in ("larger", "out", "refused"):
        return GiveUp(last.kind, last.message)
    out = next((tier for tier in tiers if tier.dead(now)), None)
    if out is not None:
        return GiveUp(out.actors[0].health.dead_kind, f"tier {out.settings.name} is out: {out.dead(now)}")
    return GiveUp("all_tiers_exhausted", _summary("no tier is left to try", past))


def _summary(what: str, past: Past) -> str:
    """One line that tells the attempts: `failed 3 times: premium server 500 x2, standard timeout`."""
    counts: dict[str, int] = {}
    for attempt in past.attempts:
        label = f"{attempt.tier} {attempt.kind}{f' {attempt.status}' if attempt.status else ''}"
        counts[label] = counts.get(label, 0) + 1
    told = ", ".join(label if count == 1 else f"{label} x{count}" for label, count in counts.items())
    return f"{what}: {told}" if told else what
