"""What a batch tells of its ledger: bounded to the scopes that are known, and what is anomalous now."""

import time
from types import SimpleNamespace
from typing import Any

from actors.budget.anomaly import HaltRow, PaceRow
from actors.budget.rows import LimitStatus, Snapshot
from actors.events import Tally
from actors.observer.scene import Scene as Told
from actors.settings import BudgetSettings, ScopeSettings, TierSettings
from runtime.batch.scene import Scene
from runtime.batch.telemetry import Telemetry
from runtime.config import Config

TIER = TierSettings(name="a", model="m", base_url=("http://x",))
SEEN = Scene(40, 100, 0.4, 8.0, 7.5, 1, 2, 999, 1_500, (), ("slow",))


def row(scope: str, window: str = "day", limit: int | None = None, spent: int = 5) -> LimitStatus:
    return LimitStatus(scope, window, "tokens", limit, spent, 0, 0, 0, 60.0, False)


def told(snapshot: Snapshot | None) -> Told:
    config = Config(tiers=[TIER], budget=BudgetSettings(keys={"blue": ScopeSettings()}))
    run: Any = SimpleNamespace(tally=SimpleNamespace(notes={}), in_flight=7)
    tally = Tally("x", {"a": "m"})
    return Telemetry(config, "run1", "out.jsonl", run, tally, lambda: SEEN, lambda: snapshot).draw_up().scene


def test_scopes_are_those_that_are_configured_and_the_job_that_runs() -> None:
    """Not the other jobs and keys that one ledger may know by the thousand, and no windows without end but the job's."""
    scopes = ("all", "tier:a", "key:blue", "key:4711", "job:run1", "job:other")
    rows = (
        *(row(scope) for scope in scopes),
        row("all", "total"),
        row("job:run1", "total"),
        row("tier:a", "hour", spent=0),
    )
    found = [(each.scope, each.window) for each in told(Snapshot(rows, 1)).budgets]
    assert found == [
        ("all", "day"),
        ("tier:a", "day"),
        ("key:blue", "day"),
        ("job:run1", "day"),
        ("job:run1", "total"),
    ]


def test_an_anomaly_is_told_for_some_minutes_and_for_as_long_as_it_stops_its_scope() -> None:
    minute = int(time.time() // 60)
    fresh, old = PaceRow("tier:a", minute, alarmed=minute), PaceRow("tier:a", minute, alarmed=minute - 60)
    assert told(Snapshot((), 1, paces=(fresh,))).anomalies == ("tier:a",)
    assert told(Snapshot((), 1, paces=(old,))).anomalies == ()
    stopped = told(Snapshot((), 1, (HaltRow("tier:a", 0.0, "anomaly"),), (old,)))
    assert (stopped.anomalies, stopped.halts) == (("tier:a",), (("tier:a", "anomaly"),))


def test_before_the_ledger_has_answered_the_job_is_told_all_the_same() -> None:
    scene = told(None)
    (job,) = scene.jobs
    assert (job.done, job.in_flight, job.notices) == (40, 7, ("slow",))
    assert (scene.budgets, scene.watched) == ((), ("tier:a", "key:blue"))
