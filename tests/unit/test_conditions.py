"""What `raycade status` says of a tier actor: its state, why, since when, and when it is tried again."""

from typing import Any, NamedTuple

from actors.messages import Health
from actors.observer.scene import ActorScene
from actors.router.notes import RouterNote, TierNote
from runtime.batch.conditions import Conditions

WELL = Health(limit=20)


def note(*actors: Health, up: tuple[bool, ...] = (), said: str = "") -> dict[str, RouterNote]:
    tier = TierNote("premium", actors, up or (True,) * len(actors), 0, {}, said)
    return {"router/0": RouterNote((tier,), 0, "")}


def one(conditions: Conditions, notes: dict[str, RouterNote], now: float) -> ActorScene:
    (tier,) = conditions.look(notes, {}, now)
    return tier.actors[0]


def test_a_healthy_actor_is_closed_and_has_nothing_to_explain() -> None:
    conditions = Conditions({"premium": "gpt"})
    one(conditions, note(WELL), 10.0)
    actor = one(conditions, note(WELL), 15.0)
    assert (actor.state, actor.why, actor.since_s, actor.again_in_s) == ("closed", "", 5.0, None)


def test_an_open_breaker_says_why_since_when_and_until_when() -> None:
    """The reason is what opened it; the time left counts down though nothing new is heard."""
    conditions = Conditions({"premium": "gpt"})
    one(conditions, note(WELL), 10.0)
    opened = note(Health("open", open_for_s=30.0, opened=1), said="HTTP 503")
    one(conditions, opened, 12.0)
    actor = one(conditions, opened, 20.0)
    assert (actor.state, actor.breaker, actor.why) == ("open", "open", "HTTP 503")
    assert (actor.since_s, actor.again_in_s) == (8.0, 22.0)
    trying = one(conditions, note(Health("half_open", opened=1), said="something else"), 45.0)
    assert (trying.state, trying.why, trying.since_s) == ("half-open", "HTTP 503", 0.0)


def test_a_pause_a_dead_key_and_a_lost_process_have_their_words() -> None:
    conditions = Conditions({"premium": "gpt"})
    starting = one(conditions, note(Health(), up=(False,)), 0.0)
    assert starting.state == "starting"
    cooling = one(conditions, note(Health(cooling_for_s=7.0)), 1.0)
    assert (cooling.state, cooling.why, cooling.again_in_s) == ("cooling", "the endpoint asked to pause", 7.0)
    out = one(conditions, note(Health(cooling_for_s=300.0, dead_reason="HTTP 401: no such key")), 2.0)
    assert (out.state, out.why, out.again_in_s) == ("out", "HTTP 401: no such key", 300.0)
    lost = one(conditions, note(Health(in_flight=9), up=(False,)), 3.0)
    assert (lost.state, lost.why, lost.in_flight) == ("restarting", "the actor's process was lost", 0)


def test_short_pauses_are_the_tiers_own_pacing() -> None:
    assert one(Conditions({"premium": "gpt"}), note(Health(cooling_for_s=0.2)), 1.0).state == "closed"


def test_calls_are_told_by_tier() -> None:
    conditions = Conditions({"premium": "gpt", "basic": "small"})
    attempts = {("premium", "ok"): 5, ("premium", "server"): 2, ("basic", "ok"): 1}
    premium, basic = conditions.look(note(WELL), attempts, 1.0)
    assert (premium.answered, premium.kinds, len(premium.actors)) == (5, {"server": 2}, 1)
    assert (basic.answered, basic.kinds, basic.actors) == (1, {}, ())


def test_the_newest_word_of_any_router_counts() -> None:
    """Two routers see the same actors; one that has heard nothing new does not hide what the other has."""
    conditions = Conditions({"premium": "gpt"})
    stale = note(WELL)["router/0"]
    conditions.look({"router/0": stale, "router/1": stale}, {}, 1.0)
    fresh = note(Health("open", open_for_s=30.0), said="HTTP 500")["router/0"]
    (tier,) = conditions.look({"router/0": fresh, "router/1": stale}, {}, 2.0)
    assert tier.actors[0].state == "open"


class Fleet(NamedTuple):
    """The condition of an actor with several endpoints, or of one of them."""

    state: str = "closed"
    open_for_s: float = 0.0
    cooling_for_s: float = 0.0
    in_flight: int = 0
    queued: int = 0
    limit: int = 10
    opened: int = 0
    dead_reason: str = ""
    why: str = ""
    since_s: float = 0.0
    address: str = ""
    endpoints: tuple[Any, ...] = ()


def test_each_endpoint_of_a_fleet_is_told_by_itself_with_its_own_reason() -> None:
    ok = Fleet(in_flight=3, address="a:1/v1")
    broken = Fleet("open", 20.0, opened=1, why="refused", since_s=7.0, address="b:1/v1")
    actor: Any = Fleet(in_flight=3, queued=5, endpoints=(ok, broken))
    (tier,) = Conditions({"premium": "gpt"}).look(note(actor, said="another's failure"), {}, 1.0)
    assert [(each.actor, each.state, each.queued) for each in tier.actors] == [
        ("0 a:1/v1", "closed", 5),
        ("0 b:1/v1", "open", 0),
    ]
    assert (tier.actors[1].why, tier.actors[1].since_s, tier.actors[1].again_in_s) == ("refused", 7.0, 20.0)
