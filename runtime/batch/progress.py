"""What a person sees while a batch runs: a bar on a terminal, a line every few seconds in a log.

    run.tally, run.in_flight -> Watch.look(now) -> Scene -> bar_lines | log_line
                                     `-> events, in words, when something changes

The display only reads: it looks a few times a second at what the run counts anyway (scene.py), so it costs the loop next to
nothing, and no trouble with a terminal or a closed pipe ever reaches the run.
"""

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from runtime.batch.decode import is_packed
from runtime.batch.lines import bar_lines, log_line
from runtime.batch.reader import InputSet
from runtime.batch.run import BatchRun
from runtime.batch.scene import Scene, Watch, plain
from runtime.config import Config
from runtime.events import Event, Level, event_of

__all__ = ["Progress"]

DRAW_EVERY_S = 0.25
LOG_EVERY_S = 5.0
FOLD_S = 10.0
"""Equal events within this time are told once, and then with their number."""
COUNT_BYTES = 64 << 20
"""Inputs up to this size are counted when the run starts, which takes a thread a fraction of a second."""

_NUMBER = re.compile(r"(?<![\w-])\d[\d,.]*(?![\w-])")


class _Fold:
    """Lets an event through at once, and counts equal ones that come within `FOLD_S` after it."""

    def __init__(self, show: Callable[[Event], None]) -> None:
        self._show = show
        self._held: dict[str, tuple[float, int, Event]] = {}

    def tell(self, key: str, event: Event, now: float) -> None:
        self.tick(now)
        if key in self._held:
            since, count, _ = self._held[key]
            self._held[key] = (since, count + 1, event)
        else:
            self._held[key] = (now, 0, event)
            self._show(event)

    def tick(self, now: float) -> None:
        """Tell what was held back long enough."""
        for key, (since, count, event) in list(self._held.items()):
            if now - since >= FOLD_S:
                del self._held[key]
                if count:
                    self._show(event._replace(text=f"{event.text} ({count:,} more like this)"))
                    self._held[key] = (now, 0, event)

    def end(self) -> None:
        """Tell what is still held back."""
        self.tick(float("inf"))
        self._held.clear()


class Progress:
    """Shows one run. `run()` until it is cancelled; `event()` at any time. Never raises what a stream raises.

    `mode`: auto (a bar on a terminal, else log), bar, log or none. `already_done`: rows done by earlier runs of the
    job. `limit`: of the rows, where there is one. `stream`: standard error where none is given. `listeners` get each event
    that is told, in every mode.
    """

    def __init__(
        self,
        mode: str,
        config: Config,
        inputs: InputSet,
        run: BatchRun,
        already_done: int,
        limit: int | None,
        stream: TextIO | None = None,
        listeners: Sequence[Callable[[Event], None]] = (),
    ) -> None:
        self._listeners = listeners
        self._stream = sys.stderr if stream is None else stream
        self._console = Console(file=self._stream, highlight=False, force_terminal=True if mode == "bar" else None)
        if mode == "auto":
            mode = "bar" if self._stream.isatty() and not self._console.is_dumb_terminal else "log"
        self._mode = mode
        self._inputs = inputs
        self._live: Live | None = None
        self._fold = _Fold(self._show)
        self._watch = Watch(config, inputs, run, already_done, limit, self._tell)

    @property
    def total_rows(self) -> int | None:
        """Rows of the whole input where they were counted: of files that are neither compressed nor very large."""
        return self._watch.total_rows

    def look(self) -> Scene:
        """What there is to see now."""
        return self._watch.look(time.monotonic())

    async def run(self) -> None:
        """Show the run until cancelled; then the terminal is as it was."""
        if self._mode == "none" and not self._listeners:
            return
        counting = asyncio.create_task(self._count())
        show = {"bar": self._run_bar, "log": self._run_log, "none": self._run_silent}[self._mode]
        try:
            with contextlib.suppress(OSError, ValueError):  # a terminal that went away; a stream that was closed
                await show()
        finally:
            counting.cancel()
            self._fold.end()

    def event(
        self, text: str, name: str = "note", level: Level = "info", *, shown: bool = True, **about: str | int | float
    ) -> None:
        """Something worth telling, in words. Those that differ in nothing but numbers are folded.

        `shown` False: only listeners get it, since people are told elsewhere.
        """
        event = Event(name, plain(text), level, about)
        if shown:
            self._told(_NUMBER.sub("#", text), event)
        else:
            for listener in self._listeners:
                listener(event)

    async def _run_bar(self) -> None:
        console = self._console
        ascii_only = console.options.ascii_only
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a file must not land on the terminal
        )
        drawn: list[Text] = []
        try:
            with self._live as live:
                while True:
                    now = time.monotonic()
                    lines = bar_lines(self._watch.look(now), console.width, ascii_only)
                    self._fold.tick(now)
                    if lines != drawn:
                        live.update(Group(*lines), refresh=True)
                        drawn = lines
                    await asyncio.sleep(DRAW_EVERY_S)
        finally:
            self._live = None

    async def _run_log(self) -> None:
        due = time.monotonic() + LOG_EVERY_S
        try:
            while True:
                now = time.monotonic()
                scene = self._watch.look(now)
                self._fold.tick(now)
                if now >= due:
                    due = now + LOG_EVERY_S
                    self._write(log_line(scene))
                await asyncio.sleep(DRAW_EVERY_S)
        finally:
            self._write(log_line(self._watch.look(time.monotonic())))

    async def _run_silent(self) -> None:
        while True:
            now = time.monotonic()
            self._watch.look(now)
            self._fold.tick(now)
            await asyncio.sleep(DRAW_EVERY_S)

    async def _count(self) -> None:
        size = self._inputs.size_bytes
        if size is not None and size <= COUNT_BYTES:
            self._watch.total_rows = await asyncio.to_thread(_rows_in, self._inputs.files)

    def _tell(self, key: str, text: str) -> None:
        self._told(key, event_of(key, text))

    def _told(self, key: str, event: Event) -> None:
        if self._mode != "none" or self._listeners:
            self._fold.tell(key, event, time.monotonic())

    def _show(self, event: Event) -> None:
        """One event, above the bar or as a line of the log; and to everybody else who wants to know."""
        for listener in self._listeners:
            listener(event)
        if self._mode == "none":
            return
        if self._live is None:
            self._write(event.text)
            return
        with contextlib.suppress(OSError, ValueError):
            self._console.print(Text(event.text), soft_wrap=True)

    def _write(self, line: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"{line.encode(encoding, 'replace').decode(encoding)}\n")
            self._stream.flush()


def _rows_in(files: Iterable[str]) -> int | None:
    """Rows of plain files; None for others, and for files that cannot be read."""
    count = 0
    try:
        for name in files:
            with open(name, "rb") as file:
                if name.endswith(".parquet") or is_packed(name, file.read(4)):
                    return None
                file.seek(0)
                count += sum(not line.isspace() for line in file)
    except OSError:
        return None
    return count
