"""The breaker: every state times every event, and what each threshold means."""

import re
from collections.abc import Callable, Iterator

import pytest

from actors.settings import BreakerSettings
from actors.tier import breaker as breaker_module
from actors.tier.breaker import (
    EVENTS,
    RECOVERY_CAP,
    STATES,
    TRANSITIONS,
    Breaker,
    Event,
    Outcome,
    Permit,
    Refused,
    State,
)

SETTINGS = BreakerSettings(
    failure_threshold=3,
    recovery_timeout_s=10.0,
    failure_rate=0.5,
    min_calls=10,
    window_s=60.0,
    half_open_calls=1,
    slow_call_s=5.0,
    slow_call_rate=0.8,
)
NOW = 1000.0
DUE = NOW + 10.0


@pytest.fixture
def breaker() -> Iterator[Breaker]:
    """A breaker that opens after three failures; checked at the end of every test."""
    breaker = Breaker(SETTINGS)
    yield breaker
    breaker.check()


def admitted(breaker: Breaker, now: float = NOW) -> Permit:
    permit = breaker.admit(now)
    assert isinstance(permit, Permit)
    return permit


def call(breaker: Breaker, outcome: Outcome, now: float = NOW, duration_s: float = 0.1) -> None:
    breaker.settle(admitted(breaker, now), outcome, now, duration_s)


def opened(breaker: Breaker, now: float = NOW) -> None:
    for _ in range(3):
        call(breaker, "failure", now)
    assert breaker.state == "open"


# -- the table: every state, and every event, however it comes about ------------------------------------------------


def in_state(state: State) -> tuple[Breaker, list[Permit]]:
    """A breaker in that state, and permits of every kind that callers may still hold: a probe's too when there is one."""
    breaker = Breaker(SETTINGS)
    held = [admitted(breaker) for _ in range(20)]
    if state != "closed":
        opened(breaker)
    if state == "half_open":
        held = [admitted(breaker, DUE)]
    return breaker, held


def settles(*ends: tuple[Outcome, float]) -> Callable[[Breaker, list[Permit]], None]:
    """The calls under way end one after the other: outcome and duration of each."""

    def act(breaker: Breaker, held: list[Permit]) -> None:
        for permit, (outcome, duration_s) in zip(held, ends, strict=False):
            breaker.settle(permit, outcome, DUE + 1, duration_s)

    return act


def asks_when_due(breaker: Breaker, held: list[Permit]) -> None:
    breaker.admit(DUE)


HAPPENS: dict[Event, Callable[[Breaker, list[Permit]], None]] = {
    "failures_in_a_row": settles(*[("failure", 0.1)] * 3),
    "failure_rate": settles(*[("success", 0.1), ("failure", 0.1)] * 5),
    "slow_call_rate": settles(*[("success", 0.1)] * 2, *[("success", 5.0)] * 8),
    "recovery_time": asks_when_due,
    "probe_success": settles(("success", 0.1)),
    "probe_failure": settles(("failure", 0.1)),
    "probe_slow": settles(("success", 5.0)),
}
ALIKE: dict[State, dict[Event, Event]] = {
    # What begins with the end of one call is, where there is a probe, the end of that probe.
    "half_open": {
        "failures_in_a_row": "probe_failure",
        "failure_rate": "probe_success",
        "slow_call_rate": "probe_success",
    }
}


def test_every_event_of_the_table_can_be_made() -> None:
    """So that the walk below leaves out nothing."""
    assert set(HAPPENS) == set(EVENTS) == {event for _, event in TRANSITIONS}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_the_table(state: State, event: Event) -> None:
    """What is in the table happens and begins a new generation; what is not changes neither state nor generation."""
    breaker, held = in_state(state)
    generation = breaker.generation
    HAPPENS[event](breaker, held)
    row = TRANSITIONS.get((state, ALIKE.get(state, {}).get(event, event)))
    assert (breaker.state, breaker.generation - generation) == ((row, 1) if row else (state, 0))
    breaker.check()


@pytest.mark.parametrize("outcome", ["success", "failure", "neutral"])
@pytest.mark.parametrize("state", STATES)
def test_a_settle_of_an_older_generation_changes_nothing(state: State, outcome: Outcome) -> None:
    """Calls that were under way when the state changed end in their hundreds; they tell of another time."""
    breaker, _ = in_state(state)
    generation = breaker.generation
    for _ in range(30):
        breaker.settle(Permit(generation - 1, 0), outcome, DUE, 9.0)
        breaker.settle(Permit(generation - 1, 1), outcome, DUE, 0.1)
    assert (breaker.state, breaker.generation) == (state, generation)
    breaker.check()


