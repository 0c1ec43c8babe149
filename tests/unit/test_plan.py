"""The plan of one request: which tier next, when to wait, when to give up."""

from collections.abc import Sequence
from typing import Any

import pytest

from actors.messages import Attempt, Failure, FailureKind, Health, Heed, Request
from actors.router.plan import (
    BACKOFF_CAP_S,
    DOWN_S,
    INTERACTIVE_PATIENCE_S,
    LOOK_AGAIN_S,
    QUICK,
    SPARSE_TEXT,
    GiveUp,
    Past,
    Step,
    TierState,
    Try,
    Wait,
    decide,
)
from actors.router.retries import CAPACITY, FLOOR_PER_S, RetryBudget
from actors.settings import RouterSettings, TierSettings

NOW = 1000.0
REQUEST = Request("r", "/chat/completions", b"{}", b"", 10, None)


class Cascade:
    """Tiers as a router sees them, and one request's way through them."""

    def __init__(self, *tiers: dict[str, Any], request: Request = REQUEST, **settings: Any) -> None:
        self.tiers = [
            TierState(
                index,
                TierSettings.model_validate({"name": f"t{index}", "model": "m", "base_url": "http://x", **tier}),
            )
            for index, tier in enumerate(tiers or ({}, {}, {}))
        ]
        for tier in self.tiers:
            for actor in tier.actors:
                actor.up = True
        self.request = request
        self.settings = RouterSettings(**settings)
        self.past = Past(len(self.tiers), NOW + request.deadline_s)
        self.now = NOW

    def decide(self, chance: float = 0.5) -> Step:
        return decide(self.request, self.tiers, self.past, self.settings, self.now, chance)

    def fail(self, tier: int, kind: FailureKind, **failure: Any) -> None:
        self.past.note(self.tiers[tier], self.tiers, Failure(kind, f"it was {kind}", **failure), self.now)
        self.past.attempts.append(Attempt(f"t{tier}", 0, kind, failure.get("status", 0), 0.1))

    def goes(self, *kinds: FailureKind) -> list[int]:
        """The tiers that are tried when one try after the other fails like this, and the one after that."""
        tried = []
        for kind in (*kinds, None):
            step = self.decide()
            assert isinstance(step, Try), step
            tried.append(step.tier)
            if kind is not None:
                self.fail(step.tier, kind)
        return tried

    def observe(self, tier: int, actor: int = 0, **health: Any) -> None:
        self.tiers[tier].actors[actor].observe(Health(**health), self.now)


def gave_up(step: Step, kind: FailureKind) -> GiveUp:
    assert isinstance(step, GiveUp), step
    assert step.kind == kind
    return step


# -- order ---------------------------------------------------------------------------------------------------------


def test_the_first_tier_is_tried_first_at_once() -> None:
    """The order of the configuration is the order of the cascade."""
    assert Cascade().decide() == Try(0, 0, 0.0, retry=False)


def test_a_request_starts_where_it_asks_to() -> None:
    """The tiers before its start are never tried, also when those after it fail."""
    cascade = Cascade(request=REQUEST._replace(start_tier=1))
    assert cascade.goes("timeout", "timeout", "timeout") == [1, 2, 1, 2]


def test_tiers_below_the_quality_asked_for_are_never_tried() -> None:
    """A cheap answer is no answer to who asked for a good one."""
    cascade = Cascade({"quality": "medium"}, {}, {"quality": "high"}, request=REQUEST._replace(min_quality=1))
    assert cascade.goes("timeout", "timeout") == [0, 2, 0]


def test_when_no_tier_is_good_enough_it_says_so() -> None:
    """With the tiers there are, and before any call."""
    cascade = Cascade({}, {"quality": "medium"}, request=REQUEST._replace(min_quality=2))
    assert "t0 (basic), t1 (medium)" in gave_up(cascade.decide(), "no_tier").message
    cascade = Cascade({"quality": "high"}, {}, request=REQUEST._replace(min_quality=2, start_tier=1))
    gave_up(cascade.decide(), "no_tier")


def test_the_actor_with_the_fewest_calls_is_picked() -> None:
    """Of those that are usable."""
    cascade = Cascade({"replicas": 4})
    for actor, outstanding in zip(cascade.tiers[0].actors, (5, 3, 1, 0), strict=True):
        actor.outstanding = outstanding
    cascade.observe(0, 3, cooling_for_s=5.0)
    cascade.tiers[0].actors[2].up = False
    assert cascade.decide() == Try(0, 1, 0.0, retry=False)


