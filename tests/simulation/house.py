"""The whole house in one thread: real routers, tiers, coalescer and budget, each in a simulated process.

`History(seed).run()` builds what the seed says, lets the requests and the troubles happen, ends the troubles, waits until
all is quiet, and holds what is left to the promises (`promises.py`). Same seed, same history, step by step.
"""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from zlib import crc32

from actors.budget.actor import BudgetActor
from actors.budget.exchange import Exchange, Exchanged
from actors.coalescer.actor import CoalescerActor
from actors.messages import Failure, Result
from actors.router.flow import Peers, Router
from actors.settings import ScopeSettings, TierSettings
from actors.tier.actor import TierActor
from tests.simulation.endpoint import Ask, Endpoint, Meter
from tests.simulation.loop import Loop, Overlong, Process
from tests.simulation.modules import CHANCE, CLOCK
from tests.simulation.network import Network, Node, SimulatedPeer
from tests.simulation.promises import leaks, wrong_in_the_end
from tests.simulation.scenario import Event, Plan, Scenario, make_scenario
from tests.simulation.store import Disk, MemoryStore
from tests.simulation.watching import watch_promotions, watch_reservations, wrong_in_the_books

__all__ = ["History", "Told"]

HORIZON_S = 400.0
MAX_STEPS = 400_000
TRIES = 6
"""How often a request is asked again when its router has died."""
QUIET_S = 90.0
"""For so long after the troubles have ended something may still be held: lanes' leases, leads' leases, budget leases."""
SLOW_S = 10.0


class Told(NamedTuple):
    """One line of a history's trace."""

    at_s: float
    process: str
    words: tuple[object, ...]


class Ended(NamedTuple):
    """How a request of the history ended."""

    how: str
    """done, cancelled or lost."""
    plan: Plan
    ask: Ask
    done: Result | Failure | None
    took_s: float


