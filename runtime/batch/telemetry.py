"""What a batch tells the observer, once a second: what it has counted, and what is so now.

    run.facts, progress, routers' notes, budget snapshot -> Telemetry.draw_up() -> Report -> observer

It reads what the run has anyway and changes nothing of it.
"""

import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

from actors.budget.rows import LimitStatus, Snapshot
from actors.events import Tally
from actors.observer.scene import BudgetScene, JobScene, Report
from actors.observer.scene import Scene as Told
from runtime.batch.conditions import Conditions
from runtime.batch.progress import Scene
from runtime.batch.run import BatchRun
from runtime.config import Config
from runtime.events import Event

__all__ = ["Telemetry", "anomalies", "budgets"]

EVENTS = 12
"""So many are told, the last ones."""
ANOMALOUS_MINUTES = 5
"""So long a scope counts as anomalous after a minute that was."""


class Telemetry:
    """One a job. `look`: the progress display's view; `snapshot`: what the ledger said last."""

    def __init__(
        self,
        config: Config,
        job: str,
        output: str,
        run: BatchRun,
        facts: Tally,
        look: Callable[[], Scene],
        snapshot: Callable[[], Snapshot | None],
    ) -> None:
        self._job, self._output = job, str(Path(output).absolute())
        self._run, self._facts, self._look, self._snapshot = run, facts, look, snapshot
        self._watched = tuple(
            [f"tier:{tier.name}" for tier in config.tiers] + [f"key:{key}" for key in config.budget.keys]
        )
        self._scopes = {"all", *self._watched, f"job:{job}"}
        self._conditions = Conditions({tier.name: tier.model for tier in config.tiers})
        self._began = time.monotonic()
        self._events: deque[tuple[float, str]] = deque(maxlen=EVENTS)

    def happened(self, event: Event) -> None:
        """Something worth telling."""
        self._events.append((time.monotonic(), event.text))

    def draw_up(self) -> Report:
        """The report of this moment."""
        totals = self._facts.totals()
        attempts = {(key[1], key[2]): count for key, count in totals.counters.items() if key[0] == "attempts"}
        notes = self._run.tally.notes
        snapshot = self._snapshot() or Snapshot((), 0)
        told = Told(
            job=self._job_scene(sum(note.waiting_for_budget for note in notes.values())),
            tiers=self._conditions.look(notes, attempts, time.monotonic()),
            budgets=budgets(snapshot, self._scopes),
            anomalies=anomalies(snapshot, self._scopes, time.time()),
            watched=self._watched,
            halts=tuple((halt.scope, halt.reason) for halt in snapshot.halts),
            events=tuple((time.monotonic() - at, text) for at, text in self._events),
        )
        return Report(totals, told)

    def _job_scene(self, waiting: int) -> JobScene:
        seen = self._look()
        return JobScene(
            self._job,
            self._output,
            time.monotonic() - self._began,
            seen.done,
            seen.total,
            seen.fraction,
            seen.rows_per_s,
            seen.eta_s,
            seen.failed,
            seen.coalesced,
            self._run.in_flight,
            seen.tokens,
            seen.usd_micros,
            waiting,
            seen.notices,
        )


def budgets(snapshot: Snapshot, scopes: Collection[str]) -> tuple[BudgetScene, ...]:
    """What the ledger says of these scopes. Bounded: of keys those that are configured, of jobs this one."""
    return tuple(_budget(row) for row in snapshot.limits if row.scope in scopes and _matters(row))


def anomalies(snapshot: Snapshot, scopes: Collection[str], now: float) -> tuple[str, ...]:
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