def test_what_waits_at_one_actor_goes_to_one_that_has_nothing_waiting() -> None:
    """Half of the difference, and not more than waits; not to one that may not be asked, and not all the time."""
    cascade = Cascade({"replicas": 3})
    tier = cascade.tiers[0]
    for actor, outstanding in zip(tier.actors, (500, 100, 90), strict=True):
        actor.outstanding = outstanding
    cascade.observe(0, 0, queued=400)
    cascade.observe(0, 1, queued=3)
    cascade.observe(0, 2, cooling_for_s=5.0)
    assert tier.uneven(cascade.now) is None, "the one that could take them has some of its own"
    cascade.observe(0, 2)
    assert tier.uneven(cascade.now) == (0, 205)
    assert tier.uneven(cascade.now + 0.1) is None
    cascade.observe(0, 0, queued=40)
    assert tier.uneven(cascade.now + 1.0) == (0, 40)
    tier.actors[0].outstanding = 100
    assert tier.uneven(cascade.now + 2.0) is None


def test_a_refusal_is_news_to_the_other_actors_once() -> None:
    """By endpoint; later notes that tell of the same one are no news, nor is one of long ago."""
    tier = Cascade({"replicas": 2}).tiers[0]
    assert tier.slowed(Health(), 100.0) == []
    assert tier.slowed(Health(cut_s=0.1), 100.0) == [Heed(0, 0.1)]
    assert tier.slowed(Health(cut_s=0.3), 100.2) == []
    assert tier.slowed(Health(cut_s=0.0), 101.0) == [Heed(0, 0.0)]
    assert tier.slowed(Health(cut_s=60.0), 300.0) == []
    both = Health(endpoints=(Health(cut_s=0.1), Health(), Health(cut_s=0.2)))
    assert tier.slowed(both, 400.0) == [Heed(0, 0.1), Heed(2, 0.2)]


@pytest.mark.parametrize("kind", ["server", "overloaded", "connection", "malformed", "lost"])
def test_a_first_quick_failure_is_tried_once_more_in_place_then_elsewhere(kind: FailureKind) -> None:
    """Only the request's first one; afterwards each tier has one try a turn."""
    assert Cascade(max_attempts=20).goes(*[kind] * 6) == [0, 0, 1, 2, 0, 1, 2]


def test_a_first_failure_that_took_long_goes_on_to_the_next_tier() -> None:
    """What took a large part of the tier's timeout would take as long again."""
    for seconds, second in ((QUICK * 40.0, 0), (QUICK * 40.0 + 0.1, 1)):
        cascade = Cascade({"timeout_s": 40.0}, {})
        cascade.fail(0, "server", duration_s=seconds)
        step = cascade.decide()
        assert isinstance(step, Try)
        assert step.tier == second


def test_timeouts_go_on_to_the_next_tier() -> None:
    """Waiting as long again for the same tier is the last thing to do."""
    assert Cascade().goes("timeout", "timeout", "timeout", "timeout") == [0, 1, 2, 0, 1]


def test_a_silent_tier_is_not_asked_again_until_the_others_have_failed_over_and_over() -> None:
    """A tier that cannot answer at all does not keep the request from the one that once was silent."""
    assert Cascade({}, {}, max_attempts=20).goes("timeout", *["server"] * 3) == [0, 1, 1, 1, 0]


def test_retry_after_keeps_the_request_away_from_where_it_failed() -> None:
    """Another tier has it meanwhile; without one it waits, and interactive callers are told when to come back."""
    cascade = Cascade({}, {})
    cascade.fail(0, "overloaded", retry_after_s=5.0)
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)
    cascade.fail(1, "overloaded", retry_after_s=0.5)
    assert cascade.decide() == Wait(pytest.approx(0.5))
    cascade.now += 0.6
    step = cascade.decide()
    assert isinstance(step, Try)
    assert step.tier == 1
    cascade = Cascade({}, request=REQUEST._replace(interactive=True))
    cascade.fail(0, "server", retry_after_s=30.0)
    assert gave_up(cascade.decide(), "all_tiers_exhausted").retry_after_s == pytest.approx(30.0)


@pytest.mark.parametrize("kind", ["server", "rate_limited", "timeout"])
def test_an_endpoint_that_asks_not_to_be_asked_again_is_not(kind: FailureKind) -> None:
    """`x-should-retry: false`: the others still are, and when there is none the failure is told."""
    cascade = Cascade({}, {})
    cascade.fail(0, kind, not_again=True)
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)
    cascade.fail(1, kind, not_again=True)
    assert f"t1 {kind}" in gave_up(cascade.decide(), "all_tiers_exhausted").message


