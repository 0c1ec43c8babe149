"""What a history is made of: everything that its seed decides before it begins.

Histories are short and various: a few requests, one to four routers, one to three tiers, limits that are mostly tight,
and a mix of troubles that is different every time. A quarter of them are calm, for what only holds without troubles.
"""

import random
from typing import NamedTuple

from actors.messages import Request
from actors.settings import (
    BreakerSettings,
    BudgetSettings,
    CoalesceSettings,
    HedgeSettings,
    Price,
    RouterSettings,
    TierSettings,
)
from tests.simulation.endpoint import KINDS, Behaviour, Limit, Rates
from tests.simulation.network import Faults

__all__ = ["SCHEMA", "Event", "Plan", "Scenario", "make_scenario"]

SCHEMA = b'{"type":"integer"}'
QUALITIES = ("basic", "medium", "high")
HOUR_S = 3_600.0
# The loop begins at second 1,000 of 1,700,000,000: so far is the next full hour from there, and so far the next day.
TO_THE_HOUR_S = HOUR_S - (1_700_001_000.0 % HOUR_S)
TO_THE_DAY_S = 86_400.0 - (1_700_001_000.0 % 86_400.0)


class Plan(NamedTuple):
    """A request as its caller means it."""

    at_s: float
    router: int
    digest: bytes
    prompt_tokens: int
    max_tokens: int | None
    choices: int
    start_tier: int
    min_quality: int
    deadline_s: float
    interactive: bool
    job: str
    key: str
    schema: bytes
    cancel_after_s: float | None
    insists: bool
    """Asks another router when its own has died, as the batch driver does."""

    def request(self, request_id: str, user: int) -> Request:
        """The request as it is handed to a router. `user`, which no key covers, tells the endpoint who asks."""
        most = "" if self.max_tokens is None else f'"max_tokens":{self.max_tokens},'
        count = "" if self.choices == 1 else f'"n":{self.choices},'
        return Request(
            id=request_id,
            path="/chat/completions",
            body=f'{{"messages":[{{"role":"user","content":"q"}}],{most}{count}"user":"{user}"}}'.encode(),
            digest=self.digest + self.key.encode() if self.digest else b"",
            prompt_bound_tokens=self.prompt_tokens,
            max_tokens=self.max_tokens,
            choices=self.choices,
            start_tier=self.start_tier,
            min_quality=self.min_quality,
            deadline_s=self.deadline_s,
            interactive=self.interactive,
            job=self.job,
            key=self.key,
            schema=self.schema,
        )


class Event(NamedTuple):
    """A trouble at a moment. `what`: kill, stop, cut, clock or second."""

    at_s: float
    what: str
    whom: str
    seconds: float
    """Until the restart, the end of the stop or of the partition; or the clock's step."""
    other: str = ""

    @property
    def lasts_s(self) -> float:
        return 0.0 if self.what == "clock" else self.seconds


class Scenario(NamedTuple):
    calm: bool
    """No message is lost and nothing dies: the ledger must equal the meter."""
    happy: bool
    """Calm, and every call succeeds within every limit."""
    routers: int
    tiers: tuple[TierSettings, ...]
    rates: tuple[Rates, ...]
    behaviours: tuple[Behaviour, ...]
    budget: BudgetSettings
    limits: tuple[Limit, ...]
    per_request: tuple[int | None, int | None]
    router: RouterSettings
    coalesce: CoalesceSettings
    lease_s: float
    faults: Faults
    store_fails: float
    store_kills: float
    skews_s: dict[str, tuple[float, float]]
    """What each process's clocks show beyond the truth: monotonic, wall."""
    plans: tuple[Plan, ...]
    events: tuple[Event, ...]

    def price(self, tier: int) -> Price:
        rates = self.rates[tier]
        return Price(prompt=rates.prompt / 1e6, completion=rates.completion / 1e6, cached=rates.cached / 1e6)


