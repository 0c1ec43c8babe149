"""The endpoints of a tier: which of them takes the next call, and what is said of them."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from actors.messages import Answer, Failure, FailureKind, Refusal
from actors.settings import TierSettings
from actors.tier.breaker import Permit
from actors.tier.upstream import HELD_S, Balancer, Busy, Upstream

NOW = 1000.0
PATH = "/chat/completions"
ANSWERED = Answer(b"{}", 200, None, "m", 0.1)
RECOVERY_S = 10.0


class Fleet:
    """A balancer, and calls at its endpoints."""

    def __init__(self, count: int = 3, seed: int = 0, **settings: Any) -> None:
        given = {"name": "t", "model": "m", "base_url": [f"http://h{at}:8000/v1" for at in range(count)], **settings}
        given["breaker"] = {"failure_threshold": 3, "recovery_timeout_s": RECOVERY_S, **given.get("breaker", {})}
        self.balancer = Balancer(TierSettings.model_validate(given))
        self.random = random.Random(seed)
        self.now = NOW
        self.probing = False

    def choose(self, avoid: int = -1, held: int = 0, path: str = PATH) -> Upstream | Busy | Refusal:
        return self.balancer.choose(path, avoid, held, self.now, self.random.random())

    def send(self, **options: Any) -> tuple[Upstream, Permit]:
        chosen = self.choose(**options)
        assert isinstance(chosen, Upstream), chosen
        return self.send_to(chosen.index, options.get("path", PATH))

    def send_to(self, index: int, path: str = PATH) -> tuple[Upstream, Permit]:
        upstream = self.balancer.all[index]
        permit = upstream.breaker.admit(self.now)
        assert isinstance(permit, Permit)
        upstream.in_flight += 1
        upstream.capacity.sent(self.now)
        self.probing = upstream.probes(path, self.now)
        return upstream, permit

    def end(self, call: tuple[Upstream, Permit], done: Answer | Failure = ANSWERED) -> None:
        upstream, permit = call
        outcome = upstream.learn(done, PATH, self.now, self.now, self.probing)
        said = done.message if isinstance(done, Failure) else ""
        self.balancer.settle(upstream, permit, outcome, self.now, 0.1, said)

    def fail(self, index: int, kind: FailureKind = "server", times: int = 1, **failure: Any) -> None:
        for _ in range(times):
            self.end(self.send_to(index), Failure(kind, f"HTTP: it was {kind}", **failure))

    def goes_to(self, calls: int = 200, **options: Any) -> set[int]:
        """Where calls go that come one at a time."""
        return set(self.spread(calls, **options))

    def spread(self, calls: int = 200, **options: Any) -> Counter[int]:
        gone: Counter[int] = Counter()
        for _ in range(calls):
            call = self.send(**options)
            gone[call[0].index] += 1
            self.end(call)
        return gone


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.balancer.check()


# -- the choice ----------------------------------------------------------------------------------------------------


def test_calls_that_come_one_at_a_time_go_to_all() -> None:
    """Also over several actors: nobody always begins with the first."""
    spread = Fleet(4).spread(4000)
    assert set(spread) == {0, 1, 2, 3}
    assert min(spread.values()) > 800


@pytest.mark.parametrize("count", [2, 3, 16])
def test_the_less_loaded_of_two_gets_the_call(count: int) -> None:
    """Calls in flight stay level, though one endpoint ends its calls four times as slowly."""
    fleet = Fleet(count, concurrency=10_000)
    calls: list[tuple[Upstream, Permit]] = []
    for _ in range(20_000):
        calls.append(fleet.send())
        if len(calls) > 40 * count:
            at = fleet.random.randrange(len(calls))
            if calls[at][0].index != 0 or fleet.random.random() < 0.25:
                fleet.end(calls.pop(at))
    loads = [each.in_flight for each in fleet.balancer.all]
    assert max(loads) < 1.5 * sum(loads) / count


def test_one_that_is_full_is_passed_over_and_when_all_are_calls_wait() -> None:
    """A slot anywhere will do."""
    fleet = Fleet(2, concurrency=3)
    calls = [fleet.send() for _ in range(6)]
    assert [each.in_flight for each in fleet.balancer.all] == [3, 3]
    assert fleet.choose() == Busy(None)
    fleet.end(next(call for call in calls if call[0].index == 1))
    assert fleet.goes_to(1) == {1}


def test_one_dead_replica_is_taken_out_alone(fleet: Fleet) -> None:
    """The others take the calls; nothing is refused."""
    fleet.fail(1, times=3)
    assert fleet.goes_to() == {0, 2}
    fleet.fail(0, times=3)
    assert fleet.goes_to() == {2}
    assert fleet.balancer.health(NOW).state == "closed"


def test_only_when_all_are_out_is_the_tier(fleet: Fleet) -> None:
    """Who is told so learns when the first of them may be asked again."""
    for index in (1, 0, 2):
        fleet.fail(index, times=3)
        fleet.now += 1.0
    assert fleet.choose() == Refusal("open", RECOVERY_S - 3.0)
    health = fleet.balancer.health(fleet.now)
    assert (health.state, health.open_for_s, health.opened) == ("open", RECOVERY_S - 3.0, 3)


def test_one_that_is_due_for_a_probe_gets_the_next_call_and_only_that(fleet: Fleet) -> None:
    """Least load would never find it, and chance would take its time."""
    fleet.fail(1, times=3)
    fleet.now += RECOVERY_S
    probe = fleet.send()
    assert probe[0].index == 1
    assert fleet.goes_to() == {0, 2}
    fleet.end(probe)
    assert fleet.goes_to() == {0, 1, 2}


def test_one_that_asks_for_a_pause_is_left_alone_for_it(fleet: Fleet) -> None:
    """The 429 of one replica is not the fleet's."""
    fleet.fail(1, "rate_limited", retry_after_s=5.0)
    assert fleet.goes_to() == {0, 2}
    fleet.fail(0, "rate_limited", retry_after_s=7.0)
    fleet.fail(2, "rate_limited", retry_after_s=9.0)
    assert fleet.choose() == Refusal("cooling", 5.0)
    fleet.now += 5.0
    assert fleet.goes_to(1) == {1}