# -- retries and backoff -------------------------------------------------------------------------------------------


def test_going_back_costs_backoff_with_full_jitter_and_going_on_costs_nothing() -> None:
    """A retry is marked as such, so that the retry budget pays for it."""
    cascade = Cascade(max_attempts=100)
    cascade.fail(0, "server")
    assert cascade.decide(0.0) == Try(0, 0, 0.0, retry=True)
    assert cascade.decide(0.5) == Try(0, 0, 0.125, retry=True)
    cascade.fail(0, "server")
    assert cascade.decide(0.999) == Try(1, 0, 0.0, retry=False)
    for _ in range(20):
        cascade.fail(0, "server")
    for _ in range(30):
        cascade.fail(1, "server")
        cascade.fail(2, "server")
    step = cascade.decide(0.999)
    assert isinstance(step, Try)
    assert BACKOFF_CAP_S / 2 < step.delay_s < BACKOFF_CAP_S


def test_without_a_retry_budget_it_goes_on_instead_of_back() -> None:
    """During an outage the trouble is not fed with retries; a tier that was not asked yet is no retry."""
    cascade = Cascade(max_attempts=50)
    for tier in cascade.tiers:
        tier.retry_allowed = False
    assert cascade.goes("server", "server") == [0, 1, 2]
    cascade.fail(2, "server")
    step = cascade.decide()
    assert isinstance(step, Wait), "all were asked: now it waits for the budget"
    cascade.tiers[1].retry_allowed = True
    assert cascade.decide() == Try(1, 0, pytest.approx(0.5), retry=True)


def test_a_backoff_does_not_reach_past_the_deadline() -> None:
    """A try that could only begin after the deadline is no try."""
    cascade = Cascade({}, max_attempts=50)
    for _ in range(9):
        cascade.fail(0, "server")
    cascade.now = cascade.past.deadline - 1.0
    for allowed in (True, False):
        cascade.tiers[0].retry_allowed = allowed
        step = cascade.decide(0.999)
        assert isinstance(step, Try if allowed else Wait)
        assert cascade.now + step.delay_s < cascade.past.deadline


def test_the_retry_budget_is_a_tenth_of_the_calls_with_a_small_floor() -> None:
    """A quiet router may retry; a busy one adds at most a tenth to its load."""
    budget = RetryBudget(0.0)
    granted = 0
    for _ in range(100):
        if budget.allows(0.0):
            budget.withdraw()
            granted += 1
    assert granted == FLOOR_PER_S
    for _ in range(1000):
        budget.deposit(0.0)
    while budget.allows(0.0):
        budget.withdraw()
        granted += 1
    assert granted == pytest.approx(FLOOR_PER_S + min(CAPACITY, 100), abs=1)
    assert budget.allows(1.0)


# -- limits and pauses ---------------------------------------------------------------------------------------------


def test_a_rate_limit_is_no_attempt_and_the_next_tier_is_tried() -> None:
    """A 429 costs none of `max_attempts`, however many there are."""
    cascade = Cascade(max_attempts=1)
    for _ in range(50):
        cascade.fail(0, "rate_limited")
    cascade.observe(0, cooling_for_s=10.0)
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)
    cascade.now += 10.1
    assert cascade.decide() == Try(0, 0, 0.0, retry=False)


def test_a_batch_row_may_wait_for_the_better_tier() -> None:
    """`on_rate_limit: wait`: it waits while the tier only cools, looking again each second, and uses it then."""
    cascade = Cascade(on_rate_limit="wait")
    cascade.observe(0, cooling_for_s=10.0)
    assert cascade.decide() == Wait(LOOK_AGAIN_S)
    cascade.now += 9.5
    assert cascade.decide() == Wait(pytest.approx(0.5))
    cascade.now += 0.6
    assert cascade.decide() == Try(0, 0, 0.0, retry=False)


def test_it_does_not_wait_for_a_better_tier_that_has_had_its_turn() -> None:
    """A tier that timed out for this row is behind the others in this round, cooling or not."""
    cascade = Cascade(on_rate_limit="wait")
    cascade.fail(0, "timeout")
    cascade.observe(0, cooling_for_s=10.0)
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)


