"""The actors on Ray: making them, finding them again, calling them, and ending them.

Actors are plain classes; Ray is applied here, and to the gateway's desk in runtime/gateway/hosting.py. They have names in one namespace, so that an actor that
Ray restarts finds the others by name and no handle has to be kept in Ray's object store. All restart for ever; none
has its calls retried by Ray, since a retried call to an endpoint is a call that is paid for twice.

A set of actors belongs to the program that made it and ends with it; but one that `raycade up` has made stays. Its
name tells its configuration and its code, so that whoever has the same finds it, and whoever has not learns that.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.budget.actor import BudgetActor
from actors.budget.rows import Snapshot
from actors.coalescer.actor import CoalescerActor
from actors.errors import ClusterError
from actors.lane import MAX_GAP_S, Lane
from actors.lane_peers import RayPeer
from actors.messages import Request
from actors.observer.scene import Happened, Report, Taken
from actors.router.actor import RouterActor
from actors.router.failures import FailureLog
from actors.router.flow import Router
from actors.settings import Price, ScopeSettings
from actors.tier.actor import TierActor
from runtime.config import Config, served_name
from runtime.connection import NAMESPACE, Place, connect, disconnect, first_line, place_of, started_here
from runtime.nodes import code_digest, survey
from runtime.routers import GAP_S
from runtime.running import sums_file
from runtime.wiring import ACTOR, Watching, cancel, find, holders, make_router, plain, watching

__all__ = ["Cluster", "Watching", "is_up"]

READY_TIMEOUT_S = 120.0
CLOSE_TIMEOUT_S = 8.0
ASK_AGAIN_S = 0.25
UP = "up"
A_BYTE: Mapping[str, object] = {"memory": 1}
"""For actors that take nothing at all Ray asks any node to find them one, and that node minds neither SPREAD nor a wish."""
SPREAD: Mapping[str, object] = {"scheduling_strategy": "SPREAD", **A_BYTE}
"""Over all nodes in turn; one whose node has gone is started again on another."""


class _Part(NamedTuple):
    """An actor of a set, before it is made."""

    name: str
    """Such as `router/0` or `tier/premium/1`."""
    kind: type
    arguments: tuple[object, ...]
    placed: Mapping[str, object]
    """Ray's options that say on which node."""