def test_one_that_refuses_the_key_is_out_for_a_while(fleet: Fleet) -> None:
    """And the tier is not, until all of them do."""
    fleet.fail(1, "auth", status=401)
    assert fleet.goes_to() == {0, 2}
    assert fleet.balancer.health(NOW).dead_reason == ""
    for index in (0, 2):
        fleet.balancer.all[index].served.clear()
        fleet.fail(index, "auth", status=401)
    assert fleet.choose() == Refusal("cooling", RECOVERY_S)
    assert fleet.balancer.health(NOW).dead_reason == "HTTP: it was auth"


def test_one_that_lacks_a_path_takes_calls_to_others(fleet: Fleet) -> None:
    """A path that none of them has is refused as such."""
    fleet.fail(1, "not_found")

    def asked(path: str) -> set[int]:
        return {chosen.index for _ in range(200) if isinstance(chosen := fleet.choose(path=path), Upstream)}

    assert asked(PATH) == {0, 2}
    assert asked("/embeddings") == {0, 1, 2}
    fleet.fail(0, "not_found")
    fleet.fail(2, "not_found")
    assert fleet.choose() == Refusal("absent", RECOVERY_S, "HTTP: it was not_found")
    assert fleet.balancer.health(NOW).absent == "HTTP: it was not_found"
    assert fleet.balancer.health(NOW).dead_reason == ""


def test_one_that_served_and_lacks_its_model_now_is_out_until_one_call_finds_it_there(fleet: Fleet) -> None:
    """The others go on; when all have lost it, the tier is out and says that it is the model."""
    assert fleet.goes_to() == {0, 1, 2}
    fleet.fail(1, "not_found")
    assert fleet.goes_to() == {0, 2}
    fleet.fail(0, "not_found")
    fleet.fail(2, "not_found")
    health = fleet.balancer.health(NOW)
    assert (health.dead_reason, health.dead_kind, health.cooling_for_s) == (
        "HTTP: it was not_found",
        "not_found",
        RECOVERY_S,
    )
    assert fleet.choose() == Refusal("cooling", RECOVERY_S)
    fleet.now += RECOVERY_S
    probe = fleet.send_to(1)
    assert {one.index for _ in range(200) if isinstance(one := fleet.choose(), Upstream)} == {0, 2}
    fleet.probing = True
    fleet.end(probe)
    assert fleet.balancer.health(fleet.now).dead_reason == ""