def test_the_header_is_the_table() -> None:
    """What people read is what the code does."""
    rows = re.findall(
        r"^    (closed|open|half_open) +(\w+) +(closed|open|half_open)  ", breaker_module.__doc__ or "", re.M
    )
    assert {(state, event): following for state, event, following in rows} == dict(TRANSITIONS)


# -- thresholds ----------------------------------------------------------------------------------------------------


def test_a_success_breaks_a_row_of_failures(breaker: Breaker) -> None:
    """Only failures one after the other open it; cancelled calls neither count nor break the row."""
    for outcome in ("failure", "failure", "success", "failure", "neutral", "failure"):
        call(breaker, outcome)
    assert breaker.state == "closed"
    call(breaker, "failure")
    assert breaker.state == "open"
    assert breaker.why == "3 failures in a row"


def test_neutral_ends_never_open_it(breaker: Breaker) -> None:
    """A client's own mistakes say nothing about the endpoint, also when they are slow."""
    for _ in range(1000):
        call(breaker, "neutral", duration_s=60.0)
    assert breaker.state == "closed"


def test_the_failure_rate_needs_enough_calls(breaker: Breaker) -> None:
    """One failure of two calls is no trend."""
    for outcome in ("failure", "success") * 4:
        call(breaker, outcome)
    call(breaker, "success")
    assert breaker.state == "closed"
    call(breaker, "failure")
    assert breaker.state == "open"
    assert breaker.why == "5 of 10 calls failed"


def test_old_calls_leave_the_window(breaker: Breaker) -> None:
    """Failures of the last hour do not count against the endpoint of now."""
    for _ in range(4):
        call(breaker, "failure", NOW)
        call(breaker, "success", NOW)
    for _ in range(12):
        call(breaker, "success", NOW + 61)
    call(breaker, "failure", NOW + 61)
    assert breaker.state == "closed"


def test_the_window_keeps_no_call_longer_than_it_says_and_forgets_none_long_before(breaker: Breaker) -> None:
    """It moves on by a tenth of itself, and a million calls take no more memory than ten."""
    for second in range(300):
        for _ in range(50):
            call(breaker, "success", NOW + second)
        breaker.check()
        assert second < 60 or 53 * 50 <= breaker._window.calls <= 60 * 50


def test_slow_calls_open_it_also_when_they_succeed(breaker: Breaker) -> None:
    """An endpoint that answers in 30 s what it answered in one is as good as down for who waits."""
    for _ in range(9):
        call(breaker, "success", duration_s=7.0)
    assert breaker.state == "closed"
    call(breaker, "success", duration_s=7.0)
    assert (breaker.state, breaker.why) == ("open", "10 of 10 calls took 5 s or longer")


def test_a_slow_failure_counts_as_failed_and_as_slow(breaker: Breaker) -> None:
    """As Resilience4j counts it: eight slow of ten, of which a few failed."""
    for outcome in ("failure", "success", "success", "failure", "success", "success", "success", "failure"):
        call(breaker, outcome, duration_s=7.0)
    call(breaker, "success")
    assert breaker.state == "closed"
    call(breaker, "success", duration_s=7.0)
    assert breaker.why == "9 of 10 calls took 5 s or longer"


def test_without_a_threshold_no_call_is_slow() -> None:
    """Models may think for minutes, so nothing is slow unless somebody says what that is."""
    breaker = Breaker(SETTINGS.model_copy(update={"slow_call_s": None}))
    for _ in range(100):
        call(breaker, "success", duration_s=600.0)
    assert breaker.state == "closed"


# -- recovery ------------------------------------------------------------------------------------------------------


def test_it_is_probed_once_per_recovery_time_however_long_the_outage(breaker: Breaker) -> None:
    """So that recovery is seen within one recovery time, also after hours."""
    opened(breaker)
    now, probes = NOW, []
    while now < NOW + 1000:
        if isinstance(breaker.admit(now), Permit):
            probes.append(now - NOW)
            breaker.settle(Permit(breaker.generation, breaker._probe_number), "failure", now + 0.25)
        now += 0.25
    assert probes == [10.0 * number for number in range(1, 100)]