def test_a_row_that_waits_for_a_tier_does_not_pester_a_silent_one_meanwhile() -> None:
    """The second tier cools and has not had its turn: the row waits for it."""
    cascade = Cascade({}, {}, {}, on_rate_limit="wait")
    cascade.fail(0, "timeout")
    cascade.observe(1, cooling_for_s=0.5)
    assert cascade.decide() == Wait(pytest.approx(0.5))


def test_an_interactive_request_never_waits_for_a_better_tier() -> None:
    """Somebody is sitting there."""
    cascade = Cascade(on_rate_limit="wait", request=REQUEST._replace(interactive=True))
    cascade.observe(0, cooling_for_s=10.0)
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)


def test_nobody_waits_for_a_better_tier_that_is_broken() -> None:
    """An open breaker is not a rate limit."""
    cascade = Cascade(on_rate_limit="wait")
    cascade.observe(0, state="open", open_for_s=10.0)
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)


def test_when_all_tiers_are_open_a_row_waits_for_the_first_to_recover() -> None:
    """Waiting is no attempt; it looks again at least every second, since health changes without telling it."""
    cascade = Cascade()
    for tier, pause_s in enumerate((30.0, 0.4, 20.0)):
        cascade.observe(tier, state="open", open_for_s=pause_s)
    assert cascade.decide() == Wait(pytest.approx(0.4))
    cascade.observe(1, state="open", open_for_s=60.0)
    assert cascade.decide() == Wait(LOOK_AGAIN_S)
    cascade.now += 20.5
    assert cascade.decide() == Try(2, 0, 0.0, retry=False)


def test_a_recovering_tier_gets_one_call_at_a_time() -> None:
    """The crowd stays where it is until the actor has told what came of the probe, or that another may go."""
    cascade = Cascade({}, {})
    cascade.observe(0, state="open")
    assert cascade.decide() == Try(0, 0, 0.0, retry=False)
    cascade.tiers[0].actors[0].sent()
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)
    cascade.observe(0, state="half_open", open_for_s=3.0)
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)
    cascade.now += 3.0
    assert cascade.decide() == Try(0, 0, 0.0, retry=False), "the first probe hangs: another may go"
    cascade.observe(0, state="closed")
    assert cascade.decide() == Try(0, 0, 0.0, retry=False)


def test_calls_from_before_an_outage_do_not_keep_the_probe_away() -> None:
    """Hundreds of them may hang until their timeout, while the endpoint is long back."""
    cascade = Cascade({}, {})
    for _ in range(100):
        cascade.tiers[0].actors[0].sent()
    cascade.observe(0, state="open", open_for_s=3.0, in_flight=100)
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)
    cascade.now += 3.0
    assert cascade.decide() == Try(0, 0, 0.0, retry=False)


def test_one_actor_probes_for_all_of_its_tier() -> None:
    """However many actors a tier has, its endpoint meets one probe in an interval; its success lets the others try."""
    cascade = Cascade({"replicas": 3}, {})
    for actor in range(3):
        cascade.observe(0, actor, state="open", open_for_s=0.0 if actor else 5.0)
    assert cascade.decide() == Try(1, 0, 0.0, retry=False), "the others are due, but it is not for them to ask"
    assert cascade.tiers[0].usable_at(NOW) == NOW + 5.0
    cascade.now += 5.0
    assert cascade.decide() == Try(0, 0, 0.0, retry=False)
    cascade.observe(0, 0, state="closed")
    cascade.tiers[0].actors[0].outstanding = 1
    assert cascade.decide() == Try(0, 1, 0.0, retry=False)


def test_when_the_prober_is_away_the_next_actor_probes() -> None:
    """The first of those that are up."""
    cascade = Cascade({"replicas": 3}, {})
    for actor in range(3):
        cascade.observe(0, actor, state="open")
    cascade.tiers[0].actors[0].up = False
    assert cascade.decide() == Try(0, 1, 0.0, retry=False)
    cascade.tiers[0].actors[1].sent()
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)


def test_an_endpoint_that_is_out_at_the_prober_is_held_for_the_others() -> None:
    """One of a fleet: the actor takes calls, and which of its endpoints may be probed is told with each call."""
    cascade = Cascade({"replicas": 2, "base_url": ["http://a", "http://b", "http://c"]})
    endpoints = (Health(), Health(state="open", open_for_s=9.0), Health(state="half_open"))
    cascade.observe(0, 0, endpoints=endpoints)
    assert (cascade.tiers[0].held(0), cascade.tiers[0].held(1)) == (0, 0b110)
    cascade.tiers[0].actors[0].up = False
    assert cascade.tiers[0].held(1) == 0