class Cluster:
    """A running set of actors. `start()` makes one, or finds one that is up; `close()` ends what it has made."""

    def __init__(self, config: Config, name: str) -> None:
        self._config = config
        self.name = name
        """Of this use of a set of actors; no other has it."""
        self.home = name
        """Of the set itself."""
        self.stays = False
        """Whether the set outlives this program."""
        self.alone = False
        """Whether it has one router only, which then keeps the coalescer's table itself: an actor for it would take a
        tenth of the throughput, to join the requests of one router with nobody's."""
        self.handles: dict[str, Any] = {}
        """Actor handles by name, such as `router/0` or `tier/premium/1`."""

    @classmethod
    async def start(
        cls,
        config: Config,
        prices: dict[str, Price],
        address: str | None = None,
        routers: int | None = None,
        kind: str = "job",
        max_gap_s: float = MAX_GAP_S,
        check: Callable[[], object] = lambda: None,
        home: str = "",
    ) -> "Cluster":
        """Start or join Ray; use the actors that are up there, or make some. Raises ClusterError.

        `routers`: how many router actors are needed; None: router.replicas. A gateway's replicas have routers of their own.
        `address`: a Ray cluster to join, or `local` for a Ray of its own; None: the Ray that this program is connected to
        or was submitted to, else the one where `raycade up` runs with this state_dir, else one of its own.
        `max_gap_s`: of the routers' lanes, where they are made here; small where somebody waits for every word.
        `check`: called before actors are made; raises for what only they need, such as keys.
        `home`: the name of a set that somebody keeps (runtime/keeper.py), and that is used.
        """
        await connect(place_of(config.state_dir, address))
        cluster = cls(config, f"{kind}-{uuid4().hex[:8]}")
        try:
            cluster.stays = bool(home) or await asyncio.to_thread(is_up, config)
            if cluster.stays:
                cluster.home = home or up_name(config)
                await cluster._find_actors(prices, routers)
            else:
                check()
                cluster.alone = cluster._routers(routers) == 1
                await cluster._make_actors(prices, routers, max_gap_s)
        except BaseException:
            await cluster.close()
            raise
        return cluster

    @classmethod
    async def up(cls, config: Config, prices: dict[str, Price], address: str) -> "Cluster":
        """Make a set of actors that stays and can be found. Raises ClusterError."""
        await connect(Place(address))
        cluster = cls(config, up_name(config))
        try:
            if await asyncio.to_thread(is_up, config):
                raise ClusterError("it is up already, with this configuration")
            await cluster._make_actors(prices, None, GAP_S, lifetime="detached")
        except BaseException:
            await cluster.close()
            raise
        cluster.stays = True
        return cluster

    @classmethod
    async def kept(cls, config: Config, prices: dict[str, Price], home: str) -> "Cluster":
        """Make a set of actors of that name, or what is missing of it; `close()` ends it. Raises ClusterError."""
        await connect(place_of(config.state_dir, None))
        cluster = cls(config, home)
        try:
            await cluster._make_actors(prices, None, GAP_S, lifetime="detached", get_if_exists=True)
        except BaseException:
            await cluster.close()
            raise
        return cluster

    @classmethod
    async def down(cls, config: Config, address: str) -> list[str]:
        """End what is up on that Ray with the ledger of this configuration; the names. Raises ClusterError."""
        await connect(Place(address))
        ended = []
        try:
            for name, parts in (await asyncio.to_thread(_all_up, config)).items():
                cluster = cls(config, name)
                cluster.handles = {part: find(f"{name}/{part}") for part in parts}
                await cluster._end_actors()
                ended.append(name)
        finally:
            await disconnect()
        return ended

    @property
    def address(self) -> str:
        """Of the Ray it runs on, for others to join."""
        return str(ray.get_runtime_context().gcs_address)

    def _routers(self, wanted: int | None) -> int:
        return self._config.router.replicas if wanted is None else wanted

    def _parts(self, prices: dict[str, Price], routers: int | None, max_gap_s: float) -> Iterator[_Part]:
        """All actors of the set, in the order in which they are made."""
        config = self._config
        here = ray.get_runtime_context().get_node_id()
        if config.telemetry.metrics_port is not None:
            from actors.observer.actor import ObserverActor

            # Scrapers and `raycade status` look for it where this program runs.
            arguments = (sums_file(config.state_dir, self.home), config.telemetry.metrics_port)
            yield _Part("observer", ObserverActor, arguments, _on(here))
        # A ledger in a file is on this machine: on another it would begin anew, and spend every limit again.
        yield _Part("budget", BudgetActor, (config.budget, config.ledger_place), _on(here, config.ledger is not None))
        if not self.alone:
            yield _Part("coalescer", CoalescerActor, (config.coalesce,), _on(here))
        for tier in config.tiers:
            for index in range(tier.replicas):
                yield _Part(f"tier/{tier.name}/{index}", TierActor, (tier,), SPREAD)
        make = partial(self.router_maker(prices), max_gap_s=max_gap_s)
        for index in range(self._routers(routers)):
            yield _Part(f"router/{index}", RouterActor, (partial(make, f"router/{index}"),), SPREAD)

    async def _make_actors(
        self, prices: dict[str, Price], routers: int | None, max_gap_s: float, **options: object
    ) -> None:
        if not started_here():  # there its processes have the environment and the code of this one
            await survey(self._config)
        for part in self._parts(prices, routers, max_gap_s):
            self._make(part, **options)
        await self._open_routers()

    async def _find_actors(self, prices: dict[str, Price], routers: int | None) -> None:
        """The handles of a set that is up, or is just being made."""
        wanted = [part.name for part in self._parts(prices, routers, GAP_S)]
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while wanted:
                    try:
                        self.handles[wanted[-1]] = await asyncio.to_thread(find, f"{self.home}/{wanted[-1]}")
                        wanted.pop()
                    except ValueError:
                        await asyncio.sleep(ASK_AGAIN_S)
        except TimeoutError:
            raise ClusterError(
                f"the runtime that is up has no actor {wanted[-1]}; end it with `raycade down`"
            ) from None
        await self._open_routers()

    async def _open_routers(self) -> None:
        names = [name for name in self.handles if name.startswith("router/")]
        await asyncio.gather(*(self._ask(name, "open", timeout_s=READY_TIMEOUT_S) for name in names))

    def router_maker(self, prices: dict[str, Price]) -> Callable[..., Router]:
        """What builds a Router, given its name, in whichever process of the cluster calls it; see `make_router`."""
        failures = FailureLog(os.path.abspath(self._config.state_dir))
        return partial(make_router, self.home, self._config, prices, code_digest(), failures, alone=self.alone)

    def watching_maker(self) -> Callable[[], Watching] | None:
        """What reaches the observer from whichever process of the cluster calls it; None: there is no observer."""
        return partial(watching, self.home) if "observer" in self.handles else None

    async def observer(self) -> tuple[Taken, tuple[str, ...], tuple[Happened, ...]]:
        """Where metrics are served, what gateways have to tell, and what happened with their tiers. Raises RaycadeError."""
        found: tuple[Taken, tuple[str, ...], tuple[Happened, ...]] = await self._ask("observer", "look", timeout_s=10.0)
        return found

    def _make(self, part: _Part, **more: object) -> None:
        options = {
            **part.placed,
            **more,
            **ACTOR,
            "name": f"{self.home}/{part.name}",
        }
        try:
            self.handles[part.name] = ray.remote(part.kind).options(**options).remote(*part.arguments)
        except ValueError as error:  # somebody else has made an actor of this name since we looked
            raise ClusterError(first_line(error)) from None

    def router_lanes(
        self,
        owner: str,
        on_note: Callable[[str, Any], None],
        weigh: Callable[[Request], int],
        max_gap_s: float = MAX_GAP_S,
    ) -> "list[Lane[Request, Any]]":
        """A calling half for every router, not yet open. `on_note` gets the router's name and its note."""
        named = {name: handle for name, handle in self.handles.items() if name.startswith("router/")}
        return [
            Lane(
                owner,
                RayPeer(handle, cancel),
                name=name,
                on_note=partial(on_note, name),
                weigh=weigh,
                max_gap_s=max_gap_s,
            )
            for name, handle in named.items()
        ]

    async def open_job(self, job: str, max_tokens: int | None, max_usd: float | None) -> None:
        """Give the job's scope in the ledger its own limits. Raises RaycadeError."""
        limits = self._config.budget.jobs.get(job, ScopeSettings())
        await self._ask("budget", "open_job", job, limits, max_tokens=max_tokens, max_usd=max_usd, timeout_s=30.0)

    def last_rows(self, job: str) -> None:
        """Tell the routers that the job has no more rows to send. Not waited for: say it again while it holds."""
        if self._config.router.hedge is not None:
            for name, handle in self.handles.items():
                if name.startswith("router/"):
                    handle.last_rows.remote(job)

    async def budget(self) -> Snapshot:
        """What the ledger says now. Raises RaycadeError."""
        snapshot: Snapshot = await self._ask("budget", "show", timeout_s=10.0)
        return snapshot

    async def report(self, report: Report) -> Taken:
        """Tell the observer. Raises what Ray raises: whoever calls tries again."""
        taken: Taken = await self.handles["observer"].report.remote(report)
        return taken

    async def last_scrape(self, most_s: float) -> bool:
        """Let whoever scrapes the observer see the end, if a scrape is due within `most_s`. Never raises."""
        if self.stays:
            return False  # it is there to be scraped tomorrow
        with contextlib.suppress(RayError, TimeoutError):
            async with asyncio.timeout(most_s + 1.0):
                return bool(await self.handles["observer"].last_scrape.remote(most_s))
        return False

    async def _ask(self, name: str, method: str, *args: Any, timeout_s: float, **named: Any) -> Any:
        """Call an actor's method, again while it is being restarted: only what may be done twice. Raises RaycadeError."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await getattr(self.handles[name], method).remote(*args, **named)
                    except RayActorError:
                        await asyncio.sleep(ASK_AGAIN_S)
        except RayError as error:
            raise plain(error) from None
        except TimeoutError:
            raise ClusterError(f"the actor {name} does not answer within {timeout_s:g} s") from None

    async def close(self) -> None:
        """End the actors, unless they stay, and let go of Ray. Never raises."""
        if not self.stays:
            await self._end_actors()
        self.handles.clear()
        await disconnect()

    async def _end_actors(self) -> None:
        """Let the routers give back what they hold, then end the actors."""
        routers = [handle for name, handle in self.handles.items() if name.startswith("router/")]
        await _answered(router.close.remote() for router in routers)
        for router in routers:
            with contextlib.suppress(Exception):
                ray.kill(router)
        last = []  # after the routers' last reports
        if "budget" in self.handles:
            last.append(self.handles["budget"].close.remote(holders(self.home)))
        if "observer" in self.handles:
            last.append(self.handles["observer"].close.remote())
        await _answered(last)
        for handle in self.handles.values():
            with contextlib.suppress(Exception):
                ray.kill(handle)
        self.handles.clear()


async def _answered(calls: Iterable[Awaitable[object]]) -> None:
    """Wait for calls that end actors, but not for ever. Never raises."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await asyncio.gather(*calls, return_exceptions=True)


