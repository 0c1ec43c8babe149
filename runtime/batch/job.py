"""`raycade batch`, put together: options in, exit code out.

What can be wrong with the configuration, the options or the files is found before Ray starts and before any call is
made: it raises ConfigError, which the command line turns into exit 2.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from actors.budget.anomaly import Anomaly, in_words
from actors.budget.rows import Snapshot
from actors.budget.store import open_store
from actors.errors import ConfigError, RaycadeError
from actors.events import Tally as Facts
from actors.lane import calm_gc
from actors.observer.reporter import Reporter
from actors.observer.scene import Taken
from runtime import log, preflight
from runtime.batch.estimate import estimate, print_estimate
from runtime.batch.journal import Journal
from runtime.batch.outputs import Output, errors_name, output_of
from runtime.batch.progress import Progress
from runtime.batch.publish import Publisher
from runtime.batch.reader import open_input
from runtime.batch.recall import Recall
from runtime.batch.recorder import Recorder
from runtime.batch.remote import is_url
from runtime.batch.report import Job, check_place, failures_of, write
from runtime.batch.rows import Encoder
from runtime.batch.run import BatchRun, Ending
from runtime.batch.summary import print_summary, summary_dict
from runtime.batch.telemetry import Telemetry
from runtime.batch.writer import OutputWriter
from runtime.config import Config, digest, key_values, load_config, resolve_prices
from runtime.encode import rank_of
from runtime.events import Event
from runtime.prompts_job import JobPrompt
from runtime.running import Entry, Running
from runtime.schemas import load_schema

__all__ = [
    "EXIT_BUDGET",
    "EXIT_INTERRUPTED",
    "EXIT_OK",
    "EXIT_OTHER",
    "EXIT_ROWS_FAILED",
    "EXIT_USAGE",
    "BatchOptions",
    "LedgerWatch",
    "run_job",
]

LEDGER_EVERY_S = 2.0
WATCH_S = 0.5
"""So often the condition of the tiers is kept for a report."""
LAST_SCRAPE_S = 20.0
"""A job that somebody scrapes waits so long at most for the scrape that sees its end."""
EXIT_OK, EXIT_OTHER, EXIT_USAGE, EXIT_ROWS_FAILED, EXIT_BUDGET, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130


@dataclass(frozen=True)
class BatchOptions:
    """The options of `raycade batch`; names as on the command line."""

    input: str
    output: str
    config: str | None = None
    errors: str | None = None
    min_quality: str | None = None
    prompt: str | None = None
    schema: str | None = None
    max_usd: float | None = None
    max_tokens: int | None = None
    limit: int | None = None
    window: int = 2000
    dedupe: bool = True
    report: str | None = None
    fresh: bool = False
    redo: str | None = None
    dry_run: bool = False
    address: str | None = None
    progress: str = "auto"


def run_job(options: BatchOptions, environ: Mapping[str, str] = os.environ) -> int:
    """Run one job; the exit code. Raises ConfigError for what is wrong before any call, RaycadeError for the rest."""
    joins = preflight.joins(options.address, environ)
    config = load_config(options.config, environ, check_keys=not options.dry_run and not joins)
    prices = resolve_prices(config)
    logged = log.configure(environ, key_values(config, environ))
    own_files = (options.output, options.errors or errors_name(options.output))
    written = (
        () if options.dry_run else (*zip(("-o", "--errors"), own_files, strict=True), ("--report", options.report))
    )
    preflight.check_submitted(config, environ, options.input, written, os.getcwd())
    inputs = open_input(options.input, exclude=own_files)
    if inputs.size_bytes == 0:
        raise ConfigError("the input is empty", file=options.input)
    if options.report is not None:
        check_place(options.report, own_files)
    prompt = JobPrompt(options.prompt, config.prompts) if options.prompt is not None else None
    if options.redo is not None and (prompt is None or options.fresh or options.dry_run):
        raise ConfigError("goes with --prompt, on a job that exists, and without --fresh and --dry-run", key="--redo")
    schema = load_schema(options.schema) if options.schema else b""
    quality = options.min_quality or config.router.min_quality

    def encoder(job: str) -> Encoder:
        return Encoder(
            config.tiers,
            min_quality=rank_of(quality),
            deadline_s=config.router.deadline_s,
            job=job,
            share=options.dedupe,
            schema=schema,
            structured=config.structured,
            render=None if prompt is None else prompt.render,
        )

    if all(tier.rank < rank_of(quality) for tier in config.tiers):
        raise ConfigError(f"no tier has the quality {quality!r} that is asked for", key="--min-quality")
    if options.dry_run:
        found = estimate(
            inputs,
            encoder("dry-run"),
            config,
            prices,
            options.dedupe,
            options.limit,
            max_tokens=options.max_tokens,
            max_usd=options.max_usd,
        )
        print_estimate(found, Console())
        return EXIT_USAGE if found.unreadable else EXIT_OK
    fingerprint = inputs.fingerprint()
    identity = f"{digest(config)[:16]}-{prompt.identity if prompt else ''}-{_schema_digest(schema)}-{quality}"
    # The ledger first: a job that is refused must not have removed anything for --fresh.
    if not joins:  # on another machine's Ray the store is that machine's matter, and is found out there
        open_store(config.ledger_place).close()
    output = output_of(options.output, options.errors, config.state_dir, inputs.files)
    files = (output.log, output.errors)
    attach = None if prompt is None else lambda folder: prompt.attach(folder, files, options.redo)
    with Journal.open(*files, fingerprint, identity, options.fresh, attach, inputs.shards()) as journal:
        for name in journal.removed:
            print(f"removed {name} (--fresh)", file=sys.stderr)
        inputs.expect(*journal.expected)
        publisher = Publisher(output, options.fresh) if output.targets else None
        if publisher is not None and prompt is not None and prompt.taken_out:
            publisher.forget()
        writer = OutputWriter(*files, journal)
        try:
            job = _run(options, config, prices, inputs, encoder(journal.run), prompt, journal, writer, output, logged)
            code = _uvloop_run(job)
        finally:
            writer.close()
        if publisher is not None:
            publisher.publish_run(journal, inputs, options.limit, finished=code in (EXIT_OK, EXIT_ROWS_FAILED))
        return code


async def _run(
    options: BatchOptions,
    config: Config,
    prices: Any,
    inputs: Any,
    encoder: Encoder,
    prompt: JobPrompt | None,
    journal: Journal,
    writer: OutputWriter,
    output: Output,
    logged: bool,
) -> int:
    from runtime.cluster import Cluster  # Ray takes seconds to import: not for a typing error or --dry-run

    already_done = len(journal.done)
    taken_out = prompt.taken_out if prompt else 0
    if options.redo is not None:
        print(f"doing {taken_out:,} rows again whose lines were made by {options.redo}", file=sys.stderr)
    if already_done:
        in_doubt = journal.in_doubt - taken_out
        doubt = f"; {in_doubt:,} more were under way and may have been called" if in_doubt > 0 else ""
        print(f"resuming {options.output}: {already_done:,} rows are done{doubt}", file=sys.stderr)
    quiet = options.progress == "none"
    if not quiet:
        print("starting Ray and the actors ...", file=sys.stderr)
    started = time.monotonic()
    recall = Recall(inputs, encoder, journal, share=options.dedupe, limit=options.limit)
    if already_done:
        recall.start()  # while Ray does
    stack = contextlib.ExitStack()
    limits = (options.max_usd, options.max_tokens)
    check = partial(preflight.check_ledger, config, limits, os.getcwd())
    cluster = await Cluster.start(config, prices, options.address, check=check)
    try:
        await cluster.open_job(journal.run, options.max_tokens, options.max_usd)
        entry = Entry(cluster.name, journal.run, os.getpid(), _shown_path(options.output), time.time())
        registered = stack.enter_context(Running(config.state_dir, entry))
        served = config.telemetry.metrics_port is not None
        facts = Facts(f"{cluster.name}/batch", {tier.name: tier.model for tier in config.tiers}) if served else None
        events: list[Callable[..., None]] = []
        recorder = before = None
        if options.report is not None:
            recorder, before = Recorder(time.monotonic()), await cluster.budget()
        run = BatchRun(
            inputs,
            encoder,
            journal,
            writer,
            cluster.router_lanes,
            window=options.window,
            share=options.dedupe,
            limit=options.limit,
            wait_for_budget=config.budget.on_exhausted == "wait",
            on_event=lambda *told, **about: events[0](*told, **about),
            last_rows=partial(cluster.last_rows, journal.run),
            facts=facts,
            prompt=prompt,
            recorder=recorder,
            recall=recall,
        )
        listeners: list[Callable[[Event], None]] = [log.tell] if logged else []
        if recorder is not None:
            listeners.append(partial(_record, recorder))
        progress = Progress(options.progress, config, inputs, run, already_done, options.limit, listeners=listeners)
        events.append(progress.event)
        if not quiet:
            print(f"ready after {time.monotonic() - started:.1f} s", file=sys.stderr)
        started, began = time.monotonic(), time.time()
        ledger = LedgerWatch(cluster.budget, progress.event)
        shown = [asyncio.create_task(progress.run()), asyncio.create_task(ledger.run())]
        if recorder is not None:
            shown.append(asyncio.create_task(_watch(recorder, progress)))
        reporter = None
        if facts is not None:
            telemetry = Telemetry(
                config, journal.run, options.output, run, facts, progress.look, lambda: ledger.snapshot
            )
            listeners.append(telemetry.happened)
            found = _Found(registered, config.telemetry.metrics_port, progress.event)
            reporter = Reporter(telemetry.draw_up, cluster.report, found.taken)
            shown.append(asyncio.create_task(reporter.run()))
        calm_gc()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, _interrupt, run, number)
        try:
            ending = await run.run()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().remove_signal_handler(number)
            for task in shown:
                task.cancel()
            await asyncio.gather(*shown, return_exceptions=True)
        await ledger.look()  # a job that was stopped by an anomaly has ended within the moment
        duration_s = time.monotonic() - started
        if reporter is not None and await reporter.close() and ending.stop not in ("interrupted", "killed"):
            await _until_interrupted(cluster.last_scrape(LAST_SCRAPE_S))
    finally:
        await cluster.close()
        stack.close()
    total = progress.total_rows if options.limit is None else options.limit
    print_summary(config, journal, run, ending, duration_s, output.log, output.errors, Console(), total)
    if recorder is not None and options.report is not None:
        told = summary_dict(config, journal, run, ending, duration_s, output.log, output.errors, total)
        counted = failures_of(output.errors)
        job = Job(told, journal.run, config, recorder, *counted, before, began, total)
        _write_report(options.report, job)
    return _exit_code(ending, journal)


def _shown_path(spec: str) -> str:
    return spec if is_url(spec) else os.path.abspath(spec)


def _interrupt(run: BatchRun, number: int) -> None:
    run.interrupt()
    grace_s = preflight.grace_s(os.environ) if number == signal.SIGTERM else None
    if grace_s is not None:  # `ray job stop` kills what is left after it: end before that, and say how far it came
        asyncio.get_running_loop().call_later(grace_s, run.interrupt)


def _write_report(path: str, job: Job) -> None:
    """The rows are done whether or not it can be written."""
    try:
        write(path, job)
        print(f"report   {path}")
    except OSError as error:
        print(f"raycade: {path}: the report cannot be written: {error.strerror or error}", file=sys.stderr)


def _record(recorder: Recorder, event: Event) -> None:
    recorder.event(time.monotonic(), event.text)


async def _watch(recorder: Recorder, progress: Progress) -> None:
    """Keep in the recorder how the tiers are."""
    while True:
        now = time.monotonic()
        for tier in progress.look().tiers:
            state = tier.condition
            recorder.saw(now, tier.name, "" if state.word in ("ok", "starting") else state.word, state.detail)
        await asyncio.sleep(WATCH_S)


async def _until_interrupted(work: Coroutine[Any, Any, object]) -> None:
    """Wait for what is not important: the first Ctrl-C ends the wait and nothing else."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    await asyncio.wait({task})
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)


