"""The rule of hedging: what is late, how many second copies there may be, and where they may go."""

import random
from typing import Any

import pytest

from actors.messages import Health, Request
from actors.router.hedging import Allowance, Latencies, Watch, where
from actors.router.plan import Past, TierState
from actors.settings import TierSettings

NOW = 1_000.0
OUTLIER_S = 30.0


def lognormal(rng: random.Random) -> float:
    return OUTLIER_S if rng.random() < 0.01 else 0.8 * rng.lognormvariate(0, 0.4)


# -- after how long ------------------------------------------------------------------------------------------------


def test_the_quantile_is_that_of_the_calls() -> None:
    """Within a bucket's width of what sorting says, for ordinary and for far quantiles."""
    rng = random.Random(1)
    took = [lognormal(rng) for _ in range(4_000)]
    latencies = Latencies()
    for duration_s in took:
        latencies.add(duration_s)
    for share in (0.5, 0.9, 0.95, 0.985):
        exact = sorted(took)[int(share * len(took))]
        assert latencies.quantile(share) == pytest.approx(exact, rel=0.11)


@pytest.mark.parametrize(("share", "enough"), [(0.5, 30), (0.95, 40), (0.99, 200), (0.999, 2_000)])
def test_a_quantile_is_not_told_from_too_few_calls(share: float, enough: int) -> None:
    """The farther out, the more calls it takes; and when it is known, it stays known however many calls come."""
    latencies = Latencies()
    for number in range(20_000):
        assert (latencies.quantile(share) is None) == (number < enough), number
        latencies.add(1.0)


def test_what_was_long_ago_is_forgotten() -> None:
    """An endpoint that gets ten times faster is seen to."""
    latencies = Latencies()
    for duration_s in [10.0] * 4_000 + [1.0] * 40_000:
        latencies.add(duration_s)
    assert latencies.quantile(0.95) == pytest.approx(1.0, rel=0.11)


def test_hedging_does_not_lower_its_own_quantile() -> None:
    """The slow calls that it ends are counted with what they had waited, so p95 of 20,000 calls stays p95."""
    rng = random.Random(2)
    exact = sorted(lognormal(rng) for _ in range(20_000))[19_000]
    latencies, late = Latencies(), 0
    for _ in range(20_000):
        took, after_s = lognormal(rng), latencies.quantile(0.95)
        if after_s is not None and took > after_s:
            late += 1
            took = min(took, after_s + 0.1)  # overtaken
        latencies.add(took)
    assert latencies.quantile(0.95) == pytest.approx(exact, rel=0.2)
    assert late / 20_000 == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("duration_s", [0.0, -1.0, 1e-9, 1e9])
def test_no_duration_is_out_of_bounds(duration_s: float) -> None:
    """A clock that stood still, and a call that took a lifetime."""
    latencies = Latencies()
    for _ in range(100):
        latencies.add(duration_s)
    assert latencies.quantile(0.95) is not None


# -- how many ------------------------------------------------------------------------------------------------------


def withdrawn(allowance: Allowance) -> bool:
    if not allowance.any:
        return False
    allowance.withdraw()
    return True


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3, 1.0])
def test_second_copies_are_at_most_their_fraction_of_calls(fraction: float) -> None:
    """Whoever asks for as many as there are gets the fraction, and not one more."""
    allowance, given = Allowance(fraction), 0
    for number in range(1, 2_001):
        allowance.deposit()
        given += withdrawn(allowance)
        assert given <= fraction * number + 1e-6
    assert given == pytest.approx(fraction * 2_000, abs=1)


def test_an_allowance_of_nothing_gives_nothing() -> None:
    """`max_fraction: 0`: only the last rows of a job are hedged."""
    allowance = Allowance(0.0)
    for _ in range(10_000):
        allowance.deposit()
    assert not withdrawn(allowance)


def test_what_was_not_used_is_not_kept_for_ever() -> None:
    """After a million calms calls, a bad moment brings no flood: ten second copies at 5%."""
    allowance = Allowance(0.05)
    for _ in range(1_000_000):
        allowance.deposit()
    assert sum(withdrawn(allowance) for _ in range(1_000)) == 10


# -- whether it was sent -------------------------------------------------------------------------------------------


def test_a_call_counts_as_sent_when_later_word_knows_of_no_queue() -> None:
    """Word that is older than the call says nothing of it."""
    watch = Watch()
    assert watch.sent_by(NOW) is None
    watch.observe(Health(), NOW)
    assert watch.sent_by(NOW) is None
    watch.observe(Health(), NOW + 0.5)
    assert watch.sent_by(NOW) == NOW