def test_a_retry_avoids_the_endpoint_that_failed_it() -> None:
    """Where the tier has another; a failure at another tier says nothing of this one's."""
    cascade = Cascade({"base_url": ["http://a", "http://b"]}, {})
    assert cascade.past.endpoint_of(cascade.tiers[0]) == -1
    cascade.fail(0, "server", endpoint=1)
    assert [cascade.past.endpoint_of(tier) for tier in cascade.tiers] == [1, -1]
    cascade.fail(1, "server", endpoint=0)
    assert [cascade.past.endpoint_of(tier) for tier in cascade.tiers] == [-1, -1]


def test_a_tier_whose_actor_is_down_is_passed_over_and_looked_at_again_soon() -> None:
    """An actor restarts within seconds."""
    cascade = Cascade({}, {})
    cascade.tiers[0].actors[0].up = False
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)
    cascade.tiers[1].actors[0].up = False
    assert cascade.decide() == Wait(DOWN_S)


def test_a_tier_whose_own_budget_is_spent_is_passed_over() -> None:
    """The cheaper tier below it may still have some."""
    cascade = Cascade({}, {})
    cascade.tiers[0].exhausted_until = NOW + 5
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)
    cascade.tiers[1].exhausted_until = NOW + 0.5
    assert cascade.decide() == Wait(0.5)


def test_an_interactive_caller_is_told_when_to_come_back_rather_than_kept() -> None:
    """Only a short wait is waited for."""
    cascade = Cascade({}, request=REQUEST._replace(interactive=True))
    cascade.observe(0, state="open", open_for_s=INTERACTIVE_PATIENCE_S - 0.5)
    assert isinstance(cascade.decide(), Wait)
    cascade.observe(0, state="open", open_for_s=20.0)
    assert gave_up(cascade.decide(), "all_tiers_exhausted").retry_after_s == pytest.approx(20.0)


# -- what ends a request -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bad_request", "content_filter", "cancelled", "budget_exceeded", "internal"])
def test_final_failures_are_final(kind: FailureKind) -> None:
    """Another try would end the same way: its own kind and message are what the caller gets."""
    cascade = Cascade()
    cascade.fail(0, kind)
    assert gave_up(cascade.decide(), kind).message == f"it was {kind}"


def test_a_prompt_that_is_too_long_goes_only_to_larger_windows() -> None:
    """Equal and smaller windows would refuse it too; an unknown window may be larger."""
    windows: Sequence[int | None] = (8000, 4000, 8000, None, 32_000)
    cascade = Cascade(*({"context_tokens": window} for window in windows))
    assert cascade.goes("context_length", "timeout") == [0, 3, 4]


def test_a_refusal_of_a_content_filter_may_go_on_to_the_next_tier() -> None:
    """With `on_content_filter: fallback`; where it was refused it is not asked again, and the last refusal is told."""
    cascade = Cascade({}, {}, on_content_filter="fallback")
    assert cascade.goes("content_filter") == [0, 1]
    cascade.fail(1, "content_filter")
    assert gave_up(cascade.decide(), "content_filter").message == "it was content_filter"


def test_a_window_that_is_surely_too_small_comes_last_and_not_never() -> None:
    """The bound is an estimate of the tokens from above: the endpoint has the last word where there is no other tier."""
    long = REQUEST._replace(prompt_bound_tokens=1000 * SPARSE_TEXT + 1)
    assert Cascade({"context_tokens": 1000}, {}, request=long).goes("context_length") == [1, 0]
    assert Cascade({"context_tokens": 1000}, request=long).goes() == [0]
    fits = REQUEST._replace(prompt_bound_tokens=1000 * SPARSE_TEXT)
    assert Cascade({"context_tokens": 1000}, {}, request=fits).goes("context_length") == [0, 1]
    waiting = Cascade({"context_tokens": 1000}, {}, request=long, on_rate_limit="wait")
    waiting.observe(0, cooling_for_s=10.0)
    assert waiting.decide() == Try(1, 0, 0.0, retry=False), "nobody waits for it"


def test_a_prompt_that_is_too_long_for_all_says_so() -> None:
    """As the endpoint said it, which is the request's own trouble."""
    cascade = Cascade({"context_tokens": 8000}, {"context_tokens": 4000})
    cascade.fail(0, "context_length")
    assert gave_up(cascade.decide(), "context_length").message == "it was context_length"


