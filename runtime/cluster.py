"""Everything that knows Ray: starting or joining it, making the actors, finding them again, and shutting down.

Actors are plain classes; Ray is applied here and nowhere else. They have names in one namespace, so that an actor that
Ray restarts finds the others by name and no handle has to be kept in Ray's object store. All restart for ever; none
has its calls retried by Ray, since a retried call to an endpoint is a call that is paid for twice.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported: nothing is sent anywhere
os.environ.setdefault(
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
)  # its new default, which else is announced in a warning

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import actors
import runtime
from actors.budget.actor import BudgetActor
from actors.budget.rows import Snapshot
from actors.coalescer.actor import CoalescerActor
from actors.errors import ClusterError, RaycadeError
from actors.lane import MAX_GAP_S, Lane, RayPeer
from actors.messages import Request
from actors.observer.scene import Report, Taken
from actors.router.actor import RouterActor
from actors.router.attempts import OnAttempt
from actors.router.failures import FailureLog
from actors.router.flow import Peers, Router
from actors.settings import Price, ScopeSettings
from runtime.config import Config
from runtime.running import sums_file

__all__ = ["Cluster", "Watching"]

NAMESPACE = "raycade"
OBJECT_STORE_BYTES = 200 * 1024 * 1024
"""Of an embedded Ray: rows travel inline, so the object store is nearly unused."""
READY_TIMEOUT_S = 120.0
EMBEDDED = {"RAY_task_events_report_interval_ms": "0", "RAY_event_stats": "0"}
"""An embedded Ray has no dashboard, so nobody reads its record of every actor call, which costs a tenth of the CPU."""
CLOSE_TIMEOUT_S = 8.0
ASK_AGAIN_S = 0.25


class Watching(NamedTuple):
    """The observer and the ledger, as a gateway's replica reaches them. The calls raise what Ray raises."""

    report: Callable[[Report], Awaitable[Taken]]
    scrape: Callable[[str], Awaitable[tuple[bytes, str]]]
    live: Callable[[], Awaitable[bytes]]
    budget: Callable[[], Awaitable[Snapshot]]


class Cluster:
    """A running set of actors. `start()` makes one, `close()` ends it."""

    def __init__(self, config: Config, prefix: str, embedded: bool) -> None:
        self._config = config
        self.name = self._prefix = prefix
        """Of this set of actors; no other has it."""
        self._embedded = embedded
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
    ) -> "Cluster":
        """Start or join Ray, and make the actors. Raises ClusterError.

        `routers`: how many router actors; None: router.replicas. A gateway's replicas have routers of their own.
        `address`: a Ray cluster to join; None: the cluster this process was submitted to, if any, else an embedded one.
        """
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        embedded = address == "local"
        await asyncio.to_thread(_connect, address)
        cluster = cls(config, f"{kind}-{uuid4().hex[:8]}", embedded)
        try:
            await cluster._make_actors(prices, routers)
        except BaseException:
            await cluster.close()
            raise
        return cluster

    async def _make_actors(self, prices: dict[str, Price], routers: int | None = None) -> None:
        config = self._config
        # Imported here, since a router's process imports this module too and has no use for the openai package.
        from actors.tier.actor import TierActor

        if config.telemetry.metrics_port is not None:
            from actors.observer.actor import ObserverActor

            # Where this program runs: scrapers and `raycade status` look for it on this machine.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            file = sums_file(config.state_dir, self._prefix)
            self._make("observer", ObserverActor, file, config.telemetry.metrics_port, scheduling_strategy=here)
        self._make("budget", BudgetActor, config.budget, config.ledger_place)
        self._make("coalescer", CoalescerActor, config.coalesce)
        for tier in config.tiers:
            for index in range(tier.replicas):
                self._make(f"tier/{tier.name}/{index}", TierActor, tier)
        for index in range(config.router.replicas if routers is None else routers):
            self._make(f"router/{index}", RouterActor, partial(self.router_maker(prices), f"router/{index}"))
        made = [name for name in self.handles if name.startswith("router/")]
        await asyncio.gather(*(self._ask(name, "open", timeout_s=READY_TIMEOUT_S) for name in made))

    def router_maker(self, prices: dict[str, Price]) -> Callable[..., Router]:
        """What builds a Router, given its name, in whichever process of the cluster calls it; see `_make_router`."""
        failures = FailureLog(os.path.abspath(self._config.state_dir))
        return partial(_make_router, self._prefix, self._config, prices, _digest(), failures)

    def watching_maker(self) -> Callable[[], Watching] | None:
        """What reaches the observer from whichever process of the cluster calls it; None: there is no observer."""
        return partial(_watching, self._prefix) if "observer" in self.handles else None

    async def observer(self) -> tuple[Taken, tuple[str, ...]]:
        """Where metrics are served, and what gateways have to tell. Raises RaycadeError."""
        found: tuple[Taken, tuple[str, ...]] = await self._ask("observer", "look", timeout_s=10.0)
        return found

    def _make(self, name: str, plain: type, *args: object, **placed: object) -> None:
        options = {
            **placed,
            "name": f"{self._prefix}/{name}",
            "namespace": NAMESPACE,
            "num_cpus": 0,
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": 1000,
        }
        self.handles[name] = ray.remote(plain).options(**options).remote(*args)

    def router_lanes(
        self, owner: str, on_note: Callable[[str, Any], None], weigh: Callable[[Request], int]
    ) -> "list[Lane[Request, Any]]":
        """A calling half for every router, not yet open. `on_note` gets the router's name and its note."""
        names = [name for name in self.handles if name.startswith("router/")]
        return [
            Lane(owner, RayPeer(self.handles[name], _cancel), name=name, on_note=partial(on_note, name), weigh=weigh)
            for name in names
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
            raise _plain(error) from None
        except TimeoutError:
            raise ClusterError(f"the actor {name} does not answer within {timeout_s:g} s") from None

    async def close(self) -> None:
        """Let the routers give back what they hold, then end the actors, and Ray if it is ours. Never raises."""
        routers = [handle.close.remote() for name, handle in self.handles.items() if name.startswith("router/")]
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.gather(*routers, return_exceptions=True)
                if "budget" in self.handles:
                    await self.handles["budget"].close.remote()  # its webhooks; after the routers' last reports
                if "observer" in self.handles:
                    await self.handles["observer"].close.remote()
        for handle in self.handles.values():
            with contextlib.suppress(Exception):
                ray.kill(handle)
        self.handles.clear()
        await asyncio.to_thread(ray.shutdown)


def _connect(address: str) -> None:
    if address == "local":
        for name, value in EMBEDDED.items():
            os.environ.setdefault(name, value)
    options: dict[str, Any] = (
        {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False} if address == "local" else {}
    )
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level="ERROR",
            **options,
        )
    except Exception as error:  # Ray raises a dozen kinds here, from ConnectionError to its own
        raise ClusterError(f"cannot {'start' if address == 'local' else 'reach'} Ray: {_first_line(error)}") from None


