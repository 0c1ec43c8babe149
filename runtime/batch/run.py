"""The loop of `raycade batch`: rows in, requests through the routers, lines out.

    reader -> encode -> share? -> journal.intend -> lane.post -> ... -> on_done -> writer.flush -> done

Everything runs on one event loop but reading and fsync, which have threads. A row is held from the moment it is read
until its line stands in a file; so memory is bounded by the window, whatever the size of the input. Rows are done only
by the writer: whatever dies in between, a row without a line is a row to do.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal, NamedTuple

import orjson

from actors.errors import ActorLost, InputError, LaneClosed, LaneTimeout
from actors.events import NONE
from actors.events import Tally as Facts
from actors.lane import Lane
from actors.messages import Attempt, Failure, Request, Result
from actors.router.structured import Parsed, content_of, parse_reply
from runtime.batch.journal import Journal, OutputError
from runtime.batch.reader import InputSet, RawRow, Row, RowError
from runtime.batch.recall import Recall, RowEncoder
from runtime.batch.recorder import Recorder
from runtime.batch.tally import Tally
from runtime.batch.writer import OutputWriter
from runtime.prompts_job import PromptWatch
from runtime.routers import REDO_LIMIT, budget_pause_s, how, latency_s, least_loaded, weight

__all__ = ["BatchRun", "Ending", "Stop"]

Stop = Literal["", "budget", "interrupted", "killed", "output", "input"]

PIECE_ROWS = 64
"""Rows that are handed out at one go; the journal's intent runs ahead of the calls by at most this many."""
IN_FLIGHT_BYTES = 256 << 20
CHECKPOINT_S = 5.0
GRACE_S = 60.0
LAST_ROWS_S = 1.0
log = logging.getLogger("raycade.batch")


class Ending(NamedTuple):
    """How a run ended. `stop` is empty when the input is done."""

    stop: Stop
    message: str