def _on(node: str, elsewhere: bool = True) -> Mapping[str, object]:
    """On that node; `elsewhere`: on another when it has gone, else nowhere."""
    return {
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=elsewhere),
        **(A_BYTE if elsewhere else {}),
    }


# ---- what is up


def up_name(config: Config) -> str:
    """The name of a set of actors that stays: who has the same configuration and code has the same name for it."""
    return f"{UP}-{served_name(config)}-{code_digest()[:12]}"


def _all_up(config: Config) -> dict[str, list[str]]:
    """The sets of actors on this Ray that stay, of the ledger that is meant, and the names of their actors."""
    place = "-".join(up_name(config).split("-")[:2])
    found: dict[str, list[str]] = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        name, _, part = entry["name"].partition("/")
        if entry["namespace"] == NAMESPACE and name.startswith(f"{place}-"):
            found.setdefault(name, []).append(part)
    return found


def is_up(config: Config) -> bool:
    """Whether there is a set that stays, on the Ray of this process. Raises ClusterError when it is another of the same ledger."""
    name, others = up_name(config), _all_up(config)
    if name in others or not others:
        return name in others
    same = any(other.rpartition("-")[0] == name.rpartition("-")[0] for other in others)
    differs = "by another version of raycade" if same else "with another raycade.yaml"
    raise ClusterError(
        f"the runtime that is up with this state_dir was started {differs}: use the same, end it with `raycade down`, or "
        "choose a state_dir of your own"
    )
