"""What is told of a gateway's tiers: each trouble once when it begins and once when it is over."""

from actors.observer.changes import Changes
from actors.observer.scene import ActorScene, ActorState, TierScene
from runtime.events import event_of


def tier(*states: ActorState, name: str = "fast") -> TierScene:
    actors = (
        ActorScene(str(at), state, "closed", "5 failures in a row" if state == "open" else "", 0.0, None, 0, 0, 8, 0)
        for at, state in enumerate(states)
    )
    return TierScene(name, "m", 0, {}, tuple(actors))


def test_a_breaker_is_told_when_it_opens_and_when_it_has_closed() -> None:
    """Not again while it stays open or is tried, and of each tier by itself."""
    changes = Changes()
    assert changes.see([tier("closed"), tier("closed", name="slow")]) == []
    (opened,) = changes.see([tier("open"), tier("closed", name="slow")])
    assert opened.text == "fast keeps failing (5 failures in a row): its circuit breaker opened"
    assert changes.see([tier("half-open"), tier("closed", name="slow")]) == []
    (other,) = changes.see([tier("open"), tier("open", name="slow")])
    assert event_of(*other).about == {"tier": "slow"}
    closed, also = changes.see([tier("closed"), tier("cooling", name="slow")])
    assert [event_of(*each).name for each in (opened, closed, also)] == [
        "breaker_opened",
        "breaker_closed",
        "breaker_closed",
    ]


def test_replicas_that_see_it_at_different_moments_tell_it_once() -> None:
    changes = Changes()
    assert len(changes.see([tier("open"), tier("closed")])) == 1
    assert changes.see([tier("open"), tier("open")]) == []
    assert changes.see([tier("closed"), tier("open")]) == []
    assert len(changes.see([tier("closed"), tier("closed")])) == 1


def test_every_trouble_has_a_name_for_machines_and_an_end() -> None:
    """Also of an actor that is away and of a tier that is out; one of two actors is enough."""
    changes = Changes()
    began = changes.see([tier("closed", "restarting"), tier("out", name="gone")])
    over = changes.see([tier("closed", "starting"), tier("closed", name="gone")])
    assert [event_of(*each).name for each in began + over] == ["actor_lost", "tier_out", "actor_restarted", "tier_back"]
    assert changes.see([tier("closed")]) == []
