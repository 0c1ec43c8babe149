"""How tiers and budgets look from a process that sends requests: what batches, gateways and programs tell alike.

routers' notes, own counts, budget snapshot -> View.scene() -> Scene -> observer
"""

import time
from collections.abc import Collection, Mapping

from actors.budget.rows import LimitStatus, Snapshot
from actors.events import Totals
from actors.observer.scene import BudgetScene, Scene
from actors.router.notes import RouterNote
from runtime.batch.conditions import Conditions
from runtime.config import Config

__all__ = ["View"]

ANOMALOUS_MINUTES = 5
"""So long a scope counts as anomalous after a minute that was."""


class View:
    """One a process. `scopes`: of the ledger, beside those that the configuration names."""

    def __init__(self, config: Config, *scopes: str) -> None:
        self.models = {tier.name: tier.model for tier in config.tiers}
        tiers, keys = [f"tier:{name}" for name in self.models], [f"key:{key}" for key in config.budget.keys]
        self._watched = (*tiers, *keys)
        self._scopes = {"all", *self._watched, *scopes}
        self._conditions = Conditions(self.models)

    def scene(self, notes: Mapping[str, RouterNote], totals: Totals, snapshot: Snapshot | None) -> Scene:
        """What is so now. `snapshot`: what the ledger said last; None: nothing yet, or it is not asked."""
        attempts = {(key[1], key[2]): count for key, count in totals.counters.items() if key[0] == "attempts"}
        tiers = self._conditions.look(notes, attempts, time.monotonic())
        if snapshot is None:
            return Scene(tiers=tiers, watched=self._watched)
        return Scene(
            tiers=tiers,
            budgets=_budgets(snapshot, self._scopes),
            anomalies=_anomalies(snapshot, self._scopes, time.time()),
            watched=self._watched,
            halts=tuple((halt.scope, halt.reason) for halt in snapshot.halts),
        )


def _budgets(snapshot: Snapshot, scopes: Collection[str]) -> tuple[BudgetScene, ...]:
    """What the ledger says of these scopes. Bounded: of keys those that are configured, of jobs this one."""
    return tuple(_budget(row) for row in snapshot.limits if row.scope in scopes and _matters(row))


def _anomalies(snapshot: Snapshot, scopes: Collection[str], now: float) -> tuple[str, ...]:
    """Those of these scopes that spend far more than usual, or are stopped for it; `now` in Unix seconds."""
    halted = {halt.scope for halt in snapshot.halts}
    found = {
        pace.scope
        for pace in snapshot.paces
        if pace.scope in scopes
        and pace.alarmed
        and (now // 60 - pace.alarmed <= ANOMALOUS_MINUTES or pace.scope in halted)
    }
    return tuple(sorted(found))


def _matters(row: LimitStatus) -> bool:
    lasting = row.window == "total" and not row.scope.startswith("job:")  # of all jobs that ever were
    return row.limit is not None or (bool(row.spent or row.reserved) and not lasting)


def _budget(row: LimitStatus) -> BudgetScene:
    return BudgetScene(row.scope, row.window, row.unit, row.limit, row.spent, row.reserved, row.unknown, row.turns_in_s)