def _make_router(
    prefix: str,
    config: Config,
    prices: dict[str, Price],
    digest: str,
    failures: FailureLog,
    name: str,
    max_gap_s: float = MAX_GAP_S,
    on_attempt: OnAttempt | None = None,
) -> Router:
    """Build a Router in the process that hosts it, from the names of the other actors. Raises ClusterError.

    `max_gap_s`, `on_attempt`: see Router.
    """
    _check_code(digest)

    def find(actor: str) -> Any:
        return ray.get_actor(f"{prefix}/{actor}", namespace=NAMESPACE)

    budget = find("budget")

    async def exchange(message: Any) -> Any:
        try:
            return await budget.exchange.remote(message)
        except RayError as error:  # whose text, with process ids and colours, would stand in the job's progress
            raise _plain(error) from None

    tiers = [[RayPeer(find(f"tier/{tier.name}/{i}"), _cancel) for i in range(tier.replicas)] for tier in config.tiers]
    peers = Peers(tiers, RayPeer(find("coalescer"), _cancel) if config.coalesce.enabled else None, exchange)
    return Router(
        f"{prefix}/{name}",
        config.tiers,
        prices,
        config.router,
        config.budget,
        config.coalesce,
        peers,
        failures,
        max_gap_s,
        on_attempt,
    )


def _watching(prefix: str) -> Watching:
    observer, budget = (ray.get_actor(f"{prefix}/{name}", namespace=NAMESPACE) for name in ("observer", "budget"))

    async def report(report: Report) -> Taken:
        taken: Taken = await observer.report.remote(report)
        return taken

    async def scrape(accept: str) -> tuple[bytes, str]:
        scraped: tuple[bytes, str] = await observer.scrape.remote(accept)
        return scraped

    async def show() -> Snapshot:
        snapshot: Snapshot = await budget.show.remote()
        return snapshot

    async def live() -> bytes:
        told: bytes = await observer.live.remote()
        return told

    return Watching(report, scrape, live, show)


def _cancel(stream: Any) -> None:
    ray.cancel(stream)


def _sources() -> Iterable[Path]:
    for package in (actors, runtime):
        assert package.__file__ is not None
        yield from sorted(Path(package.__file__).parent.rglob("*.py"))


def _digest() -> str:
    """What tells this code from another version of it."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _check_code(expected: str) -> None:
    if _digest() != expected:
        raise ClusterError(
            f"the workers have other code than the program that started them ({actors.__file__}, {runtime.__file__} there); "
            "install the same version of raycade on all nodes, and mind folders of your own called actors or runtime"
        )


def _plain(error: RayError) -> RaycadeError:
    """Our own error out of the one that Ray wraps around it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, RaycadeError):
        return cause
    return error if isinstance(error, RaycadeError) else ClusterError(_first_line(error))


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
