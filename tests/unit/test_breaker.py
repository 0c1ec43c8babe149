"""The breaker, row by row of its table."""

from collections.abc import Callable, Iterator

import pytest

from actors.settings import BreakerSettings
from actors.tier.breaker import RECOVERY_CAP, Breaker, Outcome, Permit, Refused, State

SETTINGS = BreakerSettings(
    failure_threshold=3, recovery_timeout_s=10.0, failure_rate=0.5, min_calls=10, window_s=60.0, half_open_calls=1
)
LEASE_S = 5.0
NOW = 1000.0


@pytest.fixture
def breaker() -> Iterator[Breaker]:
    """A breaker that opens after three failures; checked at the end of every test."""
    breaker = Breaker(SETTINGS, LEASE_S)
    yield breaker
    breaker.check()


def admitted(breaker: Breaker, now: float = NOW) -> Permit:
    permit = breaker.admit(now)
    assert isinstance(permit, Permit)
    return permit


def call(breaker: Breaker, outcome: Outcome, now: float = NOW) -> None:
    breaker.settle(admitted(breaker, now), outcome, now)


def closed(breaker: Breaker) -> None:
    pass


def opened(breaker: Breaker) -> None:
    for _ in range(3):
        call(breaker, "failure")


def probing(breaker: Breaker) -> None:
    opened(breaker)
    admitted(breaker, NOW + 10)


def in_a_row(breaker: Breaker) -> None:
    for _ in range(3):
        call(breaker, "failure")


def by_rate(breaker: Breaker) -> None:
    for outcome in ("success", "failure") * 5:
        call(breaker, outcome)


def too_early(breaker: Breaker) -> None:
    assert breaker.admit(NOW + 9.9) == Refused(NOW + 10)


def in_time(breaker: Breaker) -> None:
    admitted(breaker, NOW + 10)


def probe_ends(outcome: Outcome) -> Callable[[Breaker], None]:
    def act(breaker: Breaker) -> None:
        breaker.settle(Permit(breaker.generation, 1), outcome, NOW + 11)

    act.__name__ = f"probe_{outcome}"
    return act


def probe_is_lost(breaker: Breaker) -> None:
    assert breaker.admit(NOW + 14.9) == Refused(NOW + 15)
    admitted(breaker, NOW + 15)


def stale(breaker: Breaker) -> None:
    for outcome in ("success", "failure", "neutral") * 5:
        breaker.settle(Permit(breaker.generation - 1, 0), outcome, NOW)
        breaker.settle(Permit(breaker.generation - 1, 1), outcome, NOW)


@pytest.mark.parametrize(
    ("before", "event", "state", "generations"),
    [
        (closed, in_a_row, "open", 1),
        (closed, by_rate, "open", 1),
        (opened, too_early, "open", 0),
        (opened, in_time, "half_open", 1),
        (probing, probe_ends("success"), "closed", 1),
        (probing, probe_ends("failure"), "open", 1),
        (probing, probe_ends("neutral"), "half_open", 0),
        (probing, probe_is_lost, "half_open", 0),
        (closed, stale, "closed", 0),
        (opened, stale, "open", 0),
        (probing, stale, "half_open", 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_table(
    breaker: Breaker,
    before: Callable[[Breaker], None],
    event: Callable[[Breaker], None],
    state: State,
    generations: int,
) -> None:
    """Every row of the module's table: the state it leads to, and whether a new generation begins."""
    before(breaker)
    generation = breaker.generation
    event(breaker)
    assert (breaker.state, breaker.generation - generation) == (state, generations)


def test_a_success_breaks_a_row_of_failures(breaker: Breaker) -> None:
    """Only failures one after the other open it; cancelled calls neither count nor break the row."""
    for outcome in ("failure", "failure", "success", "failure", "neutral", "failure"):
        call(breaker, outcome)
    assert breaker.state == "closed"
    call(breaker, "failure")
    assert breaker.state == "open"


def test_neutral_ends_never_open_it(breaker: Breaker) -> None:
    """A client's own mistakes say nothing about the endpoint."""
    for _ in range(1000):
        call(breaker, "neutral")
    assert breaker.state == "closed"


def test_the_failure_rate_needs_enough_calls(breaker: Breaker) -> None:
    """One failure of two calls is no trend."""
    for outcome in ("failure", "success", "failure", "success", "failure", "success", "failure", "success", "failure"):
        call(breaker, outcome)
    assert breaker.state == "closed"
    call(breaker, "success")
    assert breaker.state == "closed"
    call(breaker, "failure")
    assert breaker.state == "open"


def test_old_calls_leave_the_window(breaker: Breaker) -> None:
    """Failures of the last hour do not count against the endpoint of now."""
    for _ in range(4):
        call(breaker, "failure", NOW)
        call(breaker, "success", NOW)
    for _ in range(12):
        call(breaker, "success", NOW + 61)
    call(breaker, "failure", NOW + 61)
    assert breaker.state == "closed"
    breaker.check()


def test_the_recovery_time_doubles_to_a_cap_and_is_forgotten_on_success(breaker: Breaker) -> None:
    """An endpoint that stays down is asked less and less often; once it answers, the next outage starts afresh."""
    opened(breaker)
    now, pauses = NOW, []
    for _ in range(6):
        pauses.append(breaker.open_until - now)
        now = breaker.open_until
        call(breaker, "failure", now)
    assert pauses == [10, 20, 40, 80, 80, 80]
    assert max(pauses) == SETTINGS.recovery_timeout_s * RECOVERY_CAP
    now = breaker.open_until
    call(breaker, "success", now)
    assert breaker.state == "closed"
    for _ in range(3):
        call(breaker, "failure", now)
    assert breaker.open_until == now + 10
    assert breaker.opened == 8


def test_only_so_many_probes_at_once() -> None:
    """A recovering endpoint meets `half_open_calls` calls, not the whole crowd; a free place is given again."""
    breaker = Breaker(SETTINGS.model_copy(update={"half_open_calls": 2}), LEASE_S)
    opened(breaker)
    now = NOW + 10
    first, second = admitted(breaker, now), admitted(breaker, now + 1)
    assert first.probe != second.probe
    assert breaker.admit(now + 2) == Refused(now + LEASE_S)
    breaker.settle(first, "neutral", now + 2)
    third = admitted(breaker, now + 2)
    assert isinstance(breaker.admit(now + 2), Refused)
    breaker.settle(second, "success", now + 3)
    breaker.check()
    assert breaker.state == "closed"
    breaker.settle(third, "failure", now + 3)
    assert breaker.state == "closed"
    breaker.check()


def test_a_probe_whose_lease_ran_out_decides_nothing(breaker: Breaker) -> None:
    """Another probe has its place, and that one's outcome counts."""
    opened(breaker)
    lost = admitted(breaker, NOW + 10)
    fresh = admitted(breaker, NOW + 10 + LEASE_S)
    breaker.settle(lost, "failure", NOW + 16)
    assert breaker.state == "half_open"
    breaker.settle(fresh, "success", NOW + 17)
    assert breaker.state == "closed"
