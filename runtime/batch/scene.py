"""What there is to see of a batch at one moment, and what has changed since the last look.

    run.tally, run.in_flight -> Watch.look(now) -> Scene
                                     `-> tell(key, words), when something changes

What is known of a tier comes with completions, so it can be old when nothing completes: waiting times are counted down from
when they were first heard, and a standstill is said.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from actors.messages import Health
from actors.router.notes import RouterNote
from actors.settings import TierSettings
from runtime.batch.reader import InputSet
from runtime.batch.run import BatchRun
from runtime.batch.summary import rows, span
from runtime.config import Config

__all__ = ["Condition", "Scene", "Tell", "TierScene", "Watch", "condition", "plain"]

RATE_OVER_S = 15.0
PATIENCE_S = 2.0
"""Waiting for budget shorter than this is how leases are refilled, not news."""
STANDSTILL_S = 10.0

Tell = Callable[[str, str], None]
"""Is told a change: its key, by which equal ones are known, and its words."""


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


class Watch:
    """Looks at the run: makes scenes, and events of what has changed since it last looked."""

    def __init__(
        self, config: Config, inputs: InputSet, run: BatchRun, already_done: int, limit: int | None, tell: Tell
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