class _Found:
    """Says where the metrics are, once, and again if that changes."""

    def __init__(self, registered: Running, port: int | None, tell: Callable[..., None]) -> None:
        self._registered, self._port, self._tell = registered, port, tell
        self._address = ""

    def taken(self, taken: Taken) -> None:
        if taken.address != self._address:
            self._address = taken.address
            self._registered.found_at(taken.address)
            why = "" if taken.wanted_port else f" (port {self._port} is taken)"
            self._tell(f"metrics at {taken.address}/metrics{why}", "metrics_served", address=taken.address)


class LedgerWatch:
    """Looks at the ledger, and tells what the budget actor has found, since the logs of its process are seen by nobody."""

    def __init__(self, budget: Callable[[], Awaitable[Snapshot]], tell: Callable[..., None]) -> None:
        self._budget = budget
        self._tell = tell
        self._told: set[Anomaly] = set()
        self.snapshot: Snapshot | None = None
        """What the ledger said last."""

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LEDGER_EVERY_S)

    async def look(self) -> None:
        """Never raises: what troubles the budget actor is told by the routers."""
        with contextlib.suppress(RaycadeError):
            self.snapshot = await self._budget()
            for anomaly in self.snapshot.anomalies:
                if anomaly not in self._told:
                    self._told.add(anomaly)
                    self._tell(in_words(anomaly), "spend_anomaly", "warning", scope=anomaly.scope)


def _exit_code(ending: Ending, journal: Journal) -> int:
    match ending.stop:
        case "budget":
            return EXIT_BUDGET
        case "interrupted" | "killed":
            return EXIT_INTERRUPTED
        case "output" | "input":
            return EXIT_OTHER
        case _:
            return EXIT_ROWS_FAILED if journal.failed else EXIT_OK


def _uvloop_run(coroutine: Any) -> int:
    import uvloop

    code: int = uvloop.run(coroutine)
    return code


def _schema_digest(schema: bytes) -> str:
    """Short name of a schema, for the journal's identity."""
    return hashlib.sha256(schema).hexdigest()[:16] if schema else ""