def test_an_endpoint_to_avoid_is_used_only_when_no_other_is_ready() -> None:
    """A hedge or a retry goes elsewhere; but better there than nowhere."""
    fleet = Fleet(2, concurrency=1)
    assert fleet.goes_to(avoid=0) == {1}
    fleet.send_to(1)
    assert fleet.goes_to(avoid=0) == {0}


def test_an_endpoint_to_avoid_is_probed_when_it_is_all_there_is() -> None:
    """Else the last row of a job would wait until its deadline for the endpoint that has failed it once."""
    fleet = Fleet(2)
    for index in (0, 1):
        fleet.fail(index, times=3)
    fleet.balancer.all[1].capacity.cooling_until = NOW + 300.0
    fleet.now += RECOVERY_S
    assert fleet.send(avoid=0)[0].index == 0


def test_one_that_is_held_is_never_probed_and_otherwise_avoided(fleet: Fleet) -> None:
    """Another actor finds out for all whether it is back."""
    assert fleet.goes_to(held=0b010) == {0, 2}
    fleet.fail(1, times=3)
    fleet.now += RECOVERY_S
    assert fleet.goes_to(held=0b010) == {0, 2}
    for index in (0, 2):
        fleet.fail(index, times=3)
    assert fleet.choose(held=0b010) == Refusal("open", RECOVERY_S)
    assert fleet.choose(held=0b111) == Refusal("open", HELD_S)
    assert fleet.send(held=0b101)[0].index == 1


# -- what is said --------------------------------------------------------------------------------------------------


def test_health_tells_why_since_when_and_when_again(fleet: Fleet) -> None:
    """Of each endpoint by its address, which carries no secret."""
    fleet.fail(1, times=3)
    fleet.fail(2, "rate_limited", retry_after_s=8.0)
    fleet.now += 2.0
    fine, out, pausing = fleet.balancer.health(fleet.now).endpoints
    assert (fine.why, fine.since_s, fine.address) == ("", 0.0, "h0:8000/v1")
    assert out.why == "3 failures in a row, last: HTTP: it was server"
    assert (out.state, out.since_s, out.open_for_s) == ("open", 2.0, RECOVERY_S - 2.0)
    assert (pausing.why, pausing.since_s, pausing.cooling_for_s) == ("HTTP: it was rate_limited", 2.0, 6.0)


def test_health_of_a_single_endpoint_is_the_tiers() -> None:
    """Nothing is said twice."""
    fleet = Fleet(1)
    fleet.fail(0, times=3)
    health = fleet.balancer.health(NOW)
    assert (health.why, health.endpoints) == ("3 failures in a row, last: HTTP: it was server", ())
    fleet.now += RECOVERY_S
    fleet.end(fleet.send())
    assert fleet.balancer.health(fleet.now + 1.0)[:1] + fleet.balancer.health(fleet.now + 1.0)[8:10] == (
        "closed",
        "",
        1.0,
    )


def test_health_of_several_counts_only_the_slots_that_can_be_used() -> None:
    """In flight of all; limits of those that are in."""
    fleet = Fleet(3, concurrency=10)
    fleet.fail(1, times=3)
    for _ in range(5):
        fleet.send()
    health = fleet.balancer.health(NOW)
    assert (health.in_flight, health.limit) == (5, 20)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://api.example.com/v1", "api.example.com/v1"),
        ("http://10.0.0.7:8000/v1?api-version=1&key=secret", "10.0.0.7:8000/v1"),
        ("https://user:secret@host/v1", "host/v1"),
    ],
)
def test_an_address_shows_no_secret(url: str, address: str) -> None:
    """Host, port and path."""
    assert Fleet(base_url=url).balancer.all[0].address == address