@pytest.mark.parametrize("kind", ["auth", "not_found"])
def test_a_tier_with_a_wrong_key_or_model_is_never_tried_again(kind: FailureKind) -> None:
    """It costs no attempt, and when no other tier is left its message is what the caller gets."""
    cascade = Cascade({}, {}, max_attempts=1)
    assert cascade.goes(kind) == [0, 1]
    cascade.fail(1, kind)
    assert gave_up(cascade.decide(), kind).message == f"it was {kind}"


def test_a_tier_that_is_out_for_everybody_is_not_waited_for() -> None:
    """A request that comes later learns at once why there is no tier."""
    cascade = Cascade({"replicas": 2}, {})
    cascade.observe(0, 0, cooling_for_s=300.0, dead_reason="wrong key")
    assert cascade.decide() == Try(0, 1, 0.0, retry=False), "its other actor may have another key"
    cascade.observe(0, 1, cooling_for_s=300.0, dead_reason="wrong key")
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)
    cascade.observe(1, cooling_for_s=300.0, dead_reason="no such model")
    assert gave_up(cascade.decide(), "auth").message == "tier t0 is out: wrong key"
    cascade.observe(0, 1, cooling_for_s=300.0, dead_reason="gone", dead_kind="not_found")
    cascade.observe(0, 0, cooling_for_s=300.0, dead_reason="gone", dead_kind="not_found")
    gave_up(cascade.decide(), "not_found")


def test_a_row_waits_for_a_tier_that_has_served_and_went_out() -> None:
    """A key that is put right in mid-run costs no rows; somebody at a terminal is told at once."""
    out = {"cooling_for_s": 30.0, "dead_reason": "wrong key"}
    cascade, interactive = Cascade({}), Cascade({}, request=REQUEST._replace(interactive=True))
    for one in (cascade, interactive):
        one.tiers[0].served = True
        one.observe(0, **out)
        one.fail(0, "auth")
    assert cascade.decide() == Wait(LOOK_AGAIN_S)
    gave_up(interactive.decide(), "auth")
    cascade.now = cascade.past.deadline
    cascade.observe(0, **out)
    assert gave_up(cascade.decide(), "deadline").message.endswith("t0 auth; tier t0 is out: wrong key")
    forbidden = Cascade({})
    forbidden.tiers[0].served = True
    forbidden.fail(0, "auth")
    gave_up(forbidden.decide(), "auth")


def test_a_tier_that_was_out_is_asked_again_by_one_call() -> None:
    """After its pause; the crowd stays where it is until that one has come back."""
    cascade = Cascade({}, {})
    cascade.observe(0, cooling_for_s=30.0, dead_reason="no such model", dead_kind="not_found")
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)
    cascade.now += 30.0
    assert cascade.decide() == Try(0, 0, 0.0, retry=False)
    cascade.tiers[0].actors[0].sent()
    assert cascade.decide() == Try(1, 0, 0.0, retry=False)
    cascade.observe(0)
    assert cascade.decide() == Try(0, 0, 0.0, retry=False)


def test_the_deadline_ends_it() -> None:
    """Also while it waits, and it says how long that was and what was tried."""
    cascade = Cascade(request=REQUEST._replace(deadline_s=30.0))
    cascade.fail(0, "timeout")
    cascade.now = NOW + 29.9
    for tier in range(3):
        cascade.observe(tier, state="open", open_for_s=10.0)
    assert cascade.decide() == Wait(pytest.approx(0.1))
    cascade.now = NOW + 30.0
    assert gave_up(cascade.decide(), "deadline").message == "not done within 30 s: t0 timeout"


def test_attempts_are_bounded() -> None:
    """`max_attempts` counts what was sent and failed."""
    cascade = Cascade(max_attempts=3)
    assert cascade.goes("server", "timeout") == [0, 0, 1]
    cascade.fail(1, "rate_limited")
    assert isinstance(cascade.decide(), Try)
    cascade.fail(1, "server")
    gave_up(cascade.decide(), "all_tiers_exhausted")


def test_the_last_word_tells_every_attempt() -> None:
    """One line: what was tried, how it ended, how often."""
    cascade = Cascade(max_attempts=4)
    cascade.fail(0, "server", status=500)
    cascade.fail(0, "server", status=500)
    cascade.fail(0, "rate_limited", status=429)
    cascade.fail(1, "timeout")
    cascade.fail(2, "overloaded", status=503)
    assert (
        gave_up(cascade.decide(), "all_tiers_exhausted").message
        == "failed 4 times: t0 server 500 x2, t0 rate_limited 429, t1 timeout, t2 overloaded 503"
    )
