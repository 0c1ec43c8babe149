"""The plan, whatever happens to a request: tiers that fail in every way, cool, open, go and come back, in any order.

One request is taken to its end in a world of its own clock. After each step the world checks what a caller was promised,
from its own books of what happened and not from the plan's.
"""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.kinds import KINDS
from actors.messages import Attempt, Failure, FailureKind, Health, Request
from actors.router.plan import QUICK, SILENT_TURNS, SPARSE_TEXT, GiveUp, Past, TierState, Try, Wait, decide
from actors.settings import RouterSettings, TierSettings

START = 1000.0
MOST_STEPS = 20_000

tiers = st.lists(
    st.fixed_dictionaries(
        {
            "quality": st.sampled_from(["basic", "medium", "high"]),
            "timeout_s": st.sampled_from([0.5, 4.0]),
            "context_tokens": st.sampled_from([None, 10, 20]),
            "replicas": st.integers(1, 2),
        }
    ),
    min_size=1,
    max_size=4,
)
routers = st.fixed_dictionaries(
    {
        "max_attempts": st.integers(1, 8),
        "on_rate_limit": st.sampled_from(["fallback", "wait"]),
        "on_content_filter": st.sampled_from(["final", "fallback"]),
    }
)
requests = st.fixed_dictionaries(
    {
        "min_quality": st.sampled_from([0, 0, 0, 1, 2]),
        "start_tier": st.integers(0, 1),
        "deadline_s": st.sampled_from([60.0, 20.0, 1.0, 0.001]),
        "interactive": st.booleans(),
        "prompt_bound_tokens": st.sampled_from([5, 5, 15 * SPARSE_TEXT, 500]),
    }
)
# What the tiers of a run are apt to do: from a bad day to nothing but one kind of failure.
moods = st.sampled_from([["timeout", "server"], ["server"], ["rate_limited", "timeout", "overloaded"]]) | st.lists(
    st.sampled_from(list(KINDS)), min_size=1, max_size=6
)


class World:
    """The tiers, the clock, and the books."""

    def __init__(self, tiers: list[dict[str, Any]], request: Request, settings: RouterSettings, seed: int) -> None:
        self.random = random.Random(seed)
        self.storm = self.random.choice([0.0, 0.0, 0.1, 0.3])
        self.tiers = [
            TierState(at, TierSettings.model_validate({"name": f"t{at}", "model": "m", "base_url": "http://x", **tier}))
            for at, tier in enumerate(tiers)
        ]
        for tier in self.tiers:
            tier.served = self.random.random() < 0.5
            for actor in tier.actors:
                actor.up = True
        self.request, self.settings = request, settings
        self.now = START
        self.past = Past(len(self.tiers), START + request.deadline_s)
        self.failures: list[tuple[int, Failure]] = []
        self.never: set[int] = set()
        self.not_before = dict.fromkeys(range(len(self.tiers)), 0.0)
        self.sent = 0

    def weather(self) -> None:
        """Things happen to tiers that are no doing of this request."""
        for tier in self.tiers:
            tier.retry_allowed = self.random.random() >= self.storm
            for actor in tier.actors:
                if self.random.random() < self.storm:
                    actor.up = self.random.random() < 0.9
                    health = self.random.choice(
                        [
                            Health(),
                            Health(),
                            Health("half_open"),
                            Health("open", open_for_s=self.random.choice([0.2, 3.0, 100.0])),
                            Health(cooling_for_s=self.random.choice([0.2, 3.0, 100.0])),
                            Health(cooling_for_s=3.0, dead_reason="gone", dead_kind="not_found"),
                        ]
                    )
                    actor.observe(health, self.now)

    def usable(self, tier: TierState) -> bool:
        """Whether the tier could answer this request now, without a retry that is not granted."""
        index = tier.index
        return (
            index >= self.request.start_tier
            and tier.rank >= self.request.min_quality
            and index not in self.never
            and not tier.dead(self.now)
            and tier.pick(self.now) is not None
            and self.not_before[index] <= self.now
            and (tier.retry_allowed or not self.weight(index))
            and self.request.prompt_bound_tokens <= (tier.settings.context_tokens or 10**9) * SPARSE_TEXT
        )

    def weight(self, index: int) -> int:
        return sum(
            SILENT_TURNS if failure.kind == "timeout" else 1
            for at, failure in self.failures
            if at == index and KINDS[failure.kind].counts
        )

    def counted(self) -> list[tuple[int, Failure]]:
        return [(index, failure) for index, failure in self.failures if KINDS[failure.kind].counts]

    def check(self, step: Try) -> None:
        tier, counted = self.tiers[step.tier], self.counted()
        assert tier.rank >= self.request.min_quality, "a tier below the quality asked for"
        assert step.tier >= self.request.start_tier
        assert step.tier not in self.never, "a tier that is no use to this request"
        assert tier.actors[step.actor].usable_at(self.now) <= self.now
        assert self.not_before[step.tier] <= self.now + step.delay_s, "before its Retry-After"
        assert len(counted) < self.settings.max_attempts
        assert self.now + step.delay_s < self.past.deadline
        assert step.retry == bool(self.weight(step.tier)), "who pays for going back"
        assert step.retry or not step.delay_s, "going on costs nothing"
        assert tier.retry_allowed or not step.retry
        others = [other for other in self.tiers if other is not tier and self.usable(other)]
        if any(at == step.tier and failure.kind == "timeout" for at, failure in self.failures):
            assert all(self.weight(other.index) >= SILENT_TURNS for other in others), "a silent tier before its turn"
        if step.retry and any(not self.weight(other.index) for other in others):
            (failure,) = (failure for at, failure in counted if at == step.tier)  # raises when it failed there twice
            assert failure is counted[0][1], "only the first failure is tried again in place"
            assert KINDS[failure.kind].then == "again"
            assert failure.duration_s <= QUICK * tier.settings.timeout_s, "a slow failure was tried again in place"

    def fail(self, step: Try, kind: FailureKind) -> None:
        tier, draw = self.tiers[step.tier], self.random
        self.now += step.delay_s
        left_s = self.past.deadline - self.now
        timeout_s = min(tier.settings.timeout_s, left_s)
        duration_s = timeout_s if kind == "timeout" else timeout_s * draw.choice([0.0, 0.1, 0.5, 0.9])
        self.now += duration_s
        retry_after_s = draw.choice([None] * 12 + [0.0, 0.3, 5.0, 3600.0])
        failure = Failure(
            kind, f"it was {kind}", retry_after_s=retry_after_s, duration_s=duration_s, not_again=draw.random() < 0.05
        )
        if kind == "rate_limited":
            tier.actors[step.actor].observe(Health(cooling_for_s=max(0.1, retry_after_s or 1.0)), self.now)
        self.past.note(tier, self.tiers, failure, self.now)
        self.past.attempts.append(Attempt(f"t{step.tier}", step.actor, kind, 0, duration_s))
        self.failures.append((step.tier, failure))
        then = KINDS[kind].then
        waited_for = then == "out" and tier.served and tier.dead(self.now)
        if (then in ("out", "refused", "larger") and not waited_for) or failure.not_again:
            self.never.add(step.tier)
        if then == "larger" and (window := tier.settings.context_tokens) is not None:
            self.never |= {other.index for other in self.tiers if 0 < (other.settings.context_tokens or 0) <= window}
        if then in ("again", "elsewhere"):
            self.not_before[step.tier] = self.now + (retry_after_s or 0.0)

    def final(self) -> FailureKind | None:
        if not self.failures:
            return None
        kind = self.failures[-1][1].kind
        ends = KINDS[kind].then == "final" or (kind == "content_filter" and self.settings.on_content_filter == "final")
        return kind if ends else None