@pytest.mark.parametrize(
    "busy", [Health(queued=1), Health(cooling_for_s=1.0), Health(state="open"), Health(state="half_open")]
)
def test_a_call_that_may_have_waited_counts_from_the_end_of_the_wait(busy: Health) -> None:
    """A queue, a pause that the endpoint asked for, a breaker that is not closed."""
    watch = Watch()
    watch.observe(busy, NOW + 5.0)
    assert watch.sent_by(NOW) is None
    for later_s in (6.0, 7.0, 8.0):
        watch.observe(Health(), NOW + later_s)
    assert watch.sent_by(NOW) == NOW + 6.0
    assert watch.sent_by(NOW + 7.5) == NOW + 7.5
    watch.observe(busy, NOW + 9.0)
    assert watch.sent_by(NOW) is None


# -- where to ------------------------------------------------------------------------------------------------------


def tier(index: int, actors: int = 1, **settings: Any) -> TierState:
    given = {"name": f"t{index}", "model": "m", "base_url": "http://x", "quality": "high", "replicas": actors}
    state = TierState(index, TierSettings.model_validate({**given, **settings}))
    for actor in state.actors:
        actor.up = True
        actor.observe(Health(limit=4), NOW)
    return state


def request(**changes: Any) -> Request:
    return Request("r", "/chat/completions", b"{}", b"", **{"prompt_bound_tokens": 400, "max_tokens": 16, **changes})


def place(tiers: list[TierState], past: Past | None = None, **changes: Any) -> tuple[int, int] | None:
    """Where a second copy goes of a call that actor 0 of the first tier has."""
    tiers[0].actors[0].outstanding += 1
    found = where(request(**changes), tiers[0], 0, tiers, past or Past(len(tiers), NOW + 60), NOW)
    return found and (found[0].index, found[1])


def test_another_actor_of_the_tier_is_first() -> None:
    """And of several the one with the fewest calls."""
    tiers = [tier(0, actors=3), tier(1)]
    tiers[0].actors[1].outstanding = 2
    assert place(tiers) == (0, 2)


def test_a_tier_of_several_endpoints_is_asked_again_before_the_next_tier() -> None:
    """Its actor chooses among them."""
    assert place([tier(0, base_url=["http://x", "http://y"]), tier(1)]) == (0, 0)


def test_the_next_tier_comes_before_the_same_place() -> None:
    """One endpoint, one actor: its neighbour; and without a neighbour the same once more."""
    assert place([tier(0), tier(1)]) == (1, 0)
    assert place([tier(0)]) == (0, 0)


@pytest.mark.parametrize(
    "trouble",
    [
        {"quality": "basic"},
        {"context_tokens": 100},
        {"health": Health(limit=4, in_flight=4)},
        {"health": Health(limit=4, queued=1)},
        {"health": Health(limit=4, state="half_open")},
        {"health": Health(limit=4, cooling_for_s=2.0)},
        {"health": Health(limit=4, state="open", open_for_s=2.0)},
        {"health": Health(limit=4, cooling_for_s=2.0, dead_reason="wrong key")},
        {"outstanding": 4},
        {"up": False},
        {"exhausted": True},
        {"excluded": True},
        {"struck": True},
    ],
    ids=str,
)
def test_a_tier_that_the_plan_would_not_ask_gets_no_copy(trouble: dict[str, Any]) -> None:
    """Too low a quality, too small a window, no free slot, a breaker or a pause, no budget, or it has failed already."""
    settings = {name: value for name, value in trouble.items() if name in ("quality", "context_tokens")}
    tiers, past = [tier(0), tier(1, **settings), tier(2)], Past(3, NOW + 60)
    neighbour = tiers[1].actors[0]
    neighbour.observe(trouble.get("health", neighbour.health), NOW)
    neighbour.outstanding = trouble.get("outstanding", 0)
    neighbour.up = trouble.get("up", True)
    tiers[1].exhausted_until = NOW + 5 if "exhausted" in trouble else 0.0
    if "excluded" in trouble:
        past.excluded.add(1)
    if "struck" in trouble:
        past.failed.add(1)
    assert place(tiers, past, min_quality=2) == (2, 0)


def test_a_tier_above_the_requests_start_gets_no_copy() -> None:
    """`body.model` has said where the cascade starts."""
    tiers = [tier(0), tier(1)]
    found = where(request(start_tier=1), tiers[1], 0, tiers, Past(2, NOW + 60), NOW)
    assert found == (tiers[1], 0)


def test_without_a_free_slot_anywhere_there_is_no_copy() -> None:
    """More load where calls wait already helps nobody."""
    full = tier(0)
    full.actors[0].observe(Health(limit=4, in_flight=4), NOW)
    assert place([full]) is None
