"""What a person sees while a batch runs: a bar on a terminal, a line every few seconds in a log.

    run.tally, run.in_flight -> _Watch.look(now) -> Scene -> bar_lines | log_line
                                      `-> events, in words, when something changes

The display only reads: it looks a few times a second at what the run counts anyway, so it costs the loop next to
nothing, and no trouble with a terminal or a closed pipe ever reaches the run. What is known of a tier comes with
completions, so it can be old when nothing completes: waiting times are counted down from when they were first heard,
and a standstill is said.
"""

import asyncio
import contextlib
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import NamedTuple, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from actors.messages import Health
from actors.router.notes import RouterNote
from actors.settings import TierSettings
from runtime.batch.decode import is_packed
from runtime.batch.reader import InputSet
from runtime.batch.run import BatchRun
from runtime.batch.summary import dollars, kinds_in_words, rows, short, span
from runtime.config import Config
from runtime.events import Event, Level, event_of

__all__ = ["Condition", "Progress", "Scene", "TierScene", "bar_lines", "log_line"]

DRAW_EVERY_S = 0.25
LOG_EVERY_S = 5.0
RATE_OVER_S = 15.0
FOLD_S = 10.0
"""Equal events within this time are told once, and then with their number."""
PATIENCE_S = 2.0
"""Waiting for budget shorter than this is how leases are refilled, not news."""
STANDSTILL_S = 10.0
COUNT_BYTES = 64 << 20
"""Inputs up to this size are counted when the run starts, which takes a thread a fraction of a second."""
NARROW = 80


# -- what there is to see ------------------------------------------------------------------------------------------


class Condition(NamedTuple):
    """A tier's state in words. `detail` says more: how long, or why."""

    word: str
    detail: str = ""
    style: str = ""
    left_s: float = 0.0


class TierScene(NamedTuple):
    name: str
    condition: Condition
    in_flight: int
    limit: int
    queued: int
    answered: int
    kinds: Mapping[str, int]
    """Calls by how they ended."""


class Scene(NamedTuple):
    """All that is shown at one moment."""

    done: int
    """Rows, those of earlier runs included."""
    total: int | None
    fraction: float | None
    """How much of the input is done; None: nobody knows."""
    rows_per_s: float
    eta_s: float | None
    failed: int
    coalesced: int
    tokens: int
    usd_micros: int
    tiers: tuple[TierScene, ...]
    notices: tuple[str, ...]
    """What keeps the run from going on as it should, at present."""


OK = Condition("ok", style="green")
STARTING = Condition("starting", style="dim")
ORDER = ("ok", "asked to pause", "trying", "open", "restarting", "out", "starting")
"""From the tier actor that can take a call to the one that is furthest from it."""


class _Actor(NamedTuple):
    health: Health
    age_s: float
    """How long ago this was first heard."""
    up: bool
    been_up: bool


def _condition_of(actor: _Actor) -> Condition:
    health = actor.health
    if not actor.up:
        return Condition("restarting", style="yellow") if actor.been_up else STARTING
    if health.dead_reason:
        return Condition("out", plain(health.dead_reason), "bold red")
    if health.state == "half_open":
        return Condition("trying", style="cyan")
    if health.state == "open":
        left = health.open_for_s - actor.age_s
        return Condition("open", f"again in {ceil(left)} s" if left > 0 else "to be tried again", "red", left)
    pause = health.cooling_for_s - actor.age_s
    if pause >= 0.5:  # shorter ones are the tier's own pacing
        return Condition("asked to pause", f"{ceil(pause)} s", "yellow", pause)
    return OK


def condition(actors: Iterable[_Actor]) -> Condition:
    """The tier's: that of its best actor when none is well, else how many are not and in which way."""
    all_of = sorted(map(_condition_of, actors), key=lambda each: (ORDER.index(each.word), each.left_s))
    if not all_of:
        return STARTING
    worst = all_of[-1]
    if all_of[0].word != "ok" or worst.word == "ok":
        return all_of[0]
    count = sum(each.word == worst.word for each in all_of)
    return worst._replace(word=f"{count} of {len(all_of)} {worst.word}", style="yellow")


