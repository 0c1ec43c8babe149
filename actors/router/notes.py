"""What a router tells its callers about itself and its tiers, a few times a second: for progress and status."""

from collections.abc import Mapping
from typing import NamedTuple

from actors.messages import Amount, Health

__all__ = ["RouterNote", "TierNote"]


class TierNote(NamedTuple):
    """A tier as the router sees it, for progress and status."""

    name: str
    actors: tuple[Health, ...]
    up: tuple[bool, ...]
    answered: int
    kinds: dict[str, int]
    """Attempts by kind: `ok` or a FailureKind."""
    last_failure: str = ""
    """What the last failed attempt said."""
    overrun: Amount = Amount()
    """Usage above its reservations: charged all the same."""
    margin_milli: int = 1000
    """By how much the tier's bounds are multiplied by now, in thousandths (actors/router/cost.py)."""
    models: Mapping[str, int] = {}
    """Answers by the model that they name, in order of appearance; at most 16 names."""


class RouterNote(NamedTuple):
    """What a router tells its callers about itself, a few times a second."""

    tiers: tuple[TierNote, ...]
    waiting_for_budget: int
    trouble: str
    """Why the budget actor does not answer; empty when it does."""
