"""One batch of the gateway, carried out by the engine of `raycade batch`.

    input file -> checked, every row -> BatchRun over the desk's own router -> out.jsonl, out.errors.jsonl -> files

A row is what the same body sent to the same url by the same key would be: `Asks` reads both (batch_prompts.py says which
versions of prompts it gets). What stands in the journal is
done; a gateway that ends or dies in mid-batch is followed by one that goes on there.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from actors.errors import ConfigError
from actors.events import Tally as Facts
from actors.lane import Lane
from actors.messages import Request
from actors.observer.scene import JobScene
from runtime.batch.digests import DigestTable, digest_of
from runtime.batch.journal import Journal
from runtime.batch.reader import InputSet, RawRow, Row, RowError, open_input, parse_row
from runtime.batch.run import BatchRun, Ending
from runtime.batch.writer import OutputWriter
from runtime.gateway.asks import Asks
from runtime.gateway.batch_prompts import BatchPrompts
from runtime.gateway.batch_rules import (
    MAX_ERRORS,
    Batch,
    End,
    Fault,
    closing,
    counted,
    failed,
    fault_of,
    started,
    wrong_row,
)
from runtime.gateway.batch_telemetry import Course
from runtime.gateway.errors import HttpError
from runtime.gateway.keys import Key
from runtime.gateway.shelf import Shelf

__all__ = ["Carrying", "Means", "Why"]

Why = Literal["", "expired", "cancelled", "paused"]
"""Why it is to stop: its window is over, its owner or the gateway wants it."""
AGAIN_S = 30.0
"""What stopped it (a budget, a full disk) is looked at again so often."""
WAITING_GRACE_S = 2.0
IN_FLIGHT_BYTES = 64 << 20
FLUSH_ROWS = 1000
UNDONE = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled before."),
}
NO_HEADERS: dict[str, str] = {}


class Means(NamedTuple):
    """What batches are carried out with; one a desk."""

    shelf: Shelf
    asks: Asks
    prompts: Callable[[Path], BatchPrompts]
    """By the folder of what a batch keeps of them."""
    make_lanes: Callable[..., list[Lane[Request, Any]]]
    last_rows: Callable[[str], None]
    clock: Callable[[], float]
    """Unix seconds."""
    share: bool
    window: int
    max_rows: int
    max_row_bytes: int
    keep_s: float
    facts: Facts | None
    """Where rows are counted for the metrics; None: nowhere."""


class Carrying:
    """`run` it once; `stop` it at any time."""

    def __init__(self, means: Means, batch: Batch, key: Callable[[], Key]) -> None:
        """`key`: the rights of the batch's owner as they are now."""
        self.batch = batch
        self.why: Why = "cancelled" if batch.status == "cancelling" else ""
        self.note = ""
        self.counts = (batch.completed, batch.failed)
        self._means = means
        self._key = key
        self._folder = means.shelf.batch_folder(batch)
        self._prompts = means.prompts(self._folder / "prompts")
        self._run: BatchRun | None = None
        self._journal: Journal | None = None
        self._course = Course()
        self._stopping = asyncio.Event()

    def stop(self, why: Why, grace_s: float) -> None:
        """Take no more rows; those in flight have `grace_s` seconds to end."""
        if self.why:
            return
        self.why = why
        self._stopping.set()
        if self._run is not None:
            if self.note:  # rows that wait for a budget, say, are not worth waiting for
                grace_s = min(grace_s, WAITING_GRACE_S)
            self._run.interrupt()
            asyncio.get_running_loop().call_later(grace_s, self._kill)

    def _kill(self) -> None:
        if self._run is not None:
            self._run.interrupt()  # said twice: at once

    def up_to_now(self, batch: Batch) -> Batch:
        """The batch with what is true of it this moment."""
        if self._journal is not None:
            counts = (self._journal.succeeded, self._journal.failed)
            if counts != self.counts:
                self.counts, self.note = counts, ""  # it goes on: nothing holds it up
        return counted(batch, *self.counts, self.note)

    def scene(self) -> JobScene:
        """How far it is, for whoever watches."""
        return self._course.scene(self.up_to_now(self.batch), self._run)

    def count(self) -> None:
        """Write down how far it is, if that has changed."""
        if self.up_to_now(self.batch) != self.batch:
            self._change(self.up_to_now)

    async def run(self) -> None:
        """Everything that is left of the batch. Raises what the disk raises: it can be run again."""
        if self.batch.closing is None:
            if self.batch.status == "validating" and not self.why:
                total, faults = await self._check()
                if faults:
                    self._change(partial(failed, faults=faults, now=self._now()))
                    return
                self._change(partial(started, total=total, now=self._now()))
            await self._do_rows()
            if self.why == "paused":
                self.count()
                return
            end: End = self.why or "completed"
            if end != "completed":
                await self._write_undone(*UNDONE[end])
            self.note = ""
            self.count()
            self._change(partial(closing, end=end, now=self._now()))
        self.batch = self._means.shelf.hand_over(self.batch, self._means.keep_s, self._now())

    # ------------------------------------------------------------------ the input file

    def _inputs(self) -> InputSet:
        path = str(self._folder / "in.jsonl")
        return open_input(path, max_row_bytes=self._means.max_row_bytes, name=self.batch.filename)

    async def _check(self) -> tuple[int, list[Fault]]:
        """The number of rows, and what is wrong with them."""
        total, faults, ids = 0, list[Fault](), DigestTable(self._folder)
        try:
            inputs = self._inputs()
        except ConfigError as error:
            return 0, [Fault("invalid_json_line", error.message)]
        if not inputs.size_bytes:
            return 0, [Fault("empty_file", "The input file is empty.")]
        for chunk in inputs.chunks():
            total += len(chunk)
            if total > self._means.max_rows:
                message = f"The file has more than {self._means.max_rows} requests (gateway.batches.max_rows)."
                return total, [Fault("too_many_tasks", message)]
            if len(faults) < MAX_ERRORS:
                faults += [fault for raw in chunk if (fault := self._fault(raw, ids)) is not None]
            await asyncio.sleep(0)
            if self.why:
                return total, []
        if not total:
            return 0, [Fault("empty_file", "The input file has no requests.")]
        return total, faults[:MAX_ERRORS]

    def _fault(self, raw: RawRow, ids: DigestTable) -> Fault | None:
        row = parse_row(raw)
        if isinstance(row, RowError):
            return fault_of(row)
        first = ids.setdefault(digest_of(row.custom_id), row.line)
        if first != row.line:
            message = f"The custom_id {row.custom_id[:80]!r} is that of line {first} already."
            return Fault("duplicate_custom_id", message, row.line, "custom_id")
        self._prompts.begin(row.body)
        return wrong_row(row, self.batch.endpoint)

    # ------------------------------------------------------------------ the rows

    async def _do_rows(self) -> None:
        """Until every row is done, or something stops it for good."""
        while not self.why:
            ending = await self._run_once()
            if not ending.stop or self.why:
                return
            self.note = ending.message if ending.stop == "budget" else "the gateway cannot use its files now"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._stopping.wait()

    async def _run_once(self) -> Ending:
        means, batch = self._means, self.batch
        async with self._files() as (inputs, journal, writer):
            run = BatchRun(
                inputs,
                _RowReader(means.asks.with_prompts(self._prompts), self._key, batch.id, journal.run),
                journal,
                writer,
                means.make_lanes,
                window=means.window,
                share=means.share,
                limit=None,
                wait_for_budget=True,
                on_event=self._noted,
                last_rows=partial(means.last_rows, batch.id),
                facts=means.facts,
                in_flight_bytes=IN_FLIGHT_BYTES,
                prompt=self._prompts,
            )
            if self.why:
                return Ending("interrupted", "")
            self._run = run
            try:
                return await run.run()
            finally:
                self._run = None
                self._course.ended(run.tally)

    def _noted(self, text: str, *_: object, **__: object) -> None:
        if not self.why:
            self.note = text

    async def _write_undone(self, code: str, message: str) -> None:
        """A line for every row that has none and will have none."""
        total = 0
        async with self._files() as (inputs, journal, writer):
            for chunk in inputs.chunks():
                for raw in chunk:
                    total += 1
                    if raw.number not in journal.done:
                        row = parse_row(raw)
                        writer.add_error(raw.number, row.custom_id, code, message)
                        if writer.pending_rows >= FLUSH_ROWS:
                            writer.flush()
                await asyncio.sleep(0)
            writer.flush()
        if total != self.batch.total:
            self._change(lambda batch: batch._replace(total=total))

    @contextlib.asynccontextmanager
    async def _files(self) -> AsyncIterator[tuple[InputSet, Journal, OutputWriter]]:
        """Input, journal and writer; the journal is brought up to what the files hold."""
        inputs = self._inputs()
        out, errors = str(self._folder / "out.jsonl"), str(self._folder / "out.errors.jsonl")
        # Not the configuration's digest, as `raycade batch` has it: a gateway that is configured anew goes on with what it took.
        journal = await asyncio.to_thread(Journal.open, out, errors, inputs.fingerprint(), "gateway")
        try:
            writer = OutputWriter(out, errors, journal)
            self._journal = journal
            try:
                yield inputs, journal, writer
            finally:
                self._journal = None
                try:
                    await asyncio.to_thread(writer.close)
                finally:
                    self.counts = (journal.succeeded, journal.failed)
        finally:
            journal.close()

    # ------------------------------------------------------------------ inside

    def _now(self) -> float:
        return self._means.clock()

    def _change(self, rule: Callable[[Batch], Batch]) -> None:
        self.batch = self._means.shelf.change(self.batch, rule)


class _RowReader:
    """Rows of a key's batch to requests: what `BatchRun` asks of an encoder."""

    def __init__(self, asks: Asks, key: Callable[[], Key], job: str, run: str) -> None:
        """`run`: of the journal. A request has the id that stands in its line, and not the client's custom_id."""
        self._asks, self._key, self._job, self._run = asks, key, job, run

    def encode(self, row: Row) -> Request:
        try:
            body, id = orjson.dumps(row.body), f"req_{self._run}_{row.number}"
            request = self._asks.read(id, row.path, body, NO_HEADERS, self._key(), row.custom_id)
        except HttpError as error:
            code, message, field = error.code or "invalid_body", error.message, f"body.{error.param or ''}".rstrip(".")
        except (TypeError, ValueError) as error:
            code, message, field = "invalid_body", f"cannot be encoded: {error}", "body"
        else:
            return request._replace(interactive=False, job=self._job)
        raise RowError(row.number, code, message, row.file, row.line, field, row.custom_id)

    def key(self, row: Row) -> bytes:
        return self.encode(row).digest

    def first_tier(self, request: Request) -> str:
        """Of no use here: nobody reads a gateway's tally of fallbacks."""
        return ""