@settings(max_examples=300, deadline=None)
@given(tiers, requests, routers, moods, st.integers(0, 2**32))
def test_a_request_always_ends_as_promised(
    tiers: list[dict[str, Any]], request: dict[str, Any], router: dict[str, Any], moods: list[FailureKind], seed: int
) -> None:
    """Within its deadline and attempts, never where it must not go, and with a reason."""
    asked = Request("r", "/chat/completions", b"{}", b"", max_tokens=None, **request)
    world = World(tiers, asked, RouterSettings(**router), seed)
    for _ in range(MOST_STEPS):
        world.weather()
        attempts, counted = len(world.past.attempts), world.past.counted
        step = decide(asked, world.tiers, world.past, world.settings, world.now, world.random.random())
        assert (len(world.past.attempts), world.past.counted) == (attempts, counted), "deciding is no attempt"
        assert counted == len(world.counted())
        final = world.final()
        if final is not None:
            assert isinstance(step, GiveUp), "a final failure was tried again"
            assert step.kind == final
        match step:
            case Try():
                world.check(step)
                world.fail(step, world.random.choice(moods))
            case Wait():
                assert step.delay_s > 0
                fresh = [tier for tier in world.tiers if world.usable(tier) and not world.weight(tier.index)]
                assert world.settings.on_rate_limit == "wait" or not fresh, "it waits while a tier could answer"
                assert world.now + step.delay_s <= world.past.deadline + 1e-9
                world.now += step.delay_s
            case GiveUp():
                assert step.message
                return
    raise AssertionError("it never ends")


@settings(max_examples=200, deadline=None)
@given(
    counted=st.integers(1, 60),
    chances=st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
    left_s=st.floats(0.001, 10_000),
)
def test_backoff_is_full_jitter_within_its_cap(counted: int, chances: list[float], left_s: float) -> None:
    """From nothing to twice as much after each failure, to a cap, and never so long that the retry would be too late."""
    tier = TierState(0, TierSettings(name="t", model="m", base_url=("http://x",)))
    tier.actors[0].up = True
    asked = Request("r", "/chat/completions", b"{}", b"", 10, None)
    past = Past(1, START + left_s)
    for _ in range(counted):
        past.note(tier, [tier], Failure("server", "oops"), START)
    low, high = (
        decide(asked, [tier], past, RouterSettings(max_attempts=100), START, chance) for chance in sorted(chances)
    )
    assert isinstance(low, Try)
    assert isinstance(high, Try)
    assert 0 <= low.delay_s <= high.delay_s <= min(10.0, 0.25 * 2 ** (counted - 1), left_s / 2) + 1e-9
    if not min(chances):
        assert low.delay_s == 0
