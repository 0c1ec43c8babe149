"""What has changed with the tiers between two looks, in words: for a gateway's log and the last events of its page.

    tiers as all replicas see them -> Changes.see() -> Change

Replicas hear of a breaker one after the other: a trouble begins with the first that sees it and is over when none does.
"""

from collections.abc import Iterable
from typing import NamedTuple

from actors.observer.scene import ActorScene, TierScene

__all__ = ["Change", "Changes"]


class Change(NamedTuple):
    key: str
    """What it is and which tier it is about: a key of runtime/events.py."""
    text: str


class Changes:
    def __init__(self) -> None:
        self._troubles: dict[str, str] = {}

    def see(self, tiers: Iterable[TierScene]) -> list[Change]:
        """What is new. A tier may come several times, as several see it."""
        troubles: dict[str, str] = {}
        for tier in tiers:
            for actor in tier.actors:
                found = _trouble(tier.name, actor)
                if found is not None:
                    troubles.setdefault(*found)
        changes = [Change(key, text) for key, text in troubles.items() if key not in self._troubles]
        changes += [_over(key) for key in self._troubles if key not in troubles]
        self._troubles = troubles
        return changes


def _trouble(tier: str, actor: ActorScene) -> tuple[str, str] | None:
    why = f" ({actor.why})" if actor.why else ""
    match actor.state:
        case "open" | "half-open":
            return f"opened {tier}", f"{tier} keeps failing{why}: its circuit breaker opened"
        case "out":
            return f"out {tier}", f"{tier} takes no calls{why}"
        case "restarting":
            return f"lost {tier}", f"an actor of {tier} was lost and is being restarted"
        case "closed" | "cooling" | "starting":
            return None


def _over(key: str) -> Change:
    kind, _, tier = key.partition(" ")
    match kind:
        case "opened":
            return Change(f"{key} over", f"{tier} answers again: its circuit breaker closed")
        case "out":
            return Change(f"{key} over", f"{tier} takes calls again")
        case _:
            return Change(f"back {tier}", f"the actors of {tier} are all there again")