@pytest.mark.parametrize("hangs_s", [4.0, 10.0, 25.0])
def test_an_endpoint_that_hangs_is_probed_as_often_as_one_that_refuses(breaker: Breaker, hangs_s: float) -> None:
    """The recovery time runs from the sending of a probe, and a hanging one does not keep the next from being sent."""
    opened(breaker)
    under_way: list[tuple[float, Permit]] = []
    probes = []
    for tick in range(4 * 200):
        now = NOW + tick / 4
        while under_way and under_way[0][0] <= now:
            breaker.settle(under_way.pop(0)[1], "failure", now, hangs_s)
        answer = breaker.admit(now)
        if isinstance(answer, Permit):
            under_way.append((now + hangs_s, answer))
            probes.append(now - NOW)
    assert probes == [10.0 * number for number in range(1, 20)]
    for _, hanging in under_way[:1]:
        breaker.settle(hanging, "success", NOW + 201)
        assert breaker.state == "closed"


def test_coming_back_only_to_fail_makes_the_recovery_time_grow() -> None:
    """Each return costs the callers a few calls, so an endpoint that flaps is tried less and less often, to a cap."""
    breaker = Breaker(SETTINGS)
    now, pauses = NOW, []
    for _ in range(6):
        opened(breaker, now)
        pauses.append(breaker.open_until - now)
        now = breaker.open_until
        call(breaker, "success", now)
        assert breaker.state == "closed"
        breaker.check()
    assert pauses == [10, 20, 40, 80, 80, 80]
    assert max(pauses) == SETTINGS.recovery_timeout_s * RECOVERY_CAP
    opened(breaker, now + 80)
    assert breaker.open_until == now + 80 + 10, "it was well for long enough: the next outage starts afresh"
    assert breaker.opened == 7


def test_only_so_many_probes_at_once() -> None:
    """A recovering endpoint meets `half_open_calls` calls, not the whole crowd; a free place is given again."""
    breaker = Breaker(SETTINGS.model_copy(update={"half_open_calls": 2}))
    opened(breaker)
    first, second = admitted(breaker, DUE), admitted(breaker, DUE + 1)
    assert first.probe != second.probe
    assert breaker.admit(DUE + 2) == Refused(DUE + 10)
    breaker.settle(first, "neutral", DUE + 2)
    third = admitted(breaker, DUE + 2)
    assert breaker.admit(DUE + 2) == Refused(DUE + 11)
    breaker.settle(second, "success", DUE + 3)
    assert breaker.state == "closed"
    breaker.settle(third, "failure", DUE + 3)
    assert breaker.state == "closed"
    breaker.check()


def test_the_failure_of_any_probe_that_has_a_place_opens_it_again() -> None:
    """Also when a newer one is under way."""
    breaker = Breaker(SETTINGS.model_copy(update={"half_open_calls": 2}))
    opened(breaker)
    first, _ = admitted(breaker, DUE), admitted(breaker, DUE + 1)
    breaker.settle(first, "failure", DUE + 2)
    assert (breaker.state, breaker.open_until) == ("open", DUE + 11)


def test_a_lost_probe_wedges_nothing(breaker: Breaker) -> None:
    """Its place is free after a recovery time. Its late failure is nothing new then, its late success is."""
    opened(breaker)
    lost = admitted(breaker, DUE)
    assert breaker.admit(DUE + 9.9) == Refused(DUE + 10)
    fresh = admitted(breaker, DUE + 10)
    breaker.settle(lost, "failure", DUE + 11)
    assert breaker.state == "half_open"
    assert breaker.retry_at(DUE + 11) == DUE + 20
    breaker.settle(lost, "success", DUE + 12)
    assert breaker.state == "closed"
    breaker.settle(fresh, "failure", DUE + 12)
    assert breaker.state == "closed"


def test_it_says_when_to_ask_again_without_changing(breaker: Breaker) -> None:
    """`retry_at` looks, `admit` acts."""
    assert breaker.retry_at(NOW) == NOW
    opened(breaker)
    assert breaker.retry_at(NOW) == breaker.retry_at(DUE + 5) == DUE
    assert breaker.state == "open"
    admitted(breaker, DUE + 5)
    assert breaker.retry_at(DUE + 6) == DUE + 15