class BatchRun:
    """One run of one job. `run()` once."""

    def __init__(
        self,
        inputs: InputSet,
        encoder: RowEncoder,
        journal: Journal,
        writer: OutputWriter,
        make_lanes: Callable[..., "list[Lane[Request, Any]]"],
        *,
        window: int,
        share: bool,
        limit: int | None,
        wait_for_budget: bool,
        on_event: Callable[..., None],
        last_rows: Callable[[], None] = lambda: None,
        facts: Facts | None = None,
        prompt: PromptWatch | None = None,
        in_flight_bytes: int = IN_FLIGHT_BYTES,
        recorder: Recorder | None = None,
        recall: Recall | None = None,
    ) -> None:
        """`recall`: of these inputs, encoder and journal; it may have been started before."""
        self.tally = Tally()
        self.in_flight = 0
        """Rows read and not yet done, those that wait for an equal row included."""
        self._inputs = inputs
        self._recall = recall or Recall(inputs, encoder, journal, share=share, limit=limit)
        self._encoder = encoder
        self._journal = journal
        self._writer = writer
        self._make_lanes = make_lanes
        self._lanes: list[Lane[Request, Any]] = []
        self._window = window
        self._sharing = self._recall.sharing
        self._in_flight_bytes = in_flight_bytes
        self._limit = limit
        self._wait_for_budget = wait_for_budget
        self._on_event = on_event
        self._last_rows = last_rows
        self._facts = facts
        self._prompt = prompt
        self._recorder = recorder
        self._keys: dict[int, bytes] = {}
        self._bytes = 0
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ending = Ending("", "")
        self._feeding: asyncio.Future[None] | None = None
        self._flush_due = False

    @property
    def skipped(self) -> int:
        """Rows that were done by earlier runs."""
        return self._recall.skipped

    # ------------------------------------------------------------------ the run

    async def run(self) -> Ending:
        """Do every row that is not done. Whatever happens, lines that were made are written."""
        checkpoints = asyncio.create_task(self._checkpoint())
        try:
            self._lanes = self._make_lanes(f"batch-{self._journal.run}", weigh=weight, on_note=self._noted)
            await asyncio.gather(*(lane.open(60.0) for lane in self._lanes))
            self._feeding = asyncio.ensure_future(self._feed())
            if self._ending.stop:
                self._feeding.cancel()
            await self._until_stopped(_uncancelled(self._feeding))
            if self._ending.stop not in ("killed", "output"):
                await self._until_stopped(self._drain())
        except TimeoutError:
            self._stop("output", "the routers did not answer within 60 s")
        finally:
            checkpoints.cancel()
            await asyncio.gather(checkpoints, return_exceptions=True)
            self._flush()
            if self._prompt is not None:
                with contextlib.suppress(OSError):
                    self._prompt.checkpoint()
            for lane in self._lanes:
                await lane.close()
        return self._ending

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it ends, or until the run is to stop at once."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            task.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)
        if not task.cancelled():
            task.result()

    async def _feed(self) -> None:
        ahead = self._recall.start()
        rows = max(1, min(PIECE_ROWS, self._window // 16))  # so much at most is in flight beyond a small window
        try:
            async for chunk in ahead:
                for start in range(0, len(chunk), rows):
                    piece = chunk[start : start + rows]
                    last = self._limit is not None and piece[-1].number >= self._limit - 1
                    if last:
                        piece = [raw for raw in piece if raw.number < (self._limit or 0)]
                    if self._flush_due:
                        self._flush()  # so that a row equal to one that has just ended finds its line
                    ready = [pair for raw in piece if (pair := self._prepare(raw)) is not None]
                    await self._hand_out(ready)
                    if last:
                        return
        except InputError as error:
            self._stop("input", str(error))
            if self._inputs.damage is not None:
                self._journal.damaged(*self._inputs.damage)
        finally:
            ahead.close()

    async def _drain(self) -> None:
        """Wait for the last rows, and have the routers know that they are: each of them is what the job waits for."""
        while self.in_flight:
            self._last_rows()
            self._idle.clear()
            with contextlib.suppress(TimeoutError):  # said again: a router may have been restarted
                async with asyncio.timeout(LAST_ROWS_S):
                    await self._idle.wait()

    # ------------------------------------------------------------------ a row, from its line to its request

    def _prepare(self, raw: RawRow) -> tuple[Row, Request] | None:
        """The row and its request; None when there is nothing to send: it is done, refused, or shares a call."""
        read = self._recall.row(raw)
        if isinstance(read, RowError):
            self._refuse(read)
            return None
        if read is None:
            return None
        row, request = read
        row = row._replace(body={}, variables=None)  # the request carries it from here on
        if self._sharing is not None:
            offset = self._sharing.offset(request.digest)
            if offset is not None and self._share_from_file(row, request, offset):
                return None
        self._took(request)
        if self._sharing is not None:
            if self._sharing.follow(row, request):
                return None
            self._keys[row.number] = request.digest
        return row, request

    def _took(self, request: Request) -> None:
        self.in_flight += 1
        self._bytes += len(request.body)

    async def _hand_out(self, ready: list[tuple[Row, Request]]) -> None:
        """Post rows when there is room; their intent is in the journal before."""
        if not ready:
            await asyncio.sleep(0)
            return
        try:
            self._journal.intend(ready[-1][0].number)
        except OutputError as error:
            self._stop("output", str(error))
            return
        for row, request in ready:
            self._post(row, request, 0)
        while self.in_flight >= self._window or self._bytes >= self._in_flight_bytes:
            self._room.clear()
            await self._room.wait()
        await asyncio.sleep(0)

    def _post(self, row: Row, request: Request, redone: int, since: float = 0.0) -> None:
        since = since or time.monotonic()
        lane = least_loaded(self._lanes)
        with contextlib.suppress(LaneClosed):  # closing: the row stays undone
            lane.post(
                request, lambda done: self._on_done(row, request, redone, since, done), request.deadline_s + GRACE_S
            )

    # ------------------------------------------------------------------ a row, from its result to its line

    def _on_done(self, row: Row, request: Request, redone: int, since: float, done: object) -> None:
        try:
            self._end(row, request, redone, since, done)
        except Exception as error:  # a defect of ours must not leave the job waiting for this row for ever
            self._stop("output", f"row {row.custom_id!r} could not be ended: {type(error).__name__}: {error}")

    def _end(self, row: Row, request: Request, redone: int, since: float, done: object) -> None:
        match done:
            case Result():
                self._add_result(row, request, done, since)
                self._end_followers(row, request, done)
            case Failure(resumable=True):
                self._put_off(row, request, done)
            case Failure():
                self._add_failure(row, request, done, since)
                self._end_followers(row, request, done)
            case ActorLost() | LaneTimeout() if redone < REDO_LIMIT:
                self.tally.redone += 1
                if self._facts is not None:
                    self._facts.add(("redone",), 1)
                self._post(row, request, redone + 1, since)
            case LaneClosed():
                pass  # the run is ending; the row stays undone
            case _:
                failure = Failure("internal", f"sent {redone + 1} times and lost every time: {done}"[:300])
                self._add_failure(row, request, failure, since)
                self._end_followers(row, request, failure)

    def _count(
        self,
        row: Row,
        request: Request,
        tier: str,
        outcome: str,
        attempts: tuple[Attempt, ...] = (),
        since: float = 0.0,
    ) -> None:
        """For the metrics: what has ended, with the line that is written for it."""
        if self._facts is not None:
            seconds = time.monotonic() - since if since else None
            self._facts.request(
                tier,
                outcome,
                attempts,
                request.path,
                request.prompt,
                self._request_id(row),
                seconds,
                bool(request.schema),
            )

    def _add_result(self, row: Row, request: Request, result: Result, since: float) -> None:
        outcome = "coalesced" if result.coalesced else "ok"
        self._count(row, request, result.tier, outcome, result.attempts, since)
        if result.coalesced:
            self._shared(result.usage.total_tokens, request)
        else:
            self.tally.result(result, self._encoder.first_tier(request))
            if self._recorder is not None:
                self._recorder.answered(
                    time.monotonic(), row.number, row.custom_id, result, request.prompt, since, latency_s(result)
                )
            self._observe(request, result, "")
        self._line(row, request, result)

    def _shared(self, tokens: int, request: Request) -> None:
        self.tally.shared(tokens)
        if self._recorder is not None:
            self._recorder.shared(time.monotonic(), tokens, request.prompt)

    def _line(self, row: Row, request: Request, result: Result) -> None:
        extra = how(result, request.prompt)
        self._writer.add_result(row, result.body, result.status, self._request_id(row), extra)
        self._ended(request)

    def _add_failure(self, row: Row, request: Request, failure: Failure, since: float = 0.0) -> None:
        last = failure.attempts[-1].tier if failure.attempts else NONE
        self._count(row, request, last, failure.kind, failure.attempts, since)
        self.tally.failure(failure.kind, failure)
        if log.isEnabledFor(logging.DEBUG):
            about = {"request_id": self._request_id(row), "code": failure.kind, "tier": last}
            log.debug("%s", failure.message, extra={"event": "row_failed", "about": about})
        if self._recorder is not None:
            self._recorder.failed(time.monotonic(), row.number, row.custom_id, failure, request.prompt, since)
        extra: dict[str, Any] = {"attempts": len(failure.attempts), "cost_usd": failure.cost.usd_micros / 1e6}
        if request.prompt:
            extra["prompt"] = request.prompt
        if failure.refused_replies:
            extra |= {"refused_replies": failure.refused_replies, "tokens": failure.cost.tokens}
        if failure.attempts:
            self._observe(request, failure, failure.kind)
        self._writer.add_error(
            row.number,
            row.custom_id,
            failure.kind,
            failure.message,
            failure.status or None,
            failure.body or None,
            extra,
            self._request_id(row),
            row.file,
            row.line,
        )
        self._ended(request)

    def _observe(self, request: Request, done: Result | Failure, failed: str) -> None:
        """A row of a prompt has ended; its trial may be stopped by that."""
        if self._prompt is not None and request.prompt:
            for stopped in self._prompt.observe(
                request.prompt, done.refused_replies, failed, done.cost.usd_micros / 1e6
            ):
                self._on_event(stopped, "trial_stopped", "warning", prompt=request.prompt)

    def _end_followers(self, row: Row, request: Request, done: Result | Failure) -> None:
        """Equal rows have the same answer; a failure that was not the request's own makes the next one try."""
        if self._sharing is None:
            return
        if isinstance(done, Failure):
            self._keys.pop(row.number, None)
        followers = self._sharing.end(row.number)
        if isinstance(done, Result) or done.own_fault:
            for follower, their_request in followers:
                if isinstance(done, Result):
                    self._shared(done.usage.total_tokens, their_request)
                    self._count(follower, their_request, done.tier, "coalesced")
                    self._line(follower, their_request, done._replace(coalesced=True))
                else:
                    self._add_failure(follower, their_request, done._replace(attempts=(), cost=type(done.cost)()))
            return
        for follower, their_request in followers:
            if not self._sharing.follow(follower, their_request):  # the first of them leads, the others follow it
                self._keys[follower.number] = their_request.digest
                self._post(follower, their_request, 0)

    def _share_from_file(self, row: Row, request: Request, offset: int) -> bool:
        """False: the line is not what this row asks for, since an earlier run had another version of the prompt."""
        try:
            if request.prompt and self._writer.read_prompt(offset) != request.prompt:
                return False
            body = self._writer.read_line(offset)
        except OSError as error:
            self._stop("output", f"{self._journal.out}: {error.strerror or error}")
            return True
        self._shared(_total_tokens(body), request)
        self._count(row, request, NONE, "coalesced")
        extra: dict[str, Any] = {"coalesced": True, "cost_usd": 0}
        if request.prompt:
            extra["prompt"] = request.prompt
        if request.schema and isinstance(parsed := parse_reply(content_of(body) or ""), Parsed):
            extra["parsed"] = orjson.loads(parsed.value)
        self._writer.add_result(row, body, 200, self._request_id(row), extra)
        self._schedule_flush()
        return True

    def _put_off(self, row: Row, request: Request, failure: Failure) -> None:
        """A budget has nothing left for the row: wait for its window to turn, or stop the job with the row undone."""
        self.tally.spent_in_vain(failure)
        if self._recorder is not None:
            self._recorder.put_off(failure.attempts)
        if self._facts is not None:
            self._facts.attempts(failure.attempts, request.path, request.prompt, checked=bool(request.schema))
        pause_s = budget_pause_s(failure, self._wait_for_budget)
        if pause_s is not None and not self._ending.stop:
            self._on_event(failure.message, "budget_refused", "warning", request_id=self._request_id(row))
            asyncio.get_running_loop().call_later(pause_s, self._post, row, request, 0)
            return
        if not self._ending.stop:
            about = {"request_id": self._request_id(row)}
            self._on_event(failure.message, "budget_refused", "error", shown=False, **about)  # the summary says it
        self._stop("budget", failure.message)
        self._ended(request)
        if self._sharing is not None:
            for _, their_request in self._sharing.end(row.number):
                self._ended(their_request)

    def _refuse(self, error: RowError) -> None:
        self.tally.failure(error.code, None)
        if self._recorder is not None:
            self._recorder.refused(time.monotonic(), error.custom_id or "", error.code, str(error))
        if self._facts is not None:
            self._facts.request(NONE, error.code)
        self._writer.add_error(error.number, error.custom_id, error.code, str(error))
        self._schedule_flush()

    def _ended(self, request: Request) -> None:
        self.in_flight -= 1
        self._bytes -= len(request.body)
        self._schedule_flush()

    def _request_id(self, row: Row) -> str:
        return f"req_{self._journal.run}_{row.number}"

    # ------------------------------------------------------------------ lines to disk

    def _schedule_flush(self) -> None:
        """Flush once the completions of this turn of the loop are all in."""
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._ending.stop == "output":
            return
        try:
            written = self._writer.flush()
        except OutputError as error:
            self._stop("output", str(error))
            return
        if self._sharing is not None:
            for line in written:
                key = self._keys.pop(line.number, b"")
                if line.ok:
                    self._sharing.remember(key, line.offset)
        if self.in_flight < self._window:
            self._room.set()
        if not self.in_flight:
            self._idle.set()

    async def _checkpoint(self) -> None:
        while True:
            await asyncio.sleep(CHECKPOINT_S)
            try:
                if self._prompt is not None:
                    self._prompt.checkpoint()
                await asyncio.to_thread(self._writer.store, self._writer.snapshot())
            except (OutputError, OSError) as error:
                self._stop("output", str(error))
                return

    # ------------------------------------------------------------------ stopping

    def _noted(self, router: str, note: Any) -> None:
        if note is not None:
            self.tally.note(router, note)

    def interrupt(self) -> None:
        """Take no more rows and finish those in flight; said twice: stop at once."""
        if self._ending.stop == "interrupted":
            self._ending = Ending("killed", "stopped at once")
            self._stopping.set()
        else:
            self._stop("interrupted", "interrupted")
            self._on_event(
                f"stopping: {self.in_flight} rows in flight are being finished; once more to stop at once",
                "stopping",
                "warning",
            )

    def _stop(self, stop: Stop, message: str) -> None:
        """Take no more rows. Those in flight are finished, unless there is nowhere to write them."""
        if not self._ending.stop:
            self._ending = Ending(stop, message)
        if stop == "output":
            self._ending = Ending(stop, message)
            self._stopping.set()
        if self._feeding is not None:
            self._feeding.cancel()  # whatever it awaits: all it took in has been posted by then


async def _uncancelled(task: "asyncio.Future[None]") -> None:
    """Wait for a task that may be cancelled by others, which is an end like any other."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def _total_tokens(body: bytes) -> int:
    usage = orjson.loads(body).get("usage") or {}
    total = usage.get("total_tokens")
    return total if isinstance(total, int) else 0