def plain(text: str, limit: int = 300) -> str:
    """Text from elsewhere as one line without control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text[:limit]).split())


def _to_check(tier: TierSettings, kind: str) -> str:
    """What a person should look at when a tier is out. The NAME of the key's variable, never what it holds."""
    again = f"asked again every {tier.breaker.recovery_timeout_s:g} s"
    if kind == "not_found":
        address = tier.base_url[0].partition("?")[0]  # a query may hold a key
        return f"check that {address} serves the model {plain(tier.model, 80)}; {again}"
    key = f"the key in {tier.api_key_env}" if tier.api_key_env else "api_key_env, which is not set,"
    return f"check {key} and the account behind it; {again}"


class _Watch:
    """Looks at the run: makes scenes, and events of what has changed since it last looked."""

    def __init__(
        self, config: Config, inputs: InputSet, run: BatchRun, already_done: int, limit: int | None, tell: "_Tell"
    ) -> None:
        self.total_rows: int | None = None
        """Rows of the whole input, where they were counted."""
        self._tiers = {tier.name: tier for tier in config.tiers}
        self._inputs, self._run = inputs, run
        self._already_done, self._limit, self._tell = already_done, limit, tell
        self._pace: deque[tuple[float, int]] = deque()
        self._last: dict[str, RouterNote] = {}
        self._health: dict[tuple[str, int], tuple[Health, float]] = {}
        self._up: dict[tuple[str, int], bool] = {}
        self._opened: Counter[str] = Counter()
        self._redone = 0
        self._troubled: set[str] = set()
        self._seen_models: dict[str, dict[str, None]] = {}
        """By tier, in order of appearance."""
        self._waits_since: float | None = None
        self._moved = (0.0, -1)
        """When a row last ended, and how many had then."""

    def look(self, now: float) -> Scene:
        run, tally = self._run, self._run.tally
        self._take_notes(now)
        tiers = tuple(self._tier(name, now) for name in self._tiers)
        for tier in tiers:
            self._tier_events(tier)
        if tally.redone > self._redone:
            self._tell(
                "redone", f"{rows(tally.redone - self._redone)} lost the actor that held them; they are sent again"
            )
            self._redone = tally.redone
        rate = self._rate(now, tally.done)
        done, total, fraction = self._extent()
        left = None
        if total is not None:
            left = total - done
        elif fraction:
            passed = run.skipped + tally.done
            left = round(passed / fraction) - passed
        return Scene(
            done=done,
            total=total,
            fraction=fraction,
            rows_per_s=rate,
            eta_s=max(0, left) / rate if left is not None and rate > 0 else None,
            failed=tally.failed,
            coalesced=tally.coalesced,
            tokens=tally.prompt_tokens + tally.completion_tokens,
            usd_micros=tally.cost_usd_micros,
            tiers=tiers,
            notices=tuple(self._notices(now)),
        )

    def _extent(self) -> tuple[int, int | None, float | None]:
        """Rows that are done, rows in all, and how much of the input is done."""
        run, inputs, total = self._run, self._inputs, self.total_rows
        passed = run.skipped + run.tally.done
        if self._limit is not None:  # earlier runs may have done rows beyond it, so only those that were passed count
            total = self._limit if total is None else min(total, self._limit)
            return passed, total, min(1.0, passed / total) if total else None
        done = self._already_done + run.tally.done
        if total is not None:
            return done, total, min(1.0, done / total) if total else None
        if not inputs.size_bytes:
            return done, None, None
        # Reading is ahead by the rows in flight: of what was read, so much is done.
        share = passed / (passed + run.in_flight) if passed else 0.0
        return done, None, min(1.0, inputs.read_bytes / inputs.size_bytes) * share

    def _rate(self, now: float, done: int) -> float:
        """Rows per second over the last seconds."""
        pace = self._pace
        if not pace or now - pace[-1][0] >= 1.0:
            pace.append((now, done))
            while now - pace[0][0] > RATE_OVER_S:
                pace.popleft()
        then, before = pace[0]
        return (done - before) / (now - then) if now - then >= 0.5 else 0.0

    # ------------------------------------------------------------------ tiers

    def _take_notes(self, now: float) -> None:
        notes = self._run.tally.notes
        fresh = [name for name, note in notes.items() if self._last.get(name) is not note]
        if not fresh:
            return
        for name in fresh:
            previous = {tier.name: tier for tier in self._last[name].tiers} if name in self._last else {}
            for tier in notes[name].tiers:
                before = previous[tier.name].actors if tier.name in previous else ()
                for index, health in enumerate(tier.actors):
                    # A router repeats what it heard last: the same value is the same moment.
                    if before[index : index + 1] != (health,):
                        self._health[tier.name, index] = (health, now)
            self._last[name] = notes[name]
        up: dict[tuple[str, int], bool] = {}
        for note in notes.values():
            for tier in note.tiers:
                for index, one in enumerate(tier.up):
                    up[tier.name, index] = up.get((tier.name, index), False) or one
        self._actors_events(up)

    def _actors_events(self, up: dict[tuple[str, int], bool]) -> None:
        for (name, index), now_up in up.items():
            was_up = self._up.get((name, index))
            if was_up and not now_up:
                self._tell(f"lost {name}", f"{name}: an actor was lost and is restarting")
            elif was_up is False and now_up:
                self._tell(f"back {name}", f"{name}: the actor is back")
            if now_up or was_up is not None:  # one that never was up is starting, which is not news
                self._up[name, index] = now_up

    def _tier(self, name: str, now: float) -> TierScene:
        kinds: Counter[str] = Counter()
        answered = 0
        for note in self._last.values():
            for tier in note.tiers:
                if tier.name == name:
                    answered += tier.answered
                    kinds.update(tier.kinds)
        actors = []
        for (tier_name, index), (health, heard) in self._health.items():
            if tier_name == name:
                up = self._up.get((name, index))
                actors.append(_Actor(health, now - heard, bool(up), up is not None))
        return TierScene(
            name,
            condition(actors),
            sum(actor.health.in_flight for actor in actors),
            sum(actor.health.limit for actor in actors),
            sum(actor.health.queued for actor in actors),
            answered,
            kinds,
        )

    def _said(self, name: str) -> str:
        """What the last failed attempt at a tier said."""
        notes = (tier for note in self._last.values() for tier in note.tiers if tier.name == name)
        return plain(next((tier.last_failure for tier in notes if tier.last_failure), ""), 120)

    def _endpoint_events(self, name: str) -> bool:
        """Tell which endpoints are left alone while the others take their calls. False: there is only one."""
        seen: dict[str, list[Health]] = {}
        for (tier, _), (health, _) in self._health.items():
            for endpoint in health.endpoints if tier == name else ():
                seen.setdefault(endpoint.address, []).append(endpoint)
        for address, healths in seen.items():
            out = next((each for each in healths if each.state != "closed" or each.dead_reason), None)
            topic = f"endpoint {name} {address}"
            if out is None:
                self._over(topic, f"{name}: {plain(address)} takes calls again")
            else:
                self._begins(topic, f"{name}: {plain(address)} is left alone ({plain(out.why)})")
        return bool(seen)

    def _tier_events(self, tier: TierScene) -> None:
        name, (word, detail, _, left_s) = tier.name, tier.condition
        several = self._endpoint_events(name)
        opened = self._run.tally.opened[name]
        if opened > self._opened[name] and not (several and word == "ok"):
            self._opened[name] = opened
            for_s = f", no calls to it for {ceil(left_s)} s" if word == "open" and left_s > 0 else ""
            why = f" ({said})" if (said := self._said(name)) else ""
            self._tell(f"opened {name}", f"{name} keeps failing{why}: its circuit breaker opened{for_s}")
            self._troubled.add(f"opened {name}")
        elif word == "ok":
            self._over(f"opened {name}", f"{name} answers again: its circuit breaker closed")
        healths = [health for (of, _), (health, _) in self._health.items() if of == name]
        model = self._tiers[name].model
        absent = next((health.absent for health in healths if health.absent), "")
        if absent:
            advice = _to_check(self._tiers[name], "not_found")
            self._begins(
                f"absent {name}", f"{name} ({model}) does not take these calls: {plain(absent, 200)}; {advice}"
            )
        else:
            self._over(f"absent {name}", f"{name} ({model}) takes all calls again")
        if word == "out":
            kind = next((health.dead_kind for health in healths if health.dead_reason), "auth")
            advice = _to_check(self._tiers[name], kind)
            self._begins(f"out {name}", f"{name} ({model}) is out: {plain(detail, 200)}; {advice}")
        elif not any(health.dead_reason for health in healths):
            self._over(f"out {name}", f"{name} ({model}) is in again")
        for before, now in pairwise(self._models(name)):
            text = f"{name} ({model}) answers as {plain(now, 80)} now, before as {plain(before, 80)}"
            self._begins(f"model {name} {now}", text)

    def _models(self, name: str) -> Iterable[str]:
        """The models that a tier's answers name, in order of appearance."""
        seen = self._seen_models.setdefault(name, {})
        for note in self._last.values():
            for tier in note.tiers:
                if tier.name == name:
                    seen.update(dict.fromkeys(tier.models))
        return seen

    # ------------------------------------------------------------------ what keeps the run

    def _notices(self, now: float) -> Iterator[str]:
        waiting = sum(note.waiting_for_budget for note in self._last.values())
        trouble = plain(next((note.trouble for note in self._last.values() if note.trouble), ""), 120)
        if not waiting:
            self._waits_since = None
            self._over("budget", "no row waits for budget any more")
        elif self._waits_since is None:
            self._waits_since = now
        elif now - self._waits_since >= PATIENCE_S:
            yield f"{rows(waiting)} wait{'s' if waiting == 1 else ''} for budget"
            self._begins("budget", f"{rows(waiting)} wait{'s' if waiting == 1 else ''} for budget")
        if trouble:
            yield f"the budget actor gives trouble: {trouble}"
            self._begins(
                "purse", f"the budget actor gives trouble, what it has granted is used up meanwhile: {trouble}"
            )
        else:
            self._over("purse", "the budget actor answers again")
        passed = self._run.tally.done + self._run.skipped
        if passed != self._moved[1] or not self._run.in_flight:
            self._moved = (now, passed)
        elif now - self._moved[0] >= STANDSTILL_S:
            yield f"no row has ended for {span(int(now - self._moved[0]))}"

    def _begins(self, key: str, text: str) -> None:
        if key not in self._troubled:
            self._troubled.add(key)
            self._tell(key, text)

    def _over(self, key: str, text: str) -> None:
        if key in self._troubled:
            self._troubled.discard(key)
            self._tell(f"{key} over", text)


