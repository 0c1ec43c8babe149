"""What a batch tells the observer, once a second: what it has counted, and what is so now.

    run.facts, progress, routers' notes, budget snapshot -> Telemetry.draw_up() -> Report -> observer

It reads what the run has anyway and changes nothing of it.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from actors.budget.rows import Snapshot
from actors.events import Tally
from actors.observer.scene import JobScene, Report
from runtime.batch.run import BatchRun
from runtime.batch.scene import Scene
from runtime.config import Config
from runtime.events import Event
from runtime.view import View

__all__ = ["Telemetry"]

EVENTS = 12
"""So many are told, the last ones."""


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
        self._view = View(config, f"job:{job}")
        self._began = time.monotonic()
        self._events: deque[tuple[float, str]] = deque(maxlen=EVENTS)

    def happened(self, event: Event) -> None:
        """Something worth telling."""
        self._events.append((time.monotonic(), event.text))

    def draw_up(self) -> Report:
        """The report of this moment."""
        totals, notes = self._facts.totals(), self._run.tally.notes
        told = self._view.scene(notes, totals, self._snapshot())
        job = self._job_scene(sum(note.waiting_for_budget for note in notes.values()))
        events = tuple((time.monotonic() - at, text) for at, text in self._events)
        return Report(totals, told._replace(jobs=(job,), events=events))

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
