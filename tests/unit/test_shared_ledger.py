"""Two budget actors on one real store, each with routers of its own, in simulated time."""

from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

import pytest

from actors.budget.actor import BudgetActor
from actors.budget.exchange import Exchange, Exchanged
from actors.settings import BudgetSettings
from tests.fleet import Fleet

LIMIT = 150_000
SETTINGS = BudgetSettings.model_validate({"tokens": {"per_day": LIMIT}})
NOON = 1_700_000_000.0 // 86_400 * 86_400 + 43_200

T = TypeVar("T")


def done(coroutine: Coroutine[Any, Any, T]) -> T:
    """The actor's methods never wait, which is what makes each of them one step."""
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    value: T = stopped.value.value
    return value


class Actors:
    """What a fleet takes for a ledger. Most routers keep to one actor; now and then one speaks to the other, or one restarts."""

    def __init__(self, place: str, seed: int) -> None:
        self.place = place
        self.random = Random(seed)
        self.now = 0.0
        self.actors = [self.start(), self.start()]

    def start(self) -> BudgetActor:
        return BudgetActor(SETTINGS, self.place, clock=lambda: NOON + self.now)

    def exchange(self, message: Exchange, now: float) -> Exchanged:
        self.now = now
        index = (ord(message.holder[-1]) + (self.random.random() < 0.05)) % 2
        if self.random.random() < 0.02:
            self.actors[index] = self.start()
        return done(self.actors[index].exchange(message))

    def check(self) -> None:
        """A real store tells nothing from inside."""


@pytest.mark.parametrize("seed", range(2))
def test_two_actors_on_one_store_use_up_a_budget_and_never_pass_it(ledger_place: str, seed: int) -> None:
    """Six routers with 600 attempts in flight: between 98% and 100% is served, and nothing stays reserved or is lost."""
    actors = Actors(ledger_place, seed)
    fleet = Fleet(actors, routers=6, in_flight=600, seed=seed)
    fleet.run(until=120.0)
    assert fleet.refused == 600
    assert 0.98 * LIMIT <= fleet.served <= LIMIT
    actors.now = fleet.now
    for actor in actors.actors:
        shown = done(actor.show())
        day = next(row for row in shown.limits if row.limit)
        assert (day.spent, day.reserved, day.unknown) == (fleet.served, 0, 0)