# -- how it is shown -----------------------------------------------------------------------------------------------


def log_line(scene: Scene) -> str:
    """The whole scene on one line; the fields are always the same ones in the same order."""
    percent = "" if scene.fraction is None else f" ({_percent(scene)})"
    tiers = ", ".join(_tier_on_log(tier) for tier in scene.tiers)
    parts = (
        f"{scene.done:,} rows done ({scene.failed:,} failed, {scene.coalesced:,} coalesced) {_speed(scene)}",
        f"{short(scene.tokens)} tokens",
        dollars(scene.usd_micros),
        f"eta {_eta(scene)}{percent}",
    )
    return " | ".join([", ".join(parts), tiers, *scene.notices])


def _tier_on_log(tier: TierScene) -> str:
    state = tier.condition
    if state.word == "asked to pause":
        told = f"{tier.name} asked to pause {state.detail}"
    else:  # the whole reason was told as an event
        told = f"{tier.name} {state.word}{f' ({state.detail[:80]})' if state.detail else ''}"
    return f"{told} {tier.in_flight}/{tier.limit}" if state.word == "ok" or tier.in_flight else told


def bar_lines(scene: Scene, width: int, ascii_only: bool = False) -> list[Text]:
    """The scene as lines for a terminal of `width` columns: the bar, the counts, the tiers, what keeps it."""
    lines = [_bar_line(scene, width, ascii_only)]
    counts = [_speed(scene), f"eta {_eta(scene)}", f"{scene.failed:,} failed", f"{scene.coalesced:,} coalesced"]
    counts.append(f"{short(scene.tokens)} tokens  {dollars(scene.usd_micros)}")
    lines += [Text(line) for line in _packed(counts, width)]
    lines += _tier_lines(scene.tiers, width)
    lines += [Text(notice, style="yellow") for notice in scene.notices]
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="crop" if ascii_only else "ellipsis")
    return lines