def make_scenario(rng: random.Random) -> Scenario:
    calm = rng.random() < 0.25
    happy = calm and rng.random() < 0.4
    routers = rng.choice((1, 1, 2, 2, 2, 3, 4))
    tiers, rates, behaviours = _tiers(rng, calm, happy)
    span_s = rng.choice((0.05, 0.3, 0.5, 1.0, 2.0, 3.0))
    plans = _plans(rng, routers, len(tiers), span_s, calm, happy)
    per_request, limits = ((None, None), ()) if happy and rng.random() < 0.5 else _limits(rng, plans, rates, happy)
    deadline_s = max(plan.deadline_s for plan in plans)
    return Scenario(
        calm,
        happy,
        routers,
        tiers,
        rates,
        behaviours,
        _budget_settings(limits, per_request),
        limits,
        per_request,
        RouterSettings(
            deadline_s=deadline_s,
            max_attempts=rng.choice((1, 3, 6)),
            on_rate_limit=rng.choice(("fallback", "wait")),
            hedge=_hedge(rng),
        ),
        CoalesceSettings(enabled=rng.random() < 0.85, keep_s=rng.choice((0.0, 0.0, 0.0, 1.0))),
        rng.choice((2.0, 4.0, 10.0)),
        Faults(delay_s=rng.choice((0.0002, 0.002, 0.02))) if calm else _faults(rng),
        0.0 if calm else rng.choice((0.0, 0.0, 0.0, 0.02, 0.2)),
        0.0 if calm else rng.choice((0.0, 0.0, 0.0, 0.01, 0.05)),
        _skews(rng, calm),
        plans,
        () if calm else _events(rng, routers, tiers, span_s),
    )


def _hedge(rng: random.Random) -> HedgeSettings | None:
    """A third of the histories send second copies: soon, since they are short, and some of them all they can."""
    if rng.random() < 0.65:
        return None
    return HedgeSettings(after=rng.choice((0.02, 0.1, 0.3)), max_fraction=rng.choice((0.0, 0.2, 1.0, 1.0)))


