"""In what condition each tier actor is, since when, and why: from what routers tell of them.

    RouterNotes -> Conditions.look(now) -> TierScene, for /status and the gauges of /metrics

No clock and no I/O. Notes come with completions, so a note can be old when nothing completes: waiting times are counted
down from when they were first heard.
"""

from collections.abc import Mapping
from typing import NamedTuple

from actors.messages import Health
from actors.observer.scene import ActorScene, ActorState, TierScene
from actors.router.notes import RouterNote

__all__ = ["Conditions"]

OWN_PACE_S = 0.5
"""Shorter pauses are the tier's own pacing."""
WHY = {
    "cooling": "the endpoint asked to pause",
    "restarting": "the actor's process was lost",
    "starting": "the actor has not answered yet",
}


class _Since(NamedTuple):
    state: ActorState
    at: float
    why: str


class Conditions:
    """`models`: the model of each tier by its name, in the order in which tiers are shown."""

    def __init__(self, models: Mapping[str, str]) -> None:
        self._models = models
        self._heard: dict[tuple[str, int], tuple[Health, float]] = {}
        self._last: dict[tuple[str, str, int], Health] = {}
        self._been_up: set[tuple[str, int]] = set()
        self._since: dict[tuple[str, str], _Since] = {}

    def look(
        self, notes: Mapping[str, RouterNote], attempts: Mapping[tuple[str, str], int], now: float
    ) -> tuple[TierScene, ...]:
        """The tiers now. `attempts`: calls so far by tier and kind."""
        up: dict[tuple[str, int], bool] = {}
        said: dict[str, str] = {}
        for router, note in notes.items():
            for tier in note.tiers:
                said[tier.name] = tier.last_failure or said.get(tier.name, "")
                for index, (health, one_up) in enumerate(zip(tier.actors, tier.up, strict=True)):
                    # A router repeats what it heard last: the same value is the same moment.
                    if self._last.get((router, tier.name, index)) != health:
                        self._last[router, tier.name, index] = health
                        self._heard[tier.name, index] = (health, now)
                    up[tier.name, index] = up.get((tier.name, index), False) or one_up
        self._been_up.update(place for place, one_up in up.items() if one_up)
        return tuple(self._tier(name, up, said.get(name, ""), attempts, now) for name in self._models)

    def _tier(
        self,
        name: str,
        up: Mapping[tuple[str, int], bool],
        said: str,
        attempts: Mapping[tuple[str, str], int],
        now: float,
    ) -> TierScene:
        kinds = {kind: count for (tier, kind), count in attempts.items() if tier == name}
        answered = kinds.pop("ok", 0)
        actors = tuple(
            self._actor(name, part, place, up[place], health, heard, said, now)
            for place, (whole, heard) in sorted(self._heard.items())
            if place[0] == name
            for part, health in _parts(place[1], whole)
        )
        return TierScene(name, self._models[name], answered, kinds, actors)

    def _actor(
        self,
        name: str,
        part: str,
        place: tuple[str, int],
        up: bool,
        health: Health,
        heard: float,
        said: str,
        now: float,
    ) -> ActorScene:
        state, left_s = _state(health, up, place in self._been_up, now - heard)
        known = self._since.get((name, part))
        if known is None or known.state != state:
            failed = state in ("open", "half-open")
            why = health.dead_reason if state == "out" else said if failed else WHY.get(state, "")
            if failed and known is not None and known.state in ("open", "half-open"):
                why = known.why  # what opened it, not what others failed with since
            known = self._since[name, part] = _Since(state, now, why)
        told_since_s: float = getattr(health, "since_s", 0.0)
        return ActorScene(
            part,
            state,
            "half-open" if health.state == "half_open" else health.state,
            "" if state == "closed" else getattr(health, "why", "") or known.why,
            told_since_s + now - heard if told_since_s and up else now - known.at,
            left_s,
            health.in_flight if up else 0,
            health.queued if up else 0,
            health.limit,
            health.opened,
        )


def _parts(index: int, health: Health) -> tuple[tuple[str, Health], ...]:
    """What of an actor has a condition of its own, by the name it is shown under: the actor, or each of its endpoints
    where it has several. What waits for any of them is shown with the first."""
    endpoints: tuple[Health, ...] = getattr(health, "endpoints", ())
    if not endpoints:
        return ((str(index), health),)
    first = endpoints[0]._replace(queued=health.queued)
    return tuple((f"{index} {getattr(each, 'address', '')}", each) for each in (first, *endpoints[1:]))


def _state(health: Health, up: bool, been_up: bool, age_s: float) -> tuple[ActorState, float | None]:
    """The state, and in how many seconds it will be tried again."""
    if not up:
        return ("restarting" if been_up else "starting"), None
    cooling_s = health.cooling_for_s - age_s
    if health.dead_reason:
        return "out", max(0.0, cooling_s)
    if health.state == "half_open":
        return "half-open", 0.0
    if health.state == "open":
        return "open", max(0.0, health.open_for_s - age_s)
    if cooling_s >= OWN_PACE_S:
        return "cooling", cooling_s
    return "closed", None
