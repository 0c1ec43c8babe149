"""What processes of the cluster do with names: find the other actors, and build what reaches them.

A router actor and a gateway's replica call these where they run, so that no handle has to travel.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

import actors
import runtime
from actors.budget.rows import Snapshot
from actors.coalescer.actor import CoalescerActor
from actors.errors import ClusterError, RaycadeError
from actors.lane import MAX_GAP_S, Peer
from actors.lane_peers import RayPeer
from actors.observer.scene import Report, Taken
from actors.router.attempts import OnAttempt
from actors.router.failures import FailureLog
from actors.router.flow import Peers, Router
from actors.settings import Price
from runtime.config import Config
from runtime.connection import NAMESPACE, first_line
from runtime.nodes import code_digest

__all__ = ["ACTOR", "Watching", "cancel", "find", "holders", "make_router", "plain", "watching"]


ACTOR: Mapping[str, object] = {
    "namespace": NAMESPACE,
    "num_cpus": 0,
    "max_restarts": -1,
    "max_task_retries": 0,
    "max_concurrency": 1000,
}
"""How Ray runs every actor of ours: it is restarted for ever, and none of its calls is retried, or it would be paid for twice."""


class Watching(NamedTuple):
    """The observer and the ledger, as a gateway's replica reaches them. The calls raise what Ray raises."""

    report: Callable[[Report], Awaitable[Taken]]
    scrape: Callable[[str], Awaitable[tuple[bytes, str]]]
    live: Callable[[], Awaitable[bytes]]
    budget: Callable[[], Awaitable[Snapshot]]


def find(name: str) -> Any:
    """The actor of that name. Raises ValueError."""
    return ray.get_actor(name, namespace=NAMESPACE)


def holders(home: str) -> str:
    """How the names of a set's routers begin, as holders of budget.

    Two clusters may have a set of one name and one ledger in PostgreSQL, where each holder must have a name of its own."""
    return f"{ray.get_runtime_context().get_session_name()}/{home}/"


def make_router(
    prefix: str,
    config: Config,
    prices: dict[str, Price],
    digest: str,
    failures: FailureLog,
    name: str,
    max_gap_s: float = MAX_GAP_S,
    on_attempt: OnAttempt | None = None,
    alone: bool = False,
) -> Router:
    """Build a Router in the process that hosts it, from the names of the other actors. Raises ClusterError.

    `max_gap_s`, `on_attempt`: see Router. `alone`: there is no other router to share calls with, so the coalescer's table
    is kept in this process, and a claim costs no way to another and back.
    """
    _check_code(digest)

    def peer(actor: str) -> RayPeer:
        return RayPeer(find(f"{prefix}/{actor}"), cancel)

    budget = find(f"{prefix}/budget")

    async def exchange(message: Any) -> Any:
        try:
            return await budget.exchange.remote(message)
        except RayError as error:  # whose text, with process ids and colours, would stand in the job's progress
            raise plain(error) from None

    tracing = None
    if config.telemetry.otlp_endpoint is not None:
        from actors.router.tracing import Tracing, otlp  # of the extra `otel`

        tracing = Tracing(f"{prefix}/{name}", otlp(config.telemetry.otlp_endpoint))
    tiers = [[peer(f"tier/{tier.name}/{index}") for index in range(tier.replicas)] for tier in config.tiers]
    coalescer: Peer | CoalescerActor | None = None
    if config.coalesce.enabled:
        coalescer = CoalescerActor(config.coalesce) if alone else peer("coalescer")
    peers = Peers(tiers, coalescer, exchange)
    return Router(
        holders(prefix) + name,
        config.tiers,
        prices,
        config.router,
        config.budget,
        config.coalesce,
        peers,
        failures,
        max_gap_s,
        tracing,
        on_attempt,
    )


def watching(prefix: str) -> Watching:
    """What reaches the observer and the ledger from this process."""
    observer, budget = (find(f"{prefix}/{name}") for name in ("observer", "budget"))

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


def cancel(stream: Any) -> None:
    """Stop what produces a stream."""
    ray.cancel(stream)


def _check_code(expected: str) -> None:
    if code_digest() != expected:
        raise ClusterError(
            f"the workers have other code than the program that started them ({actors.__file__}, {runtime.__file__} there); "
            "install the same version of raycade on all nodes, and mind folders of your own called actors or runtime"
        )


def plain(error: RayError) -> RaycadeError:
    """Our own error out of the one that Ray wraps around it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, RaycadeError):
        return cause
    return error if isinstance(error, RaycadeError) else ClusterError(first_line(error))
