"""What a gateway's batches tell the observer, once a second: the desk's counts, and how far each batch is.

    Router --every attempt that is settled--> attempt() --.
    BatchRun --every row that has its line--> Facts ------+-> Tally --> draw_up() -> Report -> observer

As in a replica (telemetry.py), attempts are counted when they are settled: what a cancelled batch's rows have cost by then
is in the sums too.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from actors.events import Tally
from actors.messages import Attempt, Request
from actors.observer.scene import JobScene, Report
from actors.router.notes import RouterNote
from runtime.batch.run import BatchRun
from runtime.batch.tally import Tally as Counts
from runtime.config import Config
from runtime.gateway.batch_rules import Batch
from runtime.telling import Telling
from runtime.view import View

__all__ = ["BatchTelemetry", "Course"]

CLOSE_S = 4.0
RATE_OVER_S = 10.0


class Facts(Tally):
    """Counts rows, without their attempts: the router has told them."""

    def request(
        self,
        tier: str,
        outcome: str,
        attempts: Iterable[Attempt] = (),
        path: str = "",
        prompt: str = "",
        request_id: str = "",
        seconds: float | None = None,
        checked: bool = False,
    ) -> None:
        super().request(tier, outcome, (), path, prompt, request_id, seconds)
        self.attempts(attempts, path, prompt, request_id, checked)

    def attempts(
        self,
        attempts: Iterable[Attempt],
        path: str = "",
        prompt: str = "",
        request_id: str = "",
        checked: bool = False,
    ) -> None:
        for attempt in attempts:
            if attempt.misfit:  # which is known only now
                self.misfit(prompt, attempt.tier)

    def settled(self, request: Request, attempt: Attempt) -> None:
        """The router has settled a call. A row's custom_id is the client's text: its id here is ours (carrying.py)."""
        super().attempts((attempt,), request.path, request.prompt, request.id, bool(request.schema))


class Course:
    """Of one batch: how fast it goes, and what its runs have cost."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before: deque[tuple[float, int]] = deque()
        self._earlier = (0, 0, 0)

    def ended(self, tally: Counts) -> None:
        """A run of it has ended, and another may begin."""
        self._earlier = self._so_far(tally)

    def scene(self, batch: Batch, run: BatchRun | None) -> JobScene:
        """How far it is. `batch`: as of now; `run`: the one that is under way."""
        now, done = time.monotonic(), batch.completed + batch.failed
        total = batch.total or None  # not known while the input is being checked
        pace = self._rows_per_s(done, now)
        coalesced, tokens, usd_micros = self._so_far(run.tally) if run is not None else self._earlier
        return JobScene(
            run=batch.id,
            output=f"key {batch.owner}" if batch.owner else "",
            running_s=now - self._began,
            done=done,
            total=total,
            fraction=None if total is None else done / total,
            rows_per_s=pace,
            eta_s=None if total is None or pace <= 0 else (total - done) / pace,
            failed=batch.failed,
            coalesced=coalesced,
            in_flight=0 if run is None else run.in_flight,
            tokens=tokens,
            usd_micros=usd_micros,
            waiting_for_budget=0,
            notices=(batch.note,) if batch.note else (),
        )

    def _so_far(self, tally: Counts) -> tuple[int, int, int]:
        coalesced, tokens, usd_micros = self._earlier
        used = tally.prompt_tokens + tally.completion_tokens
        return coalesced + tally.coalesced, tokens + used, usd_micros + tally.cost_usd_micros

    def _rows_per_s(self, done: int, now: float) -> float:
        """Over the last `RATE_OVER_S`."""
        before = self._before
        before.append((now, done))
        while len(before) > 2 and now - before[1][0] >= RATE_OVER_S:
            before.popleft()
        at, then = before[0]
        return round((done - then) / (now - at), 2) if now > at else 0.0


class BatchTelemetry:
    """One a desk. It counts from the beginning on, and reports from `open` to `close`."""

    def __init__(self, config: Config, cluster: str, jobs: Callable[[], Iterable[JobScene]]) -> None:
        """`jobs`: how far each batch is."""
        self._view = View(config)
        # A desk that starts again counts anew, and what the one before it has told stays.
        self.facts = Facts(f"{cluster}/gateway/desk/{uuid4().hex[:8]}", self._view.models)
        self._jobs = jobs
        self._look: Callable[[], RouterNote | None] = lambda: None
        self._note = RouterNote((), 0, "")
        self._telling: Telling | None = None

    def attempt(self, request: Request, attempt: Attempt) -> None:
        """A call has been settled."""
        self.facts.settled(request, attempt)

    def open(self, look: Callable[[], RouterNote | None], watching: Any) -> None:
        """From now on there is something to tell. `look`: at the router; `watching`: see Telemetry.open. Idempotent."""
        if self._telling is None and watching is not None:
            self._look = look
            self._telling = Telling(self.draw_up, watching.report, watching.budget)

    async def close(self) -> None:
        """The last report: nothing is counted after it."""
        if self._telling is not None:
            await self._telling.close(CLOSE_S)

    def draw_up(self) -> Report:
        """The report of this moment."""
        self._note = note = self._look() or self._note
        totals = self.facts.totals()
        jobs = tuple(self._jobs())
        if jobs and note.waiting_for_budget:  # the router knows how many rows wait, and not of which batch
            jobs = (jobs[0]._replace(waiting_for_budget=note.waiting_for_budget), *jobs[1:])
        snapshot = self._telling.snapshot if self._telling is not None else None
        return Report(totals, self._view.scene({"desk": note}, totals, snapshot)._replace(jobs=jobs))