class History:
    """One seed's history. Everything is decided by the seed, so it can be run again and looked at."""

    def __init__(self, seed: int, trace: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.scenario: Scenario = make_scenario(self.rng)
        self.loop = CLOCK.loop = Loop()
        CHANCE.rng = self.rng
        self.trace: list[Told] = []
        self.tell: Callable[..., None] = self._tell if trace else _silent
        self.broken: list[tuple[str, str]] = []
        """Promises that were not kept: (kind, what happened)."""
        self.counts: dict[str, int] = {"histories": 1}
        self.disk = Disk(self.rng, self.tell)
        self.disk.die = lambda: self.kill(self.budget, 0.3 * self.rng.random())
        self.network = Network(self.loop, self.rng, self.scenario.faults, self.tell)
        self.network.after_call = self._after_call
        scenario = self.scenario
        self.meter = Meter(scenario.limits, scenario.per_request, lambda what: self.breaks("overspend", what))
        self.asks: list[Ask] = []
        self.endpoints = [
            Endpoint(self.loop, self.rng, tier.name, behaviour, rates, self.asks, self.meter, self.tell)
            for tier, behaviour, rates in zip(scenario.tiers, scenario.behaviours, scenario.rates, strict=True)
        ]
        self.budget = Node("budget")
        self.old_budget = Node("budget-old")
        self.coalescer = Node("coalescer")
        self.tiers = [[Node(f"{tier.name}/{at}") for at in range(tier.replicas)] for tier in scenario.tiers]
        self.routers = [Node(f"r{at}") for at in range(scenario.routers)]
        self.nodes = {
            node.name: node
            for node in (self.budget, self.coalescer, *self.routers, *(node for tier in self.tiers for node in tier))
        }
        self.starts: dict[str, Callable[[], Any]] = {"budget": self._make_budget, "coalescer": self._make_coalescer}
        for tier, nodes, endpoint in zip(scenario.tiers, self.tiers, self.endpoints, strict=True):
            for node in nodes:
                self.starts[node.name] = partial(_make_tier, tier, endpoint)
        self.waiting: dict[Any, Process] = {}
        """Future of a request -> the router process that has it."""
        self.opened: dict[Process, asyncio.Event] = {}
        self.ended: list[Ended] = []
        self.troubled = False
        """A process has died or a message was lost."""

    # ------------------------------------------------------------------ the history

    def run(self) -> "History":
        """Live through it. What it broke of the promises is in `broken` afterwards."""
        try:
            self.loop.run(self._live(), HORIZON_S, MAX_STEPS)
        except Overlong as error:
            self.breaks("hang", f"{error}; {len(self.waiting)} requests have not ended")
        except Exception as error:
            self.breaks("trouble", f"the simulation failed: {type(error).__name__}: {error}")
        for trouble in self.loop.troubles:
            self.breaks("trouble", trouble)
        for name, number in (
            ("requests", len(self.scenario.plans)),
            ("asks", len(self.asks)),
            ("billed calls", self.meter.calls),
            ("messages dropped", self.network.dropped),
            ("streams broken", self.network.broken),
            ("store failures", self.disk.failed),
            ("store conflicts", self.disk.conflicts),
            ("calls over a turn", self.meter.straddled),
            ("hours turned", self.disk.turned),
            ("steps", self.loop.steps),
            ("simulated s", int(self.loop.now - 1_000.0)),
            *((f"endpoint {kind}", count) for endpoint in self.endpoints for kind, count in endpoint.kinds.items()),
        ):
            self.count(name, number)
        for end in self.ended:
            done = end.done
            self.count(f"ended {done.kind if isinstance(done, Failure) else 'ok' if done else end.how}")
            if isinstance(done, Result) and done.coalesced:
                self.count("coalesced")
            hedged = [attempt for attempt in done.attempts if attempt.hedged] if done else []
            self.count("hedged", len(hedged))
            self.count("hedges that won", isinstance(done, Result) and bool(hedged) and done.attempts[-1].hedged)
        return self

    def breaks(self, kind: str, what: str) -> None:
        self.tell("BROKEN", kind, what)
        self.broken.append((kind, what))

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    @property
    def fingerprint(self) -> str:
        """Differs when anything of two runs differs."""
        return f"{self.loop.steps}-{self.loop.now!r}-{crc32(repr(self.rng.getstate()).encode()):x}"

    async def _live(self) -> None:
        scenario = self.scenario
        for name in self.nodes:
            self.start(name)
        await self._open_jobs()
        self.disk.fails, self.disk.kills = scenario.store_fails, scenario.store_kills
        begun = self.loop.now
        for event in scenario.events:
            self.loop.run_in(self.loop.world, event.at_s, self._trouble, event)
        asking = [asyncio.ensure_future(self._ask(number, plan)) for number, plan in enumerate(scenario.plans)]
        await asyncio.gather(*asking)
        over = max((event.at_s + event.lasts_s for event in scenario.events), default=0.0)
        await asyncio.sleep(max(0.0, begun + over + 0.001 - self.loop.now))
        await self._calm_down()
        await self._quiet(lambda: leaks(self), "after the last request")
        for what in wrong_in_the_end(self, await self._close()):
            self.breaks(*what)

    async def _open_jobs(self) -> None:
        totals = [limit for limit in self.scenario.limits if limit.window == "total"]
        given: dict[str, float] = {}
        for _, _, unit, amount in totals:
            given["max_usd" if unit else "max_tokens"] = amount / 1e6 if unit else amount
        while totals:
            try:
                async with asyncio.timeout(1.0):
                    await self.network.call(self.loop.world, self.budget, "open_job", "j", ScopeSettings(), **given)
                return
            except Exception:  # lost on the way: the command that opens a job asks again
                await asyncio.sleep(0.1)

    # ------------------------------------------------------------------ processes

    def start(self, name: str) -> None:
        """Start what belongs at this address, with nothing in memory."""
        node = self.nodes[name]
        monotonic_s, wall_s = self.scenario.skews_s[name.partition("/")[0]]
        if node.process is not None:
            return
        process = node.process = Process(name, monotonic_s + self.loop.now, wall_s)
        self.tell("starts", name)
        if node in self.routers:
            self.opened[process] = asyncio.Event()
            self.loop.task_in(process, self._open_router(node, process))
        else:
            with self.loop.acting(process):
                node.actor = self.starts[name]()

    def kill(self, node: Node, restart_s: float) -> None:
        """The process ends at once, without a word; it starts again after a while."""
        process = node.process
        if process is None:
            return
        self.tell("killed", node.name)
        self.troubled = True
        self.count(f"kills {'router' if node in self.routers else 'tier' if '/' in node.name else node.name}")
        process.kill()
        node.process = node.actor = None
        self.network.gone(process)
        for future, serving in list(self.waiting.items()):
            if serving is process:
                _end(future, ("lost", None))
        self.loop.run_in(self.loop.world, restart_s, self.start, node.name)

    def _trouble(self, event: Event) -> None:
        self.tell(event.what, event.whom, event.seconds, event.other)
        self.troubled = True
        node = self.nodes[event.whom]
        process = node.process
        if process is None:
            return
        self.count(f"events {event.what}")
        match event.what:
            case "kill":
                self.kill(node, event.seconds)
            case "stop":
                process.stop()
                self.loop.run_in(self.loop.world, event.seconds, self.loop.wake_up, process)
            case "cut":
                self.network.partition(event.whom, event.other, event.seconds)
            case "clock":
                process.wall_s += event.seconds
            case "second":  # the first one hangs, is replaced, and wakes up again
                if self.old_budget.process is not None:
                    self.old_budget.process.kill()
                    self.network.gone(self.old_budget.process)
                process.stop()
                self.loop.run_in(self.loop.world, event.seconds, self.loop.wake_up, process)
                self.old_budget.process, self.old_budget.actor = process, node.actor
                node.process = node.actor = None
                self.start("budget")

    def _make_budget(self) -> BudgetActor:
        return BudgetActor(
            self.scenario.budget,
            "",
            self.scenario.lease_s,
            open_store=lambda *_: MemoryStore(self.disk),
            clock=CLOCK.time,
        )

    def _make_coalescer(self) -> CoalescerActor:
        actor = CoalescerActor(self.scenario.coalesce)
        watch_promotions(
            actor, lambda number: self.count("promotions", number), lambda what: self.breaks("coalescing", what)
        )
        return actor

    async def _open_router(self, node: Node, process: Process) -> None:
        scenario = self.scenario

        async def exchange(message: Exchange) -> Exchanged:
            budget = self.budget
            if self.old_budget.process is not None and self.rng.random() < 0.3:
                budget = self.old_budget
            answer: Exchanged = await self.network.call(process, budget, "exchange", message)
            return answer

        peers = Peers(
            [[SimulatedPeer(self.network, process, served) for served in tier] for tier in self.tiers],
            SimulatedPeer(self.network, process, self.coalescer),
            exchange,
        )
        prices = {tier.name: scenario.price(at) for at, tier in enumerate(scenario.tiers)}
        router = Router(node.name, scenario.tiers, prices, scenario.router, scenario.budget, scenario.coalesce, peers)
        watch_reservations(router, self.loop, self.disk, self.asks)
        await router.open()
        node.actor = router
        self.opened[process].set()

    # ------------------------------------------------------------------ requests

    async def _ask(self, number: int, plan: Plan) -> None:
        await asyncio.sleep(plan.at_s)
        asked_at = self.loop.now
        how, done = "lost", None
        for tries in range(TRIES):
            node = self.routers[(plan.router + tries) % len(self.routers)]
            while (process := node.process) is None:  # noqa: ASYNC110 - simulated time costs nothing
                await asyncio.sleep(0.1)
            ask = self._new_ask(number, plan)
            future = self.loop.create_future()
            self.waiting[future] = process
            task = self.loop.task_in(process, self._run(node, process, ask, future))
            self.loop.errands[task] = ask
            if plan.cancel_after_s is not None and not tries:
                self.loop.run_in(process, plan.cancel_after_s, task.cancel)
            how, done = await future
            del self.waiting[future]
            self.tell("ended", ask.request.id, how, done)
            if how != "lost" or not plan.insists:
                break
            await asyncio.sleep(0.1)
        self.ended.append(Ended(how, plan, ask, done, self.loop.now - asked_at))

    def _new_ask(self, number: int, plan: Plan) -> Ask:
        name = len(self.asks)
        ask = Ask(name, number, plan.request(f"q{number}#{name}", name))
        self.asks.append(ask)
        return ask

    async def _run(self, node: Node, process: Process, ask: Ask, future: Any) -> None:
        end = ("cancelled", None)
        try:
            await self.opened[process].wait()
            hedge = self.scenario.router.hedge
            if hedge is not None and not hedge.max_fraction:
                node.actor.last_rows(ask.request.job)
            end = ("done", await node.actor.run(ask.request))
        finally:
            if process.alive:
                self.loop.run_in(self.loop.world, 0.0, _end, future, end)

    # ------------------------------------------------------------------ the end

    async def _calm_down(self) -> None:
        """The troubles are over: everybody is there again, and the network is whole."""
        self.tell("calm")
        self.disk.fails = self.disk.kills = 0.0
        self.network.heal()
        for node in self.nodes.values():
            if node.process is None:
                self.start(node.name)
            else:
                self.loop.wake_up(node.process)
        if self.old_budget.process is not None:
            self.loop.wake_up(self.old_budget.process)
        for opened in [self.opened[node.process] for node in self.routers if node.process is not None]:
            await opened.wait()

    async def _quiet(self, held: Callable[[], list[str]], when: str) -> None:
        """Wait until nothing is held any more."""
        until = self.loop.now + QUIET_S
        pause_s = 0.02
        while left := held():
            if self.loop.now >= until:
                self.breaks("leak", f"{when}: {'; '.join(left)}")
                return
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)
        if self.loop.now > until - QUIET_S + SLOW_S:
            self.count("slow to quiet")
            self.tell("slow to quiet", f"{self.loop.now - until + QUIET_S:.1f} s")

    async def _close(self) -> Any:
        """Close the routers, and wait until the ledger has nothing reserved. Returns its last words."""
        for node in self.routers:
            if node.process is not None:
                closed = self.loop.create_future()
                self.loop.task_in(node.process, self._close_router(node.actor, closed))
                await closed
        snapshot = await self._snapshot()
        until = self.loop.now + QUIET_S
        while left := [row for row in snapshot.limits if row.reserved]:
            if self.loop.now >= until:
                self.breaks("leak", f"reserved when all are gone: {left}")
                break
            await asyncio.sleep(self.scenario.lease_s + 0.1)  # what the dead held goes with their leases
            snapshot = await self._snapshot()
        return snapshot

    async def _close_router(self, router: Router, closed: Any) -> None:
        await router.close()
        _end(closed, None)

    async def _snapshot(self) -> Any:
        return await self.network.call(self.loop.world, self.budget, "show")

    def _after_call(self, node: Node, actor: Any, method: str) -> None:
        # What is wrong stays wrong, so every eighth step will do; a replay looks at all of them.
        if isinstance(actor, BudgetActor) and (self.trace or self.disk.version % 8 == 0 or method == "show"):
            for wrong in wrong_in_the_books(actor):
                self.breaks("overspend", wrong)

    def _tell(self, *words: object) -> None:
        self.trace.append(Told(self.loop.now - 1_000.0, self.loop.current.name, words))


def _make_tier(settings: TierSettings, endpoint: Endpoint) -> TierActor:
    return TierActor(settings, lambda settings: ([endpoint] * len(settings.base_url), ()))


def _silent(*words: object) -> None:
    pass


def _end(future: Any, end: Any) -> None:
    if not future.done():
        future.set_result(end)