def _bar_line(scene: Scene, width: int, ascii_only: bool) -> Text:
    of = "" if scene.total is None else f" of {scene.total:,}"
    count = f"{scene.done:,}{of} rows"
    if scene.fraction is None:
        return Text(count, style="bold")
    room = max(4, min(50, width - len(count) - 8))
    full, empty = ("#", "-") if ascii_only else ("━", "─")
    filled = int(scene.fraction * room)
    return Text.assemble(
        (full * filled, "green"), (empty * (room - filled), "dim"), f" {_percent(scene):>4}  ", (count, "bold")
    )


def _tier_lines(tiers: tuple[TierScene, ...], width: int) -> list[Text]:
    """One line a tier, in columns. What has no room is left out, the least important first."""
    name_size = min(16, max((len(tier.name) for tier in tiers), default=0))
    states = [_state_in_words(tier.condition) for tier in tiers]
    outs = [tier.condition.word == "out" for tier in tiers]
    most = 24 if width < NARROW else 40
    state_size = min(most, max((len(state) for state, out in zip(states, outs, strict=True) if not out), default=0))
    room = width - name_size - 2 - state_size
    failed = [sum(tier.kinds.values()) - tier.kinds.get("ok", 0) - tier.kinds.get("cancelled", 0) for tier in tiers]
    kept: list[tuple[int, list[str]]] = []
    for place, columns in (  # by importance; the place is where a column stands
        (0, [[f"{tier.in_flight:,}/{tier.limit:,} in flight" for tier in tiers]]),
        (3, [[kinds_in_words(tier.kinds) for tier in tiers], [f"{count:,} failed" for count in failed]]),
        (2, [[f"{tier.queued:,} queued" for tier in tiers]]),
        (1, [[f"{tier.answered:,} answered" for tier in tiers]]),
    ):
        for column in columns:
            size = max(map(len, column), default=0) + 2
            if size <= room:
                room -= size
                kept.append((place, [f"  {cell:>{size - 2}}" if place < 3 else f"  {cell}" for cell in column]))
                break
    kept.sort(key=lambda column: column[0])
    lines = []
    for index, tier in enumerate(tiers):
        line = Text(f"{tier.name[:name_size]:<{name_size}}  ")
        if outs[index]:  # the reason is worth more than the numbers of a tier that gets no calls
            line.append(states[index], style=tier.condition.style)
        else:
            line.append(f"{states[index][:state_size]:<{state_size}}", style=tier.condition.style)
            line.append("".join(column[index] for _, column in kept).rstrip())
        lines.append(line)
    return lines


def _state_in_words(state: Condition) -> str:
    joint = {"out": ": ", "asked to pause": " "}.get(state.word, ", ")
    return f"{state.word}{joint}{state.detail}" if state.detail else state.word


def _packed(parts: Iterable[str], width: int) -> Iterator[str]:
    line = ""
    for part in parts:
        if line and len(line) + 2 + len(part) > width:
            yield line
            line = ""
        line += f"  {part}" if line else part
    yield line


def _percent(scene: Scene) -> str:
    return f"{int((scene.fraction or 0) * 100)}%"


def _speed(scene: Scene) -> str:
    return f"{scene.rows_per_s:,.{0 if scene.rows_per_s >= 100 or not scene.rows_per_s else 1}f} rows/s"


def _eta(scene: Scene) -> str:
    return "unknown" if scene.eta_s is None else span(ceil(scene.eta_s))


# -- events --------------------------------------------------------------------------------------------------------

_Tell = Callable[[str, str], None]
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
        self._watch = _Watch(config, inputs, run, already_done, limit, self._tell)

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
