"""What is so now, as a process tells the observer: the tiers and their actors, the budgets, the batch or gateway that runs.

Values for `/status`, and the gauges of `/metrics` that follow from them. Durations are seconds from the moment when the
report was drawn up. Nothing here carries a user's text but the name of the output file; what endpoints said in refusals has
been bounded and cleared of keys by the tier.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from actors.events import Key, Totals

__all__ = [
    "ActorScene",
    "BudgetScene",
    "GatewayScene",
    "Happened",
    "JobScene",
    "Report",
    "Scene",
    "Taken",
    "TierScene",
    "gauges",
    "merged",
    "plain",
]

ActorState = Literal["closed", "half-open", "open", "cooling", "out", "restarting", "starting"]
WAITING = ("waiting_for_budget",)
BREAKER = {"closed": 0, "half-open": 1, "open": 2}
SCOPES = 200
"""Budget scopes beyond these are left out of `/metrics`: each is several series."""


class ActorScene(NamedTuple):
    """A tier actor, or one of its endpoints where it has several."""

    actor: str
    """Its number in the tier; with several endpoints the endpoint's address too."""
    state: ActorState
    breaker: Literal["closed", "half-open", "open"]
    why: str
    """In words; empty while all is well."""
    since_s: float
    """How long it has been in this state."""
    again_in_s: float | None
    """When it will be tried again; None where nothing keeps it from being called, or nobody knows."""
    in_flight: int
    queued: int
    limit: int
    opened: int
    """How often the breaker has opened in the actor's life."""


class TierScene(NamedTuple):
    name: str
    model: str
    answered: int
    kinds: dict[str, int]
    """Failed calls by kind."""
    actors: tuple[ActorScene, ...]


class BudgetScene(NamedTuple):
    """A window of a scope, with both units; amounts in whole tokens and micro-dollars, None: no limit."""

    scope: str
    window: str
    unit: str
    limit: int | None
    spent: int
    reserved: int
    unknown: int
    turns_in_s: float | None


class JobScene(NamedTuple):
    """A batch that runs."""

    run: str
    output: str
    """The file, or of a gateway's batch the key that it belongs to."""
    running_s: float
    done: int
    """Rows, those of earlier runs included."""
    total: int | None
    fraction: float | None
    rows_per_s: float
    eta_s: float | None
    failed: int
    coalesced: int
    in_flight: int
    tokens: int
    usd_micros: int
    waiting_for_budget: int
    notices: tuple[str, ...]
    """What keeps it from going on as it should, in words."""


class GatewayScene(NamedTuple):
    """One replica of a gateway that runs, and what it has done in its life."""

    replica: str
    running_s: float
    in_flight: int
    streams: int
    """Of these, so many are streamed."""
    max_queued: int
    answered: int
    """Requests, the coalesced ones included."""
    failed: int
    coalesced: int
    requests_per_s: float
    """Over the last seconds."""
    tokens: int
    usd_micros: int
    waiting_for_budget: int
    notices: tuple[str, ...]
    """What it has to tell its operator, in words: trials that were stopped, prompts that cannot be read."""


class Scene(NamedTuple):
    jobs: tuple[JobScene, ...] = ()
    tiers: tuple[TierScene, ...] = ()
    budgets: tuple[BudgetScene, ...] = ()
    anomalies: tuple[str, ...] = ()
    """Scopes that spend far more than usual at present, or are stopped for it."""
    watched: tuple[str, ...] = ()
    """All scopes for which that would be told."""
    halts: tuple[tuple[str, str], ...] = ()
    """Scope and reason of what is stopped until somebody lets it go on."""
    events: tuple[tuple[float, str], ...] = ()
    """What happened last, in words, oldest first: how many seconds ago, and what."""
    gateway: GatewayScene | None = None


class Report(NamedTuple):
    """To the observer, about once a second."""

    totals: Totals
    scene: Scene
    last: bool = False
    """Its source has ended: nothing comes after it."""


class Taken(NamedTuple):
    """The observer's answer: what it was told is stored."""

    address: str
    """Where it serves, such as http://127.0.0.1:9464."""
    wanted_port: bool
    """False: the configured port was taken, and another is used."""


class Happened(NamedTuple):
    """Something worth telling, in words."""

    at: float
    """Seconds since the epoch."""
    key: str
    """See runtime/events.py."""
    text: str