def _tiers(
    rng: random.Random, calm: bool, happy: bool
) -> tuple[tuple[TierSettings, ...], tuple[Rates, ...], tuple[Behaviour, ...]]:
    tiers, rates, behaviours = [], [], []
    for name in "abc"[: rng.choice((1, 2, 2, 3))]:
        timeout_s = rng.choice((0.5, 1.0, 3.0))
        tiers.append(
            TierSettings(
                name=name,
                model=f"model-{name}",
                base_url=("http://x", "http://y", "http://z")[: rng.choice((1, 1, 1, 2, 3))],
                quality=rng.choice(QUALITIES),
                replicas=rng.choice((1, 1, 1, 2)),
                concurrency=rng.choice(("auto", 1, 2, 8)),
                requests_per_minute=None if happy else rng.choice((None, None, None, 600)),
                tokens_per_minute=None if happy else rng.choice((None, None, None, 20_000)),
                timeout_s=timeout_s,
                max_output_tokens=rng.choice((8, 64)),
                breaker=BreakerSettings(
                    failure_threshold=rng.choice((1, 3, 5)), recovery_timeout_s=rng.choice((0.2, 1.0, 3.0))
                ),
            )
        )
        prompt = rng.choice((0, 150_000, 1_000_000, 2_500_001))
        rates.append(Rates(prompt, rng.choice((0, 600_000, 4_000_000)), rng.choice((prompt, prompt // 2))))
        latency_s = rng.choice((0.01, 0.1, 0.4))
        if happy:
            latency_s = min(latency_s, timeout_s / 4)
        behaviours.append(Behaviour(_weights(rng, calm, happy), latency_s, rng.choice((0.2, 0.6, 1.0))))
    return tuple(tiers), tuple(rates), tuple(behaviours)


def _weights(rng: random.Random, calm: bool, happy: bool) -> tuple[int, ...]:
    good = 0 if rng.random() < 0.05 else rng.choice((4, 20, 100))
    weights = {"ok": 1} if happy else {"ok": good or 1}
    if not happy and rng.random() < 0.8:
        allowed = [kind for kind in KINDS[1:] if not (calm and kind in ("no_usage", "504", "hangs", "cut"))]
        for kind in rng.sample(allowed, rng.randint(1, 4)):
            weights[kind] = rng.choice((1, 3, 10))
    return tuple(weights.get(kind, 0) for kind in KINDS)


def _plans(rng: random.Random, routers: int, tiers: int, span_s: float, calm: bool, happy: bool) -> tuple[Plan, ...]:
    equal = rng.choice((0.0, 0.0, 0.3, 0.9))
    cancelled = 0.0 if calm else rng.choice((0.0, 0.0, 0.1, 0.4))
    structured = rng.choice((0.0, 0.0, 0.0, 0.3))
    big = rng.choice((20, 200))
    digests = [b"e%d" % number for number in range(rng.choice((1, 1, 3)))]
    deadline_s = rng.choice((60.0,)) if happy else rng.choice((1.0, 2.0, 4.0, 8.0))
    jobs = ("j",) if rng.random() < 0.7 else ("j", "k")
    keys = ("",) if rng.random() < 0.6 else ("", "x", "y")
    plans = []
    for number in range(rng.choice((4, 5, 6, 8, 10, 12, 16, 30))):
        shared = rng.random() < equal
        # equal requests are equal in everything that the key covers
        plans.append(
            Plan(
                0.0 if rng.random() < 0.3 else rng.random() * span_s,
                rng.randrange(routers),
                rng.choice(digests) if shared else b"" if rng.random() < 0.3 else b"d%d" % number,
                20 if shared else rng.randint(1, big),
                16 if shared else rng.choice((None, 1, 16, 64)),
                1 if shared else rng.choice((1, 1, 1, 3)),
                0 if shared else rng.choice((0, 0, 0, tiers - 1)),
                0 if happy or shared else rng.choice((0, 0, 0, 0, 0, 1, 2)),
                deadline_s,
                rng.random() < 0.2 and not happy,
                rng.choice(jobs),
                rng.choice(keys),
                SCHEMA if structured and not shared and rng.random() < structured else b"",
                rng.random() * 2.0 if cancelled and rng.random() < cancelled else None,
                rng.random() < 0.8,
            )
        )
    return tuple(plans)


def _limits(
    rng: random.Random, plans: tuple[Plan, ...], rates: tuple[Rates, ...], happy: bool
) -> tuple[tuple[int | None, int | None], tuple[Limit, ...]]:
    """Limits around what the requests may cost, so that most of them bite."""
    tokens = [plan.prompt_tokens + (plan.max_tokens or 64) * plan.choices for plan in plans]
    dearest = max(max(rate) for rate in rates)
    limits: list[Limit] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        scope = rng.choice(("all", "all", "job:j", "job:j", "tier:a", "key:x"))
        window = rng.choice(("hour", "day", "total")) if scope == "job:j" else rng.choice(("hour", "day"))
        unit = rng.choice((0, 0, 1))
        share = 50.0 if happy else rng.choice((0.05, 0.2, 0.5, 0.8, 1.5, 4.0))
        whole = sum(tokens) * share * (dearest / 1e6 if unit else 1.0)
        if all((scope, window, unit) != limit[:3] for limit in limits):
            limits.append(Limit(scope, window, unit, int(whole)))
    per_request: tuple[int | None, int | None] = (None, None)
    if not happy and rng.random() < 0.3:
        most = int(max(tokens) * rng.choice((0.6, 1.0, 2.0)))
        per_request = (most, None) if rng.random() < 0.5 else (None, int(most * dearest / 1e6) + 1)
    return per_request, tuple(limits)


def _budget_settings(limits: tuple[Limit, ...], per_request: tuple[int | None, int | None]) -> BudgetSettings:
    """The configured part: a job's total is not configured, but opened."""
    scopes: dict[str, dict[str, dict[str, float]]] = {}
    for scope, window, unit, amount in limits:
        if window != "total":
            given = scopes.setdefault(scope, {"tokens": {}, "usd": {}})
            given["usd" if unit else "tokens"][f"per_{window}"] = amount / 1e6 if unit else amount
    whole = scopes.pop("all", {"tokens": {}, "usd": {}})
    for name, most in (("tokens", per_request[0]), ("usd", per_request[1])):
        if most is not None:
            whole[name]["per_request"] = most / 1e6 if name == "usd" else most
    named: dict[str, dict[str, dict[str, dict[str, float]]]] = {"tiers": {}, "keys": {}, "jobs": {}}
    for scope, given in scopes.items():
        kind, _, name = scope.partition(":")
        named[f"{kind}s"][name] = given
    return BudgetSettings.model_validate({**whole, **named})


def _faults(rng: random.Random) -> Faults:
    if rng.random() < 0.3:
        return Faults(delay_s=rng.choice((0.0002, 0.002, 0.02)))
    return Faults(
        delay_s=rng.choice((0.0002, 0.002, 0.02)),
        spikes=rng.choice((0.0, 0.02, 0.2)),
        spike_s=rng.choice((0.1, 0.5, 4.0)),
        lost=rng.choice((0.0, 0.0, 0.01, 0.1)),
        unanswered=rng.choice((0.0, 0.0, 0.01, 0.1)),
        silent=rng.choice((0.0, 0.2, 0.2, 1.0)),
        breaks=rng.choice((0.0, 0.0, 0.01, 0.1)),
        deaf=rng.choice((0.0, 0.5, 1.0)),
    )


def _skews(rng: random.Random, calm: bool) -> dict[str, tuple[float, float]]:
    start_s = rng.choice((0.0, 0.0, TO_THE_HOUR_S, TO_THE_HOUR_S, TO_THE_DAY_S)) - 3.0 * rng.random()
    if calm:  # a turn in mid-flight is no trouble, but the ledger's numbers begin again
        start_s = 0.0
    names = ("budget", "coalescer", "r0", "r1", "r2", "r3", "a", "b", "c")
    return {
        name: (rng.random() * 1e4, start_s + (0.0 if rng.random() < 0.5 else rng.uniform(-1.0, 1.0))) for name in names
    }


def _events(rng: random.Random, routers: int, tiers: tuple[TierSettings, ...], span_s: float) -> tuple[Event, ...]:
    nodes = {
        "router": [f"r{number}" for number in range(routers)],
        "budget": ["budget"],
        "coalescer": ["coalescer"],
        "tier": [f"{tier.name}/{index}" for tier in tiers for index in range(tier.replicas)],
    }
    events = []
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
        at_s = rng.random() * (span_s + 1.0)
        whom = rng.choice(nodes[rng.choice(("router", "router", "budget", "budget", "coalescer", "tier"))])
        what = rng.choice(("kill", "kill", "kill", "stop", "cut", "clock", "second"))
        match what:
            case "kill":
                events.append(Event(at_s, what, whom, rng.choice((0.0, 0.1, 1.0, 3.0))))
            case "stop":
                events.append(Event(at_s, what, whom, rng.choice((0.05, 0.5, 3.0, 8.0))))
            case "cut":
                served = rng.choice(["budget", "coalescer", *nodes["tier"]])
                events.append(Event(at_s, what, rng.choice(nodes["router"]), rng.choice((0.2, 1.0, 5.0)), served))
            case "clock":
                events.append(Event(at_s, what, whom, rng.choice((-7200.0, -60.0, -1.0, 1.0, 20.0, 3600.0))))
            case "second":
                events.append(Event(at_s, what, "budget", rng.choice((0.5, 2.0, 5.0))))
    return tuple(sorted(events))