def plain(value: Any) -> Any:
    """A value of this module as JSON has it: named tuples are objects, other tuples lists."""
    if isinstance(value, tuple):
        if hasattr(value, "_asdict"):
            return {name: plain(each) for name, each in value._asdict().items()}
        return [plain(each) for each in value]
    return value


def gauges(scenes: Iterable[Scene]) -> Iterator[tuple[Key, float]]:
    """The gauges that follow from what processes see; those of one runtime see the same tiers, and the last one counts."""
    found: dict[Key, float] = {}
    sums: dict[Key, float] = {}
    waiting = 0
    for scene in scenes:
        found.update(_of_tiers(scene))
        found.update(_of_budgets(scene))
        for job in scene.jobs:
            found.update(_of_job(job))
            waiting = max(waiting, job.waiting_for_budget)  # jobs that share routers all see those of all
        if scene.gateway is not None:
            for key, value in _of_gateway(scene.gateway):
                sums[key] = sums.get(key, 0) + value
    if waiting:
        sums[WAITING] = sums.get(WAITING, 0) + waiting
    yield from {WAITING: 0.0, **found, **sums}.items()


def merged(scenes: Iterable[Scene]) -> Scene:
    """What several processes of one runtime see, the oldest first: of what more than one sees, the newest holds."""
    tiers: dict[str, TierScene] = {}
    budgets: dict[tuple[str, str, str], BudgetScene] = {}
    jobs: dict[str, JobScene] = {}
    events: list[tuple[float, str]] = []
    last = ledger = Scene()
    for last in scenes:
        if last.budgets or last.halts or not ledger.budgets:
            ledger = last  # not every process looks at the ledger
        for tier in last.tiers:
            if tier.actors or tier.name not in tiers:  # who has just come has not heard of its actors yet
                tiers[tier.name] = tier
        budgets |= {(row.scope, row.window, row.unit): row for row in last.budgets}
        jobs |= {job.run: job for job in last.jobs}
        events += last.events
    return last._replace(
        jobs=tuple(jobs.values()),
        tiers=tuple(tiers.values()),
        budgets=tuple(budgets.values()),
        anomalies=ledger.anomalies,
        halts=ledger.halts,
        events=tuple(sorted(events, reverse=True)),
    )


def _of_tiers(scene: Scene) -> Iterator[tuple[Key, float]]:
    for tier in scene.tiers:
        for actor in tier.actors:
            yield ("breaker_state", tier.name, actor.actor), BREAKER[actor.breaker]
            yield ("actor_up", tier.name, actor.actor), float(actor.state in ("closed", "half-open"))
        yield ("in_flight", tier.name), sum(actor.in_flight for actor in tier.actors)
        yield ("queued", tier.name), sum(actor.queued for actor in tier.actors)
        yield ("concurrency_limit", tier.name), sum(actor.limit for actor in tier.actors)
    for scope in scene.watched:
        kind, _, name = scope.partition(":")
        key = ("spend_anomaly" if kind == "tier" else "key_spend_anomaly", name)
        yield key, float(scope in scene.anomalies)


def _of_budgets(scene: Scene) -> Iterator[tuple[Key, float]]:
    for row in scene.budgets[: SCOPES * 6]:
        if row.limit is not None:
            yield (f"budget_limit_{row.unit}", row.scope, row.window), row.limit
        yield (f"budget_spent_{row.unit}", row.scope, row.window), row.spent
        yield (f"budget_reserved_{row.unit}", row.scope, row.window), row.reserved
        yield (f"budget_unknown_{row.unit}", row.scope, row.window), row.unknown
        if row.turns_in_s is not None:
            yield ("budget_window_left", row.scope, row.window), row.turns_in_s


def _of_gateway(gateway: GatewayScene) -> Iterator[tuple[Key, float]]:
    """Of one replica: a gateway has the sum of them."""
    yield ("gateway_requests", "plain"), gateway.in_flight - gateway.streams
    yield ("gateway_requests", "stream"), gateway.streams
    yield WAITING, gateway.waiting_for_budget


def _of_job(job: JobScene) -> Iterator[tuple[Key, float]]:
    yield ("batch_rows", job.run, "done"), job.done
    yield ("batch_rows", job.run, "failed"), job.failed
    yield ("batch_rows", job.run, "coalesced"), job.coalesced
    yield ("batch_rows", job.run, "in_flight"), job.in_flight
    if job.total is not None:
        yield ("batch_rows", job.run, "total"), job.total
    if job.fraction is not None:
        yield ("batch_progress", job.run), job.fraction
